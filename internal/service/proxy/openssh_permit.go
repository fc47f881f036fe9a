package proxy

import (
	"context"
	"fmt"
	"maps"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/sshd"
)

// maxTargets bounds the different ends that one connection forwards to.
const maxTargets = 10_000

// privilege is something that options of roles let a user do beyond a session.
type privilege struct {
	// name says it to the user, option is the field of the role that is about it.
	name, option string
	granted      func(access.Options) bool
	// extension is the one that the certificate must have; empty for none.
	extension string
	// refused is the event about a refusal.
	refused audit.Kind
}

func localPorts() privilege {
	return privilege{
		"forward connections to this host's side", "ssh_port_forwarding.local",
		func(o access.Options) bool { return o.LocalForward }, "permit-port-forwarding", audit.PortForwardFailure,
	}
}

func remotePorts() privilege {
	return privilege{
		"forward connections from this host's side", "ssh_port_forwarding.remote",
		func(o access.Options) bool { return o.RemoteForward }, "permit-port-forwarding", audit.PortForwardFailure,
	}
}

func agents() privilege {
	return privilege{
		"forward an SSH agent", "forward_agent",
		func(o access.Options) bool { return o.ForwardAgent }, "permit-agent-forwarding", audit.AgentForwardFailure,
	}
}

func displays() privilege {
	return privilege{
		"forward X11", "permit_x11_forwarding",
		func(o access.Options) bool { return o.X11 }, "permit-X11-forwarding", audit.X11ForwardFailure,
	}
}

func fileCopies() privilege {
	return privilege{
		"copy files", "ssh_file_copy",
		func(o access.Options) bool { return o.FileCopy }, "", audit.SCPDenied,
	}
}

// permit decides about a privilege, and about the login once more, since roles and time
// went on. The error is a *sshd.Refusal; it is in the audit log.
func (v *visit) permit(ctx context.Context, p privilege, about map[string]any) error {
	text, reason := v.mayNot(p)
	if text == "" {
		d := v.decide(v.user, v.conn.User())
		if d.Allowed {
			return nil
		}
		text, reason = v.told(v.conn.User(), d), fmt.Sprintf("%s (role %q, rule %q)", d.Reason, d.Role, d.Rule)
	}
	fields := map[string]any{"success": false, "error": text, "reason": reason}
	maps.Copy(fields, about)
	return v.refuse(ctx, audit.New(p.refused, v.fields(v.conn, v.user, fields)), v.user, text, reason)
}

// mayNot returns why the privilege is refused: for the user and for the audit log.
func (v *visit) mayNot(p privilege) (text, reason string) {
	o := v.options(v.user)
	switch {
	case o.Broken != nil:
		return v.denied(v.conn.User()), o.Broken.Error()
	case !p.granted(o):
		return fmt.Sprintf("access denied: your roles do not let you %s, ask an administrator", p.name), "no role of the user allows options." + p.option
	}
	if _, ok := v.conn.Login().Extensions[p.extension]; !ok && p.extension != "" {
		return fmt.Sprintf("access denied: your certificate does not let you %s: log in again", p.name), "the certificate has no extension " + p.extension
	}
	return "", ""
}

// errUnrecorded is why nothing is done that the audit log cannot take.
func errUnrecorded() error {
	return fault.Unreachable("refused: the audit log cannot take it, tell an administrator")
}

// upstream returns the connection to the server.
func (v *visit) upstream(*sshd.Conn) sshd.Upstream { return v.up }

// dial is asked about connections from the server.
func (v *visit) dial(ctx context.Context, _ *sshd.Conn, to sshd.Target, origin string) error {
	about := map[string]any{"addr": to.String(), "direction": "local"}
	if err := v.permit(ctx, localPorts(), about); err != nil {
		return err
	}
	if origin != "" {
		about["origin"] = origin
	}
	return v.noteUse(ctx, use{"local", to.String()}, about)
}

// listen is asked about listeners on the server.
func (v *visit) listen(ctx context.Context, _ *sshd.Conn, at sshd.Target) error {
	return v.permit(ctx, remotePorts(), map[string]any{"addr": at.String(), "direction": "remote"})
}

// listening records one that was opened.
func (v *visit) listening(ctx context.Context, _ *sshd.Conn, at sshd.Target) error {
	return v.noteUse(ctx, use{"remote", at.String()}, map[string]any{"addr": at.String(), "direction": "remote"})
}

// agent is asked about the user's SSH agent.
func (v *visit) agent(ctx context.Context, se *sshd.Session) error {
	return v.extra(ctx, se, agents(), audit.AgentForward)
}

// display is asked about the user's display.
func (v *visit) display(ctx context.Context, se *sshd.Session) error {
	return v.extra(ctx, se, displays(), audit.X11Forward)
}

func (v *visit) extra(ctx context.Context, se *sshd.Session, p privilege, kind audit.Kind) error {
	about := map[string]any{"sid": se.ID()}
	if err := v.permit(ctx, p, about); err != nil {
		return err
	}
	about["success"] = true
	if err := v.o.s.cfg.Emit(ctx, audit.New(kind, v.fields(v.conn, v.user, about))); err != nil {
		return errUnrecorded()
	}
	return nil
}

// use is one way in which a connection forwards.
type use struct{ direction, addr string }

// traffic is what went that way.
type traffic struct{ connections, received, sent int64 }

// noteUse records the first use of a way. Further ones are counted, and the count is
// recorded when the connection ends.
func (v *visit) noteUse(ctx context.Context, u use, about map[string]any) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.uses[u] != nil {
		return nil
	}
	if len(v.uses) >= maxTargets {
		return fault.Limit("this connection has forwarded to %d different places: connect again", maxTargets)
	}
	about["success"] = true
	if err := v.o.s.cfg.Emit(ctx, audit.New(audit.PortForward, v.fields(v.conn, v.user, about))); err != nil {
		v.log.ErrorContext(ctx, "forward refused: it cannot be recorded", "error", err, "user", v.user.User.Name)
		return errUnrecorded()
	}
	if v.uses == nil {
		v.uses = map[use]*traffic{}
	}
	v.uses[u] = &traffic{}
	return nil
}

// forwarded counts a forwarded connection that is over.
func (v *visit) forwarded(_ *sshd.Conn, f sshd.Forwarded) {
	direction := "remote"
	if f.Channel == "direct-tcpip" || f.Channel == "direct-streamlocal@openssh.com" {
		direction = "local"
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if t := v.uses[use{direction, f.To.String()}]; t != nil {
		t.connections++
		t.received += f.Received
		t.sent += f.Sent
	}
}

// stops returns an event for each way, with what went there.
func (v *visit) stops() []*auditv1.Event {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]*auditv1.Event, 0, len(v.uses))
	for u, t := range v.uses {
		out = append(out, audit.New(audit.PortForwardStop, v.fields(v.conn, v.user, map[string]any{
			"addr": u.addr, "direction": u.direction, "connections": t.connections, "rx": t.received, "tx": t.sent,
		})))
	}
	return out
}
