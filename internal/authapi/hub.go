package authapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/retry"
	"teleport/internal/store"
	"teleport/internal/types"
)

// feedLength is how many changes a feed remembers: who falls further behind starts
// over with a snapshot.
const feedLength = 8192

// hub follows the store once for all control streams. It keeps each resource as the
// very message that is sent, shared by every stream, and a feed of recent changes
// for each audience; a stream has only its place in a feed.
type hub struct {
	store *store.Store
	log   *slog.Logger
	// onGone is called when an instance was deleted.
	onGone func(hostID string)
	// onLock is called when a lock was made or changed.
	onLock func(l *typesv1.Lock, revision uint64)

	mu    sync.RWMutex
	ready chan struct{}
	// current holds what is known, by kind and name.
	current map[string]map[string]*entry
	// complete is the revision up to which every change was taken. It is behind the
	// last one seen, since a transaction arrives as several changes of one revision.
	complete uint64
	facts    facts
	// feeds has one for each audience.
	feeds map[audience]*feed
}

// entry is a change in the form in which it is sent. Resource is unset in message
// when it was deleted.
type entry struct {
	kind, name string
	message    *agentv1.ControlResponse
}

// feed is a ring of the recent changes for one audience.
type feed struct {
	kinds []string
	// epoch is random: revisions mean something to this process and audience only, so
	// that a store that was restored from a backup cannot be taken for its own future,
	// and a host that serves more than before starts over.
	epoch string
	// entries are the changes number first, first+1, ...
	entries []*entry
	first   uint64
	// floor is the revision that everything before entries is contained in.
	floor uint64
	// more is closed and replaced when something was added.
	more chan struct{}
}

// audience is what those have in common who are sent the same.
type audience struct{ proxy, app, database bool }

// kinds returns what they decide with.
func (a audience) kinds() []string {
	out := []string{types.KindClusterName, types.KindCertAuthority, types.KindRole, types.KindLock}
	if a.proxy {
		// Proxies find servers. Of instance they get no more than that it is there and
		// which token it joined with: a host that was removed has no business with them.
		// Its deletion ends the control streams of the host as well.
		out = append(out, types.KindNode, types.KindProxy, types.KindInstance, types.KindAppServer, types.KindDatabaseServer)
	}
	if a.app {
		out = append(out, types.KindApp)
	}
	if a.database {
		out = append(out, types.KindDatabase)
	}
	return out
}

func audiences() []audience {
	var out []audience
	for i := range 8 {
		out = append(out, audience{proxy: i&1 != 0, app: i&2 != 0, database: i&4 != 0})
	}
	return out
}

// followed also has what nobody is sent: which host a session is on.
func followed() []string {
	return append(audience{proxy: true, app: true, database: true}.kinds(), types.KindSessionTracker)
}

func newHub(s *store.Store, log *slog.Logger, onGone func(string), onLock func(*typesv1.Lock, uint64)) (*hub, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	h := &hub{
		store: s, log: log, onGone: onGone, onLock: onLock, facts: newFacts(), ready: make(chan struct{}),
		current: map[string]map[string]*entry{}, feeds: map[audience]*feed{},
	}
	for i, a := range audiences() {
		h.feeds[a] = &feed{kinds: a.kinds(), epoch: fmt.Sprintf("%x-%d", b, i), more: make(chan struct{})}
	}
	return h, nil
}

// run follows the store until ctx ends. When history is gone, or reading failed, it
// reads everything anew and sends on the difference.
func (h *hub) run(ctx context.Context) error {
	backoff := retry.Backoff{Min: 100 * time.Millisecond, Max: 10 * time.Second}
	for {
		err := h.follow(ctx, backoff.Reset)
		if ctx.Err() != nil {
			break
		}
		h.log.WarnContext(ctx, "lost track of the store, reading it anew", "error", err)
		if backoff.Wait(ctx) != nil {
			break
		}
	}
	return nil
}

func (h *hub) follow(ctx context.Context, following func()) error {
	snapshot, revision, err := h.store.Snapshot(ctx, followed())
	if err != nil {
		return err
	}
	if err := h.load(snapshot, revision); err != nil {
		return err
	}
	w, err := h.store.Watch(ctx, followed(), revision)
	if err != nil {
		return err
	}
	defer w.Close()
	for c := range w.Changes() {
		if err := h.take(c); err != nil {
			return err
		}
		following()
	}
	return w.Err()
}

