package store

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"teleport/internal/backend"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// Snapshot returns every resource of the kinds, and the revision to Watch after.
// Changes that came while it was read may be both in it and in the watch that
// follows; they are whole resources, so that applying one twice does no harm.
func (s *Store) Snapshot(ctx context.Context, kinds []string) ([]types.Change, uint64, error) {
	if err := checkKinds(kinds); err != nil {
		return nil, 0, err
	}
	var out []types.Change
	var revision uint64
	for i, kind := range kinds {
		start, end := backend.Prefix(resources, kind)
		items, at, err := s.backend.Range(ctx, start, end, 0)
		if err != nil {
			return nil, 0, err
		}
		if i == 0 || at < revision {
			revision = at
		}
		for _, it := range items {
			r, err := decode(kind, it)
			if err != nil {
				s.log.WarnContext(ctx, "a stored resource cannot be read and is left out", "key", it.Key, "error", err)
				continue
			}
			out = append(out, types.Change{Revision: it.Revision, Kind: kind, Name: r.GetMetadata().GetName(), Resource: r})
		}
	}
	return out, revision, nil
}

// Watcher delivers changes of resources in order of revision.
type Watcher struct {
	changes chan types.Change
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // set before done is closed
}

// Watch delivers the changes of the kinds after the revision. fault.ErrStale when
// that history is gone, at once or later: take a Snapshot and watch anew. The
// changes of one transaction share a revision: who breaks off in the middle
// resumes after the revision before it.
func (s *Store) Watch(ctx context.Context, kinds []string, after uint64) (*Watcher, error) {
	if err := checkKinds(kinds); err != nil {
		return nil, err
	}
	prefix := resources + backend.Separator
	if len(kinds) == 1 {
		prefix += kinds[0] + backend.Separator
	}
	ctx, cancel := context.WithCancel(ctx)
	in, err := s.backend.Watch(ctx, prefix, after)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &Watcher{changes: make(chan types.Change), cancel: cancel, done: make(chan struct{})}
	go s.pump(ctx, in, slices.Clone(kinds), w)
	return w, nil
}

// pump turns events of the backend into changes until either end closes.
func (s *Store) pump(ctx context.Context, in backend.Watcher, kinds []string, w *Watcher) {
	defer close(w.changes)
	defer close(w.done)
	defer in.Close()
	defer w.cancel()
	for e := range in.Events() {
		kind, name, ok := splitResourceKey(e.Item.Key)
		if !ok || !slices.Contains(kinds, kind) {
			continue
		}
		c := types.Change{Revision: e.Revision, Kind: kind, Name: name}
		if !e.Deleted {
			r, err := decode(kind, e.Item)
			if err != nil {
				s.log.WarnContext(ctx, "a stored resource cannot be read and is left out", "key", e.Item.Key, "error", err)
				continue
			}
			c.Resource = r
		}
		select {
		case w.changes <- c:
		case <-ctx.Done():
			w.err = context.Cause(ctx)
			return
		}
	}
	w.err = in.Err()
}

// Changes is closed when the watcher ends; Err says why.
func (w *Watcher) Changes() <-chan types.Change { return w.changes }

// Err is nil until Changes is closed.
func (w *Watcher) Err() error {
	select {
	case <-w.done:
		return w.err
	default:
		return nil
	}
}

// Close ends the watcher and waits for it.
func (w *Watcher) Close() {
	w.cancel()
	<-w.done
}

func checkKinds(kinds []string) error {
	if len(kinds) == 0 {
		return fault.Invalid("name the kinds to watch")
	}
	for _, name := range kinds {
		if k, ok := types.Kind(name); !ok || k.Name != name {
			return fault.Invalid("unknown kind %q", name)
		}
	}
	return nil
}

// splitResourceKey undoes resourceKey.
func splitResourceKey(key string) (kind, name string, ok bool) {
	parts := strings.Split(key, backend.Separator)
	if len(parts) != 3 || parts[0] != resources {
		return "", "", false
	}
	name, err := url.PathUnescape(parts[2])
	return parts[1], name, err == nil
}
