package ca_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

// tlsCert returns what a peer shows: its certificate, and the authorities given.
func (w *world) tlsCert(leaf *x509.Certificate, authorities ...*x509.Certificate) *tls.Certificate {
	c := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: w.tls, Leaf: leaf}
	for _, a := range authorities {
		c.Certificate = append(c.Certificate, a.Raw)
	}
	return c
}

func (w *world) serverCert(t testing.TB, service types.SystemRole) *tls.Certificate {
	t.Helper()
	cert, _ := w.host(t, service, nil)
	return w.tlsCert(cert, w.trust.HostCertificates()...)
}

func (w *world) getTrust() *ca.Trust { return w.trust }

func fixed(c *tls.Certificate) func() *tls.Certificate {
	return func() *tls.Certificate { return c }
}

// handshake connects the two over loopback and returns what each says. A byte goes
// each way, since a client learns of a refused certificate only when it reads.
func handshake(t *testing.T, client, server *tls.Config) (cs tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		c := tls.Server(raw, server)
		if err = c.HandshakeContext(ctx); err == nil {
			_, err = c.Write([]byte("x"))
			cs = c.ConnectionState()
			_, _ = io.ReadAll(c)
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, client)
	if clientErr = c.HandshakeContext(ctx); clientErr == nil {
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	raw.Close()
	return cs, clientErr, <-done
}

func TestMutualTLS(t *testing.T) {
	w, twin := newWorld(t, cluster), newWorld(t, cluster)
	user, _ := w.user(t, nil)
	twinUser, _ := twin.user(t, nil)
	for _, tc := range []struct {
		name           string
		client, server *tls.Certificate
		auth           tls.ClientAuthType
		trust          func() *ca.Trust
		clientOK       bool
		serverOK       bool
		who            string
	}{
		{"user", w.tlsCert(user), w.serverCert(t, types.RoleAuth), tls.RequireAndVerifyClientCert, w.getTrust, true, true, "alice"},
		{"host", w.serverCert(t, types.RoleNode), w.serverCert(t, types.RoleAuth), tls.RequireAndVerifyClientCert, w.getTrust, true, true, hostID},
		{"any_is_verified", w.tlsCert(user), w.serverCert(t, types.RoleAuth), tls.RequireAnyClientCert, w.getTrust, true, true, "alice"},
		{"optional_given", w.tlsCert(user), w.serverCert(t, types.RoleAuth), tls.VerifyClientCertIfGiven, w.getTrust, true, true, "alice"},
		{"optional_absent", nil, w.serverCert(t, types.RoleAuth), tls.VerifyClientCertIfGiven, w.getTrust, true, true, ""},
		{"required_absent", nil, w.serverCert(t, types.RoleAuth), tls.RequireAndVerifyClientCert, w.getTrust, false, false, ""},
		{"not_asked", w.tlsCert(user), w.serverCert(t, types.RoleAuth), tls.NoClientCert, w.getTrust, true, true, ""},
		{"twin_user", twin.tlsCert(twinUser), w.serverCert(t, types.RoleAuth), tls.RequireAndVerifyClientCert, w.getTrust, false, false, ""},
		{"twin_user_any", twin.tlsCert(twinUser), w.serverCert(t, types.RoleAuth), tls.RequireAnyClientCert, w.getTrust, false, false, ""},
		{"twin_user_requested", twin.tlsCert(twinUser), w.serverCert(t, types.RoleAuth), tls.RequestClientCert, w.getTrust, false, false, ""},
		{"twin_user_if_given", twin.tlsCert(twinUser), w.serverCert(t, types.RoleAuth), tls.VerifyClientCertIfGiven, w.getTrust, false, false, ""},
		{"twin_server", w.tlsCert(user), twin.serverCert(t, types.RoleAuth), tls.VerifyClientCertIfGiven, w.getTrust, false, false, ""},
		{"other_service", w.tlsCert(user), w.serverCert(t, types.RoleProxy), tls.VerifyClientCertIfGiven, w.getTrust, false, false, ""},
		{"process_level", w.tlsCert(user), w.serverCert(t, ""), tls.VerifyClientCertIfGiven, w.getTrust, false, false, ""},
		{"user_as_server", w.tlsCert(user), w.tlsCert(user), tls.VerifyClientCertIfGiven, w.getTrust, false, false, ""},
		{"no_server_certificate", nil, nil, tls.NoClientCert, w.getTrust, false, false, ""},
		{"no_trust", w.tlsCert(user), w.serverCert(t, types.RoleAuth), tls.RequireAndVerifyClientCert, func() *ca.Trust { return nil }, false, false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client := ca.ClientTLS(fixed(tc.client), tc.trust, types.RoleAuth)
			cs, clientErr, serverErr := handshake(t, client, ca.ServerTLS(fixed(tc.server), tc.trust, tc.auth, "h2"))
			if (clientErr == nil) != tc.clientOK || (serverErr == nil) != tc.serverOK {
				t.Fatalf("client: %v, server: %v; want success %v, %v", clientErr, serverErr, tc.clientOK, tc.serverOK)
			}
			if serverErr != nil {
				return
			}
			id, err := w.trust.Identify(cs)
			if err != nil || id.Name() != tc.who {
				t.Errorf("Identify = %q, %v; want %q", id.Name(), err, tc.who)
			}
			if cs.Version != tls.VersionTLS13 {
				t.Errorf("TLS version %x", cs.Version)
			}
		})
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	w := newWorld(t, cluster)
	client := ca.ClientTLS(nil, w.getTrust, types.RoleAuth)
	client.MinVersion, client.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, clientErr, serverErr := handshake(t, client, ca.ServerTLS(fixed(w.serverCert(t, types.RoleAuth)), w.getTrust, tls.NoClientCert)); clientErr == nil || serverErr == nil {
		t.Errorf("TLS 1.2: client %v, server %v; want refusals", clientErr, serverErr)
	}
}

// TestTrustChangesBetweenHandshakes uses one pair of configurations throughout,
// with a session cache that a resumption would need.
func TestTrustChangesBetweenHandshakes(t *testing.T) {
	before, after := newWorld(t, cluster), newWorld(t, cluster)
	var trust atomic.Pointer[ca.Trust]
	trust.Store(before.trust)
	user, _ := before.user(t, nil)
	client := ca.ClientTLS(fixed(before.tlsCert(user)), before.getTrust, types.RoleAuth)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	server := ca.ServerTLS(fixed(before.serverCert(t, types.RoleAuth)), trust.Load, tls.RequireAndVerifyClientCert)
	for range 2 {
		cs, clientErr, serverErr := handshake(t, client, server)
		if clientErr != nil || serverErr != nil {
			t.Fatalf("before the change: client %v, server %v", clientErr, serverErr)
		}
		if cs.DidResume {
			t.Fatal("a session was resumed")
		}
	}
	trust.Store(after.trust)
	if _, clientErr, serverErr := handshake(t, client, server); clientErr == nil || serverErr == nil {
		t.Errorf("after the change: client %v, server %v; want refusals", clientErr, serverErr)
	}
	// The client side follows too.
	if _, clientErr, _ := handshake(t, ca.ClientTLS(nil, trust.Load, types.RoleAuth), ca.ServerTLS(fixed(before.serverCert(t, types.RoleAuth)), nil, tls.NoClientCert)); !errors.Is(clientErr, fault.ErrUnauthenticated) {
		t.Errorf("client after the change = %v, want ErrUnauthenticated", clientErr)
	}
}

func TestPinnedTLS(t *testing.T) {
	w, twin := newWorld(t, cluster), newWorld(t, cluster)
	hostCA, userCA := w.trust.HostCertificates()[0], parsePEM(t, w.cas[1].GetSpec().GetActiveKeys().GetTls()[0].GetCert())
	auth, _ := w.host(t, types.RoleAuth, nil)
	process, _ := w.host(t, "", nil)
	user, _ := w.user(t, nil)
	twinAuth, _ := twin.host(t, types.RoleAuth, nil)
	pin, twinPin := ca.Pin(hostCA), twin.trust.Pins()[0]
	for _, tc := range []struct {
		name string
		cert *tls.Certificate
		pins []string
		ok   bool
		text string
	}{
		{"match", w.tlsCert(auth, hostCA), []string{pin}, true, ""},
		{"capitals", w.tlsCert(auth, hostCA), []string{strings.ToUpper(pin)}, true, ""},
		{"one_of_two", w.tlsCert(auth, hostCA), []string{twinPin, pin}, true, ""},
		{"match_comes_last", w.tlsCert(auth, twin.trust.HostCertificates()[0], hostCA), []string{pin}, true, ""},
		{"two_authorities_two_pins", w.tlsCert(auth, twin.trust.HostCertificates()[0], hostCA), []string{pin, twinPin}, true, ""},
		{"no_pins", w.tlsCert(auth, hostCA), nil, false, "no ca_pin"},
		{"bad_pin", w.tlsCert(auth, hostCA), []string{"sha256:x"}, false, "64 hexadecimal digits"},
		{"other_pin", w.tlsCert(auth, hostCA), []string{twinPin}, false, "does not match ca_pin"},
		{"pin_of_leaf", w.tlsCert(auth, hostCA), []string{ca.Pin(auth)}, false, "does not match ca_pin"},
		{"pin_of_leaf_twice", w.tlsCert(auth, auth, hostCA), []string{ca.Pin(auth)}, false, "does not match ca_pin"},
		{"pin_of_user_authority", w.tlsCert(auth, hostCA, userCA), []string{ca.Pin(userCA)}, false, ""},
		{"no_chain", w.tlsCert(auth), []string{pin}, false, "does not match ca_pin"},
		{"foreign_leaf_real_authority", twin.tlsCert(twinAuth, hostCA), []string{pin}, false, ""},
		{"user_leaf", w.tlsCert(user, userCA), []string{ca.Pin(userCA)}, false, ""},
		{"process_leaf", w.tlsCert(process, hostCA), []string{pin}, false, "not the Auth service"},
		{"long_chain", w.tlsCert(auth, hostCA, hostCA, hostCA, hostCA, hostCA, hostCA, hostCA, hostCA), []string{pin}, false, "expected 1 to 8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err, _ := handshake(t, ca.PinnedTLS(tc.pins, types.RoleAuth), ca.ServerTLS(fixed(tc.cert), w.getTrust, tls.VerifyClientCertIfGiven))
			if (err == nil) != tc.ok {
				t.Fatalf("handshake = %v, want success: %v", err, tc.ok)
			}
			if err != nil && (!strings.Contains(err.Error(), tc.text) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("error %q, want one line with %q", err, tc.text)
			}
		})
	}
	_, err, _ := handshake(t, ca.PinnedTLS([]string{twinPin}, types.RoleAuth), ca.ServerTLS(fixed(w.tlsCert(auth, hostCA)), w.getTrust, tls.NoClientCert))
	if fault.Code(err) != ca.CodePinMismatch || !strings.Contains(err.Error(), pin) || !strings.Contains(err.Error(), twinPin) {
		t.Errorf("error = %v (code %q), want both pins and code %q", err, fault.Code(err), ca.CodePinMismatch)
	}
}

