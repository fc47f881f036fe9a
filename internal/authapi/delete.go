package authapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
	"teleport/internal/websession"
)

// DeleteResource removes a resource and what belongs to it.
func (s *ResourceServer) DeleteResource(ctx context.Context, req *resourcev1.DeleteResourceRequest) (*resourcev1.DeleteResourceResponse, error) {
	info, err := served(req.GetKind())
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.some(ctx, info.Name, types.VerbDelete); err != nil {
		return nil, err
	}
	remove, ok := removers(info.Name)
	if !ok {
		return nil, fault.Unsupported("a resource of kind %s cannot be deleted: the cluster cannot do without it", info.Name)
	}
	for range upsertTries {
		var old types.Resource
		if old, err = s.cfg.Store.Get(ctx, info.Name, req.GetName()); err != nil {
			return nil, err
		}
		if err = s.cfg.verb(ctx, info.Name, types.VerbDelete, old); err != nil {
			return nil, err
		}
		tx := s.cfg.Store.Tx()
		if err = remove(ctx, s.cfg, tx, old); err != nil {
			return nil, err
		}
		if err = tx.Commit(ctx); !errors.Is(err, fault.ErrStale) && !errors.Is(err, fault.ErrNotFound) {
			break
		}
	}
	return &resourcev1.DeleteResourceResponse{}, err
}

// remover adds to tx what deleting r takes.
type remover func(ctx context.Context, cfg Config, tx *store.Tx, r types.Resource) error

func removers(kind string) (remover, bool) {
	switch kind {
	case types.KindUser:
		return removeUser, true
	case types.KindRole:
		return removeRole, true
	case types.KindToken:
		return removeToken, true
	case types.KindNode, types.KindProxy, types.KindAuthServer, types.KindAppServer, types.KindDatabaseServer:
		return removeServer, true
	case types.KindInstance:
		return removeInstance, true
	case types.KindLock:
		return removeLogged(audit.LockDelete, lockFields), true
	case types.KindClusterAlert:
		return removeLogged(audit.AlertDelete, alertFields), true
	case types.KindApp:
		return removeLogged(audit.AppDelete, nameField), true
	case types.KindDatabase:
		return removeLogged(audit.DatabaseDelete, nameField), true
	}
	return nil, false
}

// removeUser also removes what the user logs in with: its credential, the links that
// would set a new one, and the sessions of its browsers.
func removeUser(ctx context.Context, cfg Config, tx *store.Tx, r types.Resource) error {
	name := r.GetMetadata().GetName()
	deleteAt(tx, r)
	if err := deleteIfThere(ctx, cfg, tx, types.KindCredential, name); err != nil {
		return err
	}
	links, err := store.All[*typesv1.UserToken](ctx, cfg.Store, types.KindUserToken)
	if err != nil {
		return err
	}
	for _, link := range links {
		if link.GetSpec().GetUser() == name {
			deleteAt(tx, link)
		}
	}
	if err := websession.EndUser(ctx, cfg.Store, tx, name); err != nil {
		return err
	}
	tx.Emit(event(ctx, audit.UserDelete, nameField(r)))
	return nil
}

func removeRole(ctx context.Context, cfg Config, tx *store.Tx, r types.Resource) error {
	name := r.GetMetadata().GetName()
	if slices.ContainsFunc(types.PresetRoles(), func(p *typesv1.Role) bool { return p.GetMetadata().GetName() == name }) {
		return fault.Invalid("role %q is one of the cluster's own: it may be edited but not deleted", name)
	}
	users, err := store.All[*typesv1.User](ctx, cfg.Store, types.KindUser)
	if err != nil {
		return err
	}
	var holders []string
	for _, u := range users {
		if slices.Contains(u.GetSpec().GetRoles(), name) {
			holders = append(holders, u.GetMetadata().GetName())
		}
	}
	if len(holders) > 0 {
		return fault.Invalid("role %q is held by %s: take it from them first", name, some(holders))
	}
	deleteAt(tx, r)
	tx.Emit(event(ctx, audit.RoleDelete, nameField(r)))
	return nil
}

// some lists a few names and counts the rest.
func some(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

func removeToken(ctx context.Context, _ Config, tx *store.Tx, r types.Resource) error {
	if token, ok := r.(*typesv1.Token); ok && token.GetStatus().GetStatic() {
		return errStatic(r.GetMetadata().GetName())
	}
	deleteAt(tx, r)
	tx.Emit(event(ctx, audit.JoinTokenDelete, tokenFields(r)))
	return nil
}

func removeServer(ctx context.Context, _ Config, tx *store.Tx, r types.Resource) error {
	deleteAt(tx, r)
	fields := nameField(r)
	fields["kind"] = r.GetKind()
	tx.Emit(event(ctx, audit.NodeDelete, fields))
	return nil
}

// removeInstance takes a process out of the cluster: its certificates are not
// served any longer, and its servers go with it. Auth's own process would only make
// its instance anew.
func removeInstance(ctx context.Context, cfg Config, tx *store.Tx, r types.Resource) error {
	switch _, err := cfg.Store.Get(ctx, types.KindAuthServer, r.GetMetadata().GetName()); {
	case err == nil:
		return fault.Invalid("instance %q runs the Auth Service, which cannot take itself out of the cluster: stop it, then remove it from another one", r.GetMetadata().GetName())
	case !errors.Is(err, fault.ErrNotFound):
		return err
	}
	deleteAt(tx, r)
	for _, kind := range []string{types.KindNode, types.KindProxy} {
		if err := deleteIfThere(ctx, cfg, tx, kind, r.GetMetadata().GetName()); err != nil {
			return err
		}
	}
	if err := removeServed(ctx, cfg, tx, r.GetMetadata().GetName()); err != nil {
		return err
	}
	fields := nameField(r)
	if instance, ok := r.(*typesv1.Instance); ok {
		fields["host_id"], fields["node_name"] = r.GetMetadata().GetName(), instance.GetSpec().GetHostname()
	}
	tx.Emit(event(ctx, audit.InstanceDelete, fields))
	return nil
}

func deleteAt(tx *store.Tx, r types.Resource) {
	tx.Delete(r.GetKind(), r.GetMetadata().GetName(), r.GetMetadata().GetRevision())
}

func deleteIfThere(ctx context.Context, cfg Config, tx *store.Tx, kind, name string) error {
	r, err := cfg.Store.Get(ctx, kind, name)
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	if err == nil {
		deleteAt(tx, r)
	}
	return err
}
