package access

import (
	"slices"
	"strings"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// CodeLocked is the code of the error that a lock makes.
const CodeLocked = "locked"

// RuleLock is Decision.Rule of what a lock refused.
const RuleLock = "lock"

// Facts are what is known of whom, or of what, a lock may be about. What is empty
// is not known, or not there, and no lock that asks for it matches.
type Facts struct {
	User string
	// Roles are the names of the user's roles.
	Roles []string
	// Login is the operating-system user.
	Login string
	// ServerID is the host id of a process.
	ServerID string
	// JoinToken is the id of the token that the process joins, or joined, with.
	JoinToken string
	// MFADevice is the id of the device that the user logged in with.
	MFADevice string
}

// FindLock returns the first lock that is in force at now and that the facts match, or
// nil. All that its target names must match; one that names nothing matches nobody.
func FindLock(locks []*typesv1.Lock, f Facts, now time.Time) *typesv1.Lock {
	i := slices.IndexFunc(locks, func(l *typesv1.Lock) bool { return LockInForce(l, now) && f.match(l.GetSpec().GetTarget()) })
	if i < 0 {
		return nil
	}
	return locks[i]
}

// LockInForce reports whether the lock has not expired at the time.
func LockInForce(l *typesv1.Lock, now time.Time) bool {
	for _, e := range []interface {
		IsValid() bool
		AsTime() time.Time
	}{l.GetMetadata().GetExpires(), l.GetSpec().GetExpires()} {
		if e.IsValid() && !e.AsTime().After(now) {
			return false
		}
	}
	return true
}

// match reports whether the facts are those that the target names.
func (f Facts) match(t *typesv1.LockTarget) bool {
	some := false
	for _, c := range []struct{ want, have string }{
		{t.GetUser(), f.User},
		{t.GetLogin(), f.Login},
		{t.GetServerId(), f.ServerID},
		{t.GetJoinToken(), f.JoinToken},
		{t.GetMfaDevice(), f.MFADevice},
	} {
		if c.want == "" {
			continue
		}
		if c.want != c.have {
			return false
		}
		some = true
	}
	if role := t.GetRole(); role != "" {
		return slices.Contains(f.Roles, role)
	}
	return some
}

// LockText says that the lock is in force, in the words that everybody sees who is
// refused by it.
func LockText(l *typesv1.Lock) string {
	var parts []string
	for _, f := range types.LockTargetFields(l.GetSpec().GetTarget()) {
		if f.Value != "" {
			parts = append(parts, f.Title+`:"`+f.Value+`"`)
		}
	}
	text := "lock targeting " + strings.Join(parts, " ") + " is in force"
	if m := l.GetSpec().GetMessage(); m != "" {
		text += ": " + m
	}
	return text
}

// LockError returns the error of who is refused by the lock: fault.ErrDenied with
// CodeLocked. Nil for no lock.
func LockError(l *typesv1.Lock) error {
	if l == nil {
		return nil
	}
	return fault.New(fault.ErrDenied, "%s", LockText(l)).WithCode(CodeLocked)
}

// CheckLocks refuses by the first lock that the facts match, as LockError does.
func CheckLocks(locks []*typesv1.Lock, f Facts, now time.Time) error {
	return LockError(FindLock(locks, f, now))
}

// StrictLocks reports whether a role asks to refuse new sessions while the decider
// may have missed locks. A value that cannot be understood does.
func StrictLocks(roles []*typesv1.Role) bool {
	return slices.ContainsFunc(roles, func(r *typesv1.Role) bool {
		switch r.GetSpec().GetOptions().GetLock() {
		case "", types.LockBestEffort:
			return false
		}
		return true
	})
}

// locked decides by the locks of the subject, before any role is asked.
func (c *Checker) locked(login string) (Decision, bool) {
	if len(c.locks) == 0 {
		return Decision{}, false
	}
	f := Facts{User: c.user, Login: login, ServerID: c.serverID, MFADevice: c.mfaDevice}
	for _, r := range c.roles {
		f.Roles = append(f.Roles, r.name)
	}
	i := slices.IndexFunc(c.locks, func(l *typesv1.Lock) bool { return f.match(l.GetSpec().GetTarget()) })
	if i < 0 {
		return Decision{}, false
	}
	return Decision{Rule: RuleLock, Lock: c.locks[i].GetMetadata().GetName(), Reason: LockText(c.locks[i])}, true
}
