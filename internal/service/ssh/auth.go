package ssh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	gossh "golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

const permitPTY = "permit-pty"

// authenticate says whose certificate was offered. Whether it is good for the login
// is left to authorize: only who has proved to hold the key is told, and recorded.
func (s *Service) authenticate(_ context.Context, meta gossh.ConnMetadata, key gossh.PublicKey) (*sshd.Login, error) {
	cert, ok := key.(*gossh.Certificate)
	if !ok || len(cert.ValidPrincipals) == 0 {
		return nil, fault.Unauthenticated("a plain SSH key was offered, a user certificate of the cluster is needed")
	}
	now := s.cfg.Now()
	id, perms, err := s.cfg.Holder.Trust().AuthenticateSSH(asUser{meta, cert.ValidPrincipals[0]}, cert, now)
	if err != nil {
		if cert.ValidBefore != gossh.CertTimeInfinity && uint64(now.Unix()) >= cert.ValidBefore {
			return nil, errors.Join(&sshd.Refusal{Text: "your certificate has expired: log in again with tsh login"}, err)
		}
		return nil, err
	}
	if id.User == nil {
		return nil, fault.Unauthenticated("a host certificate was offered, a user certificate is needed")
	}
	_, terminal := perms.Extensions[permitPTY]
	return &sshd.Login{Value: id, CriticalOptions: perms.CriticalOptions, Extensions: perms.Extensions, NoTerminal: !terminal}, nil
}

// asUser is the metadata of a connection with another login.
type asUser struct {
	gossh.ConnMetadata
	login string
}

// User returns the other login.
func (a asUser) User() string { return a.login }

// authorize decides whether the user may log in here as the login asked for.
func (s *Service) authorize(ctx context.Context, meta gossh.ConnMetadata, login *sshd.Login) error {
	id, err := userOf(login)
	if err != nil {
		return err
	}
	if err := s.cfg.Cache.WaitSynced(ctx); err != nil {
		return errors.Join(&sshd.Refusal{Text: "this host does not know the state of the cluster yet: try again in a moment"}, err)
	}
	d := s.decideConn(id, meta.User())
	if d.Allowed {
		return s.grant(ctx, meta, login, id)
	}
	s.metrics.rejected.Inc()
	text := s.told(meta.User(), d)
	e := audit.New(refusalKind(d), s.fields(meta, id, map[string]any{
		"success": false, "error": text, "reason": d.Reason, "role": d.Role, "rule": d.Rule,
	}))
	return s.refuse(ctx, e, id, text, d.Reason)
}

// refuse records a refusal and returns the error that tells the user about it.
func (s *Service) refuse(ctx context.Context, e *auditv1.Event, id *identity.Identity, text, reason string) error {
	key := strings.Join([]string{e.GetCode(), id.User.Name, text, reason}, "\x00")
	if s.refusals.note(key, e) {
		if err := s.cfg.Emit(ctx, e); err != nil {
			s.cfg.Log.ErrorContext(ctx, "refusal is not in the audit log", "error", err, "event", e.GetEvent(), "reason", reason)
		}
		s.cfg.Log.InfoContext(ctx, "access denied", "event_id", e.GetUid(), "reason", reason)
	}
	return &sshd.Refusal{Text: fmt.Sprintf("%s (audit event %s)", text, e.GetUid())}
}

func (s *Service) denied(login string) string {
	if login == types.LoginJoin {
		return fmt.Sprintf("access denied: your roles do not let you join sessions on %s, ask an administrator", s.cfg.Hostname)
	}
	return fmt.Sprintf("access denied to %s connecting to %s: your roles do not allow it, ask an administrator", login, s.cfg.Hostname)
}

// decide is asked at login and again for each session of the connection.
func (s *Service) decide(id *identity.Identity, login string) access.Decision {
	if d, refused := s.lockRefuses(id, login); refused {
		return d
	}
	if login == types.LoginJoin {
		return access.Decision{Rule: "certificate", Reason: fmt.Sprintf("login %q is for joining sessions only", login)}
	}
	if !slices.Contains(id.User.Logins, login) {
		return access.Decision{Rule: "certificate", Reason: fmt.Sprintf("the certificate of %s is not good for login %q, only for %q", id.User.Name, login, id.User.Logins)}
	}
	if now := s.cfg.Now(); !now.Before(id.Expires) {
		return access.Decision{Rule: "certificate", Reason: fmt.Sprintf("the certificate of %s expired at %s", id.User.Name, id.Expires.UTC())}
	}
	subject := access.Subject{User: id.User.Name, Roles: s.cfg.Cache.Roles(id.User.Roles), Traits: id.User.Traits}
	return access.Login(subject, login, s.labelMap())
}

func userOf(login *sshd.Login) (*identity.Identity, error) {
	id, ok := login.Value.(*identity.Identity)
	if !ok || id == nil || id.User == nil {
		return nil, fault.Unauthenticated("the connection has no user")
	}
	return id, nil
}