// load makes the snapshot the current state; the difference goes to the feeds.
func (h *hub) load(snapshot []types.Change, revision uint64) error {
	seen := map[[2]string]bool{}
	for _, c := range snapshot {
		seen[[2]string{c.Kind, c.Name}] = true
		c.Revision = revision
		if err := h.take(c); err != nil {
			return err
		}
	}
	var gone []types.Change
	h.mu.RLock()
	for kind, names := range h.current {
		for name := range names {
			if !seen[[2]string{kind, name}] {
				gone = append(gone, types.Change{Revision: revision, Kind: kind, Name: name})
			}
		}
	}
	for id := range h.facts.hostOf {
		if !seen[[2]string{types.KindSessionTracker, id}] {
			gone = append(gone, types.Change{Revision: revision, Kind: types.KindSessionTracker, Name: id})
		}
	}
	h.mu.RUnlock()
	for _, c := range gone {
		if err := h.take(c); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.complete = max(h.complete, revision)
	select {
	case <-h.ready:
	default:
		// What was there before the first stream is in snapshots only.
		for _, f := range h.feeds {
			f.first += uint64(len(f.entries))
			f.entries, f.floor = nil, revision
		}
		close(h.ready)
	}
	return nil
}

// take takes one change over.
func (h *hub) take(c types.Change) error {
	if c.Kind == types.KindInstance && c.Resource == nil {
		h.onGone(c.Name)
	}
	if c.Kind == types.KindSessionTracker {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.facts.take(c)
		return nil
	}
	e, err := newEntry(c)
	if err != nil {
		return err
	}
	h.add(c, e)
	if l, ok := c.Resource.(*typesv1.Lock); ok {
		h.onLock(l, c.Revision)
	}
	return nil
}

// add adds one change to the state and to the feeds.
func (h *hub) add(c types.Change, e *entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.facts.take(c)
	h.complete = max(h.complete, c.Revision-1)
	names := h.current[c.Kind]
	if names == nil {
		names = map[string]*entry{}
		h.current[c.Kind] = names
	}
	old := names[c.Name]
	switch {
	case c.Resource == nil && old == nil, c.Resource != nil && same(old, e):
		return // a heartbeat changes nothing that anybody decides with
	case c.Resource == nil:
		delete(names, c.Name)
	default:
		names[c.Name] = e
	}
	for _, f := range h.feeds {
		if slices.Contains(f.kinds, c.Kind) {
			f.add(e)
		}
	}
}

func newEntry(c types.Change) (*entry, error) {
	change := &agentv1.Change{Revision: c.Revision, Kind: c.Kind, Name: c.Name}
	if c.Resource != nil {
		r := public(c.Resource)
		switch known := r.(type) {
		case *typesv1.Server, *typesv1.AppServer, *typesv1.DatabaseServer:
			// The store renews these with every heartbeat.
			r = proto.CloneOf(r)
			r.GetMetadata().Expires, r.GetMetadata().Revision = nil, ""
		case *typesv1.Instance:
			// The name is in the change: there is one of each for every machine. Locks may
			// be about the token that it joined with.
			r = &typesv1.Instance{Kind: types.KindInstance, Spec: &typesv1.InstanceSpec{Token: known.GetSpec().GetToken()}}
		}
		packed, err := types.ToAny(r)
		if err != nil {
			return nil, err
		}
		change.Resource = packed
	}
	return &entry{kind: c.Kind, name: c.Name, message: &agentv1.ControlResponse{Payload: &agentv1.ControlResponse_Change{Change: change}}}, nil
}

// same reports whether two entries say the same of a resource.
func same(a, b *entry) bool {
	return a != nil && b != nil && bytes.Equal(a.message.GetChange().GetResource().GetValue(), b.message.GetChange().GetResource().GetValue())
}

func (f *feed) add(e *entry) {
	f.entries = append(f.entries, e)
	if drop := len(f.entries) - feedLength; drop > feedLength/4 {
		f.floor = f.entries[drop-1].message.GetChange().GetRevision()
		f.first += uint64(drop)
		f.entries = slices.Clone(f.entries[drop:])
	}
	close(f.more)
	f.more = make(chan struct{})
}

// start returns where a stream begins: after the revision it is at if that is
// remembered, otherwise with a snapshot.
func (h *hub) start(f *feed, epoch string, revision uint64) (snapshot []*entry, next, at uint64, resumed bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	at = h.complete
	end := f.first + uint64(len(f.entries))
	if epoch == f.epoch && revision >= f.floor && revision <= h.complete {
		i, _ := slices.BinarySearchFunc(f.entries, revision, func(e *entry, rev uint64) int {
			if e.message.GetChange().GetRevision() <= rev {
				return -1
			}
			return 1
		})
		return nil, f.first + uint64(i), at, true
	}
	for _, kind := range f.kinds {
		for _, e := range h.current[kind] {
			snapshot = append(snapshot, e)
		}
	}
	return snapshot, end, at, false
}

// after returns the changes from number next on, of each resource only the last,
// what follows them, the revision they lead to, and the channel that is closed when there are more. It fails
// with fault.ErrStale if they are forgotten.
func (h *hub) after(f *feed, next uint64) (changes []*entry, then, at uint64, more <-chan struct{}, err error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	end := f.first + uint64(len(f.entries))
	if next < f.first || next > end {
		return nil, 0, 0, nil, fault.Unreachable("this control stream is too slow: it missed changes, connect again")
	}
	pending := f.entries[next-f.first:]
	if len(pending) == 0 {
		return nil, end, h.complete, f.more, nil
	}
	last := make(map[[2]string]int, len(pending))
	for i, e := range pending {
		last[[2]string{e.kind, e.name}] = i
	}
	for i, e := range pending {
		if last[[2]string{e.kind, e.name}] == i {
			changes = append(changes, e)
		}
	}
	return changes, end, h.complete, f.more, nil
}
