package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"teleport/test/cluster"
)

// split is a cluster whose Auth and Proxy are processes of their own, so that the
// memory of each is known.
type split struct {
	*cluster.Cluster
	services   map[string]cluster.Services
	auth, edge *cluster.Daemon
}

func startSplit(ctx context.Context, bin string) (*split, error) {
	c, err := cluster.New(cluster.Config{Bin: bin, Name: "split"})
	if err != nil {
		return nil, err
	}
	s := &split{Cluster: c, services: map[string]cluster.Services{}}
	if err := s.start(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return s, nil
}

func (s *split) start(ctx context.Context) error {
	for _, name := range []string{"auth", "edge"} {
		diag, err := cluster.FreeAddr()
		if err != nil {
			return err
		}
		s.services[name] = cluster.Services{Name: name, Auth: name == "auth", Proxy: name == "edge", Direct: true, Diag: diag}
	}
	var err error
	if s.auth, err = s.Launch(ctx, s.services["auth"]); err != nil {
		return err
	}
	edge := s.services["edge"]
	if edge.Join, err = s.Token(ctx, "proxy", time.Hour); err != nil {
		return err
	}
	s.services["edge"] = edge
	s.edge, err = s.Launch(ctx, edge)
	return err
}

// restart starts both daemons anew on their data.
func (s *split) restart(ctx context.Context) error {
	s.edge.Stop()
	s.auth.Stop()
	var err error
	if s.auth, err = s.Launch(ctx, s.services["auth"]); err != nil {
		return err
	}
	s.edge, err = s.Launch(ctx, s.services["edge"])
	return err
}

// level is the memory of both daemons at one moment.
type level struct {
	auth, edge         memory
	authHeap, edgeHeap heap
}

// heap is what the Go runtime says of itself, for explaining the memory.
type heap struct{ inUse, stacks, goroutines float64 }

func (s *split) level(ctx context.Context) (level, error) {
	var l level
	var err error
	if l.auth, err = memoryOf(s.auth.PID); err != nil {
		return l, err
	}
	if l.edge, err = memoryOf(s.edge.PID); err != nil {
		return l, err
	}
	if l.authHeap, err = s.heap(ctx, "auth"); err != nil {
		return l, err
	}
	l.edgeHeap, err = s.heap(ctx, "edge")
	return l, err
}

func (s *split) heap(ctx context.Context, name string) (heap, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.services[name].Diag+"/metrics", nil)
	if err != nil {
		return heap{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return heap{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return heap{}, err
	}
	value := func(metric string) float64 {
		m := regexp.MustCompile(`(?m)^` + metric + ` (\S+)$`).FindSubmatch(text)
		if m == nil {
			return 0
		}
		x, _ := strconv.ParseFloat(string(m[1]), 64)
		return x
	}
	return heap{value("go_memstats_heap_inuse_bytes") / 1024, value("go_memstats_stack_inuse_bytes") / 1024, value("go_goroutines")}, nil
}

// tunnels measures what an idle agent costs at the Proxy and at Auth: first the
// tunnel alone, then with the control stream.
func tunnels(ctx context.Context, b *bench) error {
	s, err := startSplit(ctx, b.bin)
	if err != nil {
		return err
	}
	defer s.Close()
	by, err := s.Token(ctx, "node", time.Hour)
	if err != nil {
		return err
	}
	agents, err := joinAgents(ctx, s.ProxyAddr, by, b.agents)
	if err != nil {
		return err
	}
	// The joins left free memory behind, which would hide what the tunnels need.
	if err := s.restart(ctx); err != nil {
		return err
	}
	idle, err := s.after(ctx, b.idle)
	if err != nil {
		return err
	}
	open, err := runAll(ctx, agents, func(ctx context.Context, a *lightAgent, up func()) error {
		return a.tunnel(ctx, func(connected bool) {
			if connected {
				up()
			}
		})
	})
	if err != nil {
		return err
	}
	defer open.stop()
	tunnelled, err := s.after(ctx, b.idle)
	if err != nil {
		return err
	}
	streams, err := runAll(ctx, agents, func(ctx context.Context, a *lightAgent, up func()) error {
		return a.control(ctx, func(err error) {
			if err == nil {
				up()
			}
		})
	})
	if err != nil {
		return err
	}
	defer streams.stop()
	whole, err := s.after(ctx, b.idle)
	if err != nil {
		return err
	}
	b.reportTunnels(idle, tunnelled, whole, open.took, streams.took)
	return nil
}

func (s *split) after(ctx context.Context, d time.Duration) (level, error) {
	if err := pause(ctx, d); err != nil {
		return level{}, err
	}
	return s.level(ctx)
}

func (b *bench) reportTunnels(idle, tunnelled, whole level, openTook, streamsTook time.Duration) {
	each := func(kib float64) string { return number(kib / float64(b.agents)) }
	row := func(name string, m memory, h, before heap) []string {
		return []string{
			name, each(float64(m.rss)), each(float64(m.anon)), each(h.inUse - before.inUse), each(h.stacks - before.stacks),
			each(h.goroutines - before.goroutines),
		}
	}
	b.report.table(fmt.Sprintf("Memory for %d idle agents, KiB per agent", b.agents),
		[]string{"", "RSS", "RssAnon", "Go heap in use", "Go stacks", "goroutines"},
		row("Proxy: the tunnel", tunnelled.edge.minus(idle.edge), tunnelled.edgeHeap, idle.edgeHeap),
		row("Auth: the tunnel", tunnelled.auth.minus(idle.auth), tunnelled.authHeap, idle.authHeap),
		row("Proxy: tunnel and control stream", whole.edge.minus(idle.edge), whole.edgeHeap, idle.edgeHeap),
		row("Auth: tunnel and control stream", whole.auth.minus(idle.auth), whole.authHeap, idle.authHeap))
	b.report.note("Auth and Proxy run as two processes, started anew after the joins. All tunnels were up after %.2f s, all control streams after %.2f s.",
		openTook.Seconds(), streamsTook.Seconds())
	n := float64(b.agents)
	b.report.atMost("memory per idle tunnel at the Proxy", float64(tunnelled.edge.minus(idle.edge).rss)/n, 80, " KiB")
	b.report.atMost("memory per idle agent at the Proxy, all in", float64(whole.edge.minus(idle.edge).rss)/n, 80, " KiB")
	b.report.atMost("memory per idle agent at Auth, all in", float64(whole.auth.minus(idle.auth).rss)/n, 80, " KiB")
}
