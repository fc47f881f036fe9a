package types_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// problems returns the paths that Check reports.
func problems(t *testing.T, r types.Resource) []string {
	t.Helper()
	err := types.Check(r)
	var ps types.Problems
	if !errors.As(err, &ps) || !errors.Is(err, fault.ErrInvalid) {
		t.Fatalf("Check = %v, want Problems of kind ErrInvalid", err)
	}
	var paths []string
	for _, p := range ps {
		paths = append(paths, p.Path)
		if p.Text == "" || strings.Contains(p.Error(), "\n") {
			t.Errorf("problem %q is not one line", p.Error())
		}
	}
	return paths
}

func TestCheckHead(t *testing.T) {
	long := strings.Repeat("x", 5000)
	role := func(f func(*typesv1.Role)) types.Resource {
		r := &typesv1.Role{Kind: types.KindRole, Version: "v8", Metadata: &typesv1.Metadata{Name: "r"}}
		f(r)
		return r
	}
	rows := map[string]struct {
		r    types.Resource
		want []string
	}{
		"nil":              {nil, []string{""}},
		"typed_nil":        {(*typesv1.Role)(nil), []string{""}},
		"no_kind":          {&typesv1.Role{}, []string{"kind"}},
		"unknown_kind":     {role(func(r *typesv1.Role) { r.Kind = "rolle" }), []string{"kind"}},
		"other_kind":       {role(func(r *typesv1.Role) { r.Kind = types.KindUser }), []string{"kind"}},
		"version":          {role(func(r *typesv1.Role) { r.Version = "v2" }), []string{"version"}},
		"sub_kind":         {role(func(r *typesv1.Role) { r.SubKind = "x" }), []string{"sub_kind"}},
		"no_metadata":      {role(func(r *typesv1.Role) { r.Metadata = nil }), []string{"metadata.name"}},
		"name_dash":        {role(func(r *typesv1.Role) { r.Metadata.Name = "-rf" }), []string{"metadata.name"}},
		"name_slash":       {role(func(r *typesv1.Role) { r.Metadata.Name = "a/b" }), []string{"metadata.name"}},
		"name_space":       {role(func(r *typesv1.Role) { r.Metadata.Name = "a b" }), []string{"metadata.name"}},
		"name_long":        {role(func(r *typesv1.Role) { r.Metadata.Name = long }), []string{"metadata.name"}},
		"name_bad_utf8":    {role(func(r *typesv1.Role) { r.Metadata.Name = "a\xffb" }), []string{"metadata.name"}},
		"description_long": {role(func(r *typesv1.Role) { r.Metadata.Description = long }), []string{"metadata.description"}},
		"description_esc":  {role(func(r *typesv1.Role) { r.Metadata.Description = "\x1b[2J" }), []string{"metadata.description"}},
		"labels": {
			role(func(r *typesv1.Role) {
				r.Metadata.Labels = map[string]string{"": "x", "a b": "x", "ok": "\x1b", "fine": "yes, sir", "*": "*"}
			}),
			[]string{"metadata.labels[]", "metadata.labels[*]", "metadata.labels[a b]", "metadata.labels[ok]"},
		},
		"expires": {role(func(r *typesv1.Role) { r.Metadata.Expires = &timestamppb.Timestamp{Nanos: -1} }), []string{"metadata.expires"}},
		"singleton": {
			&typesv1.ClusterName{Kind: types.KindClusterName, Metadata: &typesv1.Metadata{Name: "other"}, Spec: &typesv1.ClusterNameSpec{ClusterName: "c", ClusterId: "i"}},
			[]string{"metadata.name"},
		},
		"size": {role(func(r *typesv1.Role) { r.Metadata.Description = strings.Repeat("x", 1<<20) }), []string{""}},
		"unknown_field": {
			role(func(r *typesv1.Role) {
				r.Spec = &typesv1.RoleSpec{Deny: &typesv1.RoleConditions{}}
				r.Spec.Deny.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
			}),
			[]string{"spec.deny"},
		},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(row.want, problems(t, row.r)); d != "" {
				t.Errorf("problems (-want +got):\n%s", d)
			}
		})
	}
}

