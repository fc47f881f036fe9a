package authapi

import (
	"context"
	"net"
	"strings"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
)

// This file is about applications and databases: as people write them, and as agents
// announce that they serve them.

// settleApp makes of what an agent says what Auth stores: what only the agent needs stays
// with it.
func (a *agentStream) settleApp(ctx context.Context, said *typesv1.AppServer, instance *typesv1.Instance) (types.Resource, error) {
	app := said.GetSpec().GetApp()
	if app == nil {
		return nil, fault.Invalid("announced an application server without its application")
	}
	app = proto.CloneOf(app)
	if r := app.GetSpec().GetRewrite(); r != nil {
		r.Headers = nil // the values may be secrets of the application
	}
	if err := freeAddr(ctx, a.server.cfg.Config, app.GetSpec().GetPublicAddr()); err != nil {
		return nil, err
	}
	host := a.caller.Host()
	server, ok := types.New(types.KindAppServer, types.ServerName(app.GetMetadata().GetName(), host.ID)).(*typesv1.AppServer)
	if !ok || server.GetMetadata().GetName() != said.GetMetadata().GetName() {
		return nil, errOtherName(said, app)
	}
	server.Metadata.Labels = withToken(said.GetMetadata().GetLabels(), instance)
	server.Metadata.Description = app.GetMetadata().GetDescription()
	server.Spec = &typesv1.AppServerSpec{
		HostId: host.ID, Hostname: a.hostname(ctx, said.GetSpec().GetHostname()), SoftwareVersion: said.GetSpec().GetSoftwareVersion(),
		App: app, Health: said.GetSpec().GetHealth(),
	}
	return server, nil
}

// settleDatabase does the same for a database.
func (a *agentStream) settleDatabase(ctx context.Context, said *typesv1.DatabaseServer, instance *typesv1.Instance) (types.Resource, error) {
	db := said.GetSpec().GetDatabase()
	if db == nil {
		return nil, fault.Invalid("announced a database server without its database")
	}
	db = proto.CloneOf(db)
	if t := db.GetSpec().GetTls(); t != nil {
		t.CaCert = ""
	}
	host := a.caller.Host()
	server, ok := types.New(types.KindDatabaseServer, types.ServerName(db.GetMetadata().GetName(), host.ID)).(*typesv1.DatabaseServer)
	if !ok || server.GetMetadata().GetName() != said.GetMetadata().GetName() {
		return nil, errOtherName(said, db)
	}
	server.Metadata.Labels = withToken(said.GetMetadata().GetLabels(), instance)
	server.Metadata.Description = db.GetMetadata().GetDescription()
	server.Spec = &typesv1.DatabaseServerSpec{
		HostId: host.ID, Hostname: a.hostname(ctx, said.GetSpec().GetHostname()), SoftwareVersion: said.GetSpec().GetSoftwareVersion(),
		Database: db, Health: said.GetSpec().GetHealth(),
	}
	return server, nil
}

func errOtherName(server, resource types.Resource) error {
	return fault.Invalid("announced %s %q for %q", server.GetKind(), clip(server.GetMetadata().GetName()), clip(resource.GetMetadata().GetName()))
}

// ofResource reports whether a server of the kind is one of many of its host.
func ofResource(kind string) bool {
	return kind == types.KindAppServer || kind == types.KindDatabaseServer
}

// removeServed removes what a host serves.
func removeServed(ctx context.Context, cfg Config, tx *store.Tx, hostID string) error {
	apps, err := store.All[*typesv1.AppServer](ctx, cfg.Store, types.KindAppServer)
	if err != nil {
		return err
	}
	for _, s := range apps {
		if s.GetSpec().GetHostId() == hostID {
			deleteAt(tx, s)
		}
	}
	databases, err := store.All[*typesv1.DatabaseServer](ctx, cfg.Store, types.KindDatabaseServer)
	if err != nil {
		return err
	}
	for _, s := range databases {
		if s.GetSpec().GetHostId() == hostID {
			deleteAt(tx, s)
		}
	}
	return nil
}

// freeAddr refuses the host name of a Proxy as that of an application: who asks for the
// Proxy has to reach it.
func freeAddr(ctx context.Context, cfg Config, addr string) error {
	if addr == "" {
		return nil
	}
	proxies, err := store.All[*typesv1.Server](ctx, cfg.Store, types.KindProxy)
	if err != nil {
		return err
	}
	for _, p := range proxies {
		for _, public := range p.GetSpec().GetPublicAddrs() {
			if host, _, err := net.SplitHostPort(public); err == nil && strings.EqualFold(host, addr) {
				return fault.Invalid("spec.public_addr: %q is the address of a Proxy: an application needs one of its own, such as a name below it", addr)
			}
		}
	}
	return nil
}

// completeApp keeps applications from taking the address of others.
func completeApp(ctx context.Context, s *ResourceServer, _ *store.Tx, r, _ types.Resource) error {
	app, ok := r.(*typesv1.App)
	if !ok {
		return fault.Invalid("kind app with another kind's message")
	}
	addr := app.GetSpec().GetPublicAddr()
	if addr == "" {
		return nil
	}
	if err := freeAddr(ctx, s.cfg, addr); err != nil {
		return err
	}
	all, err := store.All[*typesv1.App](ctx, s.cfg.Store, types.KindApp)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other.GetMetadata().GetName() != app.GetMetadata().GetName() && strings.EqualFold(other.GetSpec().GetPublicAddr(), addr) {
			return fault.Invalid("spec.public_addr: %q is the address of application %q", addr, other.GetMetadata().GetName())
		}
	}
	return nil
}

func appFields(r types.Resource) map[string]any {
	fields := nameField(r)
	if app, ok := r.(*typesv1.App); ok {
		fields["app_uri"], fields["app_public_addr"], fields["app_labels"] = app.GetSpec().GetUri(), app.GetSpec().GetPublicAddr(), app.GetMetadata().GetLabels()
	}
	return withExpiry(fields, r)
}

func databaseFields(r types.Resource) map[string]any {
	fields := nameField(r)
	if db, ok := r.(*typesv1.Database); ok {
		fields["db_protocol"], fields["db_uri"], fields["db_labels"] = db.GetSpec().GetProtocol(), db.GetSpec().GetUri(), db.GetMetadata().GetLabels()
	}
	return withExpiry(fields, r)
}

func withExpiry(fields map[string]any, r types.Resource) map[string]any {
	if e := r.GetMetadata().GetExpires(); e != nil {
		fields["expires"] = e.AsTime()
	}
	return fields
}
