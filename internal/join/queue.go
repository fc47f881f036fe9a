package join

import (
	"context"
	"sync"
	"time"

	"teleport/internal/fault"
	"teleport/internal/retry"
)

const (
	// maxWorking is how many joins are worked on at once, those that wait for a cloud's
	// answer included.
	maxWorking = 64
	// maxQueued is how many wait for their turn; the others are told when to come back.
	maxQueued = 512
	// pace is how many joins a second are assumed when somebody is told when to come back.
	pace = 100
)

// queue lets joins in a few at a time, the sources in turns: a thousand machines
// behind one address do not keep the others waiting. A join holds its place only
// while Auth works on it, never while the machine thinks.
type queue struct {
	mu      sync.Mutex
	working int
	waiting int
	// asking counts, by token, the proofs that are being checked with somebody else.
	asking map[string]int
	// lanes has the waiting joins of each source, turns the sources in order, each once.
	lanes map[string][]chan struct{}
	turns []string
}

func newQueue() *queue {
	return &queue{lanes: map[string][]chan struct{}{}, asking: map[string]int{}}
}

// maxAsking is how many proofs of one token are checked at once: whoever knows the
// name of a token can make Auth ask a cloud, and must not keep the other tokens waiting.
const maxAsking = maxWorking / 4

// ask counts the check of a proof that somebody else vouches for.
func (q *queue) ask(token string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.asking[token] >= maxAsking {
		wait := 2 * time.Second
		return fault.New(fault.ErrLimit, "%d machines join by this token just now: try again in %s", maxAsking, wait).
			WithCode(CodeBusy).WithRetryAfter(wait + retry.Jitter(wait))
	}
	q.asking[token]++
	return nil
}

func (q *queue) asked(token string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.asking[token]--; q.asking[token] == 0 {
		delete(q.asking, token)
	}
}

// enter waits for a place. The caller leaves it again.
func (q *queue) enter(ctx context.Context, source string) error {
	q.mu.Lock()
	if q.working < maxWorking {
		q.working++
		q.mu.Unlock()
		return nil
	}
	// A lane that is there, also an empty one, has its turn already.
	lane, has := q.lanes[source]
	// A full queue still has room for a source that waits less than its share.
	if q.waiting >= maxQueued && (len(lane) > 0 || q.waiting >= 2*maxQueued) {
		wait := time.Second + time.Duration(q.waiting)*time.Second/pace
		q.mu.Unlock()
		return fault.New(fault.ErrLimit, "the Auth Service has as many joins as it can work on: try again in %s", wait.Round(time.Second)).
			WithCode(CodeBusy).WithRetryAfter(wait + retry.Jitter(wait))
	}
	turn := make(chan struct{})
	if !has {
		q.turns = append(q.turns, source)
	}
	q.lanes[source] = append(lane, turn)
	q.waiting++
	q.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		if !q.drop(source, turn) {
			q.leave() // it was given the place at the same moment
		}
		return errGone
	}
}

// drop takes a join that does not wait any more out of its lane; false if it is not
// there because it has a place.
func (q *queue) drop(source string, turn chan struct{}) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	lane := q.lanes[source]
	for i, t := range lane {
		if t == turn {
			q.lanes[source] = append(lane[:i:i], lane[i+1:]...)
			q.waiting--
			return true
		}
	}
	return false
}

// leave gives the place to the next source in turn.
func (q *queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.turns) > 0 {
		source := q.turns[0]
		q.turns = q.turns[1:]
		lane := q.lanes[source]
		if len(lane) == 0 {
			delete(q.lanes, source)
			continue
		}
		if len(lane) > 1 {
			q.turns = append(q.turns, source)
			q.lanes[source] = lane[1:]
		} else {
			delete(q.lanes, source)
		}
		q.waiting--
		close(lane[0])
		return
	}
	q.working--
}

// place is the place of one join in the queue.
type place struct {
	queue  *queue
	source string
	// token is set once it is known that somebody else vouches for its machines.
	token string
	// held says that the place is taken, asking is the token that it counts for.
	held   bool
	asking string
}

func (p *place) take(ctx context.Context) error {
	if err := p.queue.enter(ctx, p.source); err != nil {
		return err
	}
	p.held = true
	if p.token != "" {
		if err := p.queue.ask(p.token); err != nil {
			p.release()
			return err
		}
		p.asking = p.token
	}
	return nil
}

func (p *place) release() {
	if p.asking != "" {
		p.queue.asked(p.asking)
		p.asking = ""
	}
	if p.held {
		p.held = false
		p.queue.leave()
	}
}
