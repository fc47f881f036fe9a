package authapi

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/authz"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// SigningConfig is what the handlers need that sign.
type SigningConfig struct {
	Config
	// Signer returns what signs with the present authorities.
	Signer func() *ca.Signer
}

func (c SigningConfig) checked() (SigningConfig, error) {
	checked, err := c.Config.checked()
	if err != nil {
		return c, err
	}
	if c.Config = checked; c.Signer == nil {
		return c, errors.New("authapi: Signer is required")
	}
	return c, nil
}

// person is a user of a certificate, or of a session, as things are now.
type person struct {
	user    *identity.User
	subject access.Subject
	checker *access.Checker
	options access.Options
}

// where is what locks may be about besides the user.
type where struct {
	// login is the user of the operating system or of a database, host the id of the
	// process that serves it.
	login, host string
}

// person refuses a user that was deleted or is locked, or whose roles cannot be
// understood. That the certificate is used from the address that it is bound to is for
// the caller to see.
func (c Config) person(ctx context.Context, user *identity.User, at where) (*person, error) {
	if _, err := c.Store.Get(ctx, types.KindUser, user.Name); errors.Is(err, fault.ErrNotFound) {
		return nil, fault.Denied("access denied: user %q was deleted", user.Name)
	} else if err != nil {
		return nil, err
	}
	facts := access.Facts{User: user.Name, Roles: user.Roles, Login: at.login, ServerID: at.host, MFADevice: user.MFADevice}
	if at.host != "" {
		instance, err := store.Get[*typesv1.Instance](ctx, c.Store, types.KindInstance, at.host)
		if err != nil && !errors.Is(err, fault.ErrNotFound) {
			return nil, err
		}
		facts.JoinToken = instance.GetSpec().GetToken()
	}
	if err := c.Store.CheckLocks(ctx, facts); err != nil {
		return nil, err
	}
	p := &person{user: user, subject: access.Subject{User: user.Name, Traits: user.Traits}}
	for _, name := range user.Roles {
		role, err := store.Get[*typesv1.Role](ctx, c.Store, types.KindRole, name)
		if errors.Is(err, fault.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p.subject.Roles = append(p.subject.Roles, role)
	}
	p.checker, p.options = access.NewChecker(p.subject), access.OptionsOf(p.subject)
	if p.options.Broken != nil {
		return nil, fault.Denied("access denied: your roles have an option that cannot be understood, ask an administrator")
	}
	return p, nil
}

// pinned refuses who is to be bound to an address and is not.
func (p *person) pinned() error {
	if p.options.PinSource && p.user.SourceIP == "" {
		return errNotPinned()
	}
	return nil
}

func errNotPinned() error {
	return fault.Denied("access denied: your roles bind certificates to the address of the login, and yours names none: log in again")
}

// shown returns whose certificate, DER, a service was shown. It has to be one for a
// single resource.
func (c Config) shown(der []byte) (*identity.Identity, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Invalid("user_certificate: it cannot be read")
	}
	id, err := c.Trust().VerifyTLS([]*x509.Certificate{cert}, c.Now())
	if err != nil {
		return nil, err
	}
	if !id.User.Routed() {
		return nil, fault.Denied("access denied: the certificate of %q is not for an application or a database", id.Name())
	}
	return id, nil
}

// addrOf reads the address of a client as a Proxy says it.
func addrOf(text string) (net.Addr, error) {
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, fault.Invalid("client_addr: expected the address of the client, host:port")
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())), nil
}

// routedTTL returns how long a certificate for one resource is good: what was asked for,
// but no longer than what it comes of, and than the roles allow.
func (c Config) routedTTL(p *person, asked *durationpb.Duration, until time.Time) (time.Duration, error) {
	left := until.Sub(c.Now()).Truncate(time.Second)
	ttl := left
	if asked != nil {
		if ttl = asked.AsDuration(); !asked.IsValid() || ttl < time.Second {
			return 0, fault.Invalid("ttl %s is too short: ask for at least 1s", ttl)
		}
	}
	if left <= 0 {
		return 0, fault.Unauthenticated("the certificate has expired: log in again")
	}
	if ttl = p.checker.SessionTTL(ttl, left); ttl <= 0 {
		return 0, fault.Denied("a role of user %q has a max_session_ttl that is no duration: ask an administrator to mend it", p.user.Name)
	}
	return ttl, nil
}

// sign signs a certificate for one resource, and stores the event about it.
func (c SigningConfig) sign(ctx context.Context, user *identity.User, tlsKey []byte, ttl time.Duration, fields map[string]any) (*x509.Certificate, error) {
	der, _, err := c.Signer().User(ca.UserRequest{
		Identity: identity.Identity{Cluster: c.Cluster(), User: user}, TLSKey: tlsKey, TTL: ttl, NoLogins: true,
	})
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	fields["cert_type"], fields["roles"] = "user", user.Roles
	if user.MFADevice != "" {
		fields["mfa_device_uuid"] = user.MFADevice
	}
	return cert, c.issued(ctx, cert, fields)
}

// issued stores the event about a certificate.
func (c Config) issued(ctx context.Context, cert *x509.Certificate, fields map[string]any) error {
	fields["expires"], fields["serial"], fields["success"] = cert.NotAfter, cert.SerialNumber.Text(16), true
	return c.Store.Tx().Emit(audit.New(audit.CertCreate, fields)).Commit(ctx)
}

// refused stores the event of a user that was refused, and returns why.
func (c Config) refused(ctx context.Context, err error, fields map[string]any) error {
	if !errors.Is(err, fault.ErrDenied) && !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	caller := rpc.CallerFrom(ctx)
	if _, ok := fields["addr.remote"]; !ok && caller.Addr != "" && caller.User() != nil {
		fields["addr.remote"] = caller.Addr
	}
	fields["success"], fields["error"] = false, err.Error()
	if reason := authz.Reason(err); reason != err.Error() {
		fields["reason"] = reason
	}
	if eerr := c.Store.Tx().Emit(audit.New(audit.AuthAttemptFailure, fields)).Commit(ctx); eerr != nil {
		c.Log.ErrorContext(ctx, "a refusal is not in the audit log", "error", eerr)
	}
	return err
}
