package sshauth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/ca"
	"teleport/internal/keys"
	"teleport/internal/mux"
	"teleport/internal/resume"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// way is a way into a server.
type way struct {
	name  string
	login string
	// open opens a connection on which SSH begins.
	open func(t testing.TB) net.Conn
	// joins says that the way leads to sessions of others, and nothing is run.
	joins bool
	// host is the server.
	host string
	// lost breaks the path under what open opened last, and returns when it is resumed;
	// nil where there is no such thing.
	lost func(t testing.TB)
}

// ways returns all of them.
func (s *site) ways(t *testing.T) []way {
	t.Helper()
	tunnel := func(host string, join bool) func(testing.TB) net.Conn {
		return func(t testing.TB) net.Conn { return s.throughProxy(t, host, join) }
	}
	r := &resumable{s: s}
	return []way{
		{name: "direct", host: directNode, login: s.login, open: func(t testing.TB) net.Conn {
			conn, err := net.Dial("tcp", s.node)
			must(t, err)
			return conn
		}},
		{name: "tunnel", host: tunnelNode, login: s.login, open: tunnel(tunnelNode, false)},
		{name: "direct_through_proxy", host: directNode, login: s.login, open: tunnel(directNode, false)},
		{name: "openssh_server", host: stockNode, login: s.login, open: tunnel(stockNode, false)},
		{name: "resumed", host: tunnelNode, login: s.login, open: r.open, lost: r.lose},
		{name: "join", host: tunnelNode, login: types.LoginJoin, open: tunnel(tunnelNode, true), joins: true},
	}
}

// throughProxy has the Proxy connect to a server. Who asks is alice with a TLS
// certificate that is good: what is tested is behind it.
func (s *site) throughProxy(t testing.TB, host string, join bool) net.Conn {
	t.Helper()
	conn, err := s.tryProxy(t, host, join)
	must(t, err)
	return conn
}

func (s *site) tryProxy(t testing.TB, host string, join bool) (net.Conn, error) {
	t.Helper()
	raw, err := net.Dial("tcp", s.proxy)
	if err != nil {
		return nil, err
	}
	config := ca.ClientTLS(func() *tls.Certificate { return s.alice(t) }, func() *ca.Trust { return s.trust }, types.RoleProxy)
	config.NextProtos = []string{mux.ALPNProxySSH}
	conn := tls.Client(raw, config)
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	resp := new(proxyv1.DialResponse)
	err = errors.Join(
		rpc.WriteFrame(conn, &proxyv1.DialRequest{Host: host, Cluster: clusterName, Join: join}), rpc.ReadFrame(conn, resp, rpc.MaxFrame), conn.SetDeadline(time.Time{}))
	if err == nil && resp.GetError() != "" {
		err = errors.New(resp.GetError())
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// alice returns her TLS certificate.
func (s *site) alice(t testing.TB) *tls.Certificate {
	t.Helper()
	key, err := keys.Generate(keys.ECDSAP256)
	must(t, err)
	der, err := keys.PublicDER(key.Public())
	must(t, err)
	cert, _, err := s.signer.User(ca.UserRequest{Identity: *s.person("alice", freeRole), TLSKey: der, TTL: time.Hour})
	must(t, err)
	return &tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key}
}

// resumable opens connections that survive the loss of what they come over.
type resumable struct {
	s *site

	mu   sync.Mutex
	path net.Conn
	back chan struct{}
}

func (r *resumable) dial(t testing.TB) (net.Conn, error) {
	conn, err := r.s.tryProxy(t, tunnelNode, false)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.path = conn
	}
	return conn, err
}

func (r *resumable) open(t testing.TB) net.Conn {
	t.Helper()
	offer, err := resume.NewOffer()
	must(t, err)
	nc, err := r.dial(t)
	must(t, err)
	_, err = nc.Write(offer.Line())
	must(t, err)
	back := make(chan struct{}, 8)
	conn, err := offer.Accept(nc, resume.ClientConfig{
		Redial: func(context.Context) (net.Conn, error) { return r.dial(t) },
		Notify: func(e resume.Event) {
			if e.Back {
				back <- struct{}{}
			}
		},
	})
	must(t, err)
	if _, ok := conn.(*resume.Conn); !ok {
		t.Fatalf("the node made %T of the offer", conn)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.back = back
	return conn
}

func (r *resumable) lose(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	back := r.back
	_ = r.path.Close()
	r.mu.Unlock()
	select {
	case <-back:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection was not resumed")
	}
}

// breakIt loses the path under the connection, which w.open opened last, if it can be
// resumed.
func (w way) breakIt(t testing.TB, c *ssh.Client) {
	t.Helper()
	if w.lost == nil {
		return
	}
	// A channel is only opened once the node has said that it keeps the connection.
	sess, err := c.NewSession()
	must(t, err)
	must(t, sess.Close())
	w.lost(t)
}

// log logs in with x/crypto.
func (w way) log(t testing.TB, user string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	t.Helper()
	nc := w.open(t)
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	conn, chans, reqs, err := ssh.NewClientConn(nc, "server", &ssh.ClientConfig{User: user, Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	_ = nc.SetDeadline(time.Time{})
	c := ssh.NewClient(conn, chans, reqs)
	t.Cleanup(func() { _ = c.Close() })
	return c, nil
}

// in logs in with a certificate that is good.
func (w way) in(t testing.TB, c credential) *ssh.Client {
	t.Helper()
	conn, err := w.log(t, w.login, ssh.PublicKeys(c.signer(t)))
	if err != nil {
		t.Fatalf("a good login fails: %v", err)
	}
	return conn
}

// bridge listens for stock clients, and leads each to the server the way goes.
func (w way) bridge(t testing.TB) (port string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var work sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); work.Wait() })
	work.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				server := w.open(t)
				work.Go(func() { pour(client, server) })
				pour(server, client)
			})
		}
	})
	_, port, err = net.SplitHostPort(ln.Addr().String())
	must(t, err)
	return port
}

func pour(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}

// sessionID is a session of alice on the server behind the tunnel that others join.
func (s *site) sessionID(t testing.TB) string {
	t.Helper()
	w := way{login: s.login, open: func(t testing.TB) net.Conn { return s.throughProxy(t, tunnelNode, false) }}
	sess, err := w.in(t, s.good(t, "alice", freeRole)).NewSession()
	must(t, err)
	must(t, sess.RequestPty("xterm", 24, 80, nil))
	out, err := sess.StdoutPipe()
	must(t, err)
	in, err := sess.StdinPipe()
	must(t, err)
	must(t, sess.Shell())
	_, err = io.WriteString(in, "echo id=$SSH_SESSION_ID.\n")
	must(t, err)
	var shown string
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		shown += string(buf[:n])
		var id string
		for i := range shown {
			if _, err := fmt.Sscanf(shown[i:], "id=%36s", &id); err == nil && types.ValidSessionID(id) == nil && len(shown[i:]) > 39 {
				go func() { _, _ = io.Copy(io.Discard, out) }()
				return id
			}
		}
		must(t, err)
	}
}