func TestCheckRole(t *testing.T) {
	labels := func(key string, values ...string) *typesv1.RoleConditions {
		return &typesv1.RoleConditions{NodeLabels: map[string]*typesv1.Strings{key: {Values: values}}}
	}
	logins := func(logins ...string) *typesv1.RoleConditions { return &typesv1.RoleConditions{Logins: logins} }
	rules := func(resources, verbs []string) *typesv1.RoleConditions {
		return &typesv1.RoleConditions{Rules: []*typesv1.Rule{{Resources: resources, Verbs: verbs}}}
	}
	rows := map[string]struct {
		allow *typesv1.RoleConditions
		want  []string
	}{
		"login":                 {logins("root", "ubuntu", "DOMAIN$", "a.b+c@d_e-f"), nil},
		"login_template":        {logins("{{internal.logins}}", "{{ external.email }}", `{{external["x y"]}}`, "dev-{{external.team}}-x"), nil},
		"login_empty":           {logins(""), []string{"spec.allow.logins[0]"}},
		"login_twice":           {logins("root", "root"), []string{"spec.allow.logins[1]"}},
		"login_option":          {logins("-oProxyCommand=x"), []string{"spec.allow.logins[0]"}},
		"login_comma":           {logins("root,ubuntu"), []string{"spec.allow.logins[0]"}},
		"login_wildcard":        {logins("*"), []string{"spec.allow.logins[0]"}},
		"template_open":         {logins("{{internal.logins"), []string{"spec.allow.logins[0]"}},
		"template_close":        {logins("internal.logins}}"), []string{"spec.allow.logins[0]"}},
		"template_two":          {logins("{{internal.logins}}{{internal.logins}}"), []string{"spec.allow.logins[0]"}},
		"template_unknown":      {logins("{{user.name}}"), []string{"spec.allow.logins[0]"}},
		"template_function":     {logins("{{email.local(external.email)}}"), []string{"spec.allow.logins[0]"}},
		"template_trait":        {logins("{{internal.logons}}"), []string{"spec.allow.logins[0]"}},
		"template_around":       {logins("a b{{internal.logins}}"), []string{"spec.allow.logins[0]"}},
		"label":                 {labels("env", "prod", "^dev-[0-9]+$", "st*", "*", "{{external.env}}"), nil},
		"label_all":             {labels("*", "*"), nil},
		"label_all_some":        {labels("*", "prod"), []string{"spec.allow.node_labels[*]"}},
		"label_all_two":         {labels("*", "*", "x"), []string{"spec.allow.node_labels[*]"}},
		"label_glob_key":        {labels("env*", "x"), []string{"spec.allow.node_labels[env*]"}},
		"label_no_value":        {labels("env"), []string{"spec.allow.node_labels[env]"}},
		"label_regexp":          {labels("env", "^(((.$"), []string{"spec.allow.node_labels[env][0]"}},
		"label_regexp_template": {labels("env", "^{{external.env}}$"), []string{"spec.allow.node_labels[env][0]"}},
		"label_braces":          {labels("env", "a}}b{{external.env}}"), []string{"spec.allow.node_labels[env][0]"}},
		"label_long":            {labels("env", strings.Repeat("x", 1025)), []string{"spec.allow.node_labels[env][0]"}},
		"label_control":         {labels("env", "\x1b"), []string{"spec.allow.node_labels[env][0]"}},
		"rule":                  {rules([]string{"users", "Nodes", "event", "session"}, []string{"list", "read"}), nil},
		"rule_all":              {rules([]string{"*"}, []string{"*"}), nil},
		"rule_empty":            {rules(nil, nil), []string{"spec.allow.rules[0].resources", "spec.allow.rules[0].verbs"}},
		"rule_unknown":          {rules([]string{"moon"}, []string{"walk"}), []string{"spec.allow.rules[0].resources[0]", "spec.allow.rules[0].verbs[0]"}},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			r := &typesv1.Role{Kind: types.KindRole, Metadata: &typesv1.Metadata{Name: "r"}, Spec: &typesv1.RoleSpec{Allow: row.allow}}
			if row.want == nil {
				if err := types.Check(r); err != nil {
					t.Errorf("Check: %v", err)
				}
				return
			}
			if d := cmp.Diff(row.want, problems(t, r)); d != "" {
				t.Errorf("problems (-want +got):\n%s", d)
			}
		})
	}
	t.Run("options", func(t *testing.T) {
		r := &typesv1.Role{Kind: types.KindRole, Metadata: &typesv1.Metadata{Name: "r"}, Spec: &typesv1.RoleSpec{Options: &typesv1.RoleOptions{MaxSessionTtl: "forever"}}}
		if d := cmp.Diff([]string{"spec.options.max_session_ttl"}, problems(t, r)); d != "" {
			t.Errorf("problems (-want +got):\n%s", d)
		}
	})
	t.Run("deny_all_logins", func(t *testing.T) {
		r := &typesv1.Role{Kind: types.KindRole, Metadata: &typesv1.Metadata{Name: "r"}, Spec: &typesv1.RoleSpec{Deny: logins("*")}}
		if err := types.Check(r); err != nil {
			t.Errorf("Check: %v", err)
		}
	})
}

