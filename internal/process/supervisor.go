package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"teleport/internal/config"
)

// Service is a part of the process with a life of its own. Run calls ready once
// it serves, returns when ctx ends, and returns an error if it cannot go on.
type Service interface {
	Name() string
	Run(ctx context.Context, ready func()) error
}

// step makes one service when its turn comes, from what the steps before it left
// behind; it may do all its work itself and return nil.
type step struct {
	name string
	make func(ctx context.Context) (Service, error)
}

// serviceFunc makes a Service of a function.
type serviceFunc struct {
	name string
	run  func(ctx context.Context, ready func()) error
}

// Name returns the name.
func (s serviceFunc) Name() string { return s.name }

// Run calls the function.
func (s serviceFunc) Run(ctx context.Context, ready func()) error { return s.run(ctx, ready) }

// errStopped is the cause when the supervisor stops a service.
var errStopped = errors.New("stopped by the supervisor")

// supervisor takes steps in order, each waiting until the service of the one before
// serves; the first failure or the end of ctx stops all, in reverse order.
type supervisor struct {
	log *slog.Logger
	// grace is how long a service may take to stop before it is left behind.
	grace time.Duration
	// onReady is told of each service that serves, onDone of each step that is over
	// because it leaves no service behind.
	onReady, onDone func(name string)
	// reload brings configurations while all services run; onReload makes the steps
	// that lead to one.
	reload   <-chan *config.Config
	onReload func(ctx context.Context, cfg *config.Config) (stop []string, start []step)

	running []*running
	failed  chan *running
}

type running struct {
	step   string
	name   string
	cancel context.CancelCauseFunc
	ready  chan struct{}
	done   chan struct{}
	err    error
}

// run takes the steps in order and returns nil after an orderly stop, or the error
// of the step or service that failed first.
func (s *supervisor) run(ctx context.Context, steps ...step) error {
	s.failed = make(chan *running, 1)
	// A step in progress is given up when a service started before it fails.
	stepCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, st := range steps {
		if err := s.take(stepCtx, cancel, st); err != nil || ctx.Err() != nil {
			return s.stop(err)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return s.stop(nil)
		case f := <-s.failed:
			return s.stop(f.err)
		case cfg := <-s.reload:
			stop, start := s.onReload(ctx, cfg)
			for _, name := range stop {
				s.stopOne(name)
			}
			for _, st := range start {
				if err := s.take(stepCtx, cancel, st); err != nil {
					return s.stop(err)
				}
			}
		}
	}
}

// take makes the service of a step, starts it and waits until it serves.
func (s *supervisor) take(ctx context.Context, cancel func(), st step) error {
	type made struct {
		svc Service
		err error
	}
	result := make(chan made, 1)
	go func() {
		svc, err := st.make(ctx)
		result <- made{svc, err}
	}()
	var m made
	select {
	case m = <-result:
	case f := <-s.failed:
		cancel()
		<-result
		return f.err
	}
	if m.err != nil || ctx.Err() != nil {
		return m.err
	}
	if m.svc == nil {
		s.onDone(st.name)
		return nil
	}
	r := s.start(ctx, st.name, m.svc)
	select {
	case <-r.ready:
		s.onReady(st.name)
		return nil
	case f := <-s.failed:
		return f.err
	case <-ctx.Done():
		return nil
	}
}

func (s *supervisor) start(ctx context.Context, step string, svc Service) *running {
	// A service is stopped by the supervisor, in its turn, not by ctx.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	r := &running{step: step, name: svc.Name(), cancel: cancel, ready: make(chan struct{}), done: make(chan struct{})}
	s.running = append(s.running, r)
	s.log.DebugContext(ctx, "starting service", "service", r.name)
	go func() {
		defer close(r.done)
		r.err = guard(ctx, svc, r.ready)
		if context.Cause(ctx) == nil {
			if r.err == nil {
				r.err = errors.New("it ended without being asked to")
			}
			r.err = fmt.Errorf("%s service: %w", r.name, r.err)
			select {
			case s.failed <- r: // the first is the reason, the others follow from it
			default:
			}
		}
	}()
	return r
}

// guard runs the service and turns a panic into its error.
func guard(ctx context.Context, svc Service, ready chan struct{}) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	called := false
	return svc.Run(ctx, func() {
		if !called {
			called = true
			close(ready)
		}
	})
}

func (s *supervisor) stop(failure error) error {
	for i := len(s.running) - 1; i >= 0; i-- {
		s.end(s.running[i])
	}
	return failure
}

// stopOne stops the service of one step and lets the others run.
func (s *supervisor) stopOne(name string) {
	i := slices.IndexFunc(s.running, func(r *running) bool { return r.step == name })
	if i < 0 {
		return
	}
	r := s.running[i]
	s.running = slices.Delete(s.running, i, i+1)
	s.end(r)
	s.onDone(name)
}

func (s *supervisor) end(r *running) {
	r.cancel(errStopped)
	select {
	case <-r.done:
		s.log.Debug("service stopped", "service", r.name)
	case <-time.After(s.grace):
		s.log.Error("service did not stop in time and is left behind", "service", r.name, "grace", s.grace)
	}
}
