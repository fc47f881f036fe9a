package authapi

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/join/boundkeypair"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// maxPageBytes keeps an answer well below what clients accept.
const maxPageBytes = rpc.MaxResponse * 3 / 4

// ResourceServer reads and writes resources of every kind that is served.
type ResourceServer struct {
	resourcev1.UnimplementedResourceServiceServer
	cfg Config
}

// NewResource returns the handler of ResourceService.
func NewResource(cfg Config) (*ResourceServer, error) {
	cfg, err := cfg.checked()
	return &ResourceServer{cfg: cfg}, err
}

// GetResource returns one resource. A user who may not read nodes gets those that
// its roles let it see.
func (s *ResourceServer) GetResource(ctx context.Context, req *resourcev1.GetResourceRequest) (*resourcev1.GetResourceResponse, error) {
	info, err := served(req.GetKind())
	if err != nil {
		return nil, err
	}
	see, err := s.visible(ctx, info.Name, types.VerbRead)
	if err != nil {
		return nil, err
	}
	r, err := s.cfg.Store.Get(ctx, info.Name, req.GetName())
	if err != nil {
		return nil, err
	}
	if !see(r) {
		return nil, fault.NotFound("%s %q does not exist", info.Name, clip(req.GetName()))
	}
	packed, err := types.ToAny(s.shown(r))
	return &resourcev1.GetResourceResponse{Resource: packed}, err
}

// ListResources returns a page of resources. A user who may not list nodes gets
// those that its roles let it see: a page may then be short, or empty, although
// more follow.
func (s *ResourceServer) ListResources(ctx context.Context, req *resourcev1.ListResourcesRequest) (*resourcev1.ListResourcesResponse, error) {
	info, err := served(req.GetKind())
	if err != nil {
		return nil, err
	}
	if req.GetPageSize() < 0 {
		return nil, fault.Invalid("page_size %d: use 1 to 1000, or 0 for the default", req.GetPageSize())
	}
	see, err := s.visible(ctx, info.Name, types.VerbList)
	if err == nil && req.GetUsable() {
		see, err = s.usable(ctx, info.Name, see)
	}
	if err == nil && req.GetQuery() != "" {
		see, err = queried(info.Name, req.GetQuery(), see)
	}
	if err != nil {
		return nil, err
	}
	for size := int(req.GetPageSize()); ; {
		page, next, err := s.cfg.Store.List(ctx, info.Name, size, req.GetPageToken())
		if err != nil {
			return nil, err
		}
		out, bytes, err := s.pack(page, see)
		if err != nil {
			return nil, err
		}
		if bytes > maxPageBytes && len(page) > 1 {
			size = len(page) / 2
			continue
		}
		return &resourcev1.ListResourcesResponse{Resources: out, NextPageToken: next}, nil
	}
}

func (s *ResourceServer) pack(page []types.Resource, see func(types.Resource) bool) ([]*anypb.Any, int, error) {
	out := make([]*anypb.Any, 0, len(page))
	bytes := 0
	for _, r := range page {
		if !see(r) {
			continue
		}
		packed, err := types.ToAny(s.shown(r))
		if err != nil {
			return nil, 0, err
		}
		bytes += proto.Size(packed)
		out = append(out, packed)
	}
	return out, bytes, nil
}

// reached reports whether users see resources of the kind because they may connect there.
func reached(kind string) bool {
	return kind == types.KindNode || kind == types.KindAppServer || kind == types.KindDatabaseServer
}

// visible returns what the caller may see of a kind: what it may do the verb to; of
// what is reached also what its roles match.
func (s *ResourceServer) visible(ctx context.Context, kind, verb string) (func(types.Resource) bool, error) {
	caller := rpc.CallerFrom(ctx)
	if kind == types.KindSessionTracker && caller.User() != nil {
		return s.seesSessions(ctx, verb)
	}
	if !reached(kind) || caller.User() == nil {
		return s.cfg.some(ctx, kind, verb)
	}
	subject, err := s.cfg.Authorizer.Subject(ctx, caller)
	if err != nil {
		return nil, err
	}
	checker := access.NewChecker(subject)
	if checker.Verb(kind, verb).Allowed {
		return func(types.Resource) bool { return true }, nil
	}
	return func(r types.Resource) bool {
		return checker.SeesResource(r).Allowed || checker.VerbOn(kind, verb, r).Allowed
	}, nil
}

