package webapp

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	appv1 "teleport/api/app/v1"
	"teleport/internal/budget"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

const (
	// maxSessions bounds the sessions that this Proxy has certificates for; the one that
	// was used longest ago goes, and is asked for again when it is used.
	maxSessions = 10_000
	// freshFor is how long before its end a certificate is replaced, and lookAgain how
	// long one is used until Auth is asked whether there is still such a session: it may
	// have been ended at another Proxy. While Auth is away it is asked each lookSoon.
	freshFor  = 2 * time.Minute
	lookAgain = 10 * time.Minute
	lookSoon  = 30 * time.Second
	// maxSecret bounds a cookie's value.
	maxSecret = 256
	idleConns = 90 * time.Second
	// handshakeTimeout bounds TLS with an agent.
	handshakeTimeout = 10 * time.Second
)

// session is somebody at an application, with the certificate that this Proxy speaks to
// the agent with.
type session struct {
	app     string
	caller  *identity.Identity
	expires time.Time
	cert    tls.Certificate
	// h1 is for requests of HTTP/1.1, of which some become other protocols; h2 for the
	// others.
	h1, h2 *http.Transport
}

func (s *session) close() {
	s.h1.CloseIdleConnections()
	s.h2.CloseIdleConnections()
}

// sessions has those that are in use.
type sessions struct {
	h       *Handler
	signing singleflight.Group
	ending  *ending

	mu    sync.Mutex
	byKey map[place]*kept
}

// place is a session at one address of its user: the agent, the application and the audit
// log are told the address, which must be that of who asks.
type place struct {
	session sessionKey
	addr    netip.Addr
}

type kept struct {
	session *session
	// login is the id of the login at the Proxy that a cookie says that it comes of.
	login string
	used  time.Time
	// ask is when Auth is asked again.
	ask time.Time
}

func newSessions(h *Handler) *sessions {
	return &sessions{h: h, ending: newEnding(), byKey: map[place]*kept{}}
}

// loginOf is the id of the login that a secret comes of: a secret begins with the id of
// its session, which at an application begins with that of the login.
func loginOf(secret string) string {
	id, _, _ := strings.Cut(secret, ".")
	login, _, _ := strings.Cut(id, "-")
	return login
}

// byCookie returns the session of a browser.
func (s *sessions) byCookie(r *http.Request, app target, secret string) (*session, error) {
	return s.get(r, cookieKey(app.name, secret), app, &appv1.SignProxyRequest{App: app.name, Token: secret})
}

// byCertificate returns the session of a program that shows a certificate.
func (s *sessions) byCertificate(r *http.Request, app target, chain []*x509.Certificate) (*session, error) {
	id, err := s.h.cfg.Trust().VerifyTLS(chain, s.h.cfg.Now())
	switch {
	case err != nil:
		return nil, err
	case id.User == nil || id.User.App == nil:
		return nil, fault.Unauthenticated("the certificate is not one for applications: run tsh apps login %s", app.name)
	case id.User.App.Name != app.name:
		return nil, fault.Denied("the certificate is for application %q, and this is %q: run tsh apps login %s", id.User.App.Name, app.name, app.name)
	}
	key := sha256.Sum256(append([]byte("certificate\x00"), chain[0].Raw...))
	return s.get(r, key, app, &appv1.SignProxyRequest{App: app.name, UserCertificate: chain[0].Raw})
}

// get returns the session that is kept, or asks Auth for a certificate.
func (s *sessions) get(r *http.Request, key sessionKey, app target, req *appv1.SignProxyRequest) (*session, error) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return nil, fault.Denied("address %q of the request cannot be read", r.RemoteAddr)
	}
	at := place{key, from.Addr().Unmap()}
	now := s.h.cfg.Now()
	s.mu.Lock()
	k := s.byKey[at]
	if k != nil && now.Before(k.ask) && now.Before(k.session.expires) {
		k.used = now
		s.mu.Unlock()
		return k.session, s.check(from, k.session)
	}
	s.mu.Unlock()
	if !s.h.signs.Allow(budget.Source(r.RemoteAddr), now) {
		return nil, fault.Limit("too many new sessions from your address: wait a second and try again")
	}
	// What one request waits for serves the others as well, so it does not end with it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), callTimeout)
	defer cancel()
	got, err, _ := s.signing.Do(string(key[:])+at.addr.String(), func() (any, error) { return s.sign(ctx, r.RemoteAddr, app, req) })
	if err != nil {
		// A certificate that is good yet outlives Auth.
		if k != nil && errors.Is(err, fault.ErrUnreachable) && now.Before(k.session.expires) {
			s.mu.Lock()
			k.ask = now.Add(lookSoon)
			s.mu.Unlock()
			return k.session, s.check(from, k.session)
		}
		return nil, err
	}
	one, _ := got.(*session)
	s.keep(at, &kept{session: one, login: loginOf(req.GetToken()), used: now, ask: now.Add(min(lookAgain, one.expires.Sub(now)-freshFor))})
	return one, s.check(from, one)
}

