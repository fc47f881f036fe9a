// Package identity says what a certificate says: it writes an Identity into
// X.509 and SSH certificates and reads it back after the signature was checked.
// It does not sign (package ca) and does not decide (package access).
package identity

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/types"
)

// Identity is the holder of a certificate. Exactly one of User and Host is set.
type Identity struct {
	Cluster string
	User    *User
	Host    *Host
	Issued  time.Time
	Expires time.Time
}

// User is a person or an automation.
type User struct {
	Name string
	// Roles are names of role resources.
	Roles []string
	// Logins are the operating-system users the certificate may log in as (SSH
	// principals). Empty means none.
	Logins []string
	Traits map[string][]string
	// MFADevice is the id of the device that the user logged in with; empty when none
	// was asked for.
	MFADevice string
	// SourceIP is the only address that the certificate may be used from; empty means
	// that it does not say. An SSH certificate has it as a critical option instead.
	SourceIP string
	// App and Database tie the certificate to one resource; at most one is set. See
	// Routed.
	App      *AppRoute
	Database *DatabaseRoute
}

// AppRoute is the one application that a certificate is good for.
type AppRoute struct {
	// Name is that of the application.
	Name string
	// PublicAddr is the host name that users have it at; empty if it is not known.
	PublicAddr string
	// SessionID is that of the session in the audit log.
	SessionID string
}

// DatabaseRoute is the one database that a certificate is good for.
type DatabaseRoute struct {
	// Service is the name of the database resource and Protocol how it is spoken to.
	Service, Protocol string
	// User and Name are the only database user and database of the server that the
	// certificate may be used for, and Roles those that a user gets whom the session
	// makes. Empty leaves them open.
	User, Name string
	Roles      []string
}

// Routed reports whether the certificate is good for one resource only: the agent that
// serves it may believe it, and everything else refuses it.
func (u *User) Routed() bool { return u != nil && (u.App != nil || u.Database != nil) }

// Host is a joined process.
type Host struct {
	// ID is the host id that Auth assigned.
	ID string
	// Name is the host name.
	Name string
	// Roles are the system roles that the process may run.
	Roles []types.SystemRole
	// Service is the one role of a per-service certificate; empty on the
	// process-level certificate.
	Service types.SystemRole
	// Generation counts the renewals of the process-level certificate.
	Generation uint64
	// OpenSSH marks the certificate of a server that runs only OpenSSH, whose key is in
	// no process of ours: it serves nothing in the cluster and is believed only where
	// such a server is asked for. With Proxy it is for the key of the Proxy of that id,
	// which answers users in the server's place; without, for the server's own host key.
	OpenSSH bool
	Proxy   string
}

// Serves reports whether the certificate lets its holder act as the service: a
// per-service certificate for that role.
func (h *Host) Serves(r types.SystemRole) bool { return h != nil && !h.OpenSSH && h.Service == r }

// Has reports whether the process holds the role.
func (h *Host) Has(r types.SystemRole) bool {
	return h != nil && !h.OpenSSH && slices.Contains(h.Roles, r)
}

// Name returns the name for logs and audit: user name or host id.
func (id *Identity) Name() string {
	switch {
	case id == nil:
		return ""
	case id.User != nil:
		return id.User.Name
	case id.Host != nil:
		return id.Host.ID
	}
	return ""
}

// CheckSource holds the peer's address against the one that the certificate may be
// used from. What is no IP address is not it.
func (id *Identity) CheckSource(from net.Addr) error {
	if id == nil || id.User == nil || id.User.SourceIP == "" {
		return nil
	}
	if tcp, ok := from.(*net.TCPAddr); ok {
		if addr, ok := netip.AddrFromSlice(tcp.IP); ok && addr.Unmap().String() == id.User.SourceIP {
			return nil
		}
	}
	return fault.Denied("the certificate of %q may only be used from the address of its login: log in again from here", id.User.Name)
}

// serverDomain is the domain of the names that only per-service certificates
// carry. It exists nowhere else, so that no machine can be called that.
const serverDomain = "teleport.cluster.local"

// ServerName returns the DNS name of per-service certificates for the role, which
// a TLS client asks for ("auth.teleport.cluster.local").
func ServerName(r types.SystemRole) string { return r.Flag() + "." + serverDomain }

// ReservedName reports whether the DNS name lies in the domain of ServerName.
func ReservedName(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name == serverDomain || strings.HasSuffix(name, "."+serverDomain)
}
