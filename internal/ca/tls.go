package ca

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

// The configurations below do not use the library's own verification, because it
// takes its pools when the configuration is made, while trust changes with every
// rotation, and because it knows nothing of identities. Each has a VerifyConnection
// instead, which the library calls in every handshake and lets fail it. Sessions
// are never resumed.

// ClientTLS returns the configuration of a client that talks to the service role
// of the cluster. The server must show a host certificate for that service; trust
// and certificate are asked for in each handshake. Without a certificate (a nil
// function or a nil result) the client is anonymous.
func ClientTLS(cert func() *tls.Certificate, trust func() *Trust, role types.SystemRole) *tls.Config {
	c := clientConfig(cert, role)
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		t, err := current(trust)
		if err != nil {
			return err
		}
		return t.verifyServer(cs, role, time.Now())
	}
	return c
}

// PinnedTLS returns the configuration of a client that knows nothing of the
// cluster but the pins of its host authority: the server shows its authority in
// the chain, one that matches a pin is believed, and the server's certificate must
// be signed by it and be for the service role. Without pins every server is refused.
func PinnedTLS(pins []string, role types.SystemRole) *tls.Config {
	c := clientConfig(nil, role)
	pins = slices.Clone(pins)
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		parsed, err := ParsePins(pins)
		if err != nil {
			return err
		}
		return verifyPinned(cs, parsed, role, time.Now())
	}
	return c
}

func clientConfig(cert func() *tls.Certificate, role types.SystemRole) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: identity.ServerName(role),
		// VerifyConnection, which both callers set, does the whole verification.
		InsecureSkipVerify: true, //nolint:gosec // replaced by VerifyConnection, see above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert != nil {
				if c := cert(); c != nil {
					return c, nil
				}
			}
			return &tls.Certificate{}, nil
		},
	}
}

// ServerTLS returns the configuration of a server. A client certificate that is
// given is always verified against the trust of the moment, and clientAuth says
// whether one is asked for or needed: tls.NoClientCert, tls.VerifyClientCertIfGiven
// (also for tls.RequestClientCert) or tls.RequireAndVerifyClientCert (also for
// tls.RequireAnyClientCert).
func ServerTLS(cert func() *tls.Certificate, trust func() *Trust, clientAuth tls.ClientAuthType, protos ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             slices.Clone(protos),
		SessionTicketsDisabled: true,
		ClientAuth:             unverified(clientAuth),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if cert != nil {
				if c := cert(); c != nil {
					return c, nil
				}
			}
			return nil, fault.Unsupported("this service has no certificate")
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				if unverified(clientAuth) == tls.RequireAnyClientCert {
					return fault.Unauthenticated("no certificate was shown")
				}
				return nil
			}
			t, err := current(trust)
			if err != nil {
				return err
			}
			_, err = t.VerifyTLS(cs.PeerCertificates, time.Now())
			return err
		},
	}
}

// unverified maps to the types that leave the verification to VerifyConnection.
// What is unknown requires a certificate.
func unverified(t tls.ClientAuthType) tls.ClientAuthType {
	switch t {
	case tls.NoClientCert:
		return tls.NoClientCert
	case tls.RequestClientCert, tls.VerifyClientCertIfGiven:
		return tls.RequestClientCert
	}
	return tls.RequireAnyClientCert
}

func current(trust func() *Trust) (*Trust, error) {
	if trust != nil {
		if t := trust(); t != nil {
			return t, nil
		}
	}
	return nil, fault.Unauthenticated("no certificate authorities are known yet, so nobody can be believed")
}

// verifyServer checks that the peer is the service role of the cluster.
func (t *Trust) verifyServer(cs tls.ConnectionState, role types.SystemRole, now time.Time) error {
	id, err := t.VerifyTLS(cs.PeerCertificates, now)
	if err != nil {
		return fmt.Errorf("verify the %s service of cluster %q: %w", role, t.cluster, err)
	}
	return checkService(cs.PeerCertificates[0], id, role)
}

// checkService holds the certificate of a server against the role wanted: by what
// it says and by the name it carries.
func checkService(cert *x509.Certificate, id *identity.Identity, role types.SystemRole) error {
	if !id.Host.Serves(role) {
		return fault.Unauthenticated("the server is not the %s service of cluster %q: its certificate is that of %q", role, id.Cluster, id.Name())
	}
	if !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return fault.Unauthenticated("the certificate of %q is not for servers", id.Name())
	}
	if err := cert.VerifyHostname(identity.ServerName(role)); err != nil {
		return fault.Unauthenticated("the certificate of %q: %w", id.Name(), err)
	}
	return nil
}

// maxChain is how many certificates of a server are looked at for a pin.
const maxChain = 8

// verifyPinned checks a server against pins. Only authorities are pinned: a pin of
// the server's own certificate matches nothing.
func verifyPinned(cs tls.ConnectionState, pins []string, role types.SystemRole, now time.Time) error {
	if len(pins) == 0 {
		return fault.Unauthenticated("no ca_pin is given, so the server cannot be believed: take it from `tctl status`")
	}
	if n := len(cs.PeerCertificates); n == 0 || n > maxChain {
		return fault.Unauthenticated("the server showed %d certificates, expected 1 to %d", n, maxChain)
	}
	var shown []string
	var failure error
	for _, c := range cs.PeerCertificates[1:] {
		if checkAuthority(c) != nil || len(c.Subject.Organization) != 1 {
			continue
		}
		pin := Pin(c)
		shown = append(shown, pin)
		if !slices.Contains(pins, pin) {
			continue
		}
		err := trustOne(c).verifyServer(cs, role, now)
		if err == nil {
			return nil
		}
		failure = err
	}
	if failure != nil {
		return failure
	}
	return fault.New(fault.ErrUnauthenticated, "the server's certificate authority does not match ca_pin: it has %s, expected %s: is this the right cluster? `tctl status` shows its pin",
		orNone(shown), orNone(pins)).WithCode(CodePinMismatch)
}

// trustOne believes hosts that one authority vouches for, and nobody else.
func trustOne(authority *x509.Certificate) *Trust {
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	return &Trust{
		cluster: authority.Subject.Organization[0],
		host:    anchors{typ: TypeHost, pool: pool, certs: []*x509.Certificate{authority}},
		user:    anchors{typ: TypeUser, pool: x509.NewCertPool()},
	}
}

// CodePinMismatch is the reason code of a server that no pin matches.
const CodePinMismatch = "ca_pin_mismatch"

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " or ")
}
