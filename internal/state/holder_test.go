package state_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/state"
	"teleport/internal/types"
)

const hostID = "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f"

// auth is an Auth Service as far as certificates go.
type auth struct {
	cas    []*typesv1.CertAuthority
	signer *ca.Signer
}

func newAuth(t *testing.T, now time.Time) *auth {
	t.Helper()
	a := &auth{}
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		a.cas = append(a.cas, must(ca.Generate(keystore.Software(), "example.com", typ, now)))
	}
	a.signer = must(ca.NewSigner(keystore.Software(), a.cas, func() time.Time { return now }))
	return a
}

// join returns the state of a host that joined with the roles Node and Proxy.
func (a *auth) join(t *testing.T, generation uint64) *state.State {
	t.Helper()
	tlsKey, sshKey := must(keys.Generate(keys.ECDSAP256)), must(keys.Generate(keys.Ed25519))
	sshPublic := must(ssh.NewPublicKey(sshKey.Public()))
	roles := []types.SystemRole{types.RoleNode, types.RoleProxy}
	issue := func(service types.SystemRole) *joinv1.ServiceCertificates {
		req := ca.HostRequest{
			Identity: identity.Identity{Cluster: "example.com", Host: &identity.Host{ID: hostID, Name: "web1", Roles: roles, Service: service, Generation: generation}},
			TLSKey:   must(keys.PublicDER(tlsKey.Public())),
		}
		if service != types.RoleProxy {
			req.SSHKey = sshPublic.Marshal()
		}
		tlsDER, sshWire, err := a.signer.Host(req)
		if err != nil {
			t.Fatal(err)
		}
		return &joinv1.ServiceCertificates{Tls: tlsDER, Ssh: sshWire}
	}
	process := issue("")
	grant := &joinv1.Grant{
		HostId: hostID, ClusterName: "example.com", Roles: []string{"Node", "Proxy"}, Generation: generation,
		Certificates: &joinv1.HostCertificates{Tls: process.GetTls(), Ssh: process.GetSsh(), Services: map[string]*joinv1.ServiceCertificates{
			"Node": issue(types.RoleNode), "Proxy": issue(types.RoleProxy),
		}},
		Authorities: []*typesv1.CertAuthority{ca.Public(a.cas[0]), ca.Public(a.cas[1])},
	}
	return &state.State{
		Cluster: "example.com", HostID: hostID, Hostname: "web1", Roles: roles, Generation: generation,
		TLSKey: must(keys.MarshalPrivate(tlsKey)), SSHKey: must(keys.MarshalPrivate(sshKey)), Grant: must(proto.Marshal(grant)),
	}
}

func TestHolder(t *testing.T) {
	a := newAuth(t, time.Now())
	s := a.join(t, 1)
	h, err := state.NewHolder(s)
	if err != nil {
		t.Fatal(err)
	}
	if h.HostID() != hostID || h.Trust().Cluster() != "example.com" {
		t.Errorf("host %q of %q", h.HostID(), h.Trust().Cluster())
	}
	if d := cmp.Diff(s, h.State()); d != "" {
		t.Errorf("State (-want +got):\n%s", d)
	}
	for _, service := range []types.SystemRole{"", types.RoleNode, types.RoleProxy} {
		c := h.Certificate(service)
		if c == nil || len(c.Certificate) != 2 || ca.Pin(must(x509.ParseCertificate(c.Certificate[1]))) != h.Trust().Pins()[0] {
			t.Fatalf("Certificate(%q) = %v, want a leaf and its authority", service, c)
		}
		id := must(h.Trust().VerifyTLS([]*x509.Certificate{c.Leaf}, time.Now()))
		if id.Host.Service != service {
			t.Errorf("Certificate(%q) is for %q", service, id.Host.Service)
		}
		if !h.Expires().Equal(c.Leaf.NotAfter) {
			t.Errorf("Expires = %s, want %s", h.Expires(), c.Leaf.NotAfter)
		}
	}
	for service, want := range map[types.SystemRole]bool{"": true, types.RoleNode: true, types.RoleProxy: false, types.RoleAuth: false} {
		signer := h.SSHSigner(service)
		if (signer != nil) != want {
			t.Fatalf("SSHSigner(%q) = %v, want one: %v", service, signer, want)
		}
		if !want {
			continue
		}
		id := must(h.Trust().VerifySSHHost(signer.PublicKey(), "web1", time.Now()))
		if id.Host.Service != service {
			t.Errorf("SSHSigner(%q) is for %q", service, id.Host.Service)
		}
		if _, err := signer.Sign(rand.Reader, []byte("x")); err != nil {
			t.Errorf("Sign = %v", err)
		}
	}
	if h.Certificate(types.RoleAuth) != nil {
		t.Error("Certificate(Auth) of a host without that role")
	}
}

