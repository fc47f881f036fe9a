package client_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	proxyv1 "teleport/api/proxy/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/clienttest"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

var grafana = client.ResourceDial{Service: types.RoleApp, Resource: "grafana"}

func TestCertify(t *testing.T) {
	c := clienttest.Start(t)
	cl := newClient(t, c, c.Credentials("alice", time.Hour, "root"))
	cert, err := cl.CertifyApp(t.Context(), "grafana")
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.FromTLS(cert.Leaf)
	if err != nil || id.User.Name != "alice" || id.User.App == nil || id.User.App.Name != "grafana" {
		t.Errorf("certificate for %+v (%v), want alice's for grafana", id, err)
	}
	login := client.DatabaseLogin{Database: "sales", User: "reader", Name: "orders", Roles: []string{"r"}}
	if cert, err = cl.CertifyDatabase(t.Context(), login); err != nil {
		t.Fatal(err)
	}
	id, err = identity.FromTLS(cert.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	if d := id.User.Database; d == nil || d.Service != "sales" || d.User != "reader" || d.Name != "orders" || !slices.Equal(d.Roles, login.Roles) {
		t.Errorf("certificate for %+v, want one for %+v", d, login)
	}
	if _, err := cl.CertifyApp(t.Context(), "none"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("CertifyApp(none) = %v, want ErrNotFound", err)
	}
	if _, err := cl.CertifyDatabase(t.Context(), client.DatabaseLogin{Database: "none"}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("CertifyDatabase(none) = %v, want ErrNotFound", err)
	}
}

func TestDialRouted(t *testing.T) {
	c := clienttest.Start(t)
	c.Agent.Protocols = []string{"http/1.1", "teleport-tcp"}
	cl := newClient(t, c, c.Credentials("alice", time.Hour, "root"))
	cert, err := cl.CertifyApp(t.Context(), "grafana")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := cl.DialRouted(t.Context(), grafana, cert, "h2", "teleport-tcp")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.ConnectionState(); got.NegotiatedProtocol != "teleport-tcp" || got.Version != tls.VersionTLS13 {
		t.Errorf("agreed on %q, TLS %x", got.NegotiatedProtocol, got.Version)
	}
	sent := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	go func() {
		_, _ = io.WriteString(conn, sent)
		_ = conn.CloseWrite()
	}()
	back, err := io.ReadAll(conn)
	if want := "alice at grafana\n" + sent; err != nil || string(back) != want {
		t.Errorf("the agent answers %d bytes (%v), want %d", len(back), err, len(want))
	}
	req := c.Node.Requests()[0]
	if req.GetService() != "App" || req.GetResource() != "grafana" || req.GetNative() || req.GetCluster() != clienttest.Name || req.GetHost() != "" {
		t.Errorf("the Proxy was asked for %v", req)
	}
}

// Who answers has to prove that it serves what was asked for, and that it is the agent
// that the Proxy named.
func TestDialRoutedRefusals(t *testing.T) {
	c := clienttest.Start(t)
	cl := newClient(t, c, c.Credentials("alice", time.Hour, "root"))
	cert, err := cl.CertifyApp(t.Context(), "grafana")
	if err != nil {
		t.Fatal(err)
	}
	old := cert
	leaf := *cert.Leaf
	leaf.NotAfter = time.Now().Add(-time.Minute)
	old.Leaf = &leaf
	for _, tt := range []struct {
		name string
		set  func(*clienttest.Agent)
		dial client.ResourceDial
		cert tls.Certificate
		alpn []string
		want error
		says string
	}{
		{"unknown", nil, client.ResourceDial{Service: types.RoleApp, Resource: "none"}, cert, nil, fault.ErrNotFound, `no App "none"`},
		{"another_agent", func(a *clienttest.Agent) { a.ID = clienttest.NodeID }, grafana, cert, nil, fault.ErrUnauthenticated, "the Proxy says"},
		{"another_service", func(a *clienttest.Agent) { a.Role = types.RoleNode }, grafana, cert, nil, fault.ErrUnauthenticated, "not good for it"},
		{"another_resource", nil, client.ResourceDial{Service: types.RoleDB, Resource: "grafana", Native: true}, cert, nil, fault.ErrInvalid, "native"},
		{"no_service", nil, client.ResourceDial{Resource: "grafana"}, cert, nil, fault.ErrInvalid, "App or Db"},
		{"no_common_protocol", func(a *clienttest.Agent) { a.Protocols = []string{"h2"} }, grafana, cert, []string{"x"}, fault.ErrUnauthenticated, "another protocol"},
		{"expired", nil, grafana, old, nil, fault.ErrUnauthenticated, "expired at"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := *c.Agent
			defer func() { *c.Agent = before }()
			if tt.set != nil {
				tt.set(c.Agent)
			}
			conn, err := cl.DialRouted(t.Context(), tt.dial, tt.cert, tt.alpn...)
			if err == nil {
				_ = conn.Close()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("DialRouted = %v, want %v with %q", err, tt.want, tt.says)
			}
		})
	}
	c.Agent.Silent = true
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := cl.DialRouted(ctx, grafana, cert); !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("DialRouted of an agent that says nothing = %v, want ErrUnreachable", err)
	}
}

