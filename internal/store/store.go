// Package store keeps typed resources and audit events in a backend: reads,
// lists, transactions that carry their audit events, and watches. It does not
// decide who may do what (package authz) and does not judge content that it
// stored before: one item that cannot be read never hides the others.
package store

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"teleport/internal/backend"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// Names of the key spaces.
const (
	resources = "res"
	// past holds what some kinds remember of resources that are gone.
	past   = "past"
	audits = "audit"
)

// Page sizes of List.
const (
	DefaultPage = 500
	MaxPage     = 1000

	// pageBytes ends a page early, so that it fits into one message.
	pageBytes = 2 << 20
)

// Config is what New needs.
type Config struct {
	// Backend is required. The store does not close it.
	Backend backend.Backend
	// Now is the clock of events; nil means time.Now.
	Now func() time.Time
	// Log hears of items that cannot be read; nil means nowhere.
	Log *slog.Logger
}

// Store is the cluster's state. It is safe for concurrent use.
type Store struct {
	backend backend.Backend
	now     func() time.Time
	log     *slog.Logger
	cluster atomic.Pointer[string]

	mu   sync.Mutex
	kept map[string]*kept
}

// New returns a store over the backend.
func New(cfg Config) *Store {
	s := &Store{backend: cfg.Backend, now: cfg.Now, log: cfg.Log, kept: map[string]*kept{}}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// SetCluster names the cluster that events are stamped with.
func (s *Store) SetCluster(name string) { s.cluster.Store(&name) }

func (s *Store) clusterName() string {
	if p := s.cluster.Load(); p != nil {
		return *p
	}
	return ""
}

// Get returns a resource or fault.ErrNotFound. The name of a singleton may be empty.
func (s *Store) Get(ctx context.Context, kind, name string) (types.Resource, error) {
	key, err := resourceKey(kind, name)
	if err != nil {
		return nil, err
	}
	it, err := s.backend.Get(ctx, key)
	if err != nil {
		return nil, named(err, map[string]string{key: title(kind, name)})
	}
	return decode(kind, it)
}

// Get returns a resource of a known type or fault.ErrNotFound.
func Get[T types.Resource](ctx context.Context, s *Store, kind, name string) (T, error) {
	var none T
	r, err := s.Get(ctx, kind, name)
	if err != nil {
		return none, err
	}
	t, ok := r.(T)
	if !ok {
		return none, fault.Invalid("%s is not of the type asked for", title(kind, name))
	}
	return t, nil
}

// Past returns a resource as it was last written although it expired or was deleted
// since, as long as its kind has the store remember it (types.KindInfo.Remember);
// fault.ErrNotFound after that. Its revision is not one that an update could carry.
func Past[T types.Resource](ctx context.Context, s *Store, kind, name string) (T, error) {
	var none T
	key := backend.Key(past, kind, name)
	it, err := s.backend.Get(ctx, key)
	if err != nil {
		return none, named(err, map[string]string{key: title(kind, name)})
	}
	r, err := types.Decode(kind, it.Value)
	if err != nil {
		return none, err
	}
	t, ok := r.(T)
	if !ok {
		return none, fault.Invalid("%s is not of the type asked for", title(kind, name))
	}
	return t, nil
}

// List returns a page of resources in the order of their names, and the token of
// the next page or "". Size 0 is the default, and more than MaxPage is MaxPage; a
// page of large resources has fewer.
// Items that cannot be read are logged and left out.
func (s *Store) List(ctx context.Context, kind string, pageSize int, pageToken string) ([]types.Resource, string, error) {
	if err := checkKinds([]string{kind}); err != nil {
		return nil, "", err
	}
	if pageSize <= 0 {
		pageSize = DefaultPage
	}
	pageSize = min(pageSize, MaxPage)
	start, end := backend.Prefix(resources, kind)
	if pageToken != "" {
		last, err := parsePageToken(pageToken, start)
		if err != nil {
			return nil, "", err
		}
		start = last + "\x00"
	}
	items, _, err := s.backend.Range(ctx, start, end, pageSize)
	if err != nil {
		return nil, "", err
	}
	out := make([]types.Resource, 0, len(items))
	bytes := 0
	for i, it := range items {
		if bytes += len(it.Value); i > 0 && bytes > pageBytes {
			return out, newPageToken(items[i-1].Key), nil
		}
		r, err := decode(kind, it)
		if err != nil {
			s.log.WarnContext(ctx, "a stored resource cannot be read and is left out", "key", it.Key, "error", err)
			continue
		}
		out = append(out, r)
	}
	next := ""
	if len(items) == pageSize {
		next = newPageToken(items[len(items)-1].Key)
	}
	return out, next, nil
}

// All returns every resource of a kind, in the order of their names.
func All[T types.Resource](ctx context.Context, s *Store, kind string) ([]T, error) {
	var out []T
	token := ""
	for {
		page, next, err := s.List(ctx, kind, MaxPage, token)
		if err != nil {
			return nil, err
		}
		for _, r := range page {
			t, ok := r.(T)
			if !ok {
				return nil, fault.Invalid("%s is not of the type asked for", title(kind, r.GetMetadata().GetName()))
			}
			out = append(out, t)
		}
		if next == "" {
			return out, nil
		}
		token = next
	}
}

// Below returns the resources of a kind whose names begin with the prefix, in the order
// of their names, and at most so many of them.
func Below[T types.Resource](ctx context.Context, s *Store, kind, prefix string, most int) ([]T, error) {
	if err := checkKinds([]string{kind}); err != nil {
		return nil, err
	}
	if most <= 0 {
		return nil, fault.Invalid("say how many of kind %s are read at most", kind)
	}
	start := backend.Key(resources, kind, prefix)
	items, _, err := s.backend.Range(ctx, start, backend.End(start), most)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(items))
	for _, it := range items {
		r, err := decode(kind, it)
		if err != nil {
			s.log.WarnContext(ctx, "a stored resource cannot be read and is left out", "key", it.Key, "error", err)
			continue
		}
		t, ok := r.(T)
		if !ok {
			return nil, fault.Invalid("%s is not of the type asked for", title(kind, r.GetMetadata().GetName()))
		}
		out = append(out, t)
	}
	return out, nil
}

