package sshaccess

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/crypto/ssh"

	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

const (
	permitPTY = "permit-pty"
	// SourceAddress is the critical option with the addresses that a certificate may be
	// used from.
	SourceAddress = "source-address"
)

// Guest is whose certificate was shown; it is the Value of a login.
type Guest struct {
	ID          *identity.Identity
	Certificate *ssh.Certificate
}

// GuestOf returns whose login it is.
func GuestOf(login *sshd.Login) (*Guest, error) {
	g, ok := login.Value.(*Guest)
	if !ok || g == nil || g.ID == nil || g.ID.User == nil {
		return nil, fault.Unauthenticated("the connection has no user")
	}
	return g, nil
}

// Authenticate says whose certificate was offered. Whether it is good for the login is
// decided later: only who has proved to hold the key is told, and recorded.
func (g *Guard) Authenticate(_ context.Context, meta ssh.ConnMetadata, key ssh.PublicKey) (*sshd.Login, error) {
	cert, ok := key.(*ssh.Certificate)
	if !ok || len(cert.ValidPrincipals) == 0 {
		return nil, fault.Unauthenticated("a plain SSH key was offered, a user certificate of the cluster is needed")
	}
	now := g.cfg.Now()
	id, perms, err := g.cfg.Trust().AuthenticateSSH(asUser{meta, cert.ValidPrincipals[0]}, cert, now)
	if err != nil {
		if cert.ValidBefore != ssh.CertTimeInfinity && uint64(now.Unix()) >= cert.ValidBefore {
			return nil, errors.Join(&sshd.Refusal{Text: "your certificate has expired: log in again with tsh login"}, err)
		}
		return nil, err
	}
	if id.User == nil {
		return nil, fault.Unauthenticated("a host certificate was offered, a user certificate is needed")
	}
	_, terminal := perms.Extensions[permitPTY]
	return &sshd.Login{
		Value: &Guest{id, cert}, CriticalOptions: perms.CriticalOptions, Extensions: perms.Extensions, NoTerminal: !terminal,
	}, nil
}

// asUser is the metadata of a connection with another login.
type asUser struct {
	ssh.ConnMetadata
	login string
}

// User returns the other login.
func (a asUser) User() string { return a.login }

// WaitSynced waits until the process knows the state of the cluster.
func (g *Guard) WaitSynced(ctx context.Context) error {
	if err := g.cfg.Cache.WaitSynced(ctx); err != nil {
		return errors.Join(&sshd.Refusal{Text: g.cfg.Here + " does not know the state of the cluster yet: try again in a moment"}, err)
	}
	return nil
}

// Locked returns the text of the lock that forbids the user to be at the place as the
// login, or "".
func (g *Guard) Locked(p Place, id *identity.Identity, login string) string {
	if reason := g.cfg.LockedOut(); reason != "" {
		return reason
	}
	l := access.FindLock(g.cfg.Cache.Locks(), access.Facts{
		User: id.User.Name, Roles: id.User.Roles, Login: login, ServerID: p.ID, JoinToken: g.cfg.Cache.JoinToken(p.ID), MFADevice: id.User.MFADevice,
	}, g.cfg.Now())
	if l == nil {
		return ""
	}
	return access.LockText(l)
}

// LockRefuses decides by the locks, before any role is asked. Where a role is strict
// about them, somebody new is refused while this process may have missed some.
func (g *Guard) LockRefuses(p Place, id *identity.Identity, login string) (access.Decision, bool) {
	if text := g.Locked(p, id, login); text != "" {
		return access.Decision{Rule: access.RuleLock, Reason: text}, true
	}
	if g.cfg.Cache.Stale(g.cfg.Now()) && access.StrictLocks(g.cfg.Cache.Roles(id.User.Roles)) {
		return access.Decision{Rule: access.RuleLock, Reason: fmt.Sprintf(
			"%s has not heard from the Auth Service for more than %s and may have missed locks: your roles do not let you in until it has (options.lock is %s)",
			g.cfg.Here, cache.MaxSilence, types.LockStrict)}, true
	}
	return access.Decision{}, false
}

// RuleCertificate is the rule of decisions by the certificate alone.
const RuleCertificate = "certificate"

