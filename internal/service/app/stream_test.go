package app_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	typesv1 "teleport/api/types/v1"
)

// pattern makes n bytes that are not the same.
type pattern struct{ n, at int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at >= p.n {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.n-p.at))
	for i := range n {
		b[i] = byte((p.at + int64(i)) * 31 >> 3)
	}
	p.at += int64(n)
	return n, nil
}

func sum(t testing.TB, r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		t.Errorf("after %d bytes: %v", n, err)
	}
	return fmt.Sprintf("%d %x", n, h.Sum(nil))
}

// TestStreams sends much in both directions, and keeps little of it in memory.
func TestStreams(t *testing.T) {
	const size = 96 << 20
	want := sum(t, &pattern{n: size})
	for _, uri := range []string{"http", "https"} {
		both(t, func(t *testing.T, h2 bool) {
			h := func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					_, _ = io.WriteString(w, sum(t, r.Body))
					return
				}
				w.Header().Set("Content-Length", fmt.Sprint(size))
				_, _ = io.Copy(w, &pattern{n: size})
			}
			var tg *httptest.Server
			if uri == "https" {
				tg = serveTLS(t, h)
			} else {
				tg = serve(t, h)
			}
			w := start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) { s.InsecureSkipVerify = uri == "https" }))
			c := w.alice(t).http(t, h2)
			var most atomic.Uint64
			stop := make(chan struct{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					most.Store(max(most.Load(), m.HeapInuse))
					select {
					case <-stop:
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			}()
			for name, length := range map[string]int64{"known": size, "chunked": -1} {
				r := must(http.NewRequest(http.MethodPost, site+"/", io.NopCloser(&pattern{n: size})))
				r.ContentLength = length
				if a := do(t, c, r); a.body != want {
					t.Errorf("%s upload arrived as %q, want %q", name, a.body, want)
				}
			}
			resp, err := c.Get(site + "/")
			if err != nil {
				t.Fatal(err)
			}
			if got := sum(t, resp.Body); got != want || resp.ContentLength != size {
				t.Errorf("download is %q with length %d, want %q", got, resp.ContentLength, want)
			}
			close(stop)
			<-done
			if most.Load() > 64<<20 {
				t.Errorf("%d MiB of memory in use, want less than what is sent", most.Load()>>20)
			}
		})
	}
}

func TestHeadAndRange(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "x.txt", time.Unix(1e9, 0), strings.NewReader("0123456789"))
		})
		w := start(t, nil, application(appName, tg.URL, nil))
		c := w.alice(t).http(t, h2)
		head := do(t, c, must(http.NewRequest(http.MethodHead, site+"/", nil)))
		if head.ContentLength != 10 || head.body != "" {
			t.Errorf("HEAD has length %d, body %q; want 10, none", head.ContentLength, head.body)
		}
		r := must(http.NewRequest(http.MethodGet, site+"/", nil))
		r.Header.Set("Range", "bytes=2-4")
		if a := do(t, c, r); a.StatusCode != http.StatusPartialContent || a.body != "234" || a.Header.Get("Content-Range") != "bytes 2-4/10" {
			t.Errorf("range = %s %q %v", a.Status, a.body, a.Header)
		}
	})
}

// TestFlush: what the application sends the user gets at once, and an early answer does not
// wait for the request.
func TestFlush(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		more := make(chan struct{})
		tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("Content-Type", "text/event-stream")
			br := bufio.NewReader(r.Body)
			for range 3 {
				line, err := br.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = io.WriteString(w, "data: "+line+"\n")
				_ = http.NewResponseController(w).Flush()
			}
			<-more
		})
		w := start(t, nil, application(appName, tg.URL, nil))
		in, out := io.Pipe()
		r := must(http.NewRequest(http.MethodPost, site+"/", in))
		go func() { _, _ = io.WriteString(out, "0\n") }()
		resp, err := w.alice(t).http(t, h2).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(resp.Body)
		for i := range 3 {
			if i > 0 {
				if _, err := fmt.Fprintf(out, "%d\n", i); err != nil {
					t.Fatal(err)
				}
			}
			line, err := br.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("event %d = %q, %v", i, line, err)
			}
			_, _ = br.ReadString('\n')
		}
		close(more)
		_ = out.Close()
		_ = resp.Body.Close()
	})
}

func TestContinue(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/no" {
				w.WriteHeader(http.StatusExpectationFailed)
				return
			}
			_, _ = io.Copy(w, r.Body)
		})
		w := start(t, nil, application(appName, tg.URL, nil))
		c := w.alice(t).http(t, h2)
		for path, want := range map[string]int{"/yes": 200, "/no": 417} {
			sent := &countingReader{r: strings.NewReader("hello")}
			r := must(http.NewRequest(http.MethodPut, site+path, sent))
			r.ContentLength = 5
			r.Header.Set("Expect", "100-continue")
			a := do(t, c, r)
			if a.StatusCode != want || (want == 200) != (a.body == "hello") {
				t.Errorf("%s = %s %q", path, a.Status, a.body)
			}
			if want == 417 && !h2 && sent.n.Load() > 0 {
				t.Errorf("%s: %d bytes were sent though the application did not want them", path, sent.n.Load())
			}
		}
	})
}

type countingReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func TestTrailers(t *testing.T) {
	for _, uri := range []string{"http", "https"} {
		both(t, func(t *testing.T, h2 bool) {
			h := func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Trailer", "X-After")
				_, _ = io.Copy(w, r.Body)
				w.Header().Set("X-After", "sum "+r.Trailer.Get("X-Sum")+" jwt"+r.Trailer.Get("Teleport-Jwt-Assertion")+r.Trailer.Get("Teleport_jwt_assertion"))
				w.Header().Set(http.TrailerPrefix+"X-Late", "late")
			}
			tg := serve(t, h)
			if uri == "https" {
				tg = serveTLS(t, h)
			}
			w := start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) { s.InsecureSkipVerify = uri == "https" }))
			r := must(http.NewRequest(http.MethodPost, site+"/", io.NopCloser(strings.NewReader("body"))))
			r.Trailer = http.Header{"X-Sum": {"1"}, "Teleport-Jwt-Assertion": {"evil"}, "Teleport_jwt_assertion": {"evil"}}
			a := do(t, w.alice(t).http(t, h2), r)
			if a.body != "body" || a.Trailer.Get("X-After") != "sum 1 jwt" || a.Trailer.Get("X-Late") != "late" {
				t.Errorf("answer = %q with trailers %v", a.body, a.Trailer)
			}
		})
	}
}

func TestEarlyHints(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		tg := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "</a.css>")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header()["Content-Type"] = nil
			_, _ = io.WriteString(w, "<html>")
		})
		w := start(t, nil, application(appName, tg.URL, nil))
		if a := get(t, w.alice(t).http(t, h2), "/"); a.StatusCode != http.StatusOK || a.Header["Content-Type"] != nil || a.body != "<html>" {
			t.Errorf("answer = %v %v %q", a.Status, a.Header, a.body)
		}
	})
}

// TestBrokenAnswer: what breaks off at the application does so at the user.
func TestBrokenAnswer(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		tg := record(t, func(_ *http.Request, _ *bufio.Reader, conn net.Conn) bool {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
			return false
		})
		w := start(t, nil, application(appName, tg.uri(), nil))
		resp, err := w.alice(t).http(t, h2).Get(site + "/")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		if err == nil {
			t.Error("an answer that broke off came as whole")
		}
	})
}

// TestWebSocketForAll: a policy that lets all origins ask lets none ask with the user's
// cookies, which web sockets come with.
func TestWebSocketForAll(t *testing.T) {
	tg := serve(t, websocket.Server{Handler: func(*websocket.Conn) {}}.ServeHTTP)
	w := start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) { s.Cors = &typesv1.AppCORS{AllowedOrigins: []string{"*"}} }))
	cfg := must(websocket.NewConfig("wss://"+publicAddr+"/socket", "https://evil.test"))
	if _, err := websocket.NewClient(cfg, w.alice(t).dial(t, "http/1.1")); err == nil {
		t.Error("any page may open web sockets in the name of its visitors")
	}
}

func TestWebSocket(t *testing.T) {
	for _, uri := range []string{"http", "https"} {
		t.Run(uri, func(t *testing.T) {
			ws := websocket.Server{Handler: func(c *websocket.Conn) {
				var msg string
				for websocket.Message.Receive(c, &msg) == nil && websocket.Message.Send(c, msg) == nil {
				}
			}}
			h := func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Teleport-Jwt-Assertion") == "" {
					t.Error("no token")
				}
				ws.ServeHTTP(w, r)
			}
			tg := serve(t, h)
			if uri == "https" {
				tg = serveTLS(t, h)
			}
			w := start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) {
				s.InsecureSkipVerify = uri == "https"
				s.Cors = &typesv1.AppCORS{AllowedOrigins: []string{"https://friend.test"}}
			}))
			alice := w.alice(t)
			open := func(origin string) (*websocket.Conn, error) {
				cfg := must(websocket.NewConfig("wss://"+publicAddr+"/socket", origin))
				return websocket.NewClient(cfg, alice.dial(t, "http/1.1"))
			}
			for _, origin := range []string{site, "https://friend.test"} {
				c, err := open(origin)
				if err != nil {
					t.Fatalf("web socket from %s: %v", origin, err)
				}
				for _, size := range []int{1, 100, 70_000} {
					msg := strings.Repeat("x", size)
					if err := websocket.Message.Send(c, msg); err != nil {
						t.Fatal(err)
					}
					var got string
					if err := websocket.Message.Receive(c, &got); err != nil || got != msg {
						t.Fatalf("%d bytes came back as %d, %v", size, len(got), err)
					}
				}
				_ = c.Close()
			}
			for _, origin := range []string{"https://evil.test", "https://" + publicAddr + ".evil.test", "null://x"} {
				if _, err := open(origin); err == nil {
					t.Errorf("web socket from %s was opened", origin)
				}
			}
		})
	}
}
