package proxy_test

import (
	"crypto/tls"
	"io"
	"runtime"
	"testing"

	proxyv1 "teleport/api/proxy/v1"
)

// BenchmarkIdleSessionMemory measures what an idle connection of a user to a node
// holds at the user's TLS end, the Proxy, the tunnel and the node together.
func BenchmarkIdleSessionMemory(b *testing.B) {
	const sessions = 300
	w := newWorld(b)
	w.agent(b, "web-1", "web", nil)
	cert := w.user(b, "web")
	one := make([]byte, 1)
	live := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	for range b.N {
		before, goroutines := live(), runtime.NumGoroutine()
		conns := make([]*tls.Conn, 0, sessions)
		for range sessions {
			conn, _ := w.dialUser(b, cert, &proxyv1.DialRequest{Host: "web-1"})
			_, _ = conn.Write(one)
			_, _ = io.ReadFull(conn, one)
			conns = append(conns, conn)
		}
		b.ReportMetric(float64(live()-before)/sessions/1024, "KiB/session(all-ends)")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/sessions, "goroutines/session(all-ends)")
		for _, c := range conns {
			_ = c.Close()
		}
	}
}

// BenchmarkDial measures a user's way to a node: TLS with certificate, the request,
// the tunnel, one byte there and back.
func BenchmarkDial(b *testing.B) {
	w := newWorld(b)
	w.agent(b, "web-1", "web", nil)
	cert := w.user(b, "web")
	one := make([]byte, 1)
	for b.Loop() {
		conn, _ := w.dialUser(b, cert, &proxyv1.DialRequest{Host: "web-1"})
		_, _ = conn.Write(one)
		_, _ = io.ReadFull(conn, one)
		_ = conn.Close()
	}
}

// BenchmarkCopy measures one stream from a user to a node and back.
func BenchmarkCopy(b *testing.B) {
	w := newWorld(b)
	w.agent(b, "web-1", "web", nil)
	conn, _ := w.dialUser(b, w.user(b, "web"), &proxyv1.DialRequest{Host: "web-1"})
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		go func() { _, _ = conn.Write(buf) }()
		if _, err := io.ReadFull(conn, make([]byte, len(buf))); err != nil {
			b.Fatal(err)
		}
	}
}
