package diag_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/diag"
)

func get(t *testing.T, h http.Handler, method, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Code, w.Body.String()
}

func TestReadyz(t *testing.T) {
	tests := []struct {
		name     string
		report   func(h *diag.Health)
		code     int
		status   diag.State
		message  string
		services map[string]diag.State
	}{
		{"nothing_yet", func(*diag.Health) {}, 400, diag.StateStarting, "no service has started yet", map[string]diag.State{}},
		{
			"one_starting", func(h *diag.Health) { h.Ready("auth"); h.Starting("ssh") }, 400, diag.StateStarting, "ssh: starting",
			map[string]diag.State{"auth": "ok", "ssh": "starting"},
		},
		{
			"all_ready", func(h *diag.Health) { h.Starting("ssh"); h.Ready("auth"); h.Ready("ssh") }, 200, diag.StateOK, "",
			map[string]diag.State{"auth": "ok", "ssh": "ok"},
		},
		{
			"degraded", func(h *diag.Health) { h.Ready("auth"); h.Degraded("ssh", errors.New("no\ntunnel")) }, 503, diag.StateDegraded, "ssh: no tunnel",
			map[string]diag.State{"auth": "ok", "ssh": "degraded"},
		},
		{
			"degraded_beats_starting", func(h *diag.Health) { h.Degraded("auth", errors.New("x")); h.Starting("ssh") }, 503, diag.StateDegraded, "auth: x; ssh: starting",
			map[string]diag.State{"auth": "degraded", "ssh": "starting"},
		},
		{
			"recovered", func(h *diag.Health) { h.Degraded("ssh", errors.New("x")); h.Ready("ssh") }, 200, diag.StateOK, "",
			map[string]diag.State{"ssh": "ok"},
		},
		{
			"impaired_while_starting", func(h *diag.Health) { h.Starting("auth"); h.Impaired("auth", errors.New("disk full")); h.Ready("auth") },
			503, diag.StateDegraded, "auth: disk full",
			map[string]diag.State{"auth": "degraded"},
		},
		{
			"impaired_no_more", func(h *diag.Health) {
				h.Starting("auth")
				h.Impaired("auth", errors.New("disk full"))
				h.Impaired("auth", nil)
			},
			400, diag.StateStarting, "auth: starting",
			map[string]diag.State{"auth": "starting"},
		},
		{
			"gone", func(h *diag.Health) { h.Ready("auth"); h.Degraded("ssh", nil); h.Gone("ssh") }, 200, diag.StateOK, "",
			map[string]diag.State{"auth": "ok"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := diag.NewHealth()
			tt.report(h)
			code, body := get(t, diag.Handler(h, prometheus.NewRegistry()), http.MethodGet, "/readyz")
			if code != tt.code {
				t.Errorf("code = %d, want %d", code, tt.code)
			}
			var got diag.Report
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("body %q: %v", body, err)
			}
			want := diag.Report{Status: tt.status, Message: tt.message, Services: tt.services}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("report (-want +got):\n%s", d)
			}
		})
	}
}

func TestHealthz(t *testing.T) {
	code, body := get(t, diag.Handler(diag.NewHealth(), prometheus.NewRegistry()), http.MethodGet, "/healthz")
	if code != 200 || strings.TrimSpace(body) != `{"status":"ok"}` {
		t.Errorf("healthz = %d %q", code, body)
	}
}

func TestOnlyReading(t *testing.T) {
	h := diag.Handler(diag.NewHealth(), prometheus.NewRegistry())
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if code, _ := get(t, h, http.MethodPost, path); code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s = %d, want 405", path, code)
		}
	}
	if code, _ := get(t, h, http.MethodGet, "/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("GET /debug/pprof/ = %d, want 404", code)
	}
}

func TestMetrics(t *testing.T) {
	health := diag.NewHealth()
	reg := prometheus.NewRegistry()
	reg.MustRegister(health)
	health.Ready("auth")
	health.Starting("proxy")
	health.Degraded("ssh", errors.New("x"))
	code, body := get(t, diag.Handler(health, reg), http.MethodGet, "/metrics")
	if code != 200 {
		t.Fatalf("code = %d", code)
	}
	for _, want := range []string{`process_state{service="auth"} 0`, `process_state{service="proxy"} 3`, `process_state{service="ssh"} 2`} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %q:\n%s", want, body)
		}
	}
}

func TestReasonIsBounded(t *testing.T) {
	h := diag.NewHealth()
	h.Degraded("ssh", errors.New(strings.Repeat("ü", 5000)))
	if m := h.Report().Message; len(m) > 300 {
		t.Errorf("message has %d bytes", len(m))
	}
}

func TestConcurrentUse(t *testing.T) {
	h := diag.NewHealth()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				h.Starting(fmt.Sprint(i))
				h.Degraded(fmt.Sprint(i), io.EOF)
				h.Ready(fmt.Sprint(i))
				_ = h.Report()
			}
		})
	}
	wg.Wait()
	if r := h.Report(); r.Status != diag.StateOK {
		t.Errorf("status = %v", r.Status)
	}
}

func TestServe(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- diag.Serve(ctx, ln, diag.Handler(diag.NewHealth(), prometheus.NewRegistry())) }()
	resp, err := http.Get("http://" + ln.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("status = %d", resp.StatusCode)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v, want nil after cancel", err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the listener is still open")
	}
}

func TestServeReportsListenerFailure(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := diag.Serve(t.Context(), ln, http.NotFoundHandler()); err == nil {
		t.Error("Serve on a closed listener = nil")
	}
}