func TestExpiredHolder(t *testing.T) {
	a := newAuth(t, time.Now().Add(-30*24*time.Hour))
	h, err := state.NewHolder(a.join(t, 1))
	if err != nil {
		t.Fatalf("NewHolder of expired certificates = %v, want nil", err)
	}
	if !h.Expires().Before(time.Now()) {
		t.Errorf("Expires = %s", h.Expires())
	}
}

func TestNewHolderRefuses(t *testing.T) {
	now := time.Now()
	a, twin := newAuth(t, now), newAuth(t, now)
	other := a.join(t, 1)
	grant := func(f func(*joinv1.Grant)) func(*state.State) {
		return func(s *state.State) {
			var g joinv1.Grant
			if err := proto.Unmarshal(s.Grant, &g); err != nil {
				t.Fatal(err)
			}
			f(&g)
			s.Grant = must(proto.Marshal(&g))
		}
	}
	for name, change := range map[string]func(*state.State){
		"no_keys":        func(s *state.State) { s.TLSKey, s.SSHKey = nil, nil },
		"other_tls_key":  func(s *state.State) { s.TLSKey = other.TLSKey },
		"other_ssh_key":  func(s *state.State) { s.SSHKey = other.SSHKey },
		"no_grant":       func(s *state.State) { s.Grant = nil },
		"garbage":        func(s *state.State) { s.Grant = []byte("garbage") },
		"other_host":     func(s *state.State) { s.HostID = "other" },
		"other_cluster":  func(s *state.State) { s.Cluster = "evil.com" },
		"grant_of_other": grant(func(g *joinv1.Grant) { g.HostId = "other" }),
		"no_authorities": grant(func(g *joinv1.Grant) { g.Authorities = nil }),
		"twin_authorities": grant(func(g *joinv1.Grant) {
			g.Authorities = []*typesv1.CertAuthority{ca.Public(twin.cas[0]), ca.Public(twin.cas[1])}
		}),
		"no_process":      grant(func(g *joinv1.Grant) { g.Certificates.Tls = nil }),
		"bad_process_ssh": grant(func(g *joinv1.Grant) { g.Certificates.Ssh = []byte("x") }),
		"swapped_service": grant(func(g *joinv1.Grant) {
			g.Certificates.Services["Node"], g.Certificates.Services["Proxy"] = g.Certificates.Services["Proxy"], g.Certificates.Services["Node"]
		}),
		"tls_of_other_service": grant(func(g *joinv1.Grant) { g.Certificates.Services["Node"].Tls = g.Certificates.Services["Proxy"].GetTls() }),
		"ssh_of_process":       grant(func(g *joinv1.Grant) { g.Certificates.Services["Node"].Ssh = g.Certificates.GetSsh() }),
		"service_as_process": grant(func(g *joinv1.Grant) {
			g.Certificates.Tls, g.Certificates.Ssh = g.Certificates.Services["Node"].GetTls(), g.Certificates.Services["Node"].GetSsh()
		}),
		"unknown_service": grant(func(g *joinv1.Grant) { g.Certificates.Services["Root"] = g.Certificates.Services["Node"] }),
		"nil_service":     grant(func(g *joinv1.Grant) { g.Certificates.Services["Node"] = nil }),
	} {
		t.Run(name, func(t *testing.T) {
			s := a.join(t, 1)
			change(s)
			if h, err := state.NewHolder(s); err == nil || h != nil {
				t.Errorf("NewHolder = %v, %v; want an error", h, err)
			}
		})
	}
	if _, err := state.NewHolder(nil); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("NewHolder(nil) = %v, want ErrInvalid", err)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestReplace(t *testing.T) {
	a := newAuth(t, time.Now())
	h := must(state.NewHolder(a.join(t, 1)))
	changed := h.Changed()
	bad := a.join(t, 2)
	bad.TLSKey = h.State().TLSKey
	if err := h.Replace(bad); err == nil || closed(changed) || h.State().Generation != 1 {
		t.Errorf("Replace with a bad state = %v, changed %v, generation %d", err, closed(changed), h.State().Generation)
	}
	if err := h.Replace(nil); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("Replace(nil) = %v, want ErrInvalid", err)
	}
	good := a.join(t, 2)
	if err := h.Replace(good); err != nil {
		t.Fatal(err)
	}
	if !closed(changed) || closed(h.Changed()) || h.State().Generation != 2 || !slices.Equal(h.State().TLSKey, good.TLSKey) {
		t.Errorf("after Replace: changed %v, generation %d", closed(changed), h.State().Generation)
	}
}

