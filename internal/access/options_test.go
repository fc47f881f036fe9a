package access_test

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/types"
)

// combine is how the values of several roles become one.
type combine int

const (
	anyGrants combine = iota
	allMustAllow
	smallestWins
)

// optionRows is the table of surface.md, section 7, "Multi-role options": each option
// of several roles is that of each role alone, combined in one of three ways.
var optionRows = []struct {
	name string
	how  combine
	of   func(access.Options) int64
}{
	{"forward_agent", anyGrants, func(o access.Options) int64 { return truth(o.ForwardAgent) }},
	{"ssh_port_forwarding.local", anyGrants, func(o access.Options) int64 { return truth(o.LocalForward) }},
	{"ssh_port_forwarding.remote", anyGrants, func(o access.Options) int64 { return truth(o.RemoteForward) }},
	{"permit_x11_forwarding", anyGrants, func(o access.Options) int64 { return truth(o.X11) }},
	{"disconnect_expired_cert", anyGrants, func(o access.Options) int64 { return truth(o.DisconnectExpired) }},
	{"pin_source_ip", anyGrants, func(o access.Options) int64 { return truth(o.PinSource) }},
	{"ssh_file_copy", allMustAllow, func(o access.Options) int64 { return truth(o.FileCopy) }},
	{"max_sessions", smallestWins, func(o access.Options) int64 { return o.MaxSessions }},
	{"max_connections", smallestWins, func(o access.Options) int64 { return o.MaxConnections }},
	{"client_idle_timeout", smallestWins, func(o access.Options) int64 { return int64(o.IdleTimeout) }},
}

func truth(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func drawFlag(t *rapid.T, name string) *bool {
	switch rapid.IntRange(0, 2).Draw(t, name) {
	case 0:
		return nil
	case 1:
		return new(bool)
	}
	yes := true
	return &yes
}

func drawOptions(t *rapid.T) *typesv1.RoleOptions {
	if rapid.IntRange(0, 5).Draw(t, "no options") == 0 {
		return nil
	}
	o := &typesv1.RoleOptions{
		ForwardAgent: drawFlag(t, "agent"), PortForwarding: drawFlag(t, "ports"), SshFileCopy: drawFlag(t, "copy"),
		PermitX11Forwarding: drawFlag(t, "x11"), DisconnectExpiredCert: drawFlag(t, "expired"), PinSourceIp: drawFlag(t, "pin"),
		MaxSessions: rapid.Int64Range(0, 4).Draw(t, "sessions"), MaxConnections: rapid.Int64Range(0, 4).Draw(t, "connections"),
		ClientIdleTimeout:  rapid.SampledFrom([]string{"", "0", "0s", "5m", "1h", "1d"}).Draw(t, "idle"),
		CreateHostUserMode: rapid.SampledFrom([]string{"", "off", "keep", "insecure-drop"}).Draw(t, "mode"),
	}
	if rapid.Bool().Draw(t, "both ways") {
		o.SshPortForwarding = &typesv1.SSHPortForwarding{
			Local: &typesv1.SSHForwarding{Enabled: drawFlag(t, "local")}, Remote: &typesv1.SSHForwarding{Enabled: drawFlag(t, "remote")},
		}
	}
	for range rapid.IntRange(0, 2).Draw(t, "extensions") {
		o.CertExtensions = append(o.CertExtensions, &typesv1.CertExtension{
			Name: rapid.SampledFrom([]string{"a@example.com", "b@example.com"}).Draw(t, "name"), Value: rapid.SampledFrom([]string{"1", "2", "{{external.team}}"}).Draw(t, "value"),
		})
	}
	return o
}

// TestOptionsAlgebra holds the combination of drawn roles against the table.
func TestOptionsAlgebra(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := access.Subject{User: "u", Traits: map[string][]string{"team": {"z", "x"}}}
		for range rapid.IntRange(1, 4).Draw(t, "n") {
			r := role("r", nil, nil)
			r.Spec.Options = drawOptions(t)
			s.Roles = append(s.Roles, r)
		}
		got := access.OptionsOf(s)
		if got.Broken != nil {
			t.Fatalf("Broken = %v", got.Broken)
		}
		var alone []access.Options
		for _, r := range s.Roles {
			alone = append(alone, access.OptionsOf(access.Subject{Roles: []*typesv1.Role{r}, Traits: s.Traits}))
		}
		for _, row := range optionRows {
			var values []int64
			for _, o := range alone {
				if v := row.of(o); row.how != smallestWins || v != 0 {
					values = append(values, v)
				}
			}
			want := int64(0)
			switch {
			case len(values) == 0:
			case row.how == anyGrants:
				want = slices.Max(values)
			default:
				want = slices.Min(values)
			}
			if have := row.of(got); have != want {
				t.Fatalf("%s = %d, want %d of %v", row.name, have, want, values)
			}
		}
		for name, value := range got.Extensions {
			if !slices.ContainsFunc(alone, func(o access.Options) bool { return o.Extensions[name] == value }) {
				t.Fatalf("extension %s=%s is no role's", name, value)
			}
		}
		s.Roles = rapid.Permutation(slices.Concat(s.Roles, s.Roles)).Draw(t, "order")
		if again := access.OptionsOf(s); !reflect.DeepEqual(again, got) {
			t.Fatalf("in another order, twice each: %+v, want %+v", again, got)
		}
	})
}

