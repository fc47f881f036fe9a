package db

import (
	"context"
	"errors"
	"sync"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/fault"
)

const (
	// maxQueued and maxQueuedBytes bound the events that wait: when there are more, the
	// sessions wait.
	maxQueued      = 4096
	maxQueuedBytes = 16 << 20
	// maxBatch bounds the events of one call.
	maxBatch = 1000
	// linger is the least time between two calls, unless somebody waits for an event: a
	// single one goes at once, and of many at a time few calls are made.
	linger = 50 * time.Millisecond
)

// recorder sends the events of all sessions in the order in which they came, many at a
// time and not in the way of the sessions.
type recorder struct {
	emit func(ctx context.Context, events ...*auditv1.Event) error

	mu      sync.Mutex
	queue   []queued
	bytes   int
	stopped bool
	// room is closed when the queue is taken; wake has a value when it is not empty.
	room   chan struct{}
	wake   chan struct{}
	urgent chan struct{}
}

// queued is an event that waits. done is told what became of it, if somebody wants to
// know; lost is called if it could not be stored.
type queued struct {
	event *auditv1.Event
	size  int
	lost  func(error)
	done  chan error
}

func newRecorder(emit func(ctx context.Context, events ...*auditv1.Event) error) *recorder {
	return &recorder{emit: emit, room: make(chan struct{}), wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
}

// add queues an event. It waits while too many are queued already. With soon it is sent
// at once.
func (r *recorder) add(q queued, soon bool) {
	for {
		r.mu.Lock()
		if r.stopped {
			r.mu.Unlock()
			q.tell(errRecorderStopped)
			return
		}
		if len(r.queue) < maxQueued && (r.bytes+q.size <= maxQueuedBytes || len(r.queue) == 0) {
			break
		}
		room := r.room
		r.mu.Unlock()
		<-room
	}
	first := len(r.queue) == 0
	r.queue = append(r.queue, q)
	r.bytes += q.size
	// A queue that is half full does not wait for more.
	soon = soon || len(r.queue) == maxQueued/2
	r.mu.Unlock()
	if first {
		signal(r.wake)
	}
	if soon {
		signal(r.urgent)
	}
}

var errRecorderStopped = fault.Unreachable("the Database Service has stopped")

func (q queued) tell(err error) {
	if err != nil && q.lost != nil {
		q.lost(err)
	}
	if q.done != nil {
		q.done <- err
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run sends until ctx ends, and then what is left.
func (r *recorder) run(ctx context.Context) {
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			r.mu.Lock()
			r.stopped = true
			r.mu.Unlock()
			r.flush(context.WithoutCancel(ctx))
			return
		}
		timer.Reset(time.Until(next))
		select {
		case <-timer.C:
		case <-r.urgent:
		case <-ctx.Done():
		}
		r.flush(context.WithoutCancel(ctx))
		next = time.Now().Add(linger)
	}
}

// flush sends what is queued now.
func (r *recorder) flush(ctx context.Context) {
	r.mu.Lock()
	batch := r.queue
	r.queue, r.bytes = nil, 0
	close(r.room)
	r.room = make(chan struct{})
	r.mu.Unlock()
	for len(batch) > 0 {
		n := min(len(batch), maxBatch)
		r.send(ctx, batch[:n])
		batch = batch[n:]
	}
}

// send sends events together. Of those that are refused it finds the one that is to blame:
// they are of many sessions.
func (r *recorder) send(ctx context.Context, batch []queued) {
	events := make([]*auditv1.Event, len(batch))
	for i, q := range batch {
		events[i] = q.event
	}
	limited, cancel := context.WithTimeout(ctx, emitTimeout)
	err := r.emit(limited, events...)
	cancel()
	if half := len(batch) / 2; half > 0 && errors.Is(err, fault.ErrInvalid) {
		r.send(ctx, batch[:half])
		r.send(ctx, batch[half:])
		return
	}
	for _, q := range batch {
		q.tell(err)
	}
}