// check holds the address of a request against the one that the session is tied to.
func (s *sessions) check(from netip.AddrPort, one *session) error {
	return one.caller.CheckSource(net.TCPAddrFromAddrPort(from))
}

func (s *sessions) keep(at place, one *kept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.byKey[at]; old != nil && old.session != one.session {
		defer old.session.close()
	}
	s.byKey[at] = one
	if len(s.byKey) <= maxSessions {
		return
	}
	var oldest place
	for k, v := range s.byKey {
		if first := s.byKey[oldest]; first == nil || v.used.Before(first.used) {
			oldest = k
		}
	}
	defer s.byKey[oldest].session.close()
	delete(s.byKey, oldest)
}

// forget drops a session and ends what goes on in it.
func (s *sessions) forget(key sessionKey) {
	s.drop(func(at place, _ *kept) bool { return at.session == key })
}

// forgetLogin drops the sessions that come of a login at the Proxy.
func (s *sessions) forgetLogin(secret string) {
	opened := s.ending.openedBy(loginKey(secret))
	login := loginOf(secret)
	s.drop(func(at place, k *kept) bool {
		return login != "" && k.login == login || slices.Contains(opened, at.session)
	})
}

// drop drops the sessions that are meant. It is for everybody to ask for: whoever shows
// something that is no session ends nothing by it.
func (s *sessions) drop(meant func(place, *kept) bool) {
	var gone []*session
	s.mu.Lock()
	for at, k := range s.byKey {
		if meant(at, k) {
			gone = append(gone, k.session)
			delete(s.byKey, at)
		}
	}
	s.mu.Unlock()
	for _, one := range gone {
		one.close()
		s.ending.end(one.caller.User.App.SessionID)
	}
}

func (s *sessions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, k := range s.byKey {
		k.session.close()
		delete(s.byKey, key)
	}
}

// sign makes a key and has Auth certify that it speaks for the user at the application.
func (s *sessions) sign(ctx context.Context, clientAddr string, app target, req *appv1.SignProxyRequest) (*session, error) {
	key, err := keys.Generate(keys.ECDSAP256)
	if err != nil {
		return nil, err
	}
	if req.TlsKey, err = keys.PublicDER(key.Public()); err != nil {
		return nil, err
	}
	req.ClientAddr = clientAddr
	resp, err := s.h.cfg.Apps.SignProxy(ctx, req)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(resp.GetCertificate())
	if err != nil {
		return nil, fault.Invalid("the certificate that Auth made cannot be read: %w", err)
	}
	caller, err := identity.FromTLS(leaf)
	if err != nil {
		return nil, err
	}
	if caller.User == nil || caller.User.App == nil || caller.User.App.Name != app.name {
		return nil, fault.Invalid("Auth made a certificate for something else than application %q", app.name)
	}
	one := &session{
		app: app.name, caller: caller, expires: leaf.NotAfter,
		cert: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
	}
	one.h1, one.h2 = s.transport(one, clientAddr, "http/1.1"), s.transport(one, clientAddr, "h2")
	return one, nil
}

// transport makes connections to agents of the application, for one session.
func (s *sessions) transport(one *session, clientAddr, proto string) *http.Transport {
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.dial(ctx, one, clientAddr, proto)
		},
		ForceAttemptHTTP2:     proto == "h2",
		DisableCompression:    true,
		MaxIdleConnsPerHost:   64,
		MaxConnsPerHost:       256,
		IdleConnTimeout:       idleConns,
		ExpectContinueTimeout: time.Second,
		ReadBufferSize:        8 << 10,
		WriteBufferSize:       8 << 10,
	}
}

// dial opens TLS with an agent of the application, and holds who answers against whom
// the connection was made to.
func (s *sessions) dial(ctx context.Context, one *session, clientAddr, proto string) (net.Conn, error) {
	raw, hostID, err := s.h.cfg.Dial(ctx, one.caller, one.app, clientAddr)
	if err != nil {
		return nil, err
	}
	leave, err := s.h.cfg.Enter(one.caller, hostID, raw)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	config := ca.ClientTLS(func() *tls.Certificate { return &one.cert }, s.h.cfg.Trust, types.RoleApp)
	config.NextProtos = []string{proto}
	forget := s.ending.enter(one.caller.User.App.SessionID, raw)
	conn := tls.Client(&leavingConn{Conn: raw, leave: sync.OnceFunc(func() { forget(); leave() })}, config)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fault.Unreachable("the agent of application %q does not answer as it should: %w", one.app, err)
	}
	agent, err := identity.FromTLS(conn.ConnectionState().PeerCertificates[0])
	if err != nil || agent.Host == nil || agent.Host.ID != hostID {
		_ = conn.Close()
		return nil, fault.Unreachable("another host than %s answers for application %q", hostID, one.app)
	}
	return conn, nil
}

// leavingConn is a connection that something follows its end of.
type leavingConn struct {
	net.Conn
	leave func()
}

// Close closes the connection.
func (c *leavingConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
