package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/keystore"
	"teleport/internal/store"
	"teleport/internal/types"
)

// openCluster returns the cluster that the backend holds. If there is none, it is
// made in one transaction: name, authorities and preset roles.
func (s *Service) openCluster(ctx context.Context) (*typesv1.ClusterName, error) {
	cluster, err := store.Get[*typesv1.ClusterName](ctx, s.store, types.KindClusterName, types.KindClusterName)
	if errors.Is(err, fault.ErrNotFound) {
		if err := s.makeCluster(ctx); err != nil && !errors.Is(err, fault.ErrExists) {
			return nil, fmt.Errorf("make the cluster: %w", err)
		}
		cluster, err = store.Get[*typesv1.ClusterName](ctx, s.store, types.KindClusterName, types.KindClusterName)
	}
	if err != nil {
		return nil, fmt.Errorf("load the cluster: %w", err)
	}
	if want := s.cfg.ClusterName; want != "" && want != cluster.GetSpec().GetClusterName() {
		return nil, fault.Invalid("auth_service.cluster_name is %q, but the cluster in this storage is named %q: a cluster cannot be renamed; set the name back, or start with empty storage",
			want, cluster.GetSpec().GetClusterName())
	}
	return cluster, s.addMissing(ctx, cluster.GetSpec().GetClusterName())
}

func (s *Service) makeCluster(ctx context.Context) error {
	name := s.cfg.ClusterName
	if name == "" {
		name = s.cfg.Hostname
	}
	cluster, ok := types.New(types.KindClusterName, types.KindClusterName).(*typesv1.ClusterName)
	if !ok {
		return fault.Invalid("kind cluster_name with another kind's message")
	}
	cluster.Spec = &typesv1.ClusterNameSpec{ClusterName: name, ClusterId: uuid.NewString()}
	if err := types.Check(cluster); err != nil {
		return fmt.Errorf("auth_service.cluster_name: %w", err)
	}
	cas, err := s.generate(ctx, name, ca.Types())
	if err != nil {
		return err
	}
	tx := s.store.Tx().Create(cluster)
	for _, a := range cas {
		tx.Create(a)
	}
	for _, r := range types.PresetRoles() {
		tx.Create(r)
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	s.cfg.Log.InfoContext(ctx, "made a new cluster", "cluster", name)
	return nil
}

// generate makes authorities of the types, all at once.
func (s *Service) generate(ctx context.Context, cluster string, typs []string) ([]*typesv1.CertAuthority, error) {
	out := make([]*typesv1.CertAuthority, len(typs))
	g, _ := errgroup.WithContext(ctx)
	for i, typ := range typs {
		g.Go(func() error {
			a, err := ca.Generate(keystore.Software(), cluster, typ, s.cfg.Now())
			if err != nil {
				return err
			}
			out[i] = a
			return nil
		})
	}
	return out, g.Wait()
}

// addMissing adds authorities and preset roles that this version has and the one
// that made the cluster had not, and to presets that nobody has changed what is new.
func (s *Service) addMissing(ctx context.Context, cluster string) error {
	var missing []string
	for _, typ := range ca.Types() {
		if _, err := s.store.Get(ctx, types.KindCertAuthority, typ); errors.Is(err, fault.ErrNotFound) {
			missing = append(missing, typ)
		} else if err != nil {
			return err
		}
	}
	cas, err := s.generate(ctx, cluster, missing)
	if err != nil {
		return err
	}
	var add []types.Resource
	for _, a := range cas {
		add = append(add, a)
	}
	for _, r := range types.PresetRoles() {
		old, err := store.Get[*typesv1.Role](ctx, s.store, types.KindRole, r.GetMetadata().GetName())
		switch {
		case errors.Is(err, fault.ErrNotFound):
			add = append(add, r)
		case err != nil:
			return err
		case proto.Equal(old.GetSpec(), withoutResources(r).GetSpec()):
			if err := s.renewPreset(ctx, old, r); err != nil {
				return err
			}
		}
	}
	for _, r := range add {
		if err := s.store.Tx().Create(r).Commit(ctx); err != nil && !errors.Is(err, fault.ErrExists) {
			return err
		}
	}
	return nil
}

// withoutResources returns the preset as it was before there were applications and
// databases.
func withoutResources(preset *typesv1.Role) *typesv1.Role {
	r := proto.CloneOf(preset)
	if allow := r.GetSpec().GetAllow(); allow != nil {
		allow.AppLabels, allow.DbLabels, allow.DbUsers, allow.DbNames, allow.DbRoles = nil, nil, nil, nil, nil
		for _, rule := range allow.GetRules() {
			rule.Resources = slices.DeleteFunc(rule.Resources, func(kind string) bool {
				return slices.Contains([]string{types.KindApp, types.KindAppServer, types.KindDatabase, types.KindDatabaseServer}, kind)
			})
		}
	}
	return r
}

// renewPreset gives a preset role that nobody has changed what this version has in it.
func (s *Service) renewPreset(ctx context.Context, old, preset *typesv1.Role) error {
	old.Spec, old.Version = preset.GetSpec(), preset.GetVersion()
	e := audit.New(audit.RoleUpdate, map[string]any{
		"name": old.GetMetadata().GetName(), "user": "Auth Service", "reason": "the preset of this version has more in it, and nobody had changed the role", "success": true,
	})
	err := s.store.Tx().Update(old).Emit(e).Commit(ctx)
	if errors.Is(err, fault.ErrStale) || errors.Is(err, fault.ErrNotFound) {
		return nil // somebody else was faster
	}
	return err
}
