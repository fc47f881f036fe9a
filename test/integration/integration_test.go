package integration

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	statusv1 "teleport/api/status/v1"
	"teleport/internal/client"
	"teleport/test/e2e/ownhome"
)

func TestMain(m *testing.M) { os.Exit(ownhome.Run(m.Run)) }

func self(t *testing.T) string {
	t.Helper()
	me, err := user.Current()
	must(t, err)
	return me.Username
}

func clusterPins(t *testing.T, conn grpc.ClientConnInterface) []string {
	t.Helper()
	status, err := statusv1.NewStatusServiceClient(conn).GetStatus(t.Context(), &statusv1.GetStatusRequest{})
	must(t, err)
	return status.GetCaPins()
}

// TestNothingIsLeftBehind starts everything, uses it, stops it in an orderly way and
// looks at what is still there.
func TestNothingIsLeftBehind(t *testing.T) {
	before := len(goroutines())
	s := newSite(t)
	files := descriptors(t)
	auth := s.runAuth()
	s.learnPin()
	proxy := s.runProxy()
	agent := s.runAgent("web")
	alice := s.invite("alice")
	s.reach(alice, "web")
	for _, r := range []*running{agent, proxy, auth} {
		began := time.Now()
		r.stop()
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("%s took %s to stop", r.name, took)
		}
	}
	s.within(15*time.Second, "every goroutine ends", func() error {
		if left := goroutines(); len(left) > before {
			return fmt.Errorf("%d are left:\n%s", len(left)-before, strings.Join(left, "\n\n"))
		}
		return nil
	})
	s.within(5*time.Second, "every file is closed", func() error {
		if now := descriptors(t); now > files {
			return fmt.Errorf("%d are open, %d were", now, files)
		}
		return nil
	})
}

// TestRestarts stops and starts each part several times. The others find it again, and
// hold no more than after the first time.
func TestRestarts(t *testing.T) {
	s := newSite(t)
	auth := s.runAuth()
	s.learnPin()
	proxy := s.runProxy()
	agent := s.runAgent("web")
	alice := s.invite("alice")
	s.reach(alice, "web")
	for _, tt := range []struct {
		name  string
		part  **running
		start func() *running
	}{
		{"proxy", &proxy, s.runProxy},
		{"auth", &auth, s.runAuth},
		{"agent", &agent, func() *running { return s.runAgent("web") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first := 0
			for round := range 4 {
				(*tt.part).stop()
				*tt.part = tt.start()
				s.reach(alice, "web")
				// Connections that were replaced drain for a while.
				if round == 0 {
					s.within(20*time.Second, "it settles", settled())
					first = len(goroutines())
				}
			}
			const slack = 12
			s.within(45*time.Second, "no more goroutines than after the first time", func() error {
				if now := goroutines(); len(now) > first+slack {
					return fmt.Errorf("%d, %d after the first:\n%s", len(now), first, strings.Join(now, "\n\n"))
				}
				return nil
			})
		})
	}
}

// settled returns a function that succeeds when the number of goroutines was the same
// for a second.
func settled() func() error {
	last, since := -1, time.Now()
	return func() error {
		if now := len(goroutines()); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < time.Second {
			return errors.New("it still changes")
		}
		return nil
	}
}

// TestManyAgents joins agents at the same time and opens sessions on all of them at
// the same time, while the Proxy is stopped once in between.
func TestManyAgents(t *testing.T) {
	const agents = 8
	s := newSite(t)
	s.runAuth()
	s.learnPin()
	proxy := s.runProxy()
	var waits []<-chan struct{}
	for i := range agents {
		name := fmt.Sprintf("agent-%d", i)
		_, ready := s.launch(name, s.agentConfig(name))
		waits = append(waits, ready)
	}
	for i, ready := range waits {
		select {
		case <-ready:
		case <-time.After(time.Minute):
			t.Fatalf("agent-%d is not ready after a minute", i)
		}
	}
	alice := s.invite("alice")
	everywhere := func() {
		var wg sync.WaitGroup
		errs := make(chan error, agents)
		for i := range agents {
			wg.Go(func() { errs <- attempt(t, alice, fmt.Sprintf("agent-%d", i)) })
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			if err != nil {
				t.Error(err)
			}
		}
	}
	everywhere()
	proxy.stop()
	s.runProxy()
	everywhere()
}

// attempt opens a session on the host, again for a while if that fails.
func attempt(t *testing.T, c *client.Client, host string) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got, err := say(t.Context(), c, self(t), host, host)
		if err == nil && got == host {
			return nil
		}
		if err == nil {
			err = errors.New("not what was said")
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("session on %s printed %q: %w", host, got, err)
		}
	}
}
