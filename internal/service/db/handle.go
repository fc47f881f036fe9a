package db

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/service/db/engine"
	"teleport/internal/types"
)

// Connection says what is known of a connection from outside of it.
type Connection struct {
	// ClientAddr is the address of the client that the Proxy saw.
	ClientAddr string
	// Resource is the name of the database.
	Resource string
	// Native says that the client's own program ends TLS, after what its protocol has
	// before that.
	Native bool
}

const (
	// handshakeTimeout bounds the time until it is known who connects.
	handshakeTimeout = 30 * time.Second
	// farewell is how long an engine may tell the client why a session ends.
	farewell = time.Second
)

// HandleConn serves one connection that came through a tunnel and returns when it is
// over.
func (s *Service) HandleConn(ctx context.Context, conn net.Conn, c Connection) {
	defer func() { _ = conn.Close() }()
	if !s.enter() {
		return
	}
	defer s.sessions.Done()
	log := s.cfg.Log.With("db", c.Resource, "addr", c.ClientAddr)
	// Nothing that comes from the network ends the process.
	defer func() {
		if p := recover(); p != nil {
			log.ErrorContext(ctx, "a database session failed in a way that it never should", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	sv := s.find(c.Resource)
	if sv == nil {
		log.WarnContext(ctx, "refused a connection to a database that is not served here")
		return
	}
	eng := s.engines[sv.db.GetSpec().GetProtocol()]
	client := &clientConn{raw: conn}
	client.touch()
	started, err := s.greet(ctx, eng, sv, client, c)
	if errors.Is(err, engine.ErrDone) {
		return
	}
	if err != nil {
		log.InfoContext(ctx, "a connection to a database was not authenticated", "error", err)
		return
	}
	s.serve(ctx, eng, sv, client, c, started)
}

// greet ends TLS and checks that there is a user with a certificate for the database.
func (s *Service) greet(ctx context.Context, eng engine.Engine, sv *served, client *clientConn, c Connection) (started any, err error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = client.raw.Close() })
	defer stop()
	pre := &unreadConn{Conn: client.raw}
	if c.Native {
		if started, err = eng.StartTLS(ctx, sv.db, pre); err != nil {
			return nil, err
		}
	}
	client.tls = tls.Server(pre, s.serverTLS(sv, c))
	if err := client.tls.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return started, client.SetReadDeadline(time.Time{})
}

// serverTLS is how users are met: with the certificate of the service, and theirs has to
// be one for this database.
func (s *Service) serverTLS(sv *served, c Connection) *tls.Config {
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"teleport-" + sv.db.GetSpec().GetProtocol()},
		SessionTicketsDisabled: true,
		// Results go out in records that are as large as they may be.
		DynamicRecordSizingDisabled: true,
		ClientAuth:                  tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if cert := s.cfg.Holder.Certificate(types.RoleDB); cert != nil {
				return cert, nil
			}
			return nil, fault.Unsupported("this host has no certificate for the Database Service")
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := s.verifyUser(cs.PeerCertificates, sv.name())
			return err
		},
	}
	if c.Native {
		// The client is what its maker made it, and says nothing to us by ALPN.
		cfg.MinVersion, cfg.NextProtos = tls.VersionTLS12, nil
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			own := cfg.Clone()
			own.GetConfigForClient = nil
			own.NextProtos = hello.SupportedProtos
			return own, nil
		}
	}
	return cfg
}

// verifyUser returns whose certificate it is. It must be tied to the database.
func (s *Service) verifyUser(chain []*x509.Certificate, database string) (*identity.Identity, error) {
	id, err := s.cfg.Holder.Trust().VerifyTLS(chain, s.cfg.Now())
	switch {
	case err != nil:
		return nil, err
	case id.User == nil:
		return nil, fault.Unauthenticated("a host certificate was shown, a user certificate for database %q is needed", database)
	case id.User.Database == nil:
		return nil, fault.Unauthenticated("the certificate of %q is not for a database: get one with tsh db login", id.User.Name)
	case id.User.Database.Service != database:
		return nil, fault.Unauthenticated("the certificate of %q is for database %q, not for %q", id.User.Name, id.User.Database.Service, database)
	}
	return id, nil
}

// serve runs the session of an authenticated user.
func (s *Service) serve(ctx context.Context, eng engine.Engine, sv *served, client *clientConn, c Connection, started any) {
	chain := client.tls.ConnectionState().PeerCertificates
	id, err := s.verifyUser(chain, sv.name())
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	h := newSession(s, sv, id, chain[0].Raw, client, c, cancel)
	// What stands against the connection itself is told by the engine, in its protocol.
	h.precheck = s.checkConn(id, c)
	s.live.add(h)
	defer s.live.remove(h)
	if s.isStopped() {
		h.end(errStopping)
	}
	var last sync.WaitGroup
	last.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer last.Done()
		h.closeUpstream()
		timer := time.NewTimer(farewell)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-h.served:
		}
		_ = client.raw.Close()
	})
	err = engine.Guard(func() error {
		return eng.Serve(ctx, &engine.Session{
			ID: h.id, Database: sv.db, User: id.User, Client: client, Native: c.Native, Started: started, Host: h,
		})
	})
	close(h.served)
	if stop() {
		last.Done()
	}
	last.Wait()
	h.finish(ctx, err)
}

func (s *Service) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// checkConn holds the connection against what the certificate says of it.
func (s *Service) checkConn(id *identity.Identity, c Connection) error {
	var from net.Addr
	if ap, err := netip.ParseAddrPort(c.ClientAddr); err == nil {
		from = net.TCPAddrFromAddrPort(ap)
	}
	if err := id.CheckSource(from); err != nil {
		return err
	}
	if s.optionsOf(id).PinSource && id.User.SourceIP == "" {
		return fault.Denied("your roles bind certificates to the address of the login, and yours names none: log in again")
	}
	return nil
}

// unreadConn is a connection that takes bytes back.
type unreadConn struct {
	net.Conn
	back []byte
}

// Unread has p read next.
func (c *unreadConn) Unread(p []byte) { c.back = append(append([]byte(nil), p...), c.back...) }

// Read reads what was given back first.
func (c *unreadConn) Read(p []byte) (int, error) {
	if len(c.back) > 0 {
		n := copy(p, c.back)
		if c.back = c.back[n:]; len(c.back) == 0 {
			c.back = nil
		}
		return n, nil
	}
	return c.Conn.Read(p)
}