func TestRoleDefaults(t *testing.T) {
	role := func(version string, allow *typesv1.RoleConditions) *typesv1.Role {
		r := &typesv1.Role{Kind: types.KindRole, Version: version, Metadata: &typesv1.Metadata{Name: "r"}, Spec: &typesv1.RoleSpec{Allow: allow}}
		if err := types.Check(r); err != nil {
			t.Fatalf("Check: %v", err)
		}
		return r
	}
	everything := map[string]*typesv1.Strings{"*": {Values: []string{"*"}}}
	if got := role("v3", &typesv1.RoleConditions{Logins: []string{"root"}}).Spec.Allow.NodeLabels; !cmp.Equal(got, everything, protocmp.Transform()) {
		t.Errorf("node_labels of a v3 role = %v, want everything", got)
	}
	for _, version := range []string{"v4", "v8", ""} {
		if got := role(version, &typesv1.RoleConditions{Logins: []string{"root"}}).Spec.Allow.NodeLabels; len(got) != 0 {
			t.Errorf("node_labels of a %s role = %v, want none", version, got)
		}
	}
	if r := role("v3", nil); r.Spec.Allow != nil {
		t.Errorf("allow of a v3 role that allows nothing = %v", r.Spec.Allow)
	}
	got := role("", &typesv1.RoleConditions{Rules: []*typesv1.Rule{{Resources: []string{"users", "CA"}, Verbs: []string{"read"}}}})
	if d := cmp.Diff([]string{types.KindUser, types.KindCertAuthority}, got.Spec.Allow.Rules[0].Resources); d != "" || got.Version != "v8" {
		t.Errorf("version %s, resources (-want +got):\n%s", got.Version, d)
	}
}

func TestCheckToken(t *testing.T) {
	rows := map[string]struct {
		spec *typesv1.TokenSpec
		want *typesv1.TokenSpec
		bad  []string
	}{
		"any_case": {
			spec: &typesv1.TokenSpec{Roles: []string{"DB", "node", "windowsdesktop"}},
			want: &typesv1.TokenSpec{Roles: []string{"Db", "Node", "WindowsDesktop"}, JoinMethod: "token"},
		},
		"bot_once": {
			spec: &typesv1.TokenSpec{Roles: []string{"bot"}, BotName: "robot"},
			want: &typesv1.TokenSpec{Roles: []string{"Bot"}, JoinMethod: "token", BotName: "robot", MaxUses: 1},
		},
		"bot_more":     {spec: &typesv1.TokenSpec{Roles: []string{"Bot"}, MaxUses: 2}, bad: []string{"spec.max_uses"}},
		"bot_name":     {spec: &typesv1.TokenSpec{Roles: []string{"Node"}, BotName: "robot"}, bad: []string{"spec.bot_name"}},
		"no_roles":     {spec: nil, bad: []string{"spec.roles"}},
		"unknown_role": {spec: &typesv1.TokenSpec{Roles: []string{"Node", "Toaster"}}, bad: []string{"spec.roles[1]"}},
		"role_twice":   {spec: &typesv1.TokenSpec{Roles: []string{"Db", "DB"}}, bad: []string{"spec.roles[1]"}},
		"method":       {spec: &typesv1.TokenSpec{Roles: []string{"Node"}, JoinMethod: "carrier-pigeon"}, bad: []string{"spec.join_method"}},
		"labels":       {spec: &typesv1.TokenSpec{Roles: []string{"Node"}, Labels: map[string]string{"a=b": "c"}}, bad: []string{"spec.labels[a=b]"}},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			r := &typesv1.Token{Kind: types.KindToken, Metadata: &typesv1.Metadata{Name: "a/secret,of:any=kind!"}, Spec: row.spec}
			if row.bad != nil {
				if d := cmp.Diff(row.bad, problems(t, r)); d != "" {
					t.Errorf("problems (-want +got):\n%s", d)
				}
				return
			}
			if err := types.Check(r); err != nil {
				t.Fatalf("Check: %v", err)
			}
			if d := cmp.Diff(row.want, r.Spec, protocmp.Transform()); d != "" {
				t.Errorf("spec (-want +got):\n%s", d)
			}
		})
	}
}

