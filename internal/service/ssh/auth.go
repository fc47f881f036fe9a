package ssh

import (
	"context"
	"fmt"

	gossh "golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/access"
	"teleport/internal/identity"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

// authorize decides whether the user may log in here as the login asked for.
func (s *Service) authorize(ctx context.Context, meta gossh.ConnMetadata, login *sshd.Login) error {
	id, err := userOf(login)
	if err != nil {
		return err
	}
	if err := s.guard.WaitSynced(ctx); err != nil {
		return err
	}
	if d := s.decideConn(id, meta.User()); !d.Allowed {
		return s.guard.RefuseLogin(ctx, s.place(), meta, id, s.told(meta.User(), d), d)
	}
	return s.guard.Grant(ctx, s.place(), meta, login, id, s.denied(meta.User()))
}

// place is this host.
func (s *Service) place() sshaccess.Place {
	return sshaccess.Place{ID: s.cfg.Holder.HostID(), Hostname: s.cfg.Hostname}
}

// fields returns those that every event of a connection has, and more.
func (s *Service) fields(p sshaccess.Peer, id *identity.Identity, more map[string]any) map[string]any {
	return s.place().Fields(p, id, more)
}

// refuse records a refusal and returns the error that tells the user about it.
func (s *Service) refuse(ctx context.Context, e *auditv1.Event, id *identity.Identity, text, reason string) error {
	return s.guard.Refuse(ctx, e, id, text, reason)
}

func (s *Service) denied(login string) string {
	if login == types.LoginJoin {
		return fmt.Sprintf("access denied: your roles do not let you join sessions on %s, ask an administrator", s.cfg.Hostname)
	}
	return fmt.Sprintf("access denied to %s connecting to %s: your roles do not allow it, ask an administrator", login, s.cfg.Hostname)
}

// decide is asked at login and again for each session of the connection.
func (s *Service) decide(id *identity.Identity, login string) access.Decision {
	if d, refused := s.guard.LockRefuses(s.place(), id, login); refused {
		return d
	}
	if login == types.LoginJoin {
		return access.Decision{Rule: sshaccess.RuleCertificate, Reason: fmt.Sprintf("login %q is for joining sessions only", login)}
	}
	if d, refused := s.guard.CertificateRefuses(id, login); refused {
		return d
	}
	return access.Login(s.subject(id), login, s.labelMap())
}

func userOf(login *sshd.Login) (*identity.Identity, error) {
	g, err := sshaccess.GuestOf(login)
	if err != nil {
		return nil, err
	}
	return g.ID, nil
}
