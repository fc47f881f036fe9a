// Package audit defines the audit events: their types, codes and fields, the JSON
// line each becomes, and the log files of lines. Storing events is the store's
// work, so that an action and its event commit together.
package audit

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
	SessionResize       = Kind{"session.resize", "T2002I"}
	SessionLeave        = Kind{"session.leave", "T2003I"}
	SessionEnd          = Kind{"session.end", "T2004I"}
	SessionData         = Kind{"session.data", "T2006I"}
	SessionRejected     = Kind{"session.rejected", "T1006W"}
	SessionConnect      = Kind{"session.connect", "T2010I"}
	AuthAttemptFailure  = Kind{"auth", "T3007W"}
	Subsystem           = Kind{"subsystem", "T3001I"}
	SubsystemFailure    = Kind{"subsystem", "T3001E"}
	Exec                = Kind{"exec", "T3002I"}
	ExecFailure         = Kind{"exec", "T3002E"}
	SCPDownload         = Kind{"scp", "T3004I"}
	SCPUpload           = Kind{"scp", "T3005I"}
	ClientDisconnect    = Kind{"client.disconnect", "T3006I"}
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
	InstanceDelete      = Kind{"instance.delete", "TIN00I"}
)
