// Package access decides: may this subject do this, and by which rule. It is
// pure: no store, no clock, no network. Every decision names the role and the
// rule that allowed or refused, so that it can be explained afterwards.
package access

import (
	typesv1 "teleport/api/types/v1"
)

// Subject is who asks: the roles are the resources named by the certificate, as
// the decider knows them now.
type Subject struct {
	User   string
	Roles  []*typesv1.Role
	Traits map[string][]string
	// Locks are those in force. Who is locked is refused everything.
	Locks []*typesv1.Lock
	// ServerID is the host that the decision is about and MFADevice the device that
	// the subject logged in with, where they are known: locks may be about them.
	ServerID, MFADevice string
}

// Decision is an answer with its reason.
type Decision struct {
	Allowed bool
	// Role is the name of the role that decided; empty when no role matched.
	Role string
	// Rule is the field that decided, e.g. `deny.logins` or `allow.node_labels`; `lock`
	// for a lock, whose name is then in Lock.
	Rule string
	Lock string
	// Reason says it in one line, for the audit log.
	Reason string
}