// TestOptionsOfOneRole has what a single role means, defaults included.
func TestOptionsOfOneRole(t *testing.T) {
	yes, no := true, false
	base := access.Options{LocalForward: true, RemoteForward: true, FileCopy: true}
	change := func(f func(*access.Options)) access.Options { o := base; f(&o); return o }
	for name, tt := range map[string]struct {
		options *typesv1.RoleOptions
		want    access.Options
	}{
		"none":        {nil, base},
		"empty":       {&typesv1.RoleOptions{}, base},
		"agent":       {&typesv1.RoleOptions{ForwardAgent: &yes}, change(func(o *access.Options) { o.ForwardAgent = true })},
		"no_ports":    {&typesv1.RoleOptions{PortForwarding: &no}, change(func(o *access.Options) { o.LocalForward, o.RemoteForward = false, false })},
		"one_way":     {&typesv1.RoleOptions{PortForwarding: &no, SshPortForwarding: &typesv1.SSHPortForwarding{Local: &typesv1.SSHForwarding{Enabled: &yes}}}, change(func(o *access.Options) { o.RemoteForward = false })},
		"other_way":   {&typesv1.RoleOptions{SshPortForwarding: &typesv1.SSHPortForwarding{Remote: &typesv1.SSHForwarding{Enabled: &no}}}, change(func(o *access.Options) { o.RemoteForward = false })},
		"no_copy":     {&typesv1.RoleOptions{SshFileCopy: &no}, change(func(o *access.Options) { o.FileCopy = false })},
		"x11":         {&typesv1.RoleOptions{PermitX11Forwarding: &yes}, change(func(o *access.Options) { o.X11 = true })},
		"idle":        {&typesv1.RoleOptions{ClientIdleTimeout: "1d"}, change(func(o *access.Options) { o.IdleTimeout = 24 * time.Hour })},
		"pin":         {&typesv1.RoleOptions{PinSourceIp: &yes, DisconnectExpiredCert: &yes}, change(func(o *access.Options) { o.PinSource, o.DisconnectExpired = true, true })},
		"limits":      {&typesv1.RoleOptions{MaxSessions: 2, MaxConnections: 3}, change(func(o *access.Options) { o.MaxSessions, o.MaxConnections = 2, 3 })},
		"unset_trait": {&typesv1.RoleOptions{CertExtensions: []*typesv1.CertExtension{{Name: "a@b", Value: "{{external.none}}"}}}, base},
	} {
		t.Run(name, func(t *testing.T) {
			r := role("r", nil, nil)
			r.Spec.Options = tt.options
			if got := access.OptionsOf(access.Subject{Roles: []*typesv1.Role{r}}); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("OptionsOf = %+v, want %+v", got, tt.want)
			}
		})
	}
	for name, o := range map[string]*typesv1.RoleOptions{
		"idle": {ClientIdleTimeout: "soon"}, "extension": {CertExtensions: []*typesv1.CertExtension{{Name: "permit-pty"}}},
		"template": {CertExtensions: []*typesv1.CertExtension{{Name: "a@b", Value: "{{what}}"}}},
	} {
		r := role("broken", nil, nil)
		r.Spec.Options = o
		if access.OptionsOf(access.Subject{Roles: []*typesv1.Role{role("fine", nil, nil), r}}).Broken == nil {
			t.Errorf("%s: Broken = nil", name)
		}
	}
}

