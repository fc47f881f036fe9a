package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"

	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/types"
)

const (
	// ALPNTCP is what a local proxy asks the agent of a TCP application for.
	ALPNTCP = "teleport-tcp"
	// ownAuthorityTime bounds OwnAuthority.
	ownAuthorityTime = 3 * time.Second
)

// DatabaseServerName is the name that the certificates of all agents of databases have,
// and of nobody else.
var DatabaseServerName = identity.ServerName(types.RoleDB)

// OwnAuthority reports whether the web port of the Proxy shows, for a host name, a
// certificate of the cluster's own authority, which other programs have to be told of.
// It makes one TLS handshake; a Proxy that does not answer does not.
func OwnAuthority(ctx context.Context, proxy, host string, trust *ca.Trust) bool {
	addrs, err := ProxyAddrs(proxy)
	if err != nil {
		return false
	}
	roots := x509.NewCertPool()
	for _, cert := range trust.HostCertificates() {
		roots.AddCert(cert)
	}
	ctx, cancel := context.WithTimeout(ctx, ownAuthorityTime)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addrs[0])
	if err != nil {
		return false
	}
	conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: roots, NextProtos: []string{ALPNHTTP}})
	defer func() { _ = conn.Close() }()
	return conn.HandshakeContext(ctx) == nil
}
