package auth

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/retry"
	"teleport/internal/store"
)

const (
	// lateness is how much older than the newest line an event may be that was not
	// written yet: agents deliver late what happened while Auth was away.
	lateness = 24 * time.Hour
	// lineBatch events at most are written and synced at once. The first is written
	// when it comes, those that follow together, linePause after it: they are in the
	// store, and a crash in between leaves them to catchUp.
	lineBatch = 500
	linePause = 100 * time.Millisecond
	// drainTime is how long the end waits for events on their way.
	drainTime = 100 * time.Millisecond
	// maxLineBytes bounds a line that is read back.
	maxLineBytes = 1 << 20
)

// uidHash stands for the uid of an event that was written.
type uidHash [16]byte

func hashUID(uid string) uidHash {
	sum := sha256.Sum256([]byte(uid))
	return uidHash(sum[:16])
}

// projectEvents writes every audit event of the store as a JSON line, each once,
// until ctx ends. The store is the truth; trouble here is logged and tried again.
func (s *Service) projectEvents(ctx context.Context) error {
	log, err := audit.OpenLog(s.auditDir())
	if err != nil {
		return err
	}
	p := &projection{service: s, log: log}
	backoff := retry.Backoff{Min: 100 * time.Millisecond, Max: 30 * time.Second}
	for ctx.Err() == nil {
		err := p.follow(ctx, backoff.Reset)
		if ctx.Err() != nil {
			break
		}
		s.cfg.Log.WarnContext(ctx, "the audit log files are behind, catching up", "error", err)
		if backoff.Wait(ctx) != nil {
			break
		}
	}
	return log.Close()
}

// projection is the state of writing lines.
type projection struct {
	service *Service
	log     *audit.Log
	// written are the uids of the lines of the last lateness; nil when nothing that
	// was written can come again.
	written map[uidHash]struct{}
	// event and lines are used again for every event and batch.
	event audit.Encoded
	lines audit.Lines
}

// follow catches up, then writes what comes. When ctx ends it writes what was
// stored until then.
func (p *projection) follow(ctx context.Context, following func()) error {
	revision, err := p.service.store.Revision(ctx)
	if err != nil {
		return err
	}
	w, err := p.service.store.WatchEvents(context.WithoutCancel(ctx), revision)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := p.catchUp(ctx); err != nil {
		return err
	}
	if revision, err = p.service.store.Revision(ctx); err != nil {
		return err
	}
	following()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		e, ok := next(ctx, w.Events())
		if !ok {
			return errors.Join(errors.New("watch ended"), w.Err())
		}
		batch := gather(ctx, e, w.Events(), pause.C)
		if err := p.writeStored(ctx, batch); err != nil {
			return err
		}
		if batch[len(batch)-1].Revision > revision {
			p.written = nil // from here on the watch is ahead of what was searched
		}
		pause.Reset(linePause)
	}
}

// next waits for an event; after the end of ctx only for those on their way.
func next(ctx context.Context, events <-chan store.StoredEvent) (store.StoredEvent, bool) {
	select {
	case e, ok := <-events:
		return e, ok
	case <-ctx.Done():
	}
	late := time.NewTimer(drainTime)
	defer late.Stop()
	select {
	case e, ok := <-events:
		return e, ok
	case <-late.C:
		return store.StoredEvent{}, false
	}
}

// gather takes what comes along with the first event until the pause is over, or ctx.
func gather(ctx context.Context, first store.StoredEvent, more <-chan store.StoredEvent, pause <-chan time.Time) []store.StoredEvent {
	batch := []store.StoredEvent{first}
	for len(batch) < lineBatch {
		select {
		case e, ok := <-more:
			if !ok {
				return batch
			}
			batch = append(batch, e)
		case <-pause:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// catchUp writes the stored events that have no line yet.
func (p *projection) catchUp(ctx context.Context) error {
	if err := p.loadWritten(); err != nil {
		return err
	}
	q := store.EventQuery{Ascending: true, Limit: lineBatch}
	if _, last := p.log.Last(); !last.IsZero() {
		q.From = last.Add(-lateness)
	}
	for {
		events, next, err := p.service.store.SearchEvents(ctx, q)
		if err != nil {
			return err
		}
		if err := p.write(events); err != nil {
			return err
		}
		if next == "" {
			return nil
		}
		q.PageToken = next
	}
}

// writeStored counts the events, and writes those that have no line yet.
func (p *projection) writeStored(ctx context.Context, events []store.StoredEvent) error {
	p.lines.Reset()
	var fresh []uidHash
	var kind audit.Kind
	n := 0
	for _, e := range events {
		if err := p.event.Read(e.Value); err != nil {
			p.service.cfg.Log.WarnContext(ctx, "a stored event cannot be read and is left out", "revision", e.Revision, "error", err)
			continue
		}
		if p.event.Kind != kind {
			p.service.metrics.count(kind, n)
			kind, n = p.event.Kind, 0
		}
		n++
		if p.written != nil {
			hash := hashUID(p.event.UID)
			if _, ok := p.written[hash]; ok {
				continue
			}
			fresh = append(fresh, hash)
		}
		if err := p.lines.Add(&p.event); err != nil {
			return err
		}
	}
	p.service.metrics.count(kind, n)
	if err := p.log.AppendLines(&p.lines); err != nil {
		return err
	}
	for _, hash := range fresh {
		p.written[hash] = struct{}{}
	}
	return nil
}

// write writes the events that have no line yet.
func (p *projection) write(events []*auditv1.Event) error {
	fresh := make([]*auditv1.Event, 0, len(events))
	for _, e := range events {
		if _, ok := p.written[hashUID(e.GetUid())]; !ok {
			fresh = append(fresh, e)
		}
	}
	if err := p.log.Append(fresh...); err != nil {
		return err
	}
	for _, e := range fresh {
		p.written[hashUID(e.GetUid())] = struct{}{}
	}
	return nil
}

// loadWritten reads the uids of the lines of the last lateness.
func (p *projection) loadWritten() error {
	written := map[uidHash]struct{}{}
	_, last := p.log.Last()
	if last.IsZero() {
		p.written = written
		return nil
	}
	from := last.Add(-lateness)
	dir := p.service.auditDir()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the audit log: %w", err)
	}
	// A line is in the file of its event's day or in a later one.
	day := from.UTC().Format("2006-01-02")
	for _, entry := range entries {
		if !entry.Type().IsRegular() || !strings.HasSuffix(entry.Name(), ".log") || entry.Name() < day {
			continue
		}
		if err := readUIDs(filepath.Join(dir, entry.Name()), from, written); err != nil {
			return err
		}
	}
	p.written = written
	return nil
}

func readUIDs(path string, from time.Time, into map[uidHash]struct{}) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the audit log: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 0, 64<<10), maxLineBytes)
	for lines.Scan() {
		e, err := audit.ParseJSON(lines.Bytes())
		if err != nil {
			continue // not a line of ours: it stays where it is
		}
		if !e.GetTime().AsTime().Before(from) {
			into[hashUID(e.GetUid())] = struct{}{}
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the audit log %s: %w", filepath.Base(path), err)
	}
	return nil
}