func TestHostUserOf(t *testing.T) {
	mode := func(name, env, mode string, more func(*typesv1.Role)) *typesv1.Role {
		r := role(name, conditions([]string{"x"}, labels("env", env)), nil)
		r.Spec.Options = &typesv1.RoleOptions{CreateHostUserMode: mode}
		if more != nil {
			more(r)
		}
		return r
	}
	here := map[string]string{"env": "dev"}
	rich := func(r *typesv1.Role) {
		r.Spec.Allow.HostGroups = []string{"docker", "{{external.team}}", "adm"}
		r.Spec.Allow.HostSudoers = []string{"ALL=(ALL) ALL"}
		r.Spec.Options.CreateHostUserDefaultShell = "/bin/zsh"
	}
	noAdm := role("deny", nil, &typesv1.RoleConditions{HostGroups: []string{"adm"}, HostSudoers: []string{"*"}})
	elsewhere := role("deny", nil, conditions(nil, labels("env", "prod")))
	elsewhere.Spec.Deny.HostGroups = []string{"*"}
	for name, tt := range map[string]struct {
		roles []*typesv1.Role
		want  access.HostUser
	}{
		"no_role":          {nil, access.HostUser{Mode: "off"}},
		"keep":             {[]*typesv1.Role{mode("a", "dev", "keep", nil)}, access.HostUser{Mode: "keep"}},
		"drop":             {[]*typesv1.Role{mode("a", "dev", "insecure-drop", nil)}, access.HostUser{Mode: "insecure-drop"}},
		"keep_wins":        {[]*typesv1.Role{mode("a", "dev", "insecure-drop", nil), mode("b", "dev", "keep", nil)}, access.HostUser{Mode: "keep"}},
		"omitted_is_off":   {[]*typesv1.Role{mode("a", "dev", "keep", rich), mode("b", "dev", "", nil)}, access.HostUser{Mode: "off", Role: "b"}},
		"does_not_match":   {[]*typesv1.Role{mode("a", "dev", "keep", nil), mode("b", "prod", "", nil)}, access.HostUser{Mode: "keep"}},
		"rich":             {[]*typesv1.Role{mode("a", "dev", "keep", rich)}, access.HostUser{Mode: "keep", Shell: "/bin/zsh", Groups: []string{"adm", "blue", "docker"}, Sudoers: []string{"ALL=(ALL) ALL"}}},
		"denied":           {[]*typesv1.Role{mode("a", "dev", "keep", rich), noAdm}, access.HostUser{Mode: "keep", Shell: "/bin/zsh", Groups: []string{"blue", "docker"}, Sudoers: []string{}}},
		"denied_elsewhere": {[]*typesv1.Role{mode("a", "dev", "keep", rich), elsewhere}, access.HostUser{Mode: "keep", Shell: "/bin/zsh", Groups: []string{"adm", "blue", "docker"}, Sudoers: []string{"ALL=(ALL) ALL"}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := access.Subject{Roles: tt.roles, Traits: map[string][]string{"team": {"blue", "not a group"}}}
			got := access.HostUserOf(s, here)
			if len(got.Groups)+len(tt.want.Groups) == 0 {
				got.Groups, tt.want.Groups = nil, nil
			}
			if len(got.Sudoers)+len(tt.want.Sudoers) == 0 {
				got.Sudoers, tt.want.Sudoers = nil, nil
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("HostUserOf = %+v, want %+v", got, tt.want)
			}
			if types.HostUserOff == got.Mode && got.Groups != nil {
				t.Error("groups without a user")
			}
		})
	}
}
