package identity

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"teleport/internal/fault"
	"teleport/internal/types"
)

// Limits of what an identity may hold, in bytes and in pieces. They bound what a
// peer can make others parse, and keep certificates small enough for a handshake.
const (
	maxName    = 256
	maxHostID  = 64
	maxRoles   = 128
	maxLogins  = 256
	maxTraits  = 128
	maxValues  = 256
	maxValue   = 1024
	maxEncoded = 16 << 10
)

// Check reports the first thing in the identity that no certificate may say.
func (id *Identity) Check() error {
	switch {
	case id == nil:
		return fault.Invalid("identity is missing")
	case (id.User == nil) == (id.Host == nil):
		return fault.Invalid("identity must be either a user's or a host's")
	}
	if err := CheckHostname(id.Cluster); err != nil {
		return fmt.Errorf("cluster name: %w", err)
	}
	if id.User != nil {
		return id.User.check()
	}
	return id.Host.check()
}

func (u *User) check() error {
	if err := checkText("user name", u.Name, maxName); err != nil {
		return err
	}
	if u.SourceIP != "" {
		if addr, err := netip.ParseAddr(u.SourceIP); err != nil || addr.Unmap().String() != u.SourceIP {
			return fault.Invalid("source address %q of user %q is no IP address in canonical form", clip(u.SourceIP), u.Name)
		}
	}
	if len(u.Roles) > maxRoles || len(u.Logins) > maxLogins || len(u.Traits) > maxTraits {
		return fault.Limit("user %q has %d roles, %d logins and %d traits: at most %d, %d and %d fit a certificate",
			u.Name, len(u.Roles), len(u.Logins), len(u.Traits), maxRoles, maxLogins, maxTraits)
	}
	seen := make(map[string]bool, len(u.Roles))
	for _, r := range u.Roles {
		if err := checkText("role name", r, maxName); err != nil {
			return err
		}
		if seen[r] {
			return fault.Invalid("user %q has the role %q twice", u.Name, r)
		}
		seen[r] = true
	}
	seen = make(map[string]bool, len(u.Logins))
	for _, l := range u.Logins {
		if err := types.ValidLogin(l); err != nil {
			return fmt.Errorf("login of user %q: %w", u.Name, err)
		}
		if seen[l] {
			return fault.Invalid("user %q has the login %q twice", u.Name, l)
		}
		seen[l] = true
	}
	if u.MFADevice != "" {
		if err := CheckHostID(u.MFADevice); err != nil {
			return fault.Invalid("id of the second factor of user %q: expected 1 to %d letters, digits, dashes and underscores", u.Name, maxHostID)
		}
	}
	for name, values := range u.Traits {
		if err := checkText("trait name", name, maxName); err != nil {
			return err
		}
		if len(values) > maxValues {
			return fault.Limit("trait %q has %d values, at most %d fit a certificate", name, len(values), maxValues)
		}
		for _, v := range values {
			if err := checkText("trait value", v, maxValue); err != nil {
				return err
			}
		}
	}
	return u.checkRoute()
}

// checkRoute holds what ties the certificate to one resource. Such a certificate has no
// logins: it opens nothing but that resource.
func (u *User) checkRoute() error {
	switch {
	case !u.Routed():
		return nil
	case u.App != nil && u.Database != nil:
		return fault.Invalid("a certificate of user %q is for one application or one database, not for both", u.Name)
	case len(u.Logins) > 0:
		return fault.Invalid("a certificate of user %q for an application or a database has no logins", u.Name)
	case u.App != nil:
		return u.App.check()
	}
	return u.Database.check()
}

func (a *AppRoute) check() error {
	if err := types.ValidAppName(a.Name); err != nil {
		return err
	}
	if a.PublicAddr != "" {
		if err := CheckHostname(a.PublicAddr); err != nil {
			return fmt.Errorf("address of application %q: %w", a.Name, err)
		}
	}
	if a.SessionID != "" && CheckHostID(a.SessionID) != nil {
		return fault.Invalid("session %q of application %q: expected 1 to %d letters, digits, dashes and underscores", clip(a.SessionID), a.Name, maxHostID)
	}
	return nil
}

