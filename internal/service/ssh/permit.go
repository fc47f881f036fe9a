package ssh

import (
	"context"
	"fmt"
	"syscall"

	"teleport/internal/access"
	"teleport/internal/identity"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
)

// enabled says whether this host's configuration has what the privilege is about.
func (s *Service) enabled(p sshaccess.Privilege) bool {
	switch p.Option {
	case sshaccess.OptionForwardAgent:
		return true
	case sshaccess.OptionX11:
		return s.cfg.X11.Enabled
	case sshaccess.OptionFileCopy:
		return !s.cfg.NoFileCopy
	}
	return !s.cfg.NoPortForwarding
}

func (s *Service) subject(id *identity.Identity) access.Subject { return s.guard.Subject(id) }

// guest is a user who may do something, and whom to do it as.
type guest struct {
	id      *identity.Identity
	account *account
	cred    *syscall.Credential
}

// permit decides about a privilege, and about the login once more, since roles and
// time went on. It is asked for each thing that is opened. The error is a
// *sshd.Refusal; it is in the audit log.
func (s *Service) permit(ctx context.Context, c *sshd.Conn, p sshaccess.Privilege, about map[string]any) (*guest, error) {
	id, err := userOf(c.Login())
	if err != nil {
		return nil, err
	}
	text, reason := s.mayNot(c, id, p)
	if text == "" {
		a, cred, err := s.admit(ctx, c, id)
		if err == nil {
			// An agent and a display are for a session, which may ask when it begins.
			alone := p.Option != sshaccess.OptionForwardAgent && p.Option != sshaccess.OptionX11
			err = s.askPAM(ctx, c, id, alone)
		}
		if err == nil {
			return &guest{id, a, cred}, nil
		}
		text, reason = err.Error(), reasonOf(err)
	}
	return nil, s.guard.RefusePrivilege(ctx, s.place(), c, id, p, about, text, reason)
}

// mayNot returns why the privilege is refused: for the user and for the audit log.
func (s *Service) mayNot(c *sshd.Conn, id *identity.Identity, p sshaccess.Privilege) (text, reason string) {
	if !s.enabled(p) {
		text = fmt.Sprintf("access denied: %s does not let anybody %s", s.cfg.Hostname, p.Name)
		return text, text
	}
	if d := s.alone(id); !d.Allowed && p.Option != sshaccess.OptionForwardAgent {
		return fmt.Sprintf("access denied: your roles ask for others to be in your sessions, and they could not follow if you %s", p.Name), d.Reason
	}
	return s.guard.MayNot(p, c.Login(), id, s.denied(c.User()))
}
