package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"teleport/internal/buffer"
)

const (
	// idleConns is how long a connection to an application is kept for the next request,
	// maxIdleConns how many.
	idleConns    = 90 * time.Second
	maxIdleConns = 64
	// maxAnswerHeader bounds the head of an answer.
	maxAnswerHeader = 256 << 10
)

// upstream is the connections of one session to its application. Those of another session
// are other ones: some applications take a connection for a user, and one that mixes up its
// answers then gives nobody those of somebody else.
type upstream struct {
	mu sync.Mutex
	sv *served
	// web is for most requests; upgrade is for those that leave HTTP, and clear for
	// gRPC without TLS: both only if needed.
	web, upgrade, clear *http.Transport
}

// choose returns the way to the application for a request.
func (u *upstream) choose(s *Service, sv *served, r *http.Request) *http.Transport {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sv != sv {
		u.closeLocked()
		u.sv = sv
	}
	switch {
	case sv.target.scheme == schemeHTTPS && upgradeOf(r) != "":
		return pick(&u.upgrade, s, sv, true, false)
	case sv.target.scheme == schemeHTTP && r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
		// gRPC is HTTP/2, and without TLS nobody can ask the application.
		return pick(&u.clear, s, sv, false, true)
	}
	return pick(&u.web, s, sv, true, sv.target.scheme == schemeHTTPS)
}

func pick(at **http.Transport, s *Service, sv *served, h1, h2 bool) *http.Transport {
	if *at == nil {
		*at = newTransport(s, sv.target, h1, h2)
	}
	return *at
}

func newTransport(s *Service, t *target, h1, h2 bool) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(h1)
	if t.scheme == schemeHTTPS {
		protocols.SetHTTP2(h2)
	} else {
		protocols.SetUnencryptedHTTP2(h2)
	}
	return &http.Transport{
		// Whatever a request says, only the application is dialled.
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dialer.dial(ctx, t) },
		TLSClientConfig:        t.tlsConfig(),
		TLSHandshakeTimeout:    dialTimeout,
		Protocols:              &protocols,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleConns,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
}

// close closes the connections that serve no request.
func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closeLocked()
}

func (u *upstream) closeLocked() {
	for _, t := range []**http.Transport{&u.web, &u.upgrade, &u.clear} {
		if *t != nil {
			(*t).CloseIdleConnections()
			*t = nil
		}
	}
}

// isCertificate reports whether the error is about the application's certificate.
func isCertificate(err error) bool {
	var verification *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &verification) || errors.As(err, &unknown) || errors.As(err, &name) || errors.As(err, &invalid)
}

// buffers are those of copies.
var buffers = new(buffer.Pool)
