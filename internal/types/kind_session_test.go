package types_test

import (
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

func TestSessionPoliciesOfRoles(t *testing.T) {
	require := func(change func(*typesv1.SessionRequirePolicy)) *typesv1.RoleConditions {
		p := &typesv1.SessionRequirePolicy{
			Name: "oversight", Filter: `contains(user.spec.roles, "auditor")`, Kinds: []string{"ssh", "k8s"}, Modes: []string{"moderator"}, Count: 1, OnLeave: "pause",
		}
		change(p)
		return &typesv1.RoleConditions{RequireSessionJoin: []*typesv1.SessionRequirePolicy{p}}
	}
	join := func(change func(*typesv1.SessionJoinPolicy)) *typesv1.RoleConditions {
		p := &typesv1.SessionJoinPolicy{Name: "watch", Roles: []string{"dev", "prod-*"}, Kinds: []string{"*"}, Modes: []string{"observer", "peer"}}
		change(p)
		return &typesv1.RoleConditions{JoinSessions: []*typesv1.SessionJoinPolicy{p}}
	}
	for _, tt := range []struct {
		name  string
		allow *typesv1.RoleConditions
		says  string
	}{
		{"require", require(func(*typesv1.SessionRequirePolicy) {}), ""},
		{"default_action", require(func(p *typesv1.SessionRequirePolicy) { p.OnLeave = "" }), ""},
		{"no_name", require(func(p *typesv1.SessionRequirePolicy) { p.Name = "" }), "spec.allow.require_session_join[0].name"},
		{"no_filter", require(func(p *typesv1.SessionRequirePolicy) { p.Filter = "" }), "spec.allow.require_session_join[0].filter"},
		{"nobody", require(func(p *typesv1.SessionRequirePolicy) { p.Count = 0 }), "spec.allow.require_session_join[0].count"},
		{"negative", require(func(p *typesv1.SessionRequirePolicy) { p.Count = -1 }), "spec.allow.require_session_join[0].count"},
		{"no_kinds", require(func(p *typesv1.SessionRequirePolicy) { p.Kinds = nil }), "spec.allow.require_session_join[0].kinds"},
		{"unknown_kind", require(func(p *typesv1.SessionRequirePolicy) { p.Kinds = []string{"telnet"} }), "spec.allow.require_session_join[0].kinds[0]"},
		{"no_modes", require(func(p *typesv1.SessionRequirePolicy) { p.Modes = nil }), "spec.allow.require_session_join[0].modes"},
		{"unknown_mode", require(func(p *typesv1.SessionRequirePolicy) { p.Modes = []string{"boss"} }), "spec.allow.require_session_join[0].modes[0]"},
		{"unknown_action", require(func(p *typesv1.SessionRequirePolicy) { p.OnLeave = "shout" }), "spec.allow.require_session_join[0].on_leave"},
		{"lines", require(func(p *typesv1.SessionRequirePolicy) { p.Name = "a\nb" }), "spec.allow.require_session_join[0].name"},
		{"join", join(func(*typesv1.SessionJoinPolicy) {}), ""},
		{"everybody", join(func(p *typesv1.SessionJoinPolicy) { p.Roles = []string{"*"} }), ""},
		{"join_no_roles", join(func(p *typesv1.SessionJoinPolicy) { p.Roles = nil }), "spec.allow.join_sessions[0].roles"},
		{"join_bad_role", join(func(p *typesv1.SessionJoinPolicy) { p.Roles = []string{"a b"} }), "spec.allow.join_sessions[0].roles[0]"},
		{"join_no_name", join(func(p *typesv1.SessionJoinPolicy) { p.Name = "" }), "spec.allow.join_sessions[0].name"},
		{"join_no_modes", join(func(p *typesv1.SessionJoinPolicy) { p.Modes = nil }), "spec.allow.join_sessions[0].modes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := types.New(types.KindRole, "r").(*typesv1.Role)
			r.Spec = &typesv1.RoleSpec{Allow: tt.allow}
			err := types.Check(r)
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says+": ")) {
				t.Errorf("Check = %v, want it to be about %q", err, tt.says)
			}
		})
	}
	r := types.New(types.KindRole, "r").(*typesv1.Role)
	r.Spec = &typesv1.RoleSpec{Deny: require(func(*typesv1.SessionRequirePolicy) {})}
	if err := types.Check(r); err == nil || !strings.Contains(err.Error(), "spec.deny.require_session_join: has no meaning") {
		t.Errorf("require_session_join under deny: Check = %v", err)
	}
	r.Spec = &typesv1.RoleSpec{Deny: join(func(*typesv1.SessionJoinPolicy) {})}
	if err := types.Check(r); err != nil {
		t.Errorf("join_sessions under deny: Check = %v", err)
	}
}

func TestSessionNames(t *testing.T) {
	for s, good := range map[string]bool{
		"7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f": true, "": false, "x": false, "7C9A2D7E-58A6-4E0E-8F6B-0D3A5E1C2B4F": false,
		"{7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f}": false, "7c9a2d7e58a64e0e8f6b0d3a5e1c2b4f": false,
	} {
		if err := types.ValidSessionID(s); (err == nil) != good {
			t.Errorf("ValidSessionID(%q) = %v", s, err)
		}
	}
	if err := types.ValidLogin(types.LoginJoin); err != nil {
		t.Errorf("certificates cannot carry %q: %v", types.LoginJoin, err)
	}
	if err := types.ValidInvitation([]string{"alice", "a b"}); err == nil {
		t.Error("an invitation of \"a b\" is valid")
	}
	if err := types.ValidInvitation(make([]string, 33)); err == nil {
		t.Error("33 people may be invited")
	}
}
