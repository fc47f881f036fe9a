package authz_test

import (
	"errors"
	"testing"
	"time"

	agentv1 "teleport/api/agent/v1"
	auditv1 "teleport/api/audit/v1"
	joinv1 "teleport/api/join/v1"
	loginv1 "teleport/api/login/v1"
	statusv1 "teleport/api/status/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/authz"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// locked are the locks of a test, and the tokens that its hosts joined with.
type locked struct {
	list   []*typesv1.Lock
	tokens map[string]string
}

func (l *locked) Locks() []*typesv1.Lock         { return l.list }
func (l *locked) JoinToken(hostID string) string { return l.tokens[hostID] }

func TestLockedCallers(t *testing.T) {
	l := &locked{tokens: map[string]string{"h-1": "tok", "proxy-1": "proxy-token"}}
	a := authz.New(presets).WithLocks(l).WithUsers(nil)
	relayed := callers()["relayed"]
	device := user("editor")
	device.Identity.User.MFADevice = "m-1"
	const (
		status  = statusv1.StatusService_GetStatus_FullMethodName
		control = agentv1.AgentService_Control_FullMethodName
		emit    = auditv1.AuditService_EmitEvents_FullMethodName
		renew   = joinv1.JoinService_Renew_FullMethodName
		join    = joinv1.JoinService_Join_FullMethodName
		in      = loginv1.LoginService_Login_FullMethodName
	)
	process := callers()["process"]
	for _, tt := range []struct {
		name   string
		target *typesv1.LockTarget
		caller rpc.Caller
		method string
		locked bool
	}{
		{"user", &typesv1.LockTarget{User: "bob"}, user("editor"), status, true},
		{"another user", &typesv1.LockTarget{User: "eve"}, user("editor"), status, false},
		{"role", &typesv1.LockTarget{Role: "editor"}, user("access", "editor"), status, true},
		{"device", &typesv1.LockTarget{MfaDevice: "m-1"}, device, status, true},
		{"another device", &typesv1.LockTarget{MfaDevice: "m-2"}, device, status, false},
		{"the lock is about a login too", &typesv1.LockTarget{User: "bob", Login: "root"}, user("editor"), status, false},
		{"a locked user logs in as another one", &typesv1.LockTarget{User: "bob"}, user("editor"), in, false},
		{"host: control", &typesv1.LockTarget{ServerId: "h-1"}, process, control, true},
		{"host: events", &typesv1.LockTarget{ServerId: "h-1"}, host(types.RoleNode, types.RoleNode), emit, true},
		{"host: renewal", &typesv1.LockTarget{ServerId: "h-1"}, process, renew, true},
		{"host: joins again", &typesv1.LockTarget{ServerId: "h-1"}, process, join, true},
		{"another host", &typesv1.LockTarget{ServerId: "h-2"}, process, control, false},
		{"token of the host", &typesv1.LockTarget{JoinToken: "tok"}, process, control, true},
		{"another token", &typesv1.LockTarget{JoinToken: "token"}, process, control, false},
		{"host and its token", &typesv1.LockTarget{JoinToken: "tok", ServerId: "h-1"}, process, control, true},
		{"host and another token", &typesv1.LockTarget{JoinToken: "token", ServerId: "h-1"}, process, control, false},
		{"host, of one user", &typesv1.LockTarget{User: "bob", ServerId: "h-1"}, process, control, false},
		{"a locked proxy relays", &typesv1.LockTarget{ServerId: "proxy-1"}, relayed, in, true},
		{"a proxy with a locked token relays", &typesv1.LockTarget{JoinToken: "proxy-token"}, relayed, in, true},
		{"a proxy relays", &typesv1.LockTarget{ServerId: "h-1"}, relayed, in, false},
		{"stranger", &typesv1.LockTarget{User: ""}, callers()["anonymous"], in, false},
		{"local administrator", &typesv1.LockTarget{User: "local administrator"}, rpc.Caller{Local: true}, status, false},
	} {
		lock := types.NewLock(tt.target, "stolen", "admin", time.Now(), time.Time{})
		l.list = []*typesv1.Lock{lock}
		err := a.Authorize(t.Context(), tt.caller, tt.method)
		switch {
		case !tt.locked && err != nil:
			t.Errorf("%s: %v, want allowed", tt.name, err)
		case tt.locked && (!errors.Is(err, fault.ErrDenied) || fault.Code(err) != access.CodeLocked || err.Error() != access.LockText(lock)):
			t.Errorf("%s: %v, want the lock", tt.name, err)
		}
		lock.Spec.Expires = types.NewLock(tt.target, "", "", time.Now(), time.Now().Add(-time.Minute)).GetSpec().GetExpires()
		if err := a.Authorize(t.Context(), tt.caller, tt.method); err != nil {
			t.Errorf("%s, expired: %v, want allowed", tt.name, err)
		}
	}
}

// TestLockedSubjects: what a handler asks later knows of the locks too.
func TestLockedSubjects(t *testing.T) {
	l := &locked{list: []*typesv1.Lock{
		types.NewLock(&typesv1.LockTarget{User: "bob"}, "", "", time.Now(), time.Time{}),
		types.NewLock(&typesv1.LockTarget{User: "eve"}, "", "", time.Now(), time.Now().Add(-time.Minute)),
	}}
	a := authz.New(presets).WithLocks(l)
	if err := a.Verb(t.Context(), user("editor"), types.KindUser, types.VerbList); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("Verb of a locked user = %v, want ErrDenied", err)
	}
	s, err := a.Subject(t.Context(), user("editor"))
	if err != nil || len(s.Locks) != 1 || s.Locks[0] != l.list[0] {
		t.Errorf("Subject = %v, %v, want the lock in force", s.Locks, err)
	}
}
