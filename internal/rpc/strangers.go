package rpc

import (
	"container/list"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"teleport/internal/budget"
	"teleport/internal/fault"
)

const (
	// maxHandshakes bounds TLS handshakes under way, overall and from one source.
	// Many agents behind one address come back at once when Auth was away, so one
	// that makes progress is not given up for another: only after handshakeGrace.
	maxHandshakes, maxHandshakesPerSource = 2048, 1024
	handshakeGrace                        = 5 * time.Second
	// handshakesPerCore is how many are worked on at once.
	handshakesPerCore = 2
	// arrivalsPerCore is how many strangers are between the handshake and their first
	// call at once, each for arrivalTime at most: a crowd is served as fast as that is
	// possible, instead of being let in and found to be idle.
	arrivalsPerCore = 32
	arrivalTime     = 50 * time.Millisecond
	// maxStrangers bounds open connections without a client certificate.
	maxStrangers, maxStrangersPerSource = 8192, 1024
	// maxIdle bounds those of them with no call in progress. Of one source there may
	// be as many as it may open: a thousand machines that join at once look like it
	// for a moment.
	maxIdle, maxIdlePerSource = 2048, maxStrangersPerSource
	// firstCall is how long a stranger may take to make a call, and nextCall how long
	// it may stay after one. A client that comes back later connects anew by itself.
	firstCall, nextCall = 10 * time.Second, time.Minute
)

// room bounds the connections that are in some state, overall and per source, so
// that those of one source cannot keep the others out. When a source has its share,
// the one of it that has been inside longest goes to make room for the next; when
// the room is full, the one of the source that has the most. None goes before it was
// inside for grace, and with a negative grace none at all.
type room struct {
	max, perSource int
	grace          time.Duration

	mu      sync.Mutex
	order   list.List // of *guest, longest inside first
	sources map[string]int
}

// guest is a connection's place in a room.
type guest struct {
	source string
	// out ends the connection when it has to make room. It must not block.
	out     func()
	entered time.Time
	elem    *list.Element // nil while outside
	// ours is true while it waits for us and not for the other end: then it does not
	// have to make room, since who waited longest would lose its turn just before it.
	ours atomic.Bool
}

func newRoom(limit, perSource int, grace time.Duration) *room {
	return &room{max: limit, perSource: perSource, grace: grace, sources: make(map[string]int)}
}

// enter reports whether there is a place for g, and takes it.
func (r *room) enter(g *guest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.sources[g.source] >= r.perSource && !r.evict(now, g.source) {
		return false
	}
	if r.order.Len() >= r.max && !r.evict(now, "") {
		return false
	}
	g.entered, g.elem = now, r.order.PushBack(g)
	r.sources[g.source]++
	return true
}

// yield makes the guest of the source go that has been inside longest, and reports
// whether there was one.
func (r *room) yield(source string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.evict(time.Now(), source)
}

// evict makes the guest of the source go that has been inside longest, if that is
// long enough; "" is the source that has the most. The caller holds the lock.
func (r *room) evict(now time.Time, source string) bool {
	if r.grace < 0 {
		return false
	}
	most := 0
	if source == "" {
		for _, n := range r.sources {
			most = max(most, n)
		}
	}
	for e := r.order.Front(); e != nil; e = e.Next() {
		g := e.Value.(*guest)
		if source != "" && g.source != source || r.sources[g.source] < most || g.ours.Load() {
			continue
		}
		if now.Sub(g.entered) < r.grace {
			return false
		}
		r.remove(g)
		g.out()
		return true
	}
	return false
}

func (r *room) remove(g *guest) {
	r.order.Remove(g.elem)
	g.elem = nil
	if r.sources[g.source]--; r.sources[g.source] == 0 {
		delete(r.sources, g.source)
	}
}

// leave gives the place back. It may be called more than once.
func (r *room) leave(g *guest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.elem != nil {
		r.remove(g)
	}
}

func (r *room) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.order.Len()
}

// stranger is a connection without a client certificate. It is idle while it has no
// call in progress.
type stranger struct {
	net.Conn
	// raw is the connection underneath TLS, whose Close does not block.
	raw        net.Conn
	open, idle *room
	// place is in open, and waiting in idle.
	place, waiting *guest

	// arrived ends its time among the arrivals.
	arrived func()

	mu     sync.Mutex
	calls  int
	closed bool
	until  time.Time // when it has been idle for too long
	timer  *time.Timer
}

// newStranger admits secure, whose bytes go over raw. It calls arrived once or more,
// with an error as well.
func (t *transport) newStranger(secure, raw net.Conn, arrived func()) (*stranger, error) {
	source := budget.Source(raw.RemoteAddr().String())
	s := &stranger{Conn: secure, raw: raw, open: t.open, idle: t.idle, place: &guest{source: source}, arrived: arrived}
	s.waiting = &guest{source: source, out: func() {
		s.open.leave(s.place)
		_ = raw.Close()
	}}
	if !s.open.enter(s.place) && (!s.idle.yield(source) || !s.open.enter(s.place)) {
		t.refused()
		arrived()
		return nil, fault.Limit("too many connections without a certificate from %s at once: try again in a moment", source)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	time.AfterFunc(arrivalTime, arrived)
	s.timer = time.AfterFunc(firstCall, s.expire)
	s.rest(firstCall)
	return s, nil
}

// rest makes the stranger idle. The caller holds the lock.
func (s *stranger) rest(limit time.Duration) {
	s.until = time.Now().Add(limit)
	s.timer.Reset(limit)
	if !s.idle.enter(s.waiting) {
		_ = s.raw.Close()
	}
}

// expire ends a connection that was idle for too long. It gives its places back too:
// grpc does not close what it gives up between the handshake and the first frame.
func (s *stranger) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == 0 && !time.Now().Before(s.until) {
		s.release()
		_ = s.raw.Close()
	}
}

// release gives the places back. The caller holds the lock.
func (s *stranger) release() {
	s.closed = true
	s.arrived()
	s.timer.Stop()
	s.idle.leave(s.waiting)
	s.open.leave(s.place)
}

// begin notes that a call is in progress, until the function that it returns is
// called. Who has shown a certificate is no stranger, which is nil.
func (s *stranger) begin() (end func()) {
	if s == nil {
		return func() {}
	}
	s.arrived()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls++; s.calls == 1 {
		s.timer.Stop()
		s.idle.leave(s.waiting)
	}
	return s.end
}

func (s *stranger) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls--; s.calls == 0 && !s.closed {
		s.rest(nextCall)
	}
}

// Close closes the connection and gives its places back.
func (s *stranger) Close() error {
	s.mu.Lock()
	s.release()
	s.mu.Unlock()
	return s.Conn.Close()
}
