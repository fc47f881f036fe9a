package app

import (
	"maps"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/hosted"
	"teleport/internal/types"
	"teleport/internal/version"
)

// table is the applications that this host serves.
type table = hosted.Table[*typesv1.App, *served]

// served is an application that is served.
type served struct {
	*hosted.Entry[*typesv1.App]
	s      *Service
	name   string
	target *target
	// check has a value when the target is to be looked at soon.
	check chan struct{}
}

func newTable(s *Service) *table {
	return hosted.New(hosted.Config[*typesv1.App, *served]{
		Kind: types.KindApp, ServerKind: types.KindAppServer, Noun: "application", Key: "app",
		HostID: s.cfg.Holder.HostID, Cache: s.cfg.Cache, List: s.cfg.Cache.Apps,
		Labels: s.cfg.Labels, Matchers: s.cfg.Matchers, Announce: s.cfg.Announce, Withdraw: s.cfg.Withdraw,
		Log: s.cfg.Log, Healthy: s.metrics.healthy,
		Commands: func(a *typesv1.App) map[string]*typesv1.CommandLabel { return a.GetSpec().GetDynamicLabels() },
		Same:     same,
		Make:     s.newServed,
		Gone:     func(name string, _ bool) { s.live.endApp(name) },
		Changed:  s.live.recheck,
	})
}

// same reports whether connections may go on with the new version of an application.
func same(old, next *typesv1.App) bool {
	return proto.Equal(old.GetSpec(), next.GetSpec()) &&
		(maps.Equal(old.GetMetadata().GetLabels(), next.GetMetadata().GetLabels()) || len(next.GetSpec().GetDynamicLabels()) == 0)
}

func (s *Service) newServed(e *hosted.Entry[*typesv1.App]) (*served, error) {
	target, err := newTarget(e.Resource())
	if err != nil {
		return nil, err
	}
	return &served{Entry: e, s: s, name: e.Resource().GetMetadata().GetName(), target: target, check: make(chan struct{}, 1)}, nil
}

// setStatic replaces the static applications.
func (s *Service) setStatic(apps []*typesv1.App) error {
	for _, a := range apps {
		if err := types.Check(a); err != nil {
			return fault.Invalid("application %q: %w", a.GetMetadata().GetName(), err)
		}
	}
	return s.table.SetStatic(apps)
}

// find returns an application that is served, or nil. Before its labels are known nobody
// gets in.
func (s *Service) find(name string) *served {
	if sv, ok := s.table.Find(name); ok && sv.Ready() {
		return sv
	}
	return nil
}

// Self describes the application on this host to the cluster.
func (sv *served) Self() types.Resource {
	cfg := sv.s.cfg
	id := cfg.Holder.HostID()
	r, ok := types.New(types.KindAppServer, types.ServerName(sv.name, id)).(*typesv1.AppServer)
	if !ok {
		return nil
	}
	r.Metadata.Labels = sv.Labels()
	a := proto.CloneOf(sv.Resource())
	a.Metadata.Revision = ""
	a.Spec.DynamicLabels = nil
	if a.GetSpec().GetRewrite() != nil {
		// Headers may hold what only the application is to know.
		a.Spec.Rewrite.Headers = nil
	}
	r.Spec = &typesv1.AppServerSpec{HostId: id, Hostname: cfg.Hostname, SoftwareVersion: version.Version, App: a, Health: sv.Health()}
	return r
}
