package tunnel_test

import (
	"context"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

// live returns the bytes of memory in use after a collection.
func live() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// BenchmarkIdleTunnelMemory measures what an idle tunnel holds at the Proxy and at
// the agent together, in one process; what the kernel holds for the sockets is not
// in it. The Proxy's part alone is measured with agents that are bare SSH clients,
// whose own part is known by the same measurement without a Server.
func BenchmarkIdleTunnelMemory(b *testing.B) {
	const tunnels = 300
	for range b.N {
		b.StopTimer()
		c := newCluster(b)
		p := startProxy(b, c, nil, nil)
		cfg, _ := agentConfig(b, c, p.addr)
		type key struct {
			id     string
			signer ssh.Signer
		}
		var ids []key
		for range tunnels {
			id := uuid.NewString()
			_, s := c.host(b, id, "", 0, types.RoleNode)
			ids = append(ids, key{id, s})
		}
		before, goroutines := live(), runtime.NumGoroutine()
		start := time.Now()
		b.StartTimer()
		var agents []*agent
		for _, k := range ids {
			cfg := cfg
			cfg.Signer = func() ssh.Signer { return k.signer }
			agents = append(agents, startAgent(b, cfg, k.id))
		}
		until(b, "all tunnels", func() bool { return p.Count() == tunnels })
		b.StopTimer()
		took := time.Since(start)
		after := live()
		b.ReportMetric(float64(after-before)/tunnels/1024, "KiB/tunnel(both-ends)")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/tunnels, "goroutines/tunnel(both-ends)")
		b.ReportMetric(tunnels/took.Seconds(), "tunnels/s")
		var work sync.WaitGroup
		for _, a := range agents {
			work.Go(a.stop)
		}
		work.Wait()
		p.stop()
	}
}

// BenchmarkTunnelThroughput measures copies through one tunnel, both ends in one
// process on loopback.
func BenchmarkTunnelThroughput(b *testing.B) {
	for _, bb := range []struct {
		name    string
		streams int
		down    bool
	}{{"up_1", 1, false}, {"down_1", 1, true}, {"up_8", 8, false}} {
		b.Run(bb.name, func(b *testing.B) {
			c := newCluster(b)
			p := startProxy(b, c, nil, nil)
			cfg, id := agentConfig(b, c, p.addr)
			const chunk = 32 << 10
			per := 64 << 20 / bb.streams
			cfg.Handle = func(_ context.Context, _ types.SystemRole, conn net.Conn, _ string) {
				if bb.down {
					copyOut(conn, per, chunk)
					return
				}
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, make([]byte, chunk))
				_, _ = conn.Write([]byte{1})
			}
			startAgent(b, cfg, id)
			until(b, "tunnel", func() bool { return p.Connected(id) })
			b.SetBytes(64 << 20)
			used := cpu(b)
			b.ResetTimer()
			for range b.N {
				var work sync.WaitGroup
				for range bb.streams {
					work.Go(func() {
						conn, err := p.Dial(b.Context(), id, types.RoleNode, client)
						if err != nil {
							b.Error(err)
							return
						}
						defer func() { _ = conn.Close() }()
						if !bb.down {
							copyOut(conn, per, chunk)
							_ = conn.(interface{ CloseWrite() error }).CloseWrite()
						}
						_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, make([]byte, chunk))
					})
				}
				work.Wait()
			}
			b.ReportMetric(float64(b.N)*64/b.Elapsed().Seconds(), "MiB/s")
			b.ReportMetric((cpu(b)-used).Seconds()*16/float64(b.N), "cpu-s/GiB")
		})
	}
}

// cpu returns the processor time of this process.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func copyOut(w io.Writer, n, chunk int) {
	buf := make([]byte, chunk)
	for n > 0 {
		k, err := w.Write(buf[:min(n, chunk)])
		if err != nil {
			return
		}
		n -= k
	}
}

// BenchmarkDial measures opening a channel, one byte each way, and closing it.
func BenchmarkDial(b *testing.B) {
	c := newCluster(b)
	p := startProxy(b, c, nil, func(cfg *tunnel.ServerConfig) { cfg.Trust = func() *ca.Trust { return c.trust } })
	cfg, id := agentConfig(b, c, p.addr)
	startAgent(b, cfg, id)
	until(b, "tunnel", func() bool { return p.Connected(id) })
	one := make([]byte, 1)
	for b.Loop() {
		conn, err := p.Dial(b.Context(), id, types.RoleNode, client)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := conn.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			b.Fatal(err)
		}
		_ = conn.Close()
	}
}