// Expired decides by the time.
func (g *Guard) Expired(id *identity.Identity) (access.Decision, bool) {
	if g.cfg.Now().Before(id.Expires) {
		return access.Decision{}, false
	}
	return access.Decision{Rule: RuleCertificate, Reason: fmt.Sprintf("the certificate of %s expired at %s", id.User.Name, id.Expires.UTC())}, true
}

// CertificateRefuses decides by the certificate alone, whatever roles say.
func (g *Guard) CertificateRefuses(id *identity.Identity, login string) (access.Decision, bool) {
	if !slices.Contains(id.User.Logins, login) {
		return access.Decision{Rule: RuleCertificate, Reason: fmt.Sprintf("the certificate of %s is not good for login %q, only for %q", id.User.Name, login, id.User.Logins)}, true
	}
	return g.Expired(id)
}

// RefuseLogin records that somebody was refused who proved who they are, and returns the
// error that tells them the text.
func (g *Guard) RefuseLogin(ctx context.Context, p Place, c Peer, id *identity.Identity, text string, d access.Decision) error {
	kind := audit.AuthAttemptFailure
	if d.Rule == access.RuleLock {
		kind = audit.SessionRejected
	}
	e := audit.New(kind, p.Fields(c, id, map[string]any{
		"success": false, "error": text, "reason": d.Reason, "role": d.Role, "rule": d.Rule,
	}))
	return g.Refuse(ctx, e, id, text, d.Reason)
}

// Reject records that nobody gets in, or no session starts, for the reason, and returns
// the error that tells the user the text.
func (g *Guard) Reject(ctx context.Context, p Place, c Peer, id *identity.Identity, text, reason string) error {
	e := audit.New(audit.SessionRejected, p.Fields(c, id, map[string]any{"success": false, "error": text, "reason": reason}))
	return g.Refuse(ctx, e, id, text, reason)
}

// Grant applies the options of the user's roles to a login that is allowed: whether the
// certificate must name an address, and how many connections and sessions there may be.
// The user is told denied where a role is broken.
func (g *Guard) Grant(ctx context.Context, p Place, meta ssh.ConnMetadata, login *sshd.Login, id *identity.Identity, denied string) error {
	o := g.Options(id)
	refuse := func(ctx context.Context, text, reason string) error { return g.Reject(ctx, p, meta, id, text, reason) }
	if o.Broken != nil {
		return refuse(ctx, denied, o.Broken.Error())
	}
	if _, pinned := login.CriticalOptions[SourceAddress]; o.PinSource && !pinned {
		return refuse(ctx, "access denied: your roles bind certificates to the address of the login, and yours names none: log in again",
			"options.pin_source_ip: the certificate has no critical option "+SourceAddress)
	}
	key := id.User.Name + "\x00" + p.ID
	if !g.counts.take(key, o.MaxConnections) {
		return refuse(ctx, fmt.Sprintf("access denied: you have %d connections to %s already, and your roles allow no more: close one", o.MaxConnections, p.Hostname),
			fmt.Sprintf("options.max_connections is %d", o.MaxConnections))
	}
	login.Ended = func() { g.counts.give(key) }
	if o.MaxSessions > 0 {
		login.MaxSessions = int(min(o.MaxSessions, sshd.DefaultMaxSessions))
		login.TooMany = func(ctx context.Context) string {
			err := refuse(ctx, fmt.Sprintf("your roles allow %d sessions on one connection: close one or connect again", o.MaxSessions),
				fmt.Sprintf("options.max_sessions is %d", o.MaxSessions))
			var r *sshd.Refusal
			if errors.As(err, &r) {
				return r.Text
			}
			return ""
		}
	}
	return nil
}

// counts are the connections of each user to each place that are open or logging in.
type counts struct {
	mu    sync.Mutex
	count map[string]int64
}

// take counts one more, unless there are limit of them; 0 is no limit.
func (c *counts) take(key string, limit int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if limit > 0 && c.count[key] >= limit {
		return false
	}
	if c.count == nil {
		c.count = map[string]int64{}
	}
	c.count[key]++
	return true
}

func (c *counts) give(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count[key]--; c.count[key] <= 0 {
		delete(c.count, key)
	}
}
