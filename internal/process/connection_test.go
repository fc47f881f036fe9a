package process

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/backend/memory"
	"teleport/internal/ca"
	"teleport/internal/diag"
	"teleport/internal/join"
	"teleport/internal/keystore"
	"teleport/internal/mux"
	"teleport/internal/state"
	"teleport/internal/store"
	"teleport/internal/types"
)

// hostOf returns an identity for the roles, of a cluster of its own.
func hostOf(t *testing.T, roles ...types.SystemRole) *state.Holder {
	t.Helper()
	var cas []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		authority, err := ca.Generate(keystore.Software(), "test", typ, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cas = append(cas, authority)
	}
	signer, err := ca.NewSigner(keystore.Software(), cas, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := ca.NewTrust(cas)
	if err != nil {
		t.Fatal(err)
	}
	server := join.NewServer(join.ServerConfig{
		Store:  store.New(store.Config{Backend: memory.New()}),
		Signer: func() *ca.Signer { return signer }, Trust: func() *ca.Trust { return trust }, Cluster: func() string { return "test" },
	})
	pair, err := join.NewKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	grant, err := server.IssueLocal(t.Context(), join.LocalRequest{Hostname: "host", Roles: roles, TLSKey: pair.TLSPublic, SSHKey: pair.SSHPublic})
	if err != nil {
		t.Fatal(err)
	}
	st, err := join.NewState(grant, pair, "host", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	holder, err := state.NewHolder(st)
	if err != nil {
		t.Fatal(err)
	}
	return holder
}

// TestFindProxy has an address that comes up late, as after a power cut: first nobody
// listens, then a balancer that hangs up, then the service itself.
func TestFindProxy(t *testing.T) {
	holder := hostOf(t, types.RoleAuth, types.RoleProxy, types.RoleNode)
	stranger := hostOf(t, types.RoleProxy)
	for _, tt := range []struct {
		name    string
		shows   *state.Holder
		service types.SystemRole
		proto   string
		want    bool
	}{
		{name: "proxy", shows: holder, service: types.RoleProxy, proto: mux.ALPNTunnel, want: true},
		{name: "auth", shows: holder, service: types.RoleAuth, proto: "h2"},
		{name: "other_cluster", shows: stranger, service: types.RoleProxy, proto: mux.ALPNTunnel},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addr := ln.Addr().String()
			_ = ln.Close()
			p := &process{holder: holder, log: slog.New(slog.DiscardHandler), health: diag.NewHealth()}
			if _, err := isProxy(t.Context(), holder, addr); err == nil {
				t.Error("isProxy decided although nobody listens")
			}
			if ln, err = net.Listen("tcp", addr); err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			t.Cleanup(func() { _ = ln.Close(); <-done })
			go func() {
				defer close(done)
				serveLate(ln, &tls.Config{
					MinVersion: tls.VersionTLS13, NextProtos: []string{tt.proto},
					GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return tt.shows.Certificate(tt.service), nil },
				})
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if got := p.findProxy(ctx, addr); got != tt.want || ctx.Err() != nil {
				t.Errorf("findProxy = %v (%v), want %v", got, ctx.Err(), tt.want)
			}
		})
	}
}

// serveLate hangs up on the first two connections and answers the others.
func serveLate(ln net.Listener, config *tls.Config) {
	for n := 0; ; n++ {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		if n >= 2 {
			_, _ = io.Copy(io.Discard, tls.Server(conn, config))
		}
		_ = conn.Close()
	}
}
