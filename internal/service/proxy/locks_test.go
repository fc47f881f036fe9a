package proxy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// lock makes a lock, and returns its text and what takes it away.
func (w *world) lock(target *typesv1.LockTarget) (text string, unlock func()) {
	l := types.NewLock(target, "stolen", "admin", time.Now(), time.Time{})
	w.cache.Apply(types.Change{Revision: 3, Kind: types.KindLock, Name: l.GetMetadata().GetName(), Resource: l})
	return access.LockText(l), func() {
		w.cache.Apply(types.Change{Revision: 4, Kind: types.KindLock, Name: l.GetMetadata().GetName()})
	}
}

// refused dials and expects the text of a lock.
func (w *world) refused(t *testing.T, what, text, host string, roles ...string) {
	t.Helper()
	_, resp := w.dialUser(t, w.user(t, roles...), dialReq(host))
	if resp.GetErrorKind() != fault.ErrDenied.Error() || resp.GetError() != text {
		t.Errorf("%s: dial = %v, want %q", what, resp, text)
	}
}

// TestLocksEndConnections: connections through the Proxy end soon after a lock came,
// and new ones are refused at once; those it is not about go on.
func TestLocksEndConnections(t *testing.T) {
	w := newWorld(t)
	web, other := w.agent(t, "web-1", "web", nil), w.agent(t, "web-2", "web", nil)
	role := types.New(types.KindRole, "both").(*typesv1.Role)
	role.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{NodeLabels: map[string]*typesv1.Strings{"env": {Values: []string{"web"}}}}}
	w.cache.Apply(types.Change{Revision: 2, Kind: types.KindRole, Name: "both", Resource: role})
	w.cache.Apply(types.Change{Revision: 2, Kind: types.KindInstance, Name: web, Resource: &typesv1.Instance{
		Kind: types.KindInstance, Spec: &typesv1.InstanceSpec{Token: "tok"},
	}})
	w.addInstance(other, true)
	w.addInstance(w.holder.HostID(), true)
	for _, tt := range []struct {
		name   string
		target *typesv1.LockTarget
		// all: connections to every node end, not those to web-1 only.
		all bool
		// tunnel: that of web-1 goes too.
		tunnel bool
	}{
		{"user", &typesv1.LockTarget{User: "alice"}, true, false},
		{"role", &typesv1.LockTarget{Role: "web"}, true, false},
		{"user on a node", &typesv1.LockTarget{User: "alice", ServerId: web}, false, false},
		{"node", &typesv1.LockTarget{ServerId: web}, false, true},
		{"token of the node", &typesv1.LockTarget{JoinToken: "tok"}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cut, resp := w.dialUser(t, w.user(t, "web"), dialReq("web-1"))
			if resp.GetError() != "" {
				t.Fatalf("dial = %v", resp)
			}
			kept, resp := w.dialUser(t, w.user(t, "both"), dialReq("web-2"))
			if resp.GetError() != "" {
				t.Fatalf("dial = %v", resp)
			}
			events := len(w.recorded())
			text, unlock := w.lock(tt.target)
			defer unlock()
			w.refused(t, "at once", text, "web-1", "web")
			if err := w.proxy.EnforceLocks(t.Context()); err != nil {
				t.Fatal(err)
			}
			_ = cut.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := cut.Read(make([]byte, 1)); err == nil || errTimeout(err) {
				t.Errorf("Read() = %v, want the end of the connection", err)
			}
			if tt.tunnel != !w.proxy.HasTunnel(web) || !w.proxy.HasTunnel(other) {
				t.Errorf("tunnels of the nodes: %v and %v", w.proxy.HasTunnel(web), w.proxy.HasTunnel(other))
			}
			if tt.target.GetUser() == "" || !tt.all { // the other one is alice as well, with another role
				if _, err := kept.Write([]byte("x")); err != nil {
					t.Error(err)
				}
				if _, err := kept.Read(make([]byte, 1)); err != nil {
					t.Errorf("a connection that no lock is about: %v", err)
				}
			}
			eventually(t, "both are recorded", func() bool {
				seen := map[string]bool{}
				for _, e := range w.recorded()[events:] {
					f := e.GetFields().GetFields()
					if f["reason"].GetStringValue() == text || f["error"].GetStringValue() == text {
						seen[e.GetCode()] = true
					}
				}
				return seen["T1006W"] && seen["T3006I"]
			})
			unlock()
			eventually(t, "the node can be reached again", func() bool {
				_, resp := w.dialUser(t, w.user(t, "web"), dialReq("web-1"))
				return resp.GetError() == ""
			})
		})
	}
}

// A Proxy that is locked itself serves nobody.
func TestLockedProxy(t *testing.T) {
	w := newWorld(t)
	id := w.agent(t, "web-1", "web", nil)
	w.addInstance(id, true)
	w.addInstance(w.holder.HostID(), true)
	text, unlock := w.lock(&typesv1.LockTarget{ServerId: w.holder.HostID()})
	w.refused(t, "by a lock", text, "web-1", "web")
	unlock()
	w.cache.Lockout("lock targeting JoinToken:\"x\" is in force")
	w.refused(t, "by Auth", "lock targeting JoinToken:\"x\" is in force", "web-1", "web")
	w.cache.Lockout("")
	eventually(t, "it serves again", func() bool {
		_, resp := w.dialUser(t, w.user(t, "web"), dialReq("web-1"))
		return resp.GetError() == ""
	})
}

// Enforcing gives up with its context, and says so.
func TestEnforceLocksEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	w.agent(t, "web-1", "web", nil)
	if _, resp := w.dialUser(t, w.user(t, "web"), dialReq("web-1")); resp.GetError() != "" {
		t.Fatalf("dial = %v", resp)
	}
	w.lock(&typesv1.LockTarget{User: "alice"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.proxy.EnforceLocks(ctx); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("EnforceLocks = %v, want that it was stopped", err)
	}
}

// eventually waits for what other goroutines do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}
