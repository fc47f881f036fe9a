package app_test

import (
	"context"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"teleport/internal/service/app"
)

// rounds is how many times TestNothingLeaks does everything; make soak has more.
var rounds = flag.Int("rounds", 20, "rounds of connections that are opened and closed to look for leaks")

func usage(t testing.TB) (goroutines, descriptors int) {
	t.Helper()
	return runtime.NumGoroutine(), len(must(os.ReadDir("/proc/self/fd")))
}

// TestNothingLeaks opens and breaks off connections of all kinds.
func TestNothingLeaks(t *testing.T) {
	ws := websocket.Server{Handler: func(c *websocket.Conn) { _, _ = io.Copy(c, c) }}
	tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/socket":
			ws.ServeHTTP(w, r)
		case "/stream":
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			_, _ = io.Copy(w, r.Body)
		}
	})
	w := start(t, nil, application(appName, tg.URL, nil))
	kinds := []func(p *person){
		func(p *person) { // ends in order
			get(t, p.http(t, false), "/")
		},
		func(p *person) { // is broken off by the user in an answer
			ctx, cancel := context.WithCancel(t.Context())
			resp, err := p.http(t, true).Do(must(http.NewRequestWithContext(ctx, http.MethodGet, site+"/stream", nil)))
			cancel()
			if err == nil {
				_ = resp.Body.Close()
			}
		},
		func(p *person) { // is broken off in an upload
			in, out := io.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				_, _ = io.WriteString(out, "x")
				cancel()
				_ = out.CloseWithError(context.Canceled)
			}()
			resp, err := p.http(t, false).Do(must(http.NewRequestWithContext(ctx, http.MethodPost, site+"/", in)))
			if err == nil {
				_ = resp.Body.Close()
			}
		},
		func(p *person) { // a web socket whose user goes without a word
			conn := p.dial(t, "http/1.1")
			c, err := websocket.NewClient(must(websocket.NewConfig("wss://"+publicAddr+"/socket", site)), conn)
			if err != nil {
				t.Error(err)
				return
			}
			_ = websocket.Message.Send(c, "x")
			_ = conn.NetConn().Close()
		},
		func(p *person) { // never says anything
			_ = p.dial(t, "h2").Close()
		},
		func(*person) { // never begins TLS
			_ = must(net.Dial("tcp", w.addr)).Close()
		},
		func(*person) { // has no rights
			_ = get(t, w.person(t, "mallory", nil).http(t, false), "/").Body
		},
	}
	round := func(n int) {
		for range n {
			p := w.alice(t)
			for _, kind := range kinds {
				kind(p)
			}
			p.cert.Certificate = nil
		}
	}
	settle := func(goroutines, descriptors int) (int, int) {
		for range 200 {
			w.svc.EndSessions(t.Context())
			http.DefaultTransport.(*http.Transport).CloseIdleConnections()
			if g, d := usage(t); goroutines > 0 && g <= goroutines && d <= descriptors {
				return g, d
			}
			<-time.After(20 * time.Millisecond)
		}
		return usage(t)
	}
	// Clients of the test keep idle connections until its end: the agent ends them.
	end := func() {
		deadline := time.After(10 * time.Second)
		for w.svc.Open() > 0 {
			w.svc.EndConnections()
			select {
			case <-deadline:
				t.Fatalf("%d connections are left", w.svc.Open())
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	round(3)
	end()
	g0, d0 := settle(0, 0)
	round(*rounds)
	end()
	g1, d1 := settle(g0+3, d0+3)
	if g1 > g0+3 || d1 > d0+3 {
		buf := make([]byte, 1<<20)
		t.Errorf("after %d rounds %d goroutines and %d descriptors, before %d and %d\n%s", *rounds, g1, d1, g0, d0, buf[:runtime.Stack(buf, true)])
	}
}

// BenchmarkIdleConnection is the memory that an idle connection costs, the client's half
// included.
func BenchmarkIdleConnection(b *testing.B) {
	tg := serve(b, hello)
	w := start(b, func(c *app.Config) { c.Log = quiet() }, application(appName, tg.URL, nil))
	const conns = 200
	alice := w.alice(b)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	for b.Loop() {
		before := heap()
		var open []io.Closer
		for range conns {
			c := alice.dial(b, "http/1.1")
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			_, _ = c.Read(make([]byte, 4096))
			open = append(open, c)
		}
		b.ReportMetric(float64(heap()-before)/conns/1024, "KiB/connection+client")
		for _, c := range open {
			_ = c.Close()
		}
	}
}

// BenchmarkRequest is the time of one request through the agent, and straight to the
// application.
func BenchmarkRequest(b *testing.B) {
	big := strings.Repeat("x", 1<<20)
	tg := serve(b, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			_, _ = io.WriteString(w, big)
			return
		}
		hello(w, r)
	})
	w := start(b, func(c *app.Config) { c.Log = quiet() }, application(appName, tg.URL, nil))
	for name, c := range map[string]struct {
		c   *http.Client
		url string
	}{"direct": {http.DefaultClient, tg.URL}, "http1": {w.alice(b).http(b, false), site}, "http2": {w.alice(b).http(b, true), site}} {
		for _, path := range []string{"/", "/big"} {
			b.Run(name+path, func(b *testing.B) {
				for b.Loop() {
					resp, err := c.c.Get(c.url + path)
					if err != nil {
						b.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			})
		}
	}
}