// queried narrows what the caller sees to what a query is true of.
func queried(kind, text string, see func(types.Resource) bool) (func(types.Resource) bool, error) {
	query, err := access.ParseQuery(kind, text)
	if err != nil {
		return nil, err
	}
	return func(r types.Resource) bool { return see(r) && query.Match(r) }, nil
}

// usable narrows what the caller sees to what its roles let it connect to.
func (s *ResourceServer) usable(ctx context.Context, kind string, see func(types.Resource) bool) (func(types.Resource) bool, error) {
	if !reached(kind) {
		return nil, fault.Unsupported("usable: only for %s, %s and %s, not for %s", types.KindNode, types.KindAppServer, types.KindDatabaseServer, kind)
	}
	subject, err := s.cfg.Authorizer.Subject(ctx, rpc.CallerFrom(ctx))
	if err != nil {
		return nil, err
	}
	checker := access.NewChecker(subject)
	return func(r types.Resource) bool {
		return see(r) && checker.SeesResource(r).Allowed
	}, nil
}

// CreateResource adds a resource.
func (s *ResourceServer) CreateResource(ctx context.Context, req *resourcev1.CreateResourceRequest) (*resourcev1.CreateResourceResponse, error) {
	w, err := s.writing(ctx, req.GetResource(), types.VerbCreate)
	if err != nil {
		return nil, err
	}
	if err := w.rules.name(ctx, s, w.resource, false); err != nil {
		return nil, err
	}
	if err := s.commitNew(ctx, w); err != nil {
		return nil, err
	}
	packed, err := types.ToAny(w.answer())
	return &resourcev1.CreateResourceResponse{Resource: packed}, err
}

// UpdateResource replaces a resource that is still at the revision the caller read.
func (s *ResourceServer) UpdateResource(ctx context.Context, req *resourcev1.UpdateResourceRequest) (*resourcev1.UpdateResourceResponse, error) {
	w, err := s.writing(ctx, req.GetResource(), types.VerbUpdate)
	if err != nil {
		return nil, err
	}
	md := w.resource.GetMetadata()
	if md.GetRevision() == "" {
		return nil, fault.Invalid("metadata.revision: missing: read the %s, change it and send it back with the revision it came with", w.resource.GetKind())
	}
	old, err := s.cfg.Store.Get(ctx, w.resource.GetKind(), md.GetName())
	if err != nil {
		return nil, err
	}
	if old.GetMetadata().GetRevision() != md.GetRevision() {
		return nil, fault.Stale("%s %q was changed by somebody else: read it again and retry", w.resource.GetKind(), md.GetName())
	}
	if err := s.commitOver(ctx, w, old); err != nil {
		return nil, err
	}
	packed, err := types.ToAny(w.answer())
	return &resourcev1.UpdateResourceResponse{Resource: packed}, err
}

// upsertTries is how often an upsert that meets other writers starts again.
const upsertTries = 5

// UpsertResource writes a resource whether or not there is one of that name.
func (s *ResourceServer) UpsertResource(ctx context.Context, req *resourcev1.UpsertResourceRequest) (*resourcev1.UpsertResourceResponse, error) {
	w, err := s.writing(ctx, req.GetResource(), types.VerbCreate, types.VerbUpdate)
	if err != nil {
		return nil, err
	}
	if err := w.rules.name(ctx, s, w.resource, true); err != nil {
		return nil, err
	}
	md := w.resource.GetMetadata()
	var created bool
	for range upsertTries {
		var old types.Resource
		old, err = s.cfg.Store.Get(ctx, w.resource.GetKind(), md.GetName())
		switch {
		case errors.Is(err, fault.ErrNotFound):
			created = true
			err = s.commitNew(ctx, w)
		case err == nil:
			created = false
			md.Revision = old.GetMetadata().GetRevision()
			err = s.commitOver(ctx, w, old)
		}
		if err == nil {
			packed, err := types.ToAny(w.answer())
			return &resourcev1.UpsertResourceResponse{Resource: packed, Created: created}, err
		}
		if !errors.Is(err, fault.ErrStale) && !errors.Is(err, fault.ErrExists) && !errors.Is(err, fault.ErrNotFound) {
			break
		}
	}
	return nil, err
}