// Revision returns the current revision of the store.
func (s *Store) Revision(ctx context.Context) (uint64, error) {
	start, end := backend.Prefix(resources, types.KindClusterName)
	_, revision, err := s.backend.Range(ctx, start, end, 1)
	return revision, err
}

func resourceKey(kind, name string) (string, error) {
	k, ok := types.Kind(kind)
	if !ok || k.Name != kind {
		return "", fault.Invalid("unknown kind %q", kind)
	}
	if k.Singleton && name == "" {
		name = kind
	}
	if name == "" {
		return "", fault.Invalid("a %s without a name", kind)
	}
	return backend.Key(resources, kind, name), nil
}

// decode reads a stored item. Revision and expiry are the backend's.
func decode(kind string, it backend.Item) (types.Resource, error) {
	r, err := types.Decode(kind, it.Value)
	if err != nil {
		return nil, err
	}
	md := r.GetMetadata()
	md.Revision = strconv.FormatUint(it.Revision, 10)
	md.Expires = nil
	if !it.Expires.IsZero() {
		md.Expires = timestamppb.New(it.Expires)
	}
	return r, nil
}

// title is a resource in messages.
func title(kind, name string) string {
	if name == "" {
		return kind
	}
	return kind + " " + strconv.Quote(name)
}

// named puts the titles of resources in the place of keys in errors of the backend.
func named(err error, titles map[string]string) error {
	var ke *backend.KeyError
	if !errors.As(err, &ke) {
		return err
	}
	what, ok := titles[ke.Key]
	if !ok {
		return err
	}
	switch {
	case errors.Is(ke, fault.ErrNotFound):
		return fault.NotFound("%s does not exist", what)
	case errors.Is(ke, fault.ErrExists):
		return fault.Exists("%s already exists", what)
	case errors.Is(ke, fault.ErrStale):
		return fault.Stale("%s was changed by somebody else: read it again and retry", what)
	}
	return err
}

// newPageToken makes an opaque token of the last key of a page.
func newPageToken(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

func parsePageToken(token, prefix string) (string, error) {
	if len(token) > 2*backend.MaxKey {
		return "", fault.Invalid("the page token is not one of ours: start again without it")
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || !strings.HasPrefix(string(b), prefix) {
		return "", fault.Invalid("the page token is not one of ours: start again without it")
	}
	return string(b), nil
}
