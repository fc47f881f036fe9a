package app_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"teleport/internal/service/app"
)

// exchange sends bytes on one connection and returns the answers, until the agent closes it.
func exchange(t testing.TB, p *person, pieces ...string) string {
	t.Helper()
	conn := p.dial(t, "http/1.1")
	defer conn.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, piece := range pieces {
			if _, err := io.WriteString(conn, piece); err != nil {
				return
			}
		}
	}()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection was not closed; so far came %q", b)
	}
	<-done
	return string(b)
}

// last is a request that ends the connection.
const last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

// TestHostileRequests are refused, each with an answer, and nothing of them arrives but
// what came before.
func TestHostileRequests(t *testing.T) {
	head := "POST / HTTP/1.1\r\nHost: x\r\n"
	for name, request := range map[string]string{
		"length_and_chunked":    head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"chunked_and_length":    head + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + smuggled,
		"two_lengths":           head + "Content-Length: 0\r\nContent-Length: 36\r\n\r\n" + smuggled,
		"same_length_twice":     head + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
		"length_list":           head + "Content-Length: 3, 3\r\n\r\nabc",
		"length_plus":           head + "Content-Length: +3\r\n\r\nabc",
		"length_hex":            head + "Content-Length: 0x3\r\n\r\nabc",
		"length_negative":       head + "Content-Length: -1\r\n\r\n",
		"length_empty":          head + "Content-Length:\r\n\r\n",
		"length_huge":           head + "Content-Length: 99999999999999999999\r\n\r\n",
		"length_underscore":     head + "Content_Length: 3\r\n\r\n" + smuggled,
		"chunked_twice":         head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked_list":          head + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
		"chunked_x":             head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"chunked_tab":           head + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
		"chunked_space_in_name": head + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"chunked_underscore":    head + "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked_http10":        "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"folded":                head + "X-A: b\r\n Transfer-Encoding: chunked\r\n\r\n",
		"folded_first":          "GET / HTTP/1.1\r\n Host: x\r\n\r\n",
		"bare_lf":               "GET / HTTP/1.1\nHost: x\n\n",
		"bare_cr":               "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\rX-B: c\r\n\r\n",
		"nul":                   "GET / HTTP/1.1\r\nHost: x\r\nX-A: b\x00\r\n\r\n",
		"no_colon":              "GET / HTTP/1.1\r\nHost: x\r\nX-A\r\n\r\n",
		"empty_name":            "GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
		"bad_name":              "GET / HTTP/1.1\r\nHost: x\r\nX(A): b\r\n\r\n",
		"two_hosts":             "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"no_host":               "GET / HTTP/1.1\r\n\r\n",
		"absolute":              "GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"authority":             "CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"no_slash":              "GET evil HTTP/1.1\r\nHost: x\r\n\r\n",
		"space_in_target":       "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
		"tab_in_target":         "GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n",
		"http09":                "GET /\r\n\r\n",
		"http2":                 "GET / HTTP/2.0\r\nHost: x\r\n\r\n",
		"preface":               "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"slashes_and_quotes":    "GET //a\"b HTTP/1.1\r\nHost: x\r\n\r\n",
		"chunk_sign":            head + "Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
		"chunk_0x":              head + "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
		"chunk_long":            head + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
		"chunk_bare_lf":         head + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
		"chunk_overflow":        head + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc",
		"chunk_extension_lf":    head + "Transfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
		"two_upgrades":          "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			tg := record(t, ok)
			w := start(t, nil, application(appName, tg.uri(), nil))
			answers := exchange(t, w.alice(t), "GET /first HTTP/1.1\r\nHost: x\r\n\r\n", request, smuggled)
			arrived := strings.Join(tg.got(), "")
			if !strings.Contains(arrived, "GET /first ") {
				t.Errorf("the good request before it did not arrive: %q", arrived)
			}
			if strings.Contains(arrived, "smuggled") {
				t.Errorf("what came after it arrived: %q", arrived)
			}
			if strings.Contains(arrived, "0\r\n\r\n") || strings.Count(answers, "HTTP/1.1 200") > 1 {
				t.Errorf("it was passed on as a whole: %q", arrived)
			}
			if n := strings.Count(answers, "HTTP/1.1 "); n > 2 || n == 1 && !strings.HasPrefix(name, "chunk_") {
				t.Errorf("%d answers: %q, want that of the first and an error", n, answers)
			}
		})
	}
}

