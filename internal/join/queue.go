package join

import (
	"context"
	"errors"
	"sync"
	"time"

	"teleport/internal/budget"
	"teleport/internal/fault"
	"teleport/internal/retry"
)

const (
	// maxWorking is how many joins are worked on at once. More would not be done sooner,
	// and would keep everything else that Auth does waiting.
	maxWorking = 16
	// maxAsking is how many proofs are checked at once that somebody else vouches for,
	// which may mean waiting for a cloud's answer, and maxAskingToken how many of one
	// token: whoever knows its name can make Auth ask a cloud, and must not keep the
	// other tokens waiting. They take none of the other places.
	maxAsking, maxAskingToken = 128, 16
	// maxQueued is how many wait for their turn; the others are told when to come back.
	maxQueued = 512
	// firstPace is how many joins a second are assumed until it is known.
	firstPace = 100
	// maxComeBack is the longest that somebody is told to wait.
	maxComeBack = time.Minute
)

// queue lets joins in a few at a time, the sources in turns: a thousand machines
// behind one address do not keep the others waiting. A join holds its place only
// while Auth works on it, never while the machine thinks.
type queue struct {
	work, asks *gate
	paced      *pace

	mu sync.Mutex
	// byToken has the gates of the tokens whose proofs are being checked with somebody
	// else.
	byToken map[string]*tokenGate
}

type tokenGate struct {
	*gate
	users int
}

func newQueue(now func() time.Time) *queue {
	p := newPace(now)
	return &queue{work: newGate(maxWorking, p), asks: newGate(maxAsking, p), paced: p, byToken: map[string]*tokenGate{}}
}

// ofToken returns the gate of a token, to be given back.
func (q *queue) ofToken(token string) *gate {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.byToken[token]
	if t == nil {
		t = &tokenGate{gate: newGate(maxAskingToken, q.paced)}
		q.byToken[token] = t
	}
	t.users++
	return t.gate
}

func (q *queue) giveBack(token string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t := q.byToken[token]; t != nil {
		if t.users--; t.users == 0 {
			delete(q.byToken, token)
		}
	}
}

// joined notes that a machine is in.
func (q *queue) joined() { q.paced.note(q.work.busy()) }

// gate has a number of places.
type gate struct {
	*budget.Turns
	paced *pace
}

func newGate(places int, p *pace) *gate { return &gate{Turns: budget.NewTurns(places), paced: p} }

// busy reports whether anybody waits.
func (g *gate) busy() bool {
	_, waiting := g.Count()
	return waiting > 0
}

// enter waits for a place. The caller leaves it again. One that comes back was let in
// before: it is not turned away, and is the next of its source, since it would be a
// waste to let it begin and not end.
func (g *gate) enter(ctx context.Context, source string, back bool) error {
	var refused error
	err := g.Enter(ctx, budget.Entry{Source: source, First: back, Admit: func(q budget.Queue) error {
		// A full queue still has room for a source that waits less than its share.
		if !back && q.Waiting >= maxQueued && (q.Lane >= max(1, maxQueued/max(1, q.Lanes)) || q.Waiting >= 2*maxQueued) {
			refused = g.paced.busy(source, q.Ahead())
		}
		return refused
	}})
	switch {
	case err == nil || refused != nil:
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		_, waiting := g.Count()
		return g.paced.busy(source, waiting)
	}
	return errGone
}

// pace tells those for whom there is no room when to come back: each a moment later
// than the one before of its source, as fast as joins are done just now. So they do not
// all come back at once, and find room when they do.
type pace struct {
	now func() time.Time

	mu sync.Mutex
	// perSecond is how many joins are done in a second while others wait; done of them
	// since then.
	perSecond float64
	since     time.Time
	done      int
	// next is when the next one of a source is to come back.
	next map[string]time.Time
}

func newPace(now func() time.Time) *pace {
	return &pace{now: now, perSecond: firstPace, next: map[string]time.Time{}}
}

// note counts a join that is done, and learns from it if others wait: otherwise it says
// how many there were to do, and not how many could be done.
func (p *pace) note(others bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	took := now.Sub(p.since)
	switch {
	case !others || took > 5*time.Second:
		p.since, p.done = now, 0
	case took >= time.Second:
		p.perSecond = max(10, (p.perSecond+float64(p.done+1)/took.Seconds())/2)
		p.since, p.done = now, 0
	default:
		p.done++
	}
}

// busy is the error of one for whom there is no room behind those ahead of it.
func (p *pace) busy(source string, ahead int) error {
	wait := p.comeBack(source, ahead)
	return fault.New(fault.ErrLimit, "the Auth Service has as many joins as it can work on: try again in %s", wait.Round(time.Second)).
		WithCode(CodeBusy).WithRetryAfter(wait)
}

func (p *pace) comeBack(source string, ahead int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if len(p.next) >= maxSources/10 {
		for s, at := range p.next {
			if at.Before(now) {
				delete(p.next, s)
			}
		}
	}
	each := time.Duration(float64(time.Second) / p.perSecond)
	at := now.Add(time.Second + time.Duration(ahead)*each)
	if next := p.next[source]; next.After(at) {
		at = next
	}
	if wait := at.Sub(now); wait > maxComeBack || len(p.next) >= maxSources {
		return maxComeBack/2 + retry.Jitter(maxComeBack/2)
	}
	p.next[source] = at.Add(each)
	return at.Sub(now)
}

// place is the place of one join.
type place struct {
	queue  *queue
	source string
	// token is set once it is known that somebody else vouches for its machines.
	token string
	// again says that it had a place before, held are the gates that it is inside of,
	// and asking the token whose gate is one of them.
	again  bool
	held   []*gate
	asking string
}

func (p *place) take(ctx context.Context) error {
	gates := []*gate{p.queue.work}
	if p.token != "" {
		p.asking = p.token
		gates = []*gate{p.queue.ofToken(p.token), p.queue.asks}
	}
	for _, g := range gates {
		if err := g.enter(ctx, p.source, p.again); err != nil {
			p.release()
			return err
		}
		p.held = append(p.held, g)
	}
	p.again = true
	return nil
}

func (p *place) release() {
	for _, g := range p.held {
		g.Leave()
	}
	p.held = nil
	if p.asking != "" {
		p.queue.giveBack(p.asking)
		p.asking = ""
	}
}
