package sshaccess

import (
	"context"
	"fmt"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/identity"
	"teleport/internal/sshd"
)

// ReportRefusals writes to the audit log how often refusals were repeated, now and then,
// and when ctx ends.
func (g *Guard) ReportRefusals(ctx context.Context) { g.refusals.Run(ctx, g.EmitLate) }

// Refuse records a refusal and returns the error that tells the user about it, a
// *sshd.Refusal. The reason is for the audit log.
func (g *Guard) Refuse(ctx context.Context, e *auditv1.Event, id *identity.Identity, text, reason string) error {
	g.cfg.Refused()
	server := e.GetFields().GetFields()["server_id"].GetStringValue()
	if g.refusals.Note(e, server, id.User.Name, text, reason) {
		if err := g.cfg.Emit(ctx, e); err != nil {
			g.cfg.Log.ErrorContext(ctx, "refusal is not in the audit log", "error", err, "event", e.GetEvent(), "reason", reason)
		}
		g.cfg.Log.InfoContext(ctx, "access denied", "event_id", e.GetUid(), "reason", reason)
	}
	return &sshd.Refusal{Text: fmt.Sprintf("%s (audit event %s)", text, e.GetUid())}
}