// TestSetAuthorities is a rotation as an agent sees it: the new keys are added, and
// the old ones leave after it got new certificates.
func TestSetAuthorities(t *testing.T) {
	now := time.Now()
	old, next := newAuth(t, now), newAuth(t, now)
	h := must(state.NewHolder(old.join(t, 1)))
	if err := h.SetAuthorities(nil); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("SetAuthorities(nil) = %v, want ErrInvalid", err)
	}
	var foreign []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		foreign = append(foreign, must(ca.Generate(keystore.Software(), "evil.com", typ, now)))
	}
	changed := h.Changed()
	if err := h.SetAuthorities(foreign); !errors.Is(err, fault.ErrInvalid) || h.Trust().Cluster() != "example.com" {
		t.Errorf("SetAuthorities of another cluster = %v, want ErrInvalid", err)
	}
	if err := h.SetAuthorities(old.cas); err != nil || closed(changed) {
		t.Errorf("SetAuthorities with nothing new = %v, changed %v", err, closed(changed))
	}
	var both []*typesv1.CertAuthority
	for i := range next.cas {
		c := proto.CloneOf(next.cas[i])
		c.Spec.AdditionalTrustedKeys = proto.CloneOf(old.cas[i].GetSpec().GetActiveKeys())
		both = append(both, c)
	}
	if err := h.SetAuthorities(both); err != nil {
		t.Fatal(err)
	}
	if !closed(changed) || len(h.Trust().Pins()) != 2 {
		t.Errorf("changed %v, pins %v; want both", closed(changed), h.Trust().Pins())
	}
	oldPin := must(ca.NewTrust(old.cas)).Pins()[0]
	if got := ca.Pin(must(x509.ParseCertificate(h.Certificate(types.RoleNode).Certificate[1]))); got != oldPin {
		t.Errorf("the chain ends in %s, want the authority that signed it, %s", got, oldPin)
	}
	// A restart in between finds the same.
	again := must(state.NewHolder(h.State()))
	if d := cmp.Diff(h.Trust().Pins(), again.Trust().Pins()); d != "" {
		t.Errorf("pins after a restart (-before +after):\n%s", d)
	}
	for _, c := range again.Trust().Authorities() {
		if c.GetSpec().GetActiveKeys().GetTls()[0].GetPrivateKey() != nil {
			t.Error("the state has the private key of an authority")
		}
	}
	if err := h.Replace(next.join(t, 2)); err != nil {
		t.Errorf("Replace with certificates of the new authority = %v", err)
	}
	if err := h.SetAuthorities(next.cas); err != nil || len(h.Trust().Pins()) != 1 {
		t.Errorf("SetAuthorities at the end = %v, pins %v", err, h.Trust().Pins())
	}
}

// TestHolderInUse lets two holders talk TLS while the server's is replaced.
func TestHolderInUse(t *testing.T) {
	a := newAuth(t, time.Now())
	server, client := must(state.NewHolder(a.join(t, 1))), must(state.NewHolder(a.join(t, 1)))
	ln := must(tls.Listen("tcp", "127.0.0.1:0", ca.ServerTLS(
		func() *tls.Certificate { return server.Certificate(types.RoleProxy) }, server.Trust, tls.RequireAndVerifyClientCert)))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			c.Close()
		}
	})
	config := ca.ClientTLS(func() *tls.Certificate { return client.Certificate(types.RoleNode) }, client.Trust, types.RoleProxy)
	pinned := ca.PinnedTLS(client.Trust().Pins(), types.RoleProxy)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range 10 {
		d := &tls.Dialer{Config: config}
		conn, err := d.DialContext(ctx, "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatalf("echo %d: %v", i, err)
		}
		conn.Close()
		raw := must(net.Dial("tcp", ln.Addr().String()))
		if err := tls.Client(raw, pinned).HandshakeContext(ctx); err != nil {
			t.Fatalf("pinned handshake %d: %v", i, err)
		}
		raw.Close()
		next := a.join(t, uint64(i)+2)
		wg.Go(func() {
			if err := server.Replace(next); err != nil {
				t.Errorf("Replace = %v", err)
			}
		})
	}
	ln.Close()
	wg.Wait()
}

// TestStateHidesKeys prints and logs a state in every way.
func TestStateHidesKeys(t *testing.T) {
	s := newAuth(t, time.Now()).join(t, 1)
	var out bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("message", "pointer", s, "value", *s)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&out, verb+verb, s, *s)
	}
	for _, secret := range []string{"PRIVATE", fmt.Sprint(s.TLSKey[:8]), fmt.Sprintf("%x", s.TLSKey[:8])} { //nolint:staticcheck // the bytes as numbers are meant
		if strings.Contains(out.String(), strings.Trim(secret, "[]")) {
			t.Errorf("output contains %q:\n%s", secret, &out)
		}
	}
	if !strings.Contains(out.String(), hostID) {
		t.Errorf("output does not name the host:\n%s", out.String())
	}
}

// must is for what cannot fail in a test.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
