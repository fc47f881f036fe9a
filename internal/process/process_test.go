package process

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/config"
	"teleport/internal/diag"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/keys"
	"teleport/internal/service/auth"
	"teleport/internal/store"
	"teleport/internal/types"
)

const secret = "00112233445566778899aabbccddeeff"

// started is a process that serves.
type started struct {
	*process
	addrs  Addrs
	reload chan<- *config.Config
	stop   func()
	// ended waits until the process ends by itself and returns why.
	ended func() error
}

// start runs a process with the configuration and waits until it serves.
func start(t *testing.T, text string) *started {
	t.Helper()
	cfg, err := config.Parse("teleport.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan Addrs, 1)
	reload := make(chan *config.Config)
	p := newProcess(Options{Config: cfg, Reload: reload, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})), OnReady: func(a Addrs) { ready <- a }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.run(ctx) }()
	stopped := false
	s := &started{process: p, reload: reload, stop: func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("process ended with %v", err)
		}
	}}
	s.ended = func() error {
		select {
		case err := <-done:
			stopped = true
			cancel()
			return err
		case <-time.After(time.Minute):
			return errors.New("still running after a minute")
		}
	}
	t.Cleanup(s.stop)
	select {
	case s.addrs = <-ready:
	case err := <-done:
		t.Fatalf("process ended instead of getting ready: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("process is not ready after a minute")
	}
	return s
}

// within waits until the condition holds.
func within(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(limit); ; {
		if holds() {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %s still not: %s", limit, what)
		}
	}
}

// readyz is the answer of the health endpoint.
func (s *started) readyz() string {
	w := httptest.NewRecorder()
	diag.Handler(s.health, s.registry).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
	return fmt.Sprint(w.Code, " ", w.Body)
}

func hubConfig(dir, auth, proxy string) string {
	return fmt.Sprintf(`version: v3
teleport: {nodename: hub, data_dir: %s}
auth_service: {enabled: yes, cluster_name: main, listen_addr: "%s"}
proxy_service: {enabled: yes, web_listen_addr: "%s"}
ssh_service: {enabled: no}
`, filepath.Join(dir, "hub"), auth, proxy)
}

