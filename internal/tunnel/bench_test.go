package tunnel_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/keys"
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

// crowd is what the process of the agents is told.
type crowd struct {
	Addr        string
	Authorities [][]byte // serialised CertAuthority
	Agents      []member
}

type member struct {
	Cert []byte // wire
	Key  []byte // PEM
}

const crowdEnv = "TUNNEL_TEST_CROWD"

// TestMain lets the test binary be the process of the agents.
func TestMain(m *testing.M) {
	if file := os.Getenv(crowdEnv); file != "" {
		if err := runCrowd(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runCrowd runs the agents until stdin ends.
func runCrowd(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var c crowd
	if err := json.Unmarshal(data, &c); err != nil {
		return err
	}
	var cas []*typesv1.CertAuthority
	for _, b := range c.Authorities {
		a := new(typesv1.CertAuthority)
		if err := proto.Unmarshal(b, a); err != nil {
			return err
		}
		cas = append(cas, a)
	}
	trust, err := ca.NewTrust(cas)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var work sync.WaitGroup
	for _, m := range c.Agents {
		key, err := keys.ParsePrivate(m.Key)
		if err != nil {
			return err
		}
		cert, err := ca.ParseSSHCertificate(m.Cert)
		if err != nil {
			return err
		}
		plain, err := ssh.NewSignerFromSigner(key)
		if err != nil {
			return err
		}
		signer, err := ssh.NewCertSigner(cert, plain)
		if err != nil {
			return err
		}
		work.Go(func() {
			_ = tunnel.RunAgent(ctx, tunnel.AgentConfig{
				Addr: c.Addr, TLS: ca.ClientTLS(nil, func() *ca.Trust { return trust }, types.RoleProxy),
				Signer: func() ssh.Signer { return signer }, HostKey: (&cluster{trust: trust}).hostKey, Handle: echo,
			}, nil)
		})
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	work.Wait()
	return nil
}

// BenchmarkIdleTunnelMemory measures what an idle tunnel holds at the Proxy: in its
// memory, and by the resident size of the process. The agents are another process.
// What the kernel holds for a socket is in neither.
func BenchmarkIdleTunnelMemory(b *testing.B) {
	const tunnels = 500
	for range b.N {
		b.StopTimer()
		c := newCluster(b)
		p := startProxy(b, c, nil, nil)
		told := crowd{Addr: p.addr}
		for _, a := range c.trust.Authorities() {
			told.Authorities = append(told.Authorities, mustMarshal(b, a))
		}
		for range tunnels {
			k := newKeys(b)
			_, wire, err := c.signer.Host(ca.HostRequest{
				Identity: identity.Identity{Cluster: "example.com", Host: &identity.Host{ID: uuid.NewString(), Name: "web-1", Roles: []types.SystemRole{types.RoleNode}}},
				TLSKey:   k.spki, SSHKey: k.wire.Marshal(),
			})
			if err != nil {
				b.Fatal(err)
			}
			pem, err := keys.MarshalPrivate(k.ssh)
			if err != nil {
				b.Fatal(err)
			}
			told.Agents = append(told.Agents, member{wire, pem})
		}
		data, err := json.Marshal(told)
		if err != nil {
			b.Fatal(err)
		}
		file := filepath.Join(b.TempDir(), "crowd.json")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			b.Fatal(err)
		}
		told = crowd{}
		heap, rss, goroutines := live(), resident(b), runtime.NumGoroutine()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crowdEnv+"="+file)
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		until(b, "all tunnels", func() bool { return p.Count() == tunnels })
		b.StopTimer()
		b.ReportMetric(float64(live()-heap)/tunnels/1024, "KiB/tunnel")
		debug.FreeOSMemory()
		b.ReportMetric(float64(resident(b)-rss)/tunnels/1024, "RSS-KiB/tunnel")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/tunnels, "goroutines/tunnel")
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
		p.stop()
	}
}

func mustMarshal(b *testing.B, m proto.Message) []byte {
	b.Helper()
	out, err := proto.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// resident returns the resident size of this process.
func resident(b *testing.B) int64 {
	b.Helper()
	var size, pages int64
	data, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(data), &size, &pages)
	}
	if err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
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
			cfg.Handle = func(_ context.Context, conn net.Conn, _ tunnel.Request) {
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
						conn, err := p.Dial(b.Context(), id, toNode)
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
		conn, err := p.Dial(b.Context(), id, toNode)
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
