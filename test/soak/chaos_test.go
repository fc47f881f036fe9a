package soak

import (
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"teleport/test/cluster"
)

// service is a process that is killed and started again.
type service struct {
	name   string
	daemon *cluster.Daemon
	ready  <-chan time.Time
	kills  int

	mu sync.Mutex
	// lives are when it was there: the last one has no end yet.
	lives []life
}

// life is from the start of a process until it was killed.
type life struct{ from, to time.Time }

// aliveSince reports whether it was not killed since then.
func (s *service) aliveSince(at time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lives) == 0 || s.lives[len(s.lives)-1].from.Before(at)
}

// steadySince reports whether it was there at that time and all the time since.
func (s *service) steadySince(at time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lives) == 0 {
		return true
	}
	last := s.lives[len(s.lives)-1]
	return last.from.Before(at) && last.to.IsZero()
}

// alive reports whether the process is there.
func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// chaos kills services until ctx ends: first each of them once, then one or two at
// random, back after a moment.
func (w *world) chaos(ctx context.Context) {
	source := *seed
	if source == 0 {
		source = uint64(time.Now().UnixNano())
	}
	w.t.Logf("-seed=%d", source)
	dice := rand.New(rand.NewPCG(source, 1))
	first := dice.Perm(len(w.services))
	for round := 0; ; round++ {
		pause(ctx, time.Duration(300+dice.IntN(1500))*time.Millisecond)
		if ctx.Err() != nil {
			return
		}
		victims := []*service{w.services[dice.IntN(len(w.services))]}
		if round < len(first) {
			victims[0] = w.services[first[round]]
		}
		if dice.IntN(3) == 0 {
			if other := w.services[dice.IntN(len(w.services))]; other != victims[0] {
				victims = append(victims, other)
			}
		}
		for _, s := range victims {
			w.kill(s)
		}
		pause(ctx, time.Duration(dice.IntN(700))*time.Millisecond)
		for _, s := range victims {
			w.spawn(s)
		}
	}
}

// kill ends a service as a power cut does. That it had ended before is an error: it
// gave up.
func (w *world) kill(s *service) {
	if !alive(s.daemon.PID) {
		w.t.Errorf("%s ended by itself:\n%s", s.name, tail(s.daemon.Log))
	}
	s.mu.Lock()
	if len(s.lives) == 0 {
		s.lives = append(s.lives, life{})
	}
	s.lives[len(s.lives)-1].to = time.Now()
	s.mu.Unlock()
	_ = syscall.Kill(s.daemon.PID, syscall.SIGKILL)
	s.daemon.Stop()
	s.kills++
}

// spawn starts a service again and does not wait.
func (w *world) spawn(s *service) {
	daemon, ready, err := w.Spawn(s.name, w.Path(s.name+".yaml"))
	if err != nil {
		w.t.Errorf("start %s: %v", s.name, err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.daemon, s.ready = daemon, ready
	s.lives = append(s.lives, life{from: time.Now()})
}

// recover waits until every service that was started again serves.
func (w *world) recover() {
	deadline := time.After(60 * time.Second)
	for _, s := range w.services {
		if s.ready == nil {
			continue
		}
		for waiting := true; waiting; {
			select {
			case <-s.ready:
				waiting = false
			case <-deadline:
				w.t.Fatalf("%s is not ready a minute after the last kill:\n%s", s.name, tail(s.daemon.Log))
			case <-time.After(100 * time.Millisecond):
				if !alive(s.daemon.PID) {
					w.t.Fatalf("%s ended instead of becoming ready:\n%s", s.name, tail(s.daemon.Log))
				}
			}
		}
		s.ready = nil
	}
	// Everything serves: every agent through the Proxy.
	for _, s := range w.services[2:] {
		// If not, the log says where it hangs.
		dump := time.AfterFunc(28*time.Second, func() { _ = syscall.Kill(s.daemon.PID, syscall.SIGQUIT) })
		w.eventually("a session on "+s.name, func() (string, error) {
			return w.tool(w.t.Context(), w.Home(), "tsh", "ssh", w.Login+"@"+s.name, "true")
		})
		dump.Stop()
	}
}

// restartAll stops everything in an orderly way and starts it again.
func (w *world) restartAll() {
	for i := len(w.services) - 1; i >= 0; i-- {
		w.services[i].daemon.Stop()
	}
	for _, s := range w.services {
		w.spawn(s)
	}
	w.recover()
}

// eventually runs until it succeeds.
func (w *world) eventually(what string, f func() (string, error)) {
	w.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		out, err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: still %v after 30 s:\n%s", what, err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
