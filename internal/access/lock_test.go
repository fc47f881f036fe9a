package access_test

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func lock(message string, target *typesv1.LockTarget) *typesv1.Lock {
	return types.NewLock(target, message, "admin", time.Now(), time.Time{})
}

func TestFindLock(t *testing.T) {
	all := access.Facts{
		User: "alice", Roles: []string{"access", "dev"}, Login: "root", ServerID: "h-1", JoinToken: "tok", MFADevice: "m-1",
	}
	for _, tt := range []struct {
		name   string
		target *typesv1.LockTarget
		facts  access.Facts
		want   string // text of the error, "" is not locked
	}{
		{"user", &typesv1.LockTarget{User: "alice"}, all, `lock targeting User:"alice" is in force: why`},
		{"role", &typesv1.LockTarget{Role: "dev"}, all, `lock targeting Role:"dev" is in force: why`},
		{"login", &typesv1.LockTarget{Login: "root"}, all, `lock targeting Login:"root" is in force: why`},
		{"server", &typesv1.LockTarget{ServerId: "h-1"}, all, `lock targeting ServerID:"h-1" is in force: why`},
		{"token", &typesv1.LockTarget{JoinToken: "tok"}, all, `lock targeting JoinToken:"tok" is in force: why`},
		{"device", &typesv1.LockTarget{MfaDevice: "m-1"}, all, `lock targeting MFADevice:"m-1" is in force: why`},
		{"both hold", &typesv1.LockTarget{User: "alice", Login: "root"}, all, `lock targeting User:"alice" Login:"root" is in force: why`},
		{"one of two", &typesv1.LockTarget{User: "alice", Login: "ubuntu"}, all, ""},
		{"other user", &typesv1.LockTarget{User: "bob"}, all, ""},
		{"case", &typesv1.LockTarget{User: "Alice"}, all, ""},
		{"other role", &typesv1.LockTarget{Role: "editor"}, all, ""},
		{"a role is no user", &typesv1.LockTarget{User: "dev"}, all, ""},
		{"nothing is known", &typesv1.LockTarget{User: "alice"}, access.Facts{}, ""},
		{"login is not known", &typesv1.LockTarget{User: "alice", Login: "root"}, access.Facts{User: "alice"}, ""},
		{"names nothing", &typesv1.LockTarget{}, all, ""},
		{"names nothing, nothing known", nil, access.Facts{}, ""},
	} {
		l := lock("why", &typesv1.LockTarget{User: "somebody else"})
		locks := []*typesv1.Lock{l, lock("why", tt.target)}
		err := access.CheckLocks(locks, tt.facts, time.Now())
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v, want not locked", tt.name, err)
		case tt.want != "" && (err == nil || err.Error() != tt.want || !errors.Is(err, fault.ErrDenied) || fault.Code(err) != access.CodeLocked):
			t.Errorf("%s: %v (code %q), want %q", tt.name, err, fault.Code(err), tt.want)
		}
	}
	if got, want := access.LockText(lock("", &typesv1.LockTarget{User: "a"})), `lock targeting User:"a" is in force`; got != want {
		t.Errorf("text without a message = %q, want %q", got, want)
	}
}

func TestExpiredLocksDoNotCount(t *testing.T) {
	now := time.Now()
	target := &typesv1.LockTarget{User: "alice"}
	short := types.NewLock(target, "", "", now, now.Add(time.Minute))
	onlySpec := lock("", target)
	onlySpec.Spec.Expires = timestamppb.New(now.Add(time.Minute))
	for _, l := range []*typesv1.Lock{short, onlySpec} {
		f := access.Facts{User: "alice"}
		if access.FindLock([]*typesv1.Lock{l}, f, now) != l {
			t.Error("a lock that expires later is not found")
		}
		if access.FindLock([]*typesv1.Lock{l}, f, now.Add(2*time.Minute)) != nil {
			t.Error("a lock that has expired is found")
		}
	}
	l := lock("", target)
	if access.FindLock([]*typesv1.Lock{l}, access.Facts{User: "alice"}, now.Add(1000*time.Hour)) != l {
		t.Error("a lock without an end is not found later")
	}
}

// TestLockedSubject: whatever the roles allow, a lock refuses, and says so.
func TestLockedSubject(t *testing.T) {
	everything := &typesv1.Role{
		Metadata: &typesv1.Metadata{Name: "everything"},
		Spec: &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{
			Logins: []string{"root", "ubuntu"}, NodeLabels: map[string]*typesv1.Strings{"*": {Values: []string{"*"}}},
			Rules: []*typesv1.Rule{{Resources: []string{"*"}, Verbs: []string{"*"}}},
		}},
	}
	labels := map[string]string{"env": "prod"}
	for _, tt := range []struct {
		name              string
		target            *typesv1.LockTarget
		login, sees, verb bool // refused
	}{
		{"user", &typesv1.LockTarget{User: "alice"}, true, true, true},
		{"role", &typesv1.LockTarget{Role: "everything"}, true, true, true},
		{"server", &typesv1.LockTarget{ServerId: "h-1"}, true, true, true},
		{"device", &typesv1.LockTarget{MfaDevice: "m-1"}, true, true, true},
		{"login", &typesv1.LockTarget{Login: "root"}, true, false, false},
		{"user and login", &typesv1.LockTarget{User: "alice", Login: "root"}, true, false, false},
		{"other", &typesv1.LockTarget{User: "bob"}, false, false, false},
	} {
		l := lock("m", tt.target)
		c := access.NewChecker(access.Subject{
			User: "alice", Roles: []*typesv1.Role{everything}, Locks: []*typesv1.Lock{l}, ServerID: "h-1", MFADevice: "m-1",
		})
		for _, a := range []struct {
			what    string
			refused bool
			d       access.Decision
		}{
			{"Login", tt.login, c.Login("root", labels)},
			{"Sees", tt.sees, c.Sees(labels)},
			{"Verb", tt.verb, c.Verb("user", "list")},
		} {
			if a.d.Allowed == a.refused {
				t.Errorf("%s: %s = %+v, refused: want %v", tt.name, a.what, a.d, a.refused)
			}
			if a.refused && (a.d.Lock != l.GetMetadata().GetName() || a.d.Rule != "lock" || a.d.Reason != access.LockText(l)) {
				t.Errorf("%s: %s = %+v, want the lock and its text", tt.name, a.what, a.d)
			}
		}
		if d := c.Login("ubuntu", labels); tt.target.GetLogin() == "root" && !d.Allowed {
			t.Errorf("%s: another login = %+v, want allowed", tt.name, d)
		}
	}
}

func TestStrictLocks(t *testing.T) {
	role := func(mode string) *typesv1.Role {
		return &typesv1.Role{Spec: &typesv1.RoleSpec{Options: &typesv1.RoleOptions{Lock: mode}}}
	}
	for _, tt := range []struct {
		name  string
		roles []*typesv1.Role
		want  bool
	}{
		{"no role", nil, false},
		{"none says", []*typesv1.Role{{}, role("")}, false},
		{"best effort", []*typesv1.Role{role(types.LockBestEffort)}, false},
		{"one is strict", []*typesv1.Role{role(types.LockBestEffort), role(types.LockStrict)}, true},
		{"of a later version", []*typesv1.Role{role("strictest")}, true},
	} {
		if got := access.StrictLocks(tt.roles); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
