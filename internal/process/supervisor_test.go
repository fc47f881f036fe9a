package process

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// diary records what services do, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

func (d *diary) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

// steady returns a step whose service gets ready after a while and runs until it
// is stopped.
func (d *diary) steady(name string, delay time.Duration) step {
	return step{name, func(context.Context) (Service, error) {
		return serviceFunc{name, func(ctx context.Context, ready func()) error {
			time.Sleep(delay)
			d.note(name + " ready")
			ready()
			<-ctx.Done()
			d.note(name + " stopped")
			return nil
		}}, nil
	}}
}

func supervise(t *testing.T, ctx context.Context, steps ...step) error {
	t.Helper()
	s := &supervisor{log: slog.New(slog.DiscardHandler), grace: 10 * time.Second, onReady: func(string) {}, onDone: func(string) {}}
	return s.run(ctx, steps...)
}

func TestStartsInOrderAndStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := supervise(t, ctx, d.steady("a", time.Minute), d.steady("b", time.Second), d.steady("c", 0)); err != nil {
			t.Fatal(err)
		}
		want := []string{"a ready", "b ready", "c ready", "c stopped", "b stopped", "a stopped"}
		if got := d.read(); !slices.Equal(got, want) {
			t.Errorf("events = %v, want %v", got, want)
		}
	})
}

func TestFailures(t *testing.T) {
	service := func(run func(ctx context.Context, ready func()) error) step {
		return step{"x", func(context.Context) (Service, error) { return serviceFunc{"x", run}, nil }}
	}
	tests := []struct {
		name string
		step step
		says string
		// later: it fails after it was ready, so "b" has started.
		later bool
	}{
		{name: "fails_before_ready", step: service(func(context.Context, func()) error { return errors.New("no port") }), says: "x service: no port"},
		{name: "fails_while_serving", later: true, step: service(func(_ context.Context, ready func()) error {
			ready()
			time.Sleep(time.Minute)
			return errors.New("disk is full")
		}), says: "x service: disk is full"},
		{name: "returns_unasked", later: true, step: service(func(_ context.Context, ready func()) error {
			ready()
			time.Sleep(time.Minute)
			return nil
		}), says: "without being asked"},
		{name: "panics", later: true, step: service(func(_ context.Context, ready func()) error {
			ready()
			time.Sleep(time.Minute)
			panic("index out of range")
		}), says: "panic: index out of range"},
		{name: "cannot_be_made", step: step{"x", func(context.Context) (Service, error) { return nil, errors.New("no identity") }}, says: "no identity"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				err := supervise(t, t.Context(), d.steady("a", 0), tt.step, d.steady("b", 0))
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("run = %v, want %q", err, tt.says)
				}
				want := []string{"a ready", "a stopped"}
				if tt.later {
					want = []string{"a ready", "b ready", "b stopped", "a stopped"}
				}
				if got := d.read(); !slices.Equal(got, want) {
					t.Errorf("events = %v, want %v", got, want)
				}
			})
		})
	}
}

func TestFailureEndsAStepInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failing := step{"a", func(context.Context) (Service, error) {
			return serviceFunc{"a", func(_ context.Context, ready func()) error {
				ready()
				time.Sleep(time.Second)
				return errors.New("broke")
			}}, nil
		}}
		joining := step{"join", func(ctx context.Context) (Service, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		if err := supervise(t, t.Context(), failing, joining); err == nil || !strings.Contains(err.Error(), "broke") {
			t.Errorf("run = %v, want the failure of a", err)
		}
	})
}

func TestServiceThatDoesNotStopIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		stuck := step{"stuck", func(context.Context) (Service, error) {
			return serviceFunc{"stuck", func(_ context.Context, ready func()) error {
				ready()
				<-release
				return nil
			}}, nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if err := supervise(t, ctx, stuck); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != time.Minute+10*time.Second {
			t.Errorf("the stop took %s, want the grace of 10 s after a minute", took)
		}
		close(release)
		synctest.Wait()
	})
}
