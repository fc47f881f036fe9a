package dbtest

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/service/db"
)

// Person is somebody with a certificate for one database.
type Person struct {
	w    *World
	cert tls.Certificate
	key  crypto.Signer
	// Addr is the client's address as the Proxy tells it.
	Addr string
}

// Person makes somebody with the roles; nil are those of Role. change may alter the
// request, and with it what the certificate is tied to.
func (w *World) Person(t testing.TB, name, database string, roles []string, change func(*ca.UserRequest)) *Person {
	t.Helper()
	if roles == nil {
		roles = []string{Role}
	}
	key := must(keys.Generate(keys.ECDSAP256))
	req := ca.UserRequest{
		Identity: identity.Identity{Cluster: Cluster, User: &identity.User{Name: name, Roles: roles, Database: &identity.DatabaseRoute{Service: database, Protocol: w.protocol}}},
		TLSKey:   must(keys.PublicDER(key.Public())), TTL: time.Hour, NoLogins: true,
	}
	if change != nil {
		change(&req)
	}
	der, _, err := w.signer.User(req)
	if err != nil {
		t.Fatal(err)
	}
	return &Person{w: w, key: key, cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, Addr: "192.0.2.7:40000"}
}

// Native returns the files with which a client that ends TLS itself is the person, and
// the name of the server to expect.
func (p *Person) Native(t testing.TB) Files {
	t.Helper()
	pool := ""
	for _, c := range p.w.holder.Trust().HostCertificates() {
		pool += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return writeFiles(t, t.TempDir(), "client", []byte(pool), p.key, p.cert.Certificate...)
}

// agent hands the agent one connection and returns the client's end.
func (p *Person) agent(ctx context.Context, database string, native bool) (net.Conn, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer func() { _ = ln.Close() }()
	client, err := (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	conn, err := ln.Accept()
	if err != nil {
		return nil, err
	}
	go p.w.Service.HandleConn(p.w.ctx, conn, db.Connection{ClientAddr: p.Addr, Resource: database, Native: native})
	return client, nil
}

// Dial opens one connection as the local proxy of tsh does; what comes out of it is the
// protocol of the database.
func (p *Person) Dial(ctx context.Context, database string) (net.Conn, error) {
	conn, err := p.agent(ctx, database, false)
	if err != nil {
		return nil, err
	}
	c := tls.Client(conn, p.w.serviceTLS(p.cert))
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// Tunnel opens a local port, as `tsh proxy db --tunnel` does, until the test ends, and
// returns its address.
func (p *Person) Tunnel(t testing.TB, database string) string {
	t.Helper()
	return p.listen(t, func(ctx context.Context) (net.Conn, error) { return p.Dial(ctx, database) })
}

// Direct opens a local port, as `tsh proxy db` does: the client ends TLS itself.
func (p *Person) Direct(t testing.TB, database string) string {
	t.Helper()
	return p.listen(t, func(ctx context.Context) (net.Conn, error) { return p.agent(ctx, database, true) })
}

func (p *Person) listen(t testing.TB, dial func(ctx context.Context) (net.Conn, error)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		work.Wait()
	})
	work.Go(func() {
		for {
			local, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() { forward(ctx, local, dial) })
		}
	})
	return ln.Addr().String()
}

// forward copies between a local connection and a new one to the agent.
func forward(ctx context.Context, local net.Conn, dial func(ctx context.Context) (net.Conn, error)) {
	defer func() { _ = local.Close() }()
	remote, err := dial(ctx)
	if err != nil {
		return
	}
	defer func() { _ = remote.Close() }()
	stop := context.AfterFunc(ctx, func() {
		_ = local.Close()
		_ = remote.Close()
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(remote, local)
		closeWrite(remote)
	})
	both.Go(func() {
		_, _ = io.Copy(local, remote)
		closeWrite(local)
	})
	both.Wait()
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
