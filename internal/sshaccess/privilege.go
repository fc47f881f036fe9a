package sshaccess

import (
	"context"
	"fmt"
	"maps"

	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/identity"
	"teleport/internal/sshd"
)

// Privilege is something that options of roles let a user do beyond a session.
type Privilege struct {
	// Name says it to the user, Option is the field of the role that is about it.
	Name, Option string
	granted      func(access.Options) bool
	// extension is the one that the certificate must have, as other servers ask it
	// (OpenSSH's PROTOCOL.certkeys); empty for none.
	extension string
	// Refused is the event about a refusal.
	Refused audit.Kind
}

// Options that privileges are named by.
const (
	OptionForwardAgent = "forward_agent"
	OptionX11          = "permit_x11_forwarding"
	OptionFileCopy     = "ssh_file_copy"
)

const permitPorts = "permit-port-forwarding"

// LocalPorts is ssh -L: connections that the server's side opens.
func LocalPorts() Privilege {
	return Privilege{
		"forward connections to this host's side", "ssh_port_forwarding.local",
		func(o access.Options) bool { return o.LocalForward }, permitPorts, audit.PortForwardFailure,
	}
}

// RemotePorts is ssh -R: listeners on the server's side.
func RemotePorts() Privilege {
	return Privilege{
		"forward connections from this host's side", "ssh_port_forwarding.remote",
		func(o access.Options) bool { return o.RemoteForward }, permitPorts, audit.PortForwardFailure,
	}
}

// Agents is ssh -A.
func Agents() Privilege {
	return Privilege{
		"forward an SSH agent", OptionForwardAgent,
		func(o access.Options) bool { return o.ForwardAgent }, "permit-agent-forwarding", audit.AgentForwardFailure,
	}
}

// Displays is ssh -X.
func Displays() Privilege {
	return Privilege{
		"forward X11", OptionX11,
		func(o access.Options) bool { return o.X11 }, "permit-X11-forwarding", audit.X11ForwardFailure,
	}
}

// FileCopies is scp, sftp and rsync.
func FileCopies() Privilege {
	return Privilege{
		"copy files", OptionFileCopy,
		func(o access.Options) bool { return o.FileCopy }, "", audit.SCPDenied,
	}
}

// MayNot returns why roles or certificate refuse the privilege: for the user and for the
// audit log. The user is told denied where a role is broken.
func (g *Guard) MayNot(p Privilege, login *sshd.Login, id *identity.Identity, denied string) (text, reason string) {
	o := g.Options(id)
	switch {
	case o.Broken != nil:
		return denied, o.Broken.Error()
	case !p.granted(o):
		return fmt.Sprintf("access denied: your roles do not let you %s, ask an administrator", p.Name), "no role of the user allows options." + p.Option
	}
	if _, ok := login.Extensions[p.extension]; !ok && p.extension != "" {
		return fmt.Sprintf("access denied: your certificate does not let you %s: log in again", p.Name), "the certificate has no extension " + p.extension
	}
	return "", ""
}

// RefusePrivilege records that somebody may not have a privilege, with fields about it,
// and returns the error that tells them the text.
func (g *Guard) RefusePrivilege(ctx context.Context, pl Place, c Peer, id *identity.Identity, p Privilege, about map[string]any, text, reason string) error {
	fields := map[string]any{"success": false, "error": text, "reason": reason}
	maps.Copy(fields, about)
	return g.Refuse(ctx, audit.New(p.Refused, pl.Fields(c, id, fields)), id, text, reason)
}
