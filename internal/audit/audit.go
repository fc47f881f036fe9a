// Package audit defines the audit events: their types, codes and fields, the JSON
// line each becomes, and the log files of lines. Storing events is the store's
// work, so that an action and its event commit together.
//
// Fields keep their documented names: user, login, sid, server_id,
// server_hostname, addr.remote, addr.local, namespace, proto, success, error.
package audit

import (
	"sync"

	"google.golang.org/protobuf/types/known/structpb"

	auditv1 "teleport/api/audit/v1"
)

// Kind is a type of event with its outcome: the type and the unique code.
type Kind struct {
	Type string
	Code string
}

// The kinds of event that exist so far.
var (
	UserLogin           = Kind{"user.login", "T1000I"}
	UserLoginFailure    = Kind{"user.login", "T1000W"}
	UserCreate          = Kind{"user.create", "T1002I"}
	UserUpdate          = Kind{"user.update", "T1003I"}
	UserDelete          = Kind{"user.delete", "T1004I"}
	PasswordChange      = Kind{"user.password_change", "T1005I"}
	MFAAdd              = Kind{"mfa.add", "T1006I"}
	ResetPasswordToken  = Kind{"reset_password_token.create", "T6000I"}
	SessionStart        = Kind{"session.start", "T2000I"}
	SessionJoin         = Kind{"session.join", "T2001I"}
	SessionResize       = Kind{"session.resize", "T2002I"}
	SessionLeave        = Kind{"session.leave", "T2003I"}
	SessionEnd          = Kind{"session.end", "T2004I"}
	SessionData         = Kind{"session.data", "T2006I"}
	SessionRejected     = Kind{"session.rejected", "T1006W"}
	SessionConnect      = Kind{"session.connect", "T2010I"}
	SessionResume       = Kind{"session.resume", "TSR00I"}
	SessionResumeDenied = Kind{"session.resume", "TSR00W"}
	AuthAttemptFailure  = Kind{"auth", "T3007W"}
	Subsystem           = Kind{"subsystem", "T3001I"}
	SubsystemFailure    = Kind{"subsystem", "T3001E"}
	Exec                = Kind{"exec", "T3002I"}
	ExecFailure         = Kind{"exec", "T3002E"}
	SCPDownload         = Kind{"scp", "T3004I"}
	SCPUpload           = Kind{"scp", "T3005I"}
	SCPDenied           = Kind{"scp", "T3010E"}
	ClientDisconnect    = Kind{"client.disconnect", "T3006I"}
	PortForward         = Kind{"port", "T3003I"}
	PortForwardFailure  = Kind{"port", "T3003E"}
	PortForwardStop     = Kind{"port", "T3003S"}
	X11Forward          = Kind{"x11-forward", "T3008I"}
	X11ForwardFailure   = Kind{"x11-forward", "T3008W"}
	AgentForward        = Kind{"agent-forward", "T3013I"}
	AgentForwardFailure = Kind{"agent-forward", "T3013W"}
	JoinTokenCreate     = Kind{"join_token.create", "TJT00I"}
	JoinTokenDelete     = Kind{"join_token.delete", "TJT01I"}
	InstanceJoin        = Kind{"instance.join", "TJ002I"}
	InstanceJoinFailure = Kind{"instance.join", "TJ002E"}
	InstanceRenew       = Kind{"instance.renew", "TJ003I"}
	InstanceRenewDenied = Kind{"instance.renew", "TJ003E"}
	CertCreate          = Kind{"cert.create", "TC000I"}
	RoleCreate          = Kind{"role.created", "T9000I"}
	RoleDelete          = Kind{"role.deleted", "T9001I"}
	RoleUpdate          = Kind{"role.updated", "T9002I"}
	NodeDelete          = Kind{"node.delete", "TND00I"}
	NodeCreate          = Kind{"node.create", "TND01I"}
	NodeUpdate          = Kind{"node.update", "TND02I"}
	InstanceDelete      = Kind{"instance.delete", "TIN00I"}
	LockCreate          = Kind{"lock.created", "TLK00I"}
	LockDelete          = Kind{"lock.deleted", "TLK01I"}
	AlertCreate         = Kind{"cluster_alert.created", "TCAL00I"}
	AlertUpdate         = Kind{"cluster_alert.updated", "TCAL01I"}
	AlertDelete         = Kind{"cluster_alert.deleted", "TCAL02I"}
)

// Kinds lists every kind.
func Kinds() []Kind {
	return append(resourceKinds(),
		UserLogin, UserLoginFailure, UserCreate, UserUpdate, UserDelete, PasswordChange, MFAAdd, ResetPasswordToken,
		SessionStart, SessionJoin, SessionResize, SessionLeave, SessionEnd, SessionData, SessionRejected, SessionConnect,
		SessionResume, SessionResumeDenied,
		AuthAttemptFailure, Subsystem, SubsystemFailure, Exec, ExecFailure, SCPDownload, SCPUpload, SCPDenied, ClientDisconnect,
		PortForward, PortForwardFailure, PortForwardStop, X11Forward, X11ForwardFailure, AgentForward, AgentForwardFailure,
		JoinTokenCreate, JoinTokenDelete, InstanceJoin, InstanceJoinFailure, InstanceRenew, InstanceRenewDenied,
		CertCreate, RoleCreate, RoleDelete, RoleUpdate, NodeDelete, NodeCreate, NodeUpdate, InstanceDelete, LockCreate, LockDelete,
		AlertCreate, AlertUpdate, AlertDelete,
	)
}

// known are the kinds, for each event that comes in.
var known = sync.OnceValue(func() map[Kind]bool {
	out := make(map[Kind]bool)
	for _, k := range Kinds() {
		out[k] = true
	}
	return out
})

// KindOf returns the kind of an event, and whether its type and code belong
// together in the list of kinds.
func KindOf(e *auditv1.Event) (Kind, bool) {
	if k := (Kind{Type: e.GetEvent(), Code: e.GetCode()}); k.Known() {
		return k, true
	}
	return Kind{}, false
}

// Known reports whether the kind is in the list of kinds.
func (k Kind) Known() bool { return known()[k] }

// New returns an event of the kind. Values may be strings, numbers, booleans,
// times, durations, errors, stringers, and lists and maps of them. Whatever is
// too big is cut with a mark that says how much is missing; no field is left
// out. The store sets time, uid and cluster name when it commits the event.
func New(k Kind, fields map[string]any) *auditv1.Event {
	return &auditv1.Event{Event: k.Type, Code: k.Code, Fields: fitFields(func(limit int) *structpb.Struct {
		return makeStruct(fields, limit)
	})}
}

// Clamp cuts the fields of an event that came from another process to the size
// that New would have made, in place.
func Clamp(e *auditv1.Event) {
	original := e.GetFields()
	if room := maxFields; original == nil || fits(original, &room, 0) {
		return
	}
	e.Fields = fitFields(func(limit int) *structpb.Struct { return clampStruct(original, limit, 0) })
}