func TestCheckOthers(t *testing.T) {
	server := func(s *typesv1.ServerSpec) types.Resource {
		return &typesv1.Server{Kind: types.KindNode, Metadata: &typesv1.Metadata{Name: "n"}, Spec: s}
	}
	user := func(s *typesv1.UserSpec) types.Resource {
		return &typesv1.User{Kind: types.KindUser, Metadata: &typesv1.Metadata{Name: "alice@example.com"}, Spec: s}
	}
	rows := map[string]struct {
		r    types.Resource
		want []string
	}{
		"no_hostname": {server(nil), []string{"spec.hostname"}},
		"addresses": {
			server(&typesv1.ServerSpec{Hostname: "h", Addr: "h", PublicAddrs: []string{"[::1]:22", "h:0", "h:99999", "h h:22", "10.0.0.1:3022"}}),
			[]string{"spec.addr", "spec.public_addrs[1]", "spec.public_addrs[2]", "spec.public_addrs[3]"},
		},
		"command_labels": {
			server(&typesv1.ServerSpec{Hostname: "h", CmdLabels: map[string]*typesv1.CommandLabel{"a b": {}, "k": {Period: "now", Result: "\x1b"}}}),
			[]string{"spec.cmd_labels[a b]", "spec.cmd_labels[k].result", "spec.cmd_labels[k].period"},
		},
		"roles":       {user(&typesv1.UserSpec{Roles: []string{"ok", "", "ok"}}), []string{"spec.roles[1]", "spec.roles[2]"}},
		"trait_login": {user(&typesv1.UserSpec{Traits: map[string]*typesv1.Strings{"logins": {Values: []string{"root", "-x"}}}}), []string{"spec.traits[logins][1]"}},
		"trait":       {user(&typesv1.UserSpec{Traits: map[string]*typesv1.Strings{"": {}, "team": {Values: []string{"a b", "\x00"}}}}), []string{"spec.traits[]", "spec.traits[team][1]"}},
		"user_token":  {&typesv1.UserToken{Kind: types.KindUserToken, Metadata: &typesv1.Metadata{Name: "t"}}, []string{"spec.user", "spec.usage", "spec.token_hash", "metadata.expires"}},
		"authority": {
			&typesv1.CertAuthority{Kind: types.KindCertAuthority, Metadata: &typesv1.Metadata{Name: "host"}, Spec: &typesv1.CertAuthoritySpec{Type: "guest", ClusterName: "-"}},
			[]string{"spec.type", "metadata.name", "spec.cluster_name", "spec.active_keys"},
		},
		"instance": {
			&typesv1.Instance{Kind: types.KindInstance, Metadata: &typesv1.Metadata{Name: "i"}, Spec: &typesv1.InstanceSpec{Hostname: "h", Roles: []string{"node", "x"}}},
			[]string{"spec.roles[1]"},
		},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(row.want, problems(t, row.r)); d != "" {
				t.Errorf("problems (-want +got):\n%s", d)
			}
		})
	}
}