// TestSSHHandshake runs the library's own client and server with the callbacks.
func TestSSHHandshake(t *testing.T) {
	w, twin := newWorld(t, cluster), newWorld(t, cluster)
	_, hostCert := w.host(t, types.RoleNode, nil)
	_, userCert := w.user(t, nil)
	_, twinCert := twin.user(t, nil)
	hostSigner := must(ssh.NewCertSigner(hostCert, w.ssh))
	for _, tc := range []struct {
		name, login, host string
		signer            ssh.Signer
		ok                bool
	}{
		{"good", "root", "web1", must(ssh.NewCertSigner(userCert, w.ssh)), true},
		{"by_id", "alice", hostID + "." + cluster, must(ssh.NewCertSigner(userCert, w.ssh)), true},
		{"other_login", "bob", "web1", must(ssh.NewCertSigner(userCert, w.ssh)), false},
		{"other_host", "root", "web2", must(ssh.NewCertSigner(userCert, w.ssh)), false},
		{"plain_key", "root", "web1", w.ssh, false},
		{"host_certificate", "root", "web1", hostSigner, false},
		{"twin_cluster", "root", "web1", must(ssh.NewCertSigner(twinCert, twin.ssh)), false},
		{"key_only_offered", "root", "web1", offered{must(ssh.NewCertSigner(userCert, w.ssh))}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var who *identity.Identity
			server := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
				id, permissions, err := w.trust.AuthenticateSSH(c, key, w.now)
				who = id
				return permissions, err
			}}
			server.AddHostKey(hostSigner)
			client := &ssh.ClientConfig{User: tc.login, Auth: []ssh.AuthMethod{ssh.PublicKeys(tc.signer)}, HostKeyCallback: w.trust.HostKeyCallback(types.RoleNode, tc.host)}
			if err := sshHandshake(t, client, server); (err == nil) != tc.ok {
				t.Fatalf("handshake = %v, want success: %v", err, tc.ok)
			}
			if tc.ok && who.User.Name != "alice" {
				t.Errorf("identity = %+v", who)
			}
		})
	}
}

// offered shows a certificate without having its key.
type offered struct{ ssh.Signer }

func (o offered) Sign(io.Reader, []byte) (*ssh.Signature, error) {
	return &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: make([]byte, 64)}, nil
}

func sshHandshake(t *testing.T, client *ssh.ClientConfig, server *ssh.ServerConfig) error {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		_, _, _, err = ssh.NewServerConn(raw, server)
		done <- err
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = ssh.NewClientConn(raw, ln.Addr().String(), client)
	raw.Close()
	return errors.Join(err, <-done)
}
