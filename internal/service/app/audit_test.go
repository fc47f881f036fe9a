package app_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
)

// TestSessionEvents: one start for all connections of a session, and an end with what went
// through it.
func TestSessionEvents(t *testing.T) {
	tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, strings.Repeat("x", 1000))
	})
	w := start(t, nil, application(appName, tg.URL, nil))
	alice := w.alice(t)
	both(t, func(t *testing.T, h2 bool) {
		c := alice.http(t, h2)
		get(t, c, "/a?secret=1")
		get(t, c, "/a?secret=2")
		do(t, c, must(http.NewRequest(http.MethodPost, site+"/b%2fc", strings.NewReader(strings.Repeat("y", 500)))))
	})
	if n := w.events.count("T2007I"); n != 1 {
		t.Errorf("%d starts, want 1", n)
	}
	start := w.events.wait(t, "T2007I", nil)
	for name, want := range map[string]any{
		"user": "alice", "app_name": appName, "app_uri": tg.URL, "app_public_addr": publicAddr, "sid": "session-of-alice", "server_id": hostID,
		"server_hostname": "agent-1", "addr.remote": clientAddr, "success": true, "namespace": "default",
	} {
		if start[name] != want {
			t.Errorf("start: %s = %v, want %v", name, start[name], want)
		}
	}
	w.stop()
	chunk := w.events.wait(t, "T2008I", nil)
	if chunk["requests"] != 6.0 || chunk["rx"].(float64) < 1000 || chunk["tx"].(float64) < 6000 || chunk["sid"] != "session-of-alice" {
		t.Errorf("chunk = %v", chunk)
	}
	if got := fmt.Sprint(chunk["paths"]); got != "[map[count:4 request:GET /a] map[count:2 request:POST /b%2fc]]" {
		t.Errorf("paths = %s", got)
	}
	if end := w.events.wait(t, "T2011I", nil); end["requests"] != 6.0 || end["sid"] != "session-of-alice" || w.events.count("T2011I") != 1 {
		t.Errorf("end = %v", end)
	}
}

// TestChunks come every five minutes while something happens, and the end a while after the
// last connection.
func TestChunks(t *testing.T) {
	tg := serve(t, hello)
	w := start(t, nil, application(appName, tg.URL, nil))
	later := func(d time.Duration) {
		w.skew.Add(int64(d))
		w.svc.LookAtSessions(t.Context())
	}
	c := w.alice(t).http(t, false)
	get(t, c, "/1")
	later(4 * time.Minute)
	if n := w.events.count("T2008I"); n != 0 {
		t.Errorf("%d chunks after four minutes, want none", n)
	}
	later(time.Minute)
	later(time.Minute)
	if n := w.events.count("T2008I"); n != 1 {
		t.Errorf("%d chunks after six minutes, want one", n)
	}
	later(6 * time.Minute)
	if n := w.events.count("T2008I"); n != 1 {
		t.Errorf("%d chunks after minutes without a request, want one", n)
	}
	get(t, c, "/2")
	c.CloseIdleConnections()
	for !w.svc.Quiet() {
		<-time.After(time.Millisecond)
	}
	later(10 * time.Minute)
	if n := w.events.count("T2011I"); n != 0 || w.events.count("T2008I") != 2 {
		t.Errorf("%d ends while the session may come back, %d chunks", n, w.events.count("T2008I"))
	}
	get(t, c, "/3")
	if n := w.events.count("T2007I"); n != 1 {
		t.Errorf("%d starts, want one for the session that came back", n)
	}
	c.CloseIdleConnections()
	for !w.svc.Quiet() {
		<-time.After(time.Millisecond)
	}
	later(16 * time.Minute)
	end := w.events.wait(t, "T2011I", nil)
	if end["requests"] != 3.0 || w.svc.Sessions() != 0 {
		t.Errorf("end = %v, with %d sessions left", end, w.svc.Sessions())
	}
}

// TestChunkUnrecorded: a session that cannot be recorded any more ends.
func TestChunkUnrecorded(t *testing.T) {
	tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	w := start(t, nil, application(appName, tg.URL, nil))
	resp, err := w.alice(t).http(t, true).Get(site + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	w.events.refuse(true)
	w.skew.Store(int64(6 * time.Minute))
	w.svc.LookAtSessions(t.Context())
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream goes on")
	}
}

// TestSameRefusal: the same refusal again and again is one event.
func TestSameRefusal(t *testing.T) {
	w := start(t, nil, application(appName, "http://127.0.0.1:1", nil))
	p := w.person(t, "mallory", nil)
	var text string
	for range 20 {
		a := get(t, p.http(t, false), "/")
		if text != "" && a.body != text {
			t.Errorf("told %q, and before that %q", a.body, text)
		}
		text = a.body
	}
	if n := w.events.count("T2007E"); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

// TestTokens: one for all requests of a session until it is about to expire; without one
// nothing is passed on.
func TestTokens(t *testing.T) {
	tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("Teleport-Jwt-Assertion"))
	})
	w := start(t, nil, application(appName, tg.URL, nil))
	c := w.alice(t).http(t, true)
	for range 10 {
		if a := get(t, c, "/"); a.body != "jwt-for-web-1" {
			t.Fatalf("token = %q", a.body)
		}
	}
	// Auth is away: what there is serves on.
	w.auth.away.Store(true)
	w.skew.Store(int64(50 * time.Minute))
	if a := get(t, c, "/"); a.body != "jwt-for-web-1" {
		t.Errorf("while Auth is away = %s %q", a.Status, a.body)
	}
}

func TestNoToken(t *testing.T) {
	reached := make(chan string, 10)
	tg := serve(t, func(_ http.ResponseWriter, r *http.Request) { reached <- r.Header.Get("Teleport-Jwt-Assertion") })
	w := start(t, nil, application(appName, tg.URL, nil))
	w.auth.away.Store(true)
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusServiceUnavailable || len(reached) > 0 {
		t.Errorf("without a token = %s %q, %d requests at the application", a.Status, a.body, len(reached))
	}
	w = start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) { s.Rewrite = &typesv1.AppRewrite{JwtClaims: "none"} }))
	w.auth.away.Store(true)
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusOK || <-reached != "" {
		t.Errorf("with jwt_claims none = %s", a.Status)
	}
	w = start(t, nil, application(appName, tg.URL, func(s *typesv1.AppSpec) {
		s.Rewrite = &typesv1.AppRewrite{JwtClaims: "none", Headers: []*typesv1.AppHeader{{Name: "Authorization", Value: "Bearer {{internal.jwt}}"}}}
	}))
	w.auth.away.Store(true)
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusServiceUnavailable || len(reached) > 0 {
		t.Errorf("with {{internal.jwt}} = %s", a.Status)
	}
}

// TestShortTokens: tokens that are about to expire are replaced, and Auth is not flooded.
func TestShortTokens(t *testing.T) {
	tg := serve(t, hello)
	w := start(t, nil, application(appName, tg.URL, nil))
	w.auth.life.Store(int64(30 * time.Second))
	c := w.alice(t).http(t, true)
	get(t, c, "/")
	w.skew.Store(int64(25 * time.Second))
	get(t, c, "/")
	if n := w.auth.calls.Load(); n != 2 {
		t.Errorf("Auth was asked %d times, want 2", n)
	}
}
