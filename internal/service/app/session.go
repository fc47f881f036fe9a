package app

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
)

const (
	// chunkPeriod is how often the audit log hears what went on in a session.
	chunkPeriod = 5 * time.Minute
	// lingerTime is how long a session without connections may come back: a browser
	// closes its connections while a page is read.
	lingerTime = 15 * time.Minute
	// sessionLook is the pause between two looks at the sessions.
	sessionLook = 15 * time.Second
	// maxPaths bounds the paths that a chunk tells, maxPath the length of one.
	maxPaths = 100
	maxPath  = 256
	// maxRequests bounds the requests of a session that are under way.
	maxRequests = 2000
	// maxSessions bounds the sessions that are remembered.
	maxSessions = 100_000
)

// sessions are those of users at applications: all connections with one session id.
type sessions struct {
	s *Service

	mu   sync.Mutex
	open map[string]*session
}

// session is one of them.
type session struct {
	s      *Service
	key    string
	fields map[string]any
	began  time.Time
	// expires is when the last of the certificates does.
	expires time.Time
	started chan struct{}
	// failed is why there is no session, once started is closed.
	failed error

	received, sent, requests, running atomic.Int64
	// reason is why connections of it were ended.
	reason atomic.Pointer[string]
	paths  paths

	// up is how requests reach the application: no connection to it ever serves two
	// sessions.
	up     upstream
	tokens tokens

	// Those below are guarded by sessions.mu.
	conns int
	// idle is when the last connection left.
	idle time.Time
	// chunk is when the audit log heard last, and told what it heard of.
	chunk time.Time
	told  traffic
	index int64
}

// traffic is what went through a session.
type traffic struct{ requests, received, sent int64 }

func newSessions(s *Service) *sessions { return &sessions{s: s, open: map[string]*session{}} }

// join returns the session of a connection. The first one begins it: without an event there
// is none. The error is for the user.
func (m *sessions) join(ctx context.Context, c *connection) (*session, error) {
	id := c.id.User.App.SessionID
	key := c.id.User.Name + "\x00" + c.sv.name + "\x00" + id
	if id == "" {
		key += string(c.print[:])
	}
	m.mu.Lock()
	one, now := m.open[key], m.s.cfg.Now()
	first := one == nil
	if first {
		if len(m.open) >= maxSessions {
			m.mu.Unlock()
			return nil, fault.Limit("this host has too many sessions: try again later")
		}
		one = &session{s: m.s, key: key, began: now, chunk: now, started: make(chan struct{}), fields: c.fields(nil)}
		one.tokens.auth, one.tokens.now = m.s.cfg.Auth, m.s.cfg.Now
		if id == "" {
			one.fields["sid"] = uuid.NewString()
		}
		m.open[key] = one
	}
	one.conns++
	if c.id.Expires.After(one.expires) {
		one.expires = c.id.Expires
	}
	m.mu.Unlock()
	if first {
		m.start(ctx, one)
	}
	select {
	case <-one.started:
	case <-ctx.Done():
		m.drop(one)
		return nil, context.Cause(ctx)
	}
	if one.failed != nil {
		m.drop(one)
		return nil, one.failed
	}
	return one, nil
}

func (m *sessions) start(ctx context.Context, one *session) {
	defer close(one.started)
	if err := m.s.emitNow(ctx, one.event(audit.AppSessionStart, map[string]any{"success": true})); err != nil {
		m.s.cfg.Log.ErrorContext(ctx, "session at an application refused: it cannot be recorded", "error", err, "user", one.fields["user"])
		one.failed = fault.Unreachable("session refused: the audit log cannot take it, tell an administrator")
		m.mu.Lock()
		delete(m.open, one.key)
		m.mu.Unlock()
	}
}

// drop takes a connection off that never joined.
func (m *sessions) drop(one *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	one.conns--
	one.idle = m.s.cfg.Now()
}

// leave takes a connection off its session. A session whose connections were ended from
// here is over with the last of them.
func (m *sessions) leave(ctx context.Context, c *connection) {
	if reason := c.reason.Load(); reason != nil {
		c.session.because(*reason)
	}
	m.mu.Lock()
	c.session.conns--
	c.session.idle = m.s.cfg.Now()
	over := c.session.conns == 0 && c.session.reason.Load() != nil
	m.mu.Unlock()
	if over {
		m.finish(ctx, c.session)
	}
}

// run writes chunks and ends until ctx ends.
func (m *sessions) run(ctx context.Context) {
	tick := time.NewTicker(sessionLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.look(ctx)
		}
	}
}

