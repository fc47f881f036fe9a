package proxy

import (
	"context"

	"teleport/internal/audit"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
)

// permit decides about a privilege, and about the login once more, since roles and time
// went on. The error is a *sshd.Refusal; it is in the audit log.
func (v *visit) permit(ctx context.Context, p sshaccess.Privilege, about map[string]any) error {
	text, reason := v.mayNot(p)
	if text == "" {
		d := v.decide(v.ID, v.Login())
		if d.Allowed {
			return nil
		}
		text, reason = v.told(v.Login(), d), sshaccess.ReasonOf(d)
	}
	return v.o.guard.RefusePrivilege(ctx, v.place, v.SSH, v.ID, p, about, text, reason)
}

// mayNot returns why the privilege is refused: for the user and for the audit log.
func (v *visit) mayNot(p sshaccess.Privilege) (text, reason string) {
	return v.o.guard.MayNot(p, v.SSH.Login(), v.ID, v.denied(v.Login()))
}

// upstream returns the connection to the server.
func (v *visit) upstream(*sshd.Conn) sshd.Upstream { return v.up }

// dial is asked about connections from the server.
func (v *visit) dial(ctx context.Context, _ *sshd.Conn, to sshd.Target, origin string) error {
	about := map[string]any{"addr": to.String(), "direction": sshaccess.DirectionLocal}
	if err := v.permit(ctx, sshaccess.LocalPorts(), about); err != nil {
		return err
	}
	if origin != "" {
		about["origin"] = origin
	}
	return v.NoteUse(ctx, sshaccess.DirectionLocal, to.String(), about)
}

// listen is asked about listeners on the server.
func (v *visit) listen(ctx context.Context, _ *sshd.Conn, at sshd.Target) error {
	return v.permit(ctx, sshaccess.RemotePorts(), map[string]any{"addr": at.String(), "direction": sshaccess.DirectionRemote})
}

// listening records one that was opened.
func (v *visit) listening(ctx context.Context, _ *sshd.Conn, at sshd.Target) error {
	return v.NoteUse(ctx, sshaccess.DirectionRemote, at.String(), map[string]any{"addr": at.String(), "direction": sshaccess.DirectionRemote})
}

// agent is asked about the user's SSH agent.
func (v *visit) agent(ctx context.Context, se *sshd.Session) error {
	return v.extra(ctx, se, sshaccess.Agents(), audit.AgentForward)
}

// display is asked about the user's display.
func (v *visit) display(ctx context.Context, se *sshd.Session) error {
	return v.extra(ctx, se, sshaccess.Displays(), audit.X11Forward)
}

func (v *visit) extra(ctx context.Context, se *sshd.Session, p sshaccess.Privilege, kind audit.Kind) error {
	about := map[string]any{"sid": se.ID()}
	if err := v.permit(ctx, p, about); err != nil {
		return err
	}
	about["success"] = true
	if err := v.o.s.cfg.Emit(ctx, audit.New(kind, v.Fields(about))); err != nil {
		return sshaccess.ErrUnrecorded()
	}
	return nil
}

// forwarded counts a forwarded connection that is over.
func (v *visit) forwarded(_ *sshd.Conn, f sshd.Forwarded) { v.Forwarded(f) }
