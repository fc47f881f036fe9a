package budget

import (
	"context"
	"sync"
)

// Turns lets in a few at a time, the sources in turns: a thousand from one source do not
// keep one of another waiting. It is safe for concurrent use.
type Turns struct {
	places int

	mu      sync.Mutex
	inside  int
	waiting int
	// lanes has those of each source that wait, order the sources in order, each once.
	lanes map[string][]chan struct{}
	order []string
}

// Queue is what a newcomer finds when there is no place.
type Queue struct {
	// Waiting is how many wait in all, Lane how many of them are of its source.
	Waiting, Lane int
	// Lanes is how many sources wait, its own not counted unless it does.
	Lanes int
}

// Ahead is how many go in before a newcomer that is the last of its source.
func (q Queue) Ahead() int { return min(q.Waiting, (q.Lane+1)*max(1, q.Lanes)) }

// Entry is how somebody comes in.
type Entry struct {
	Source string
	// First makes it the next of its source.
	First bool
	// Admit says whether it may wait; nil is yes. Its error is that of Enter. It must not
	// call the Turns.
	Admit func(Queue) error
}

// NewTurns returns Turns with so many places.
func NewTurns(places int) *Turns {
	return &Turns{places: max(1, places), lanes: map[string][]chan struct{}{}}
}

// Enter waits for a place; without an error the caller leaves it again. When ctx ends
// first the error is its cause.
func (t *Turns) Enter(ctx context.Context, e Entry) error {
	t.mu.Lock()
	if t.inside < t.places {
		t.inside++
		t.mu.Unlock()
		return nil
	}
	// A lane that is there, also an empty one, has its turn already.
	lane, has := t.lanes[e.Source]
	if e.Admit != nil {
		if err := e.Admit(Queue{Waiting: t.waiting, Lane: len(lane), Lanes: len(t.lanes)}); err != nil {
			t.mu.Unlock()
			return err
		}
	}
	turn := make(chan struct{})
	if !has {
		t.order = append(t.order, e.Source)
	}
	if e.First {
		lane = append([]chan struct{}{turn}, lane...)
	} else {
		lane = append(lane, turn)
	}
	t.lanes[e.Source] = lane
	t.waiting++
	t.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		if !t.drop(e.Source, turn) {
			t.Leave() // it was given the place at the same moment
		}
		return context.Cause(ctx)
	}
}

// drop takes one that does not wait any more out of its lane; false if it is not
// there because it has a place.
func (t *Turns) drop(source string, turn chan struct{}) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	lane := t.lanes[source]
	for i, w := range lane {
		if w == turn {
			t.lanes[source] = append(lane[:i:i], lane[i+1:]...)
			t.waiting--
			return true
		}
	}
	return false
}

// Leave gives the place to the next source in turn.
func (t *Turns) Leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.order) > 0 {
		source := t.order[0]
		t.order = t.order[1:]
		lane := t.lanes[source]
		if len(lane) == 0 {
			delete(t.lanes, source)
			continue
		}
		if len(lane) > 1 {
			t.order = append(t.order, source)
			t.lanes[source] = lane[1:]
		} else {
			delete(t.lanes, source)
		}
		t.waiting--
		close(lane[0])
		return
	}
	t.inside--
}

// Count returns how many are inside and how many wait.
func (t *Turns) Count() (inside, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.inside, t.waiting
}