func (d *DatabaseRoute) check() error {
	if err := types.ValidDatabaseName(d.Service); err != nil {
		return err
	}
	if err := checkText("protocol", d.Protocol, maxHostID); err != nil {
		return err
	}
	for what, name := range map[string]string{"database user": d.User, "database name": d.Name} {
		if name == "" {
			continue
		}
		if err := checkText(what, name, maxName); err != nil {
			return err
		}
	}
	if len(d.Roles) > maxRoles {
		return fault.Limit("%d database roles, at most %d fit a certificate", len(d.Roles), maxRoles)
	}
	seen := make(map[string]bool, len(d.Roles))
	for _, r := range d.Roles {
		if err := checkText("database role", r, maxName); err != nil {
			return err
		}
		if seen[r] {
			return fault.Invalid("database role %q is there twice", r)
		}
		seen[r] = true
	}
	return nil
}

func (h *Host) check() error {
	if err := CheckHostID(h.ID); err != nil {
		return err
	}
	if err := CheckHostname(h.Name); err != nil {
		return fmt.Errorf("name of host %q: %w", h.ID, err)
	}
	if ReservedName(h.Name) {
		return fault.Invalid("host name %q is reserved for services of the cluster", h.Name)
	}
	if len(h.Roles) == 0 || len(h.Roles) > len(types.SystemRoles()) {
		return fault.Invalid("host %q has %d system roles, expected 1 to %d", h.ID, len(h.Roles), len(types.SystemRoles()))
	}
	seen := make(map[types.SystemRole]bool, len(h.Roles))
	for _, r := range h.Roles {
		if parsed, err := types.ParseSystemRole(string(r)); err != nil || parsed != r {
			return fault.Invalid("host %q has an unknown system role %q", h.ID, r)
		}
		if seen[r] {
			return fault.Invalid("host %q has the system role %q twice", h.ID, r)
		}
		seen[r] = true
	}
	if h.Service != "" && !seen[h.Service] {
		return fault.Invalid("host %q has no system role %q, so it cannot serve it", h.ID, h.Service)
	}
	return h.checkOpenSSH()
}

// checkOpenSSH holds what marks an OpenSSH server against the rest.
func (h *Host) checkOpenSSH() error {
	if h.Proxy != "" {
		if err := CheckHostID(h.Proxy); err != nil {
			return fmt.Errorf("proxy of host %q: %w", h.ID, err)
		}
	}
	switch {
	case !h.OpenSSH && h.Proxy != "":
		return fault.Invalid("host %q is no OpenSSH server, so no Proxy answers for it", h.ID)
	case h.OpenSSH && (len(h.Roles) != 1 || h.Roles[0] != types.RoleNode || h.Service != "" || h.Generation != 0):
		return fault.Invalid("OpenSSH server %q must have the role %s and nothing else", h.ID, types.RoleNode)
	}
	return nil
}

// CheckHostID refuses what cannot be the id of a host: 1 to 64 letters, digits,
// dashes and underscores.
func CheckHostID(s string) error {
	if s == "" || len(s) > maxHostID {
		return fault.Invalid("host id %q: expected 1 to %d characters", clip(s), maxHostID)
	}
	for i := range len(s) {
		if !alphanumeric(s[i]) && s[i] != '-' && s[i] != '_' {
			return fault.Invalid("host id %q: only letters, digits, dashes and underscores may be used", clip(s))
		}
	}
	return nil
}

// CheckHostname refuses what cannot be a host name or cluster name in a
// certificate: what types.ValidHostname refuses, a final dot and an address.
func CheckHostname(s string) error {
	if err := types.ValidHostname(s); err != nil {
		return err
	}
	if strings.HasSuffix(s, ".") {
		return fault.Invalid("host name %q ends with a dot", s)
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return fault.Invalid("host name %q is an address: give the host a name", s)
	}
	return nil
}

// checkText refuses an empty or long text and one that a terminal or a log could
// be fooled with.
func checkText(what, s string, limit int) error {
	if s == "" || len(s) > limit || !utf8.ValidString(s) {
		return fault.Invalid("%s %q: expected 1 to %d bytes of UTF-8", what, clip(s), limit)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fault.Invalid("%s %q: unprintable characters may not be used", what, clip(s))
		}
	}
	return nil
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// clip shortens what an error quotes.
func clip(s string) string {
	const limit = 64
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "..."
}