// look ends the sessions that are over and writes the chunks that are due.
func (m *sessions) look(ctx context.Context) {
	now := m.s.cfg.Now()
	var over []*session
	var chunks []*auditv1.Event
	var about []*session
	m.mu.Lock()
	for _, one := range m.open {
		switch {
		case one.conns == 0 && (now.Sub(one.idle) >= lingerTime || !now.Before(one.expires)):
			over = append(over, one)
		case now.Sub(one.chunk) >= chunkPeriod:
			if e := m.chunkLocked(one, now); e != nil {
				chunks, about = append(chunks, e), append(about, one)
			}
		}
	}
	m.mu.Unlock()
	for _, one := range over {
		m.finish(ctx, one)
	}
	if len(chunks) == 0 {
		return
	}
	if err := m.s.emitNow(ctx, chunks...); err != nil {
		m.s.cfg.Log.ErrorContext(ctx, "sessions at applications end: they cannot be recorded", "error", err, "count", len(about))
		for _, c := range m.s.live.list() {
			if slices.Contains(about, c.session) {
				c.end("the session cannot be recorded: tell an administrator")
			}
		}
	}
}

// chunkLocked returns the event about what went on since the last one, or nil.
func (m *sessions) chunkLocked(one *session, now time.Time) *auditv1.Event {
	got := traffic{one.requests.Load(), one.received.Load(), one.sent.Load()}
	began, was := one.chunk, one.told
	one.chunk, one.told = now, got
	if got == was {
		return nil
	}
	list, omitted := one.paths.take()
	more := map[string]any{
		"session_chunk_id": uuid.NewString(), "chunk_start": began, "chunk_stop": now,
		"requests": got.requests - was.requests, "rx": got.received - was.received, "tx": got.sent - was.sent,
	}
	if len(list) > 0 {
		more["paths"] = list
	}
	if omitted > 0 {
		more["paths_omitted"] = omitted
	}
	return one.event(audit.AppSessionChunk, more)
}

// finish ends a session, unless somebody came back or it has ended before.
func (m *sessions) finish(ctx context.Context, one *session) {
	now := m.s.cfg.Now()
	m.mu.Lock()
	if m.open[one.key] != one || one.conns > 0 {
		m.mu.Unlock()
		return
	}
	delete(m.open, one.key)
	var events []*auditv1.Event
	if e := m.chunkLocked(one, now); e != nil {
		events = append(events, e)
	}
	more := map[string]any{
		"session_start": one.began, "session_stop": one.idle, "requests": one.told.requests, "rx": one.told.received, "tx": one.told.sent,
	}
	if reason := one.reason.Load(); reason != nil {
		more["reason"] = *reason
	}
	events = append(events, one.event(audit.AppSessionEnd, more))
	m.mu.Unlock()
	one.up.close()
	m.s.emitLate(ctx, events...)
}

// endAll ends the sessions when the service stops.
func (m *sessions) endAll(ctx context.Context) {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.open))
	m.mu.Unlock()
	for _, one := range all {
		m.finish(ctx, one)
	}
}

// event makes the session's next event.
func (one *session) event(k audit.Kind, more map[string]any) *auditv1.Event {
	f := maps.Clone(one.fields)
	maps.Copy(f, more)
	e := audit.New(k, f)
	e.Ei = one.index
	one.index++
	return e
}

// because notes why connections of the session end; the first reason counts.
func (one *session) because(reason string) { one.reason.CompareAndSwap(nil, &reason) }

// request counts one that begins, and returns what is to be called at its end.
func (one *session) request(r *http.Request) (done func(), err error) {
	if one.running.Add(1) > maxRequests {
		one.running.Add(-1)
		return nil, fault.Limit("you have %d requests to this application under way: wait for some", maxRequests)
	}
	one.requests.Add(1)
	one.paths.note(r.Method + " " + r.URL.EscapedPath())
	return func() { one.running.Add(-1) }, nil
}

// paths counts what was asked for, without queries, which may hold secrets.
type paths struct {
	mu      sync.Mutex
	counts  map[string]int
	omitted int
}

func (p *paths) note(what string) {
	what = clip(what, maxPath)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.counts == nil {
		p.counts = map[string]int{}
	}
	if _, known := p.counts[what]; !known && len(p.counts) >= maxPaths {
		p.omitted++
		return
	}
	p.counts[what]++
}

// take returns what was noted since the last call.
func (p *paths) take() (list []map[string]any, omitted int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(p.counts)) {
		list = append(list, map[string]any{"request": what, "count": p.counts[what]})
	}
	omitted, p.counts, p.omitted = p.omitted, nil, 0
	return list, omitted
}