// TestNoOtherHTTP: an application that would go on in another HTTP is not asked to, since
// nobody would see what comes after, such as headers that say who the user is.
func TestNoOtherHTTP(t *testing.T) {
	for name, upgrade := range map[string]string{
		"h2c": "h2c", "capitals": "H2C", "tls": "TLS/1.0", "http2": "HTTP/2.0", "among_others": "websocket, h2c", "h2c_14": "h2c-14",
	} {
		t.Run(name, func(t *testing.T) {
			tg := record(t, func(r *http.Request, _ *bufio.Reader, conn net.Conn) bool {
				if r.Header.Get("Upgrade") == "" {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
					return false
				}
				_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+upgrade+"\r\n\r\n")
				b, _ := io.ReadAll(conn)
				t.Errorf("behind the agent's back came %q", b)
				return false
			})
			w := start(t, nil, application(appName, tg.uri(), nil))
			got := exchange(t, w.alice(t), "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: "+upgrade+"\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
				"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nTeleport-Jwt-Assertion: evil")
			if !strings.HasPrefix(got, "HTTP/1.1 200") {
				t.Errorf("the answer = %q, want one in HTTP/1.1", got)
			}
		})
	}
}

// TestPipelined: several requests in one piece, or in pieces of one byte, arrive in turn.
func TestPipelined(t *testing.T) {
	stream := "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nGET /no\r\n\r" +
		"POST /3 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n5;ext=1\r\nGET /\r\n1\r\nx\r\n0\r\nX-T: 1\r\n\r\n" + last
	for name, pieces := range map[string][]string{"whole": {stream}, "bytes": strings.Split(stream, "")} {
		t.Run(name, func(t *testing.T) {
			var lines []string
			tg := record(t, func(r *http.Request, br *bufio.Reader, conn net.Conn) bool {
				b, _ := io.ReadAll(r.Body)
				lines = append(lines, r.Method+" "+r.RequestURI+" "+string(b))
				r.Body = http.NoBody
				return ok(r, br, conn)
			})
			w := start(t, nil, application(appName, tg.uri(), nil))
			answers := exchange(t, w.alice(t), pieces...)
			if strings.Count(answers, "HTTP/1.1 200") != 4 {
				t.Errorf("answers = %q", answers)
			}
			if got, want := strings.Join(lines, "|"), "GET /1 |POST /2 GET /no\r\n\r|POST /3 GET /x|GET /last "; got != want {
				t.Errorf("arrived %q, want %q", got, want)
			}
		})
	}
}

func TestFramingPieces(t *testing.T) {
	stream := []byte("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcPOST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n")
	whole, good := app.Framing(stream)
	var single [][]byte
	for i := range stream {
		single = append(single, stream[i:i+1])
	}
	pieces, alsoGood := app.Framing(single...)
	if good || alsoGood || !bytes.HasPrefix(stream, whole) || !bytes.HasPrefix(stream, pieces) || bytes.Contains(whole, []byte("chunked")) {
		t.Errorf("Framing = %q %v, in pieces %q %v; want both to stop at the offence", whole, good, pieces, alsoGood)
	}
}

func TestPlain(t *testing.T) {
	for _, name := range []string{"Teleport-Jwt-Assertion", "teleport_jwt_assertion", "TELEPORT.JWT-assertion", "teleport-jwt-assertion", "Teleport~Jwt!Assertion"} {
		if got := app.Plain(name); got != "teleport-jwt-assertion" {
			t.Errorf("plain(%q) = %q", name, got)
		}
	}
}

func TestCheckDial(t *testing.T) {
	for addr, good := range map[string]bool{
		"127.0.0.1:80": true, "[::1]:80": true, "10.1.2.3:443": true, "93.184.216.34:80": true,
		"169.254.169.254:80": false, "[::ffff:169.254.169.254]:80": false, "[fe80::1%eth0]:80": false, "[fd00:ec2::254]:80": false, "100.100.100.200:80": false,
		"0.0.0.0:80": false, "[::]:80": false, "224.0.0.1:80": false, "localhost:80": false,
	} {
		if err := app.CheckDial(addr); (err == nil) != good {
			t.Errorf("checkDial(%q) = %v, want good: %v", addr, err, good)
		}
	}
}

