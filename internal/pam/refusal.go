package pam

import (
	"fmt"

	"teleport/internal/fault"
)

// Codes of Linux-PAM (security/_pam_types.h).
const (
	codeUserUnknown     = 10
	codeMaxTries        = 11
	codeNewTokenNeeded  = 12
	codeAccountExpired  = 13
	codeAuthError       = 7
	codePermDenied      = 6
	codeCredInsuffcient = 8
	codeAuthUnavailable = 9
	codeSession         = 14
	codeCredUnavailable = 15
	codeCredExpired     = 16
	codeAborted         = 26
	codeTokenExpired    = 27
)

// Refusal is PAM's answer that the user may not.
type Refusal struct {
	// Service and User are those of the request.
	Service, User string
	// Stage is what was asked: start, auth, account, groups, credentials or session.
	Stage string
	// Code is PAM's number, Detail its own words.
	Code   int
	Detail string
	// Asked says that a module wanted to ask something and could not.
	Asked bool
}

// Error says it to the user.
func (r *Refusal) Error() string {
	switch {
	case r.Asked:
		return "this host asks for more before it lets you in, and there is no terminal to ask on: use one, as in tsh ssh -t"
	case r.Code == codeAccountExpired:
		return fmt.Sprintf("the account of user %q on this host has expired", r.User)
	case r.Code == codeNewTokenNeeded || r.Code == codeTokenExpired:
		return fmt.Sprintf("the password of user %q on this host has expired: ask an administrator", r.User)
	case r.Code == codeUserUnknown:
		return fmt.Sprintf("user %q is not known to PAM on this host", r.User)
	case r.Code == codeMaxTries:
		return "too many attempts: try again later"
	case r.Code == codeAuthUnavailable:
		return "this host cannot ask the service that knows its users: try again later"
	case r.Code == codeCredUnavailable || r.Code == codeCredExpired || r.Code == codeCredInsuffcient:
		return fmt.Sprintf("the credentials of user %q on this host have expired or cannot be used", r.User)
	case r.Stage == "auth" && (r.Code == codeAuthError || r.Code == codePermDenied):
		return fmt.Sprintf("this host did not let user %q in: authentication failed", r.User)
	case r.Stage == "account" && (r.Code == codeAuthError || r.Code == codePermDenied):
		return fmt.Sprintf("this host does not let user %q in at the moment", r.User)
	case r.Stage == "session" && (r.Code == codeSession || r.Code == codePermDenied):
		return fmt.Sprintf("this host does not open a session for user %q", r.User)
	case r.Code == codeAborted:
		return "the login was given up"
	}
	return fmt.Sprintf("PAM of this host did not let user %q in: %s, ask an administrator", r.User, r.Detail)
}

// Reason is for administrators.
func (r *Refusal) Reason() string {
	return fmt.Sprintf("PAM, service %q, %s: %s (code %d)", r.Service, r.Stage, r.Detail, r.Code)
}

// Unwrap makes it a refusal.
func (r *Refusal) Unwrap() error { return fault.ErrDenied }