// A program that speaks with the agent itself gets the bytes as they are.
func TestDialResourceNative(t *testing.T) {
	c := clienttest.Start(t)
	c.Agent.Native = func(conn net.Conn, req *proxyv1.DialRequest) {
		line, _ := bufio.NewReader(conn).ReadString('\n')
		_, _ = fmt.Fprintf(conn, "%s: %s", req.GetResource(), line)
	}
	cl := newClient(t, c, c.Credentials("alice", time.Hour, "root"))
	conn, host, err := cl.DialResource(t.Context(), client.ResourceDial{Service: types.RoleDB, Resource: "sales", Native: true})
	if err != nil || host != clienttest.AgentID {
		t.Fatalf("DialResource = %q, %v", host, err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "startup\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "sales: startup\n" {
		t.Errorf("Read = %q, %v", got, err)
	}
	if req := c.Node.Requests()[0]; !req.GetNative() {
		t.Errorf("the Proxy was asked for %v, want native", req)
	}
	if _, _, err := cl.DialResource(t.Context(), client.ResourceDial{Service: types.RoleDB, Resource: "none"}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("DialResource(none) = %v, want ErrNotFound", err)
	}
}

func TestAppsAndDatabases(t *testing.T) {
	c := clienttest.Start(t)
	for _, name := range []string{"grafana@b", "wiki@a", "grafana@a"} {
		app, host, _ := types.SplitServerName(name)
		c.Resources.Put(&typesv1.AppServer{
			Kind: types.KindAppServer, Version: "v3", Metadata: &typesv1.Metadata{Name: name, Labels: map[string]string{"app": app}},
			Spec: &typesv1.AppServerSpec{HostId: host, App: &typesv1.App{Metadata: &typesv1.Metadata{Name: app}}},
		})
		c.Resources.Put(&typesv1.DatabaseServer{
			Kind: types.KindDatabaseServer, Version: "v3", Metadata: &typesv1.Metadata{Name: name, Labels: map[string]string{"app": app}},
			Spec: &typesv1.DatabaseServerSpec{HostId: host, Database: &typesv1.Database{Metadata: &typesv1.Metadata{Name: app}}},
		})
	}
	cl := newClient(t, c, c.Credentials("alice", time.Hour, "root"))
	for _, tt := range []struct {
		labels, query, search string
		want                  []string
	}{
		{"", "", "", []string{"grafana@a", "grafana@b", "wiki@a"}},
		{"app=wiki", "", "", []string{"wiki@a"}},
		{"", `name == "grafana"`, "", []string{"grafana@a", "grafana@b"}},
		{"", "", "wik", []string{"wiki@a"}},
	} {
		choice, err := client.NewChoice(types.KindAppServer, tt.labels, tt.query, tt.search)
		if err != nil {
			t.Fatal(err)
		}
		apps, err := cl.Apps(t.Context(), choice)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range apps {
			got = append(got, a.GetMetadata().GetName())
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("Apps(%q) = %q, want %q", tt.query, got, tt.want)
		}
	}
	choice, err := client.NewChoice(types.KindDatabaseServer, "app=grafana", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if dbs, err := cl.Databases(t.Context(), choice); err != nil || len(dbs) != 2 {
		t.Errorf("Databases = %v, %v, want two agents of one", dbs, err)
	}
}