func (s *started) addToken(t *testing.T, labels map[string]string, roles ...string) {
	t.Helper()
	key := keys.DeriveToken(secret)
	tok := types.New(types.KindToken, key.ID).(*typesv1.Token)
	tok.Metadata.Expires = timestamppb.New(time.Now().Add(time.Hour))
	tok.Spec = &typesv1.TokenSpec{Roles: roles, JoinMethod: "token", Labels: labels}
	tok.Status = &typesv1.TokenStatus{Verifier: key.Private.Public().(ed25519.PublicKey)}
	if err := s.auth.Store().Tx().Create(tok).Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAgentThroughProxy(t *testing.T) {
	dir := t.TempDir()
	hub := start(t, hubConfig(dir, "127.0.0.1:0", "127.0.0.1:0"))
	hub.addToken(t, map[string]string{"team": "db"}, "Node")
	agent := start(t, fmt.Sprintf(`version: v3
teleport:
  nodename: web-1
  data_dir: %s
  proxy_server: "%s"
  ca_pin: "%s"
  join_params: {method: token, token_name: %s}
auth_service: {enabled: no}
proxy_service: {enabled: no}
ssh_service: {enabled: yes, labels: {team: web, env: test}}
`, filepath.Join(dir, "agent"), hub.addrs.Proxy, hub.auth.Trust().Pins()[0], secret))

	node := func() *typesv1.Server {
		n, _ := store.Get[*typesv1.Server](t.Context(), hub.auth.Store(), types.KindNode, agent.holder.HostID())
		return n
	}
	within(t, 10*time.Second, "the node is listed", func() bool { return node() != nil })
	if labels := types.ServerLabels(node()); labels["team"] != "db" || labels["env"] != "test" {
		t.Errorf("labels = %v, want the token's team and the process's env", labels)
	}
	if agent.addrs != (Addrs{}) {
		t.Errorf("an agent behind a Proxy listens on %+v", agent.addrs)
	}

	t.Run("renewal", func(t *testing.T) {
		before := agent.holder.Certificate("")
		if err := agent.renewOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		if agent.holder.Certificate("").Leaf.Equal(before.Leaf) || agent.holder.State().Generation != 2 {
			t.Errorf("generation is %d after a renewal, want 2 and another certificate", agent.holder.State().Generation)
		}
		saved, err := agent.dir.Load()
		if err != nil || saved.Generation != 2 {
			t.Errorf("the state file has generation %v, %v", saved, err)
		}
	})

	t.Run("hub restarts", func(t *testing.T) {
		id, pins := hub.holder.HostID(), hub.auth.Trust().Pins()
		hub.stop()
		within(t, 10*time.Second, "the agent notices", func() bool { return strings.HasPrefix(agent.readyz(), "503") })
		hub = start(t, hubConfig(dir, hub.addrs.Auth, hub.addrs.Proxy))
		within(t, 30*time.Second, "the agent is back", func() bool { return strings.HasPrefix(agent.readyz(), "200") })
		i, err := store.Get[*typesv1.Instance](t.Context(), hub.auth.Store(), types.KindInstance, agent.holder.HostID())
		if err != nil || i.GetStatus().GetGeneration() != 2 {
			t.Errorf("Auth has seen generation %d (%v), want the renewed one", i.GetStatus().GetGeneration(), err)
		}
		if hub.holder.HostID() != id || hub.auth.Trust().Pins()[0] != pins[0] {
			t.Error("the hub came back as another one")
		}
	})
}

// A process that serves ends when its host is taken out of the cluster.
func TestRemovedHostEnds(t *testing.T) {
	dir := t.TempDir()
	hub := start(t, hubConfig(dir, "127.0.0.1:0", "127.0.0.1:0"))
	hub.addToken(t, nil, "Node")
	agent := start(t, fmt.Sprintf(`version: v3
teleport:
  nodename: web-1
  data_dir: %s
  proxy_server: "%s"
  ca_pin: "%s"
  join_params: {method: token, token_name: %s}
auth_service: {enabled: no}
proxy_service: {enabled: no}
ssh_service: {enabled: yes}
`, filepath.Join(dir, "agent"), hub.addrs.Proxy, hub.auth.Trust().Pins()[0], secret))
	if err := hub.auth.Store().Tx().Delete(types.KindInstance, agent.holder.HostID(), "").Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := agent.ended()
	var refused *Error
	if !errors.As(err, &refused) || refused.Code != ExitJoinRefused || fault.Code(err) != join.CodeHostRemoved {
		t.Errorf("process ended with %v (code %q), want a refusal with code %q", err, fault.Code(err), join.CodeHostRemoved)
	}
}

func TestWhoIsExpelled(t *testing.T) {
	coded := func(code string) error { return fault.New(fault.ErrDenied, "no").WithCode(code) }
	for _, tt := range []struct {
		code          string
		before, after bool
	}{
		{join.CodeHostRemoved, true, true},
		{join.CodeIdentityCloned, true, true},
		{join.CodeWrongCluster, true, false},
		{join.CodeClockSkew, false, false},
		{"", false, false},
	} {
		agent, own := &process{}, &process{auth: &auth.Service{}}
		for heard, want := range map[bool]bool{false: tt.before, true: tt.after} {
			if got := agent.expelled(coded(tt.code), heard); got != want {
				t.Errorf("expelled(%q, %v) = %v, want %v", tt.code, heard, got, want)
			}
			if own.expelled(coded(tt.code), heard) {
				t.Errorf("the process of Auth is expelled by %q", tt.code)
			}
		}
	}
}

func TestNothingIsWrittenWhenAPortIsTaken(t *testing.T) {
	dir := t.TempDir()
	hub := start(t, hubConfig(dir, "127.0.0.1:0", "127.0.0.1:0"))
	other := filepath.Join(dir, "other")
	cfg, err := config.Parse("teleport.yaml", []byte(hubConfig(other, hub.addrs.Auth, "127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), Options{Config: cfg, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "auth_service.listen_addr: cannot listen on "+hub.addrs.Auth) {
		t.Errorf("Run = %v, want the key and the address", err)
	}
	if left, _ := filepath.Glob(filepath.Join(other, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestJitter holds the spread of renewals: 90 to 110 per cent.
func TestJitter(t *testing.T) {
	for range 1000 {
		if got := jitter(ca.MaxHostTTL); got < ca.MaxHostTTL*9/10 || got > ca.MaxHostTTL*11/10 {
			t.Fatalf("jitter(%s) = %s", ca.MaxHostTTL, got)
		}
	}
}
