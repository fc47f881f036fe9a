package ssh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"syscall"

	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/sshd"
)

// privilege is something that options of roles let a user do beyond a session.
type privilege struct {
	// name says it to the user, option is the field of the role that is about it.
	name, option string
	granted      func(access.Options) bool
	// extension is the one that the certificate must have, as other servers ask it.
	extension string
	// enabled says whether the host's configuration has it.
	enabled func(*Config) bool
	// refused is the event about a refusal.
	refused audit.Kind
}

// Extensions of certificates that permit something (OpenSSH's PROTOCOL.certkeys).
const (
	permitPorts = "permit-port-forwarding"
	permitAgent = "permit-agent-forwarding"
	permitX11   = "permit-X11-forwarding"
)

func portsEnabled(c *Config) bool { return !c.NoPortForwarding }

func localPorts() privilege {
	return privilege{
		"forward connections to this host's side", "ssh_port_forwarding.local",
		func(o access.Options) bool { return o.LocalForward }, permitPorts, portsEnabled, audit.PortForwardFailure,
	}
}

func remotePorts() privilege {
	return privilege{
		"forward connections from this host's side", "ssh_port_forwarding.remote",
		func(o access.Options) bool { return o.RemoteForward }, permitPorts, portsEnabled, audit.PortForwardFailure,
	}
}

func agents() privilege {
	return privilege{
		"forward an SSH agent", "forward_agent",
		func(o access.Options) bool { return o.ForwardAgent }, permitAgent, func(*Config) bool { return true }, audit.AgentForwardFailure,
	}
}

func displays() privilege {
	return privilege{
		"forward X11", "permit_x11_forwarding",
		func(o access.Options) bool { return o.X11 }, permitX11, func(c *Config) bool { return c.X11.Enabled }, audit.X11ForwardFailure,
	}
}

func fileCopies() privilege {
	return privilege{
		"copy files", "ssh_file_copy",
		func(o access.Options) bool { return o.FileCopy }, "", func(c *Config) bool { return !c.NoFileCopy }, audit.SCPDenied,
	}
}

// options are what the user's roles say now.
func (s *Service) options(id *identity.Identity) access.Options {
	return access.OptionsOf(s.subject(id))
}

func (s *Service) subject(id *identity.Identity) access.Subject {
	return access.Subject{User: id.User.Name, Roles: s.cfg.Cache.Roles(id.User.Roles), Traits: id.User.Traits}
}

// guest is a user who may do something, and whom to do it as.
type guest struct {
	id      *identity.Identity
	account *account
	cred    *syscall.Credential
}

// permit decides about a privilege, and about the login once more, since roles and
// time went on. It is asked for each thing that is opened. The error is a
// *sshd.Refusal; it is in the audit log.
func (s *Service) permit(ctx context.Context, c *sshd.Conn, p privilege, about map[string]any) (*guest, error) {
	id, err := userOf(c.Login())
	if err != nil {
		return nil, err
	}
	text, reason := s.mayNot(c, id, p)
	if text == "" {
		a, cred, err := s.admit(ctx, c, id)
		if err == nil {
			return &guest{id, a, cred}, nil
		}
		text, reason = err.Error(), err.Error()
		var hidden *deniedError
		if errors.As(err, &hidden) {
			reason = hidden.reason
		}
	}
	s.metrics.rejected.Inc()
	fields := map[string]any{"success": false, "error": text, "reason": reason}
	maps.Copy(fields, about)
	return nil, s.refuse(ctx, audit.New(p.refused, s.fields(c, id, fields)), id, text, reason)
}

// mayNot returns why the privilege is refused: for the user and for the audit log.
func (s *Service) mayNot(c *sshd.Conn, id *identity.Identity, p privilege) (text, reason string) {
	o := s.options(id)
	switch {
	case !p.enabled(&s.cfg):
		text = fmt.Sprintf("access denied: %s does not let anybody %s", s.cfg.Hostname, p.name)
		return text, text
	case o.Broken != nil:
		return s.denied(c.User()), o.Broken.Error()
	case p.option != "forward_agent" && !s.alone(id).Allowed:
		text = fmt.Sprintf("access denied: your roles ask for others to be in your sessions, and they could not follow if you %s", p.name)
		return text, s.alone(id).Reason
	case !p.granted(o):
		return fmt.Sprintf("access denied: your roles do not let you %s, ask an administrator", p.name), "no role of the user allows options." + p.option
	}
	if _, ok := c.Login().Extensions[p.extension]; !ok && p.extension != "" {
		return fmt.Sprintf("access denied: your certificate does not let you %s: log in again", p.name), "the certificate has no extension " + p.extension
	}
	return "", ""
}

// errUnrecorded is why nothing is done that the audit log cannot take.
func errUnrecorded() error {
	return fault.Unreachable("refused: the audit log cannot take it, tell an administrator")
}