// write is a resource on its way to the store, with the rules of its kind.
type write struct {
	resource types.Resource
	rules    rules
	// verbs are those that the caller needs on the resource as it is stored; on the one
	// that it replaces the caller needs update.
	verbs []string
	// secret was made for the resource and is shown once, in the answer.
	secret string
}

// complete fills in what Auth decides.
func (s *ResourceServer) complete(ctx context.Context, tx *store.Tx, w *write, old types.Resource) error {
	if err := w.rules.complete(ctx, s, tx, w.resource, old); err != nil {
		return err
	}
	token, ok := w.resource.(*typesv1.Token)
	if !ok {
		return nil
	}
	var err error
	w.secret, err = boundkeypair.Prepare(token)
	return err
}

// answer returns the resource as its writer may see it.
func (w *write) answer() types.Resource {
	r := public(w.resource)
	if token, ok := r.(*typesv1.Token); ok && w.secret != "" {
		token = proto.CloneOf(token)
		token.Status.BoundKeypair.RegistrationSecret = w.secret
		return token
	}
	return r
}

// writing unpacks and checks what a caller with the verbs wants to write.
func (s *ResourceServer) writing(ctx context.Context, packed *anypb.Any, verbs ...string) (*write, error) {
	r, err := types.FromAny(packed)
	if err != nil {
		return nil, err
	}
	info, err := served(r.GetKind())
	if err != nil {
		return nil, err
	}
	for _, v := range verbs {
		if _, err := s.cfg.some(ctx, info.Name, v); err != nil {
			return nil, err
		}
	}
	kindRules, ok := rulesOf(info.Name)
	if !ok || !info.Writable {
		return nil, fault.Unsupported("a resource of kind %s is not written by people: the cluster keeps it", info.Name)
	}
	if err := types.Check(r); err != nil {
		return nil, err
	}
	if role, ok := r.(*typesv1.Role); ok {
		if err := access.Check(role); err != nil {
			return nil, err
		}
	}
	if e := r.GetMetadata().GetExpires(); e != nil && !e.AsTime().After(s.cfg.Now()) {
		return nil, fault.Invalid("metadata.expires: %s has passed", e.AsTime().UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	return &write{resource: r, rules: kindRules, verbs: verbs}, nil
}

func (s *ResourceServer) commitNew(ctx context.Context, w *write) error {
	tx := s.cfg.Store.Tx()
	if err := s.complete(ctx, tx, w, nil); err != nil {
		return err
	}
	if err := s.mayWrite(ctx, w); err != nil {
		return err
	}
	return tx.Create(w.resource).Emit(event(ctx, w.rules.created, w.rules.fields(w.resource))).Commit(ctx)
}

// mayWrite asks about the resource as it will be stored: names and roles are spelled
// as the cluster spells them, and what Auth decides is filled in.
func (s *ResourceServer) mayWrite(ctx context.Context, w *write) error {
	for _, v := range w.verbs {
		if err := s.cfg.verb(ctx, w.resource.GetKind(), v, w.resource); err != nil {
			return err
		}
	}
	return nil
}

// commitOver replaces old, whose revision w.resource carries. Who may write only
// some resources may neither change another one nor make another one of it.
func (s *ResourceServer) commitOver(ctx context.Context, w *write, old types.Resource) error {
	if err := s.cfg.verb(ctx, old.GetKind(), types.VerbUpdate, old); err != nil {
		return err
	}
	tx := s.cfg.Store.Tx()
	if err := s.complete(ctx, tx, w, old); err != nil {
		return err
	}
	if err := s.mayWrite(ctx, w); err != nil {
		return err
	}
	return tx.Update(w.resource).Emit(event(ctx, w.rules.updated, w.rules.fields(w.resource))).Commit(ctx)
}