// fuzzed is what of a request decides about what it is.
type fuzzed struct{ method, target, body, headers string }

// readAll takes a stream of requests apart as the strictest of servers would; ok is false where
// the stream is not clearly one request after the other.
func readAll(stream []byte) (out []fuzzed, good bool) {
	br := bufio.NewReader(bytes.NewReader(stream))
	for {
		if _, err := br.Peek(1); err != nil {
			return out, true
		}
		r, err := http.ReadRequest(br)
		if err != nil {
			return out, false
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return out, false
		}
		out = append(out, fuzzed{r.Method, r.RequestURI, string(b), headersOf(r)})
	}
}

// headersOf are those of the user's own that have to arrive.
func headersOf(r *http.Request) string {
	var out []string
	for name, values := range r.Header {
		if p := app.Plain(name); strings.HasPrefix(p, "x-own") {
			out = append(out, fmt.Sprint(name, values))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ";")
}

// FuzzForward sends any bytes as the stream of one user. What arrives at the application is
// the beginning of the requests that the agent read, each of them as it was, and nothing
// that any server could read in another way.
func FuzzForward(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\nX-Own: 1\r\n\r\n", "POST /%2f..//?a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Own-T: 1\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"GET / HTTP/1.1\r\nHost: x\r\nTeleport_Jwt-Assertion: evil\r\nX-Forwarded-For: evil\r\nConnection: X-Own\r\nX-Own: 1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nGET /raw HTTP/1.1\r\n\r\n",
		"GET //\" HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
	} {
		f.Add([]byte(seed))
	}
	tg := record(f, ok)
	w := start(f, func(c *app.Config) { c.Log = slog.New(slog.DiscardHandler) }, application(appName, tg.uri(), nil))
	alice := w.alice(f)
	f.Fuzz(func(t *testing.T, stream []byte) {
		if len(stream) > 64<<10 {
			return
		}
		tg.forget()
		conn := alice.dial(t, "http/1.1")
		read, wrote := make(chan struct{}, 1000), make(chan error, 1)
		go func() {
			defer close(read)
			b := make([]byte, 4096)
			for {
				if _, err := conn.Read(b); err != nil {
					return
				}
				read <- struct{}{}
			}
		}()
		go func() {
			_, err := conn.Write(stream)
			wrote <- err
		}()
		// No server says that it waits for more: nothing has come for a while.
		quiet := time.NewTimer(20 * time.Millisecond)
		for open := true; open; {
			select {
			case _, open = <-read:
				quiet.Reset(20 * time.Millisecond)
			case <-quiet.C:
				open = false
			}
		}
		_ = conn.Close()
		<-wrote
		for !w.svc.Quiet() {
			<-time.After(time.Millisecond)
		}
		// With it go the connections to the application.
		w.svc.EndSessions(t.Context())
		tg.wait()
		sent, _ := readAll(stream)
		var arrived []fuzzed
		for _, raw := range tg.got() {
			for line := range strings.SplitSeq(raw, "\r\n") {
				name, value, _ := strings.Cut(line, ":")
				if p := app.Plain(name); strings.HasSuffix(value, "evil") && (p == "teleport-jwt-assertion" || p == "x-forwarded-for") {
					t.Errorf("an identity from outside arrived: %q", raw)
				}
			}
			// The last one may have broken off with the user's.
			got, _ := readAll([]byte(raw))
			arrived = append(arrived, got...)
			if _, good := app.Framing([]byte(raw)); !good {
				t.Errorf("what arrived can be read in two ways: %q", raw)
			}
		}
		if len(arrived) > len(sent) {
			t.Fatalf("%d requests arrived, %d were sent: %q", len(arrived), len(sent), arrived)
		}
		for i, got := range arrived {
			// Requests that were answered here have not arrived: the order counts.
			at := slices.IndexFunc(sent, func(s fuzzed) bool { return s.method == got.method && s.target == got.target && s.body == got.body })
			if at < 0 {
				t.Fatalf("request %d that arrived was not sent: %q, of %q", i, got, sent)
			}
			sent = sent[at+1:]
		}
	})
}
