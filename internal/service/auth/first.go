package auth

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/keystore"
	"teleport/internal/store"
	"teleport/internal/types"
)

// hostIDFile keeps the host id across restarts.
const hostIDFile = "host_uuid"

// loadHostID returns the host id in the data directory; it makes one if need be.
func loadHostID(dataDir string) (string, error) {
	path := filepath.Join(dataDir, hostIDFile)
	for range 2 {
		b, err := os.ReadFile(path)
		if err == nil {
			id, perr := uuid.Parse(strings.TrimSpace(string(b)))
			if perr != nil {
				return "", fault.Invalid("%s: not a host id: delete the file to get a new one", path)
			}
			return id.String(), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("host id: %w", err)
		}
		if err := os.MkdirAll(dataDir, 0o700); err != nil {
			return "", fmt.Errorf("host id: %w", err)
		}
		if err := createWhole(path, uuid.NewString()+"\n"); err != nil {
			return "", fmt.Errorf("host id: %w", err)
		}
	}
	return "", fault.Unreachable("%s: cannot be read back", path)
}

// createWhole makes a file with its content at once, unless there is one already.
func createWhole(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// hostname returns the machine's name, or one that is valid instead of it.
func hostname() string {
	name, err := os.Hostname()
	if err != nil || types.ValidHostname(name) != nil {
		return "localhost"
	}
	return strings.ToLower(name)
}

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
		name = s.name
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
			a.Spec.LastRotated = nil // it never was
			out[i] = a
			return nil
		})
	}
	return out, g.Wait()
}

// addMissing adds authorities and preset roles that this version has and the one
// that made the cluster had not.
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
		if _, err := s.store.Get(ctx, types.KindRole, r.GetMetadata().GetName()); errors.Is(err, fault.ErrNotFound) {
			add = append(add, r)
		} else if err != nil {
			return err
		}
	}
	for _, r := range add {
		if err := s.store.Tx().Create(r).Commit(ctx); err != nil && !errors.Is(err, fault.ErrExists) {
			return err
		}
	}
	return nil
}
