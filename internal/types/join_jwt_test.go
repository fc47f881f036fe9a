package types_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
	"teleport/test/oidcfake"
)

// tokenYAML is a token whose spec is the given lines.
func tokenYAML(method, spec string) []byte {
	return []byte("kind: token\nversion: v2\nmetadata:\n  name: t\nspec:\n  roles: [Node]\n  join_method: " + method + "\n" +
		"  " + strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ") + "\n")
}

func readToken(t *testing.T, method, spec string) *typesv1.Token {
	t.Helper()
	list, err := types.ParseYAML("token.yaml", tokenYAML(method, spec))
	if err != nil {
		t.Fatalf("%v\n%s", err, spec)
	}
	token, ok := list[0].(*typesv1.Token)
	if !ok {
		t.Fatalf("read %T", list[0])
	}
	return token
}

const uuidA = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"

// TestJWTTokens has a token of each method that is accepted, and what is refused when
// it is written.
func TestJWTTokens(t *testing.T) {
	set := strings.ReplaceAll(oidcfake.Set(oidcfake.NewKey(t, "ES256")), "'", "''")
	ca := "\n" + oidcfake.Serve(t, nil).CA
	type refused struct{ spec, path string }
	tests := map[string]struct {
		good []string
		bad  map[string]refused
	}{
		"gcp": {
			good: []string{
				"gcp: {allow: [{project_ids: [my-project-1, 'example.com:my-project'], service_accounts: [a@my-project-1.iam.gserviceaccount.com, 1-compute@developer.gserviceaccount.com], locations: [us-west1, us-west2-a, northamerica-northeast1-b]}]}",
				"gcp: {allow: [{project_ids: [my-project-1], vm: optional}, {project_ids: [my-project-2], vm: required, locations: [us-west1]}]}",
			},
			bad: map[string]refused{
				"no_rules":          {"gcp: {allow: []}", "spec.gcp.allow"},
				"empty_rule":        {"gcp: {allow: [{}]}", "spec.gcp.allow[0]"},
				"no_project":        {"gcp: {allow: [{service_accounts: [a@b.iam.gserviceaccount.com]}]}", "spec.gcp.allow[0]"},
				"project_wildcard":  {"gcp: {allow: [{project_ids: ['*']}]}", "spec.gcp.allow[0].project_ids"},
				"project_prefix":    {"gcp: {allow: [{project_ids: ['my-project-*']}]}", "spec.gcp.allow[0].project_ids"},
				"project_number":    {"gcp: {allow: [{project_ids: ['739419398126']}]}", "spec.gcp.allow[0].project_ids"},
				"project_case":      {"gcp: {allow: [{project_ids: [My-Project]}]}", "spec.gcp.allow[0].project_ids"},
				"project_empty":     {"gcp: {allow: [{project_ids: ['']}]}", "spec.gcp.allow[0].project_ids"},
				"account_wildcard":  {"gcp: {allow: [{project_ids: [my-project-1], service_accounts: ['*@my-project-1.iam.gserviceaccount.com']}]}", "spec.gcp.allow[0].service_accounts"},
				"account_of_person": {"gcp: {allow: [{project_ids: [my-project-1], service_accounts: [a@example.com]}]}", "spec.gcp.allow[0].service_accounts"},
				"location":          {"gcp: {allow: [{project_ids: [my-project-1], locations: [us-west]}]}", "spec.gcp.allow[0].locations"},
				"vm":                {"gcp: {allow: [{project_ids: [my-project-1], vm: 'yes'}]}", "spec.gcp.allow[0].vm"},
				"vm_and_location":   {"gcp: {allow: [{project_ids: [my-project-1], vm: optional, locations: [us-west1]}]}", "spec.gcp.allow[0].vm"},
			},
		},
		"github": {
			good: []string{
				"github: {allow: [{repository: octo/repo, ref: refs/heads/main, ref_type: branch, workflow: 'Build & test', environment: prod, actor: octocat}, {repository_owner: octo}, {repository_id: '74'}, {repository_owner_id: '65'}, {sub: 'repo:octo/repo:environment:prod'}]}",
				"github: {enterprise_server_host: git.example.com, static_jwks: '" + set + "', allow: [{repository: o/r}]}",
				"github: {enterprise_slug: acme-1, allow: [{repository: o/r}]}",
			},
			bad: map[string]refused{
				"only_branch":     {"github: {allow: [{ref: refs/heads/main}]}", "spec.github.allow[0]"},
				"repository_part": {"github: {allow: [{repository: repo}]}", "spec.github.allow[0].repository"},
				"repository_glob": {"github: {allow: [{repository: octo/*}]}", "spec.github.allow[0].repository"},
				"owner_glob":      {"github: {allow: [{repository_owner: '*'}]}", "spec.github.allow[0].repository_owner"},
				"sub_glob":        {"github: {allow: [{sub: 'repo:octo/*'}]}", "spec.github.allow[0].sub"},
				"id_text":         {"github: {allow: [{repository_id: octo}]}", "spec.github.allow[0].repository_id"},
				"ref_type":        {"github: {allow: [{repository: o/r, ref_type: heads}]}", "spec.github.allow[0].ref_type"},
				"host_url":        {"github: {enterprise_server_host: 'https://git.example.com', allow: [{repository: o/r}]}", "spec.github.enterprise_server_host"},
				"host_path":       {"github: {enterprise_server_host: 'git.example.com/x', allow: [{repository: o/r}]}", "spec.github.enterprise_server_host"},
				"host_user":       {"github: {enterprise_server_host: 'u@git.example.com', allow: [{repository: o/r}]}", "spec.github.enterprise_server_host"},
				"slug_path":       {"github: {enterprise_slug: ../x, allow: [{repository: o/r}]}", "spec.github.enterprise_slug"},
				"slug_and_host":   {"github: {enterprise_slug: x, enterprise_server_host: h, allow: [{repository: o/r}]}", "spec.github.enterprise_slug"},
				"keys":            {"github: {static_jwks: '{}', allow: [{repository: o/r}]}", "spec.github.static_jwks"},
				"secret_keys":     {"github: {static_jwks: '{\"keys\":[{\"kty\":\"oct\",\"k\":\"AA\"}]}', allow: [{repository: o/r}]}", "spec.github.static_jwks"},
			},
		},
		"gitlab": {
			good: []string{
				"gitlab: {allow: [{project_path: acme/web, ref_protected: false, environment_protected: true}, {namespace_path: acme/*, ref: '*-stable'}, {sub: 'project_path:acme/**:ref_type:branch:ref:main'}]}",
				"gitlab: {domain: 'git.example.com:8443', static_jwks: '" + set + "', allow: [{project_path: 'acme/**'}]}",
			},
			bad: map[string]refused{
				"only_ref":        {"gitlab: {allow: [{ref: main, ref_protected: true}]}", "spec.gitlab.allow[0]"},
				"project_all":     {"gitlab: {allow: [{project_path: '*'}]}", "spec.gitlab.allow[0].project_path"},
				"project_all2":    {"gitlab: {allow: [{project_path: '**'}]}", "spec.gitlab.allow[0].project_path"},
				"project_any":     {"gitlab: {allow: [{project_path: '*/web'}]}", "spec.gitlab.allow[0].project_path"},
				"project_prefix":  {"gitlab: {allow: [{project_path: 'acme*/web'}]}", "spec.gitlab.allow[0].project_path"},
				"project_slash":   {"gitlab: {allow: [{project_path: '/*'}]}", "spec.gitlab.allow[0].project_path"},
				"namespace_all":   {"gitlab: {allow: [{namespace_path: 'acme?'}]}", "spec.gitlab.allow[0].namespace_path"},
				"sub_all":         {"gitlab: {allow: [{sub: '*'}]}", "spec.gitlab.allow[0].sub"},
				"sub_any_project": {"gitlab: {allow: [{sub: 'project_path:*:ref_type:branch:ref:main'}]}", "spec.gitlab.allow[0].sub"},
				"sub_no_colon":    {"gitlab: {allow: [{sub: 'acme/*'}]}", "spec.gitlab.allow[0].sub"},
				"ref_all":         {"gitlab: {allow: [{project_path: a/b, ref: '*'}]}", "spec.gitlab.allow[0].ref"},
				"login_glob":      {"gitlab: {allow: [{project_path: a/b, user_login: 'a*'}]}", "spec.gitlab.allow[0].user_login"},
				"user_id":         {"gitlab: {allow: [{project_path: a/b, user_id: eve}]}", "spec.gitlab.allow[0].user_id"},
				"domain":          {"gitlab: {domain: 'https://gitlab.com', allow: [{project_path: a/b}]}", "spec.gitlab.domain"},
				"keys":            {"gitlab: {static_jwks: 'x', allow: [{project_path: a/b}]}", "spec.gitlab.static_jwks"},
			},
		},
		"circleci": {
			good: []string{"circleci: {organization_id: " + uuidA + ", allow: [{project_id: " + uuidA + "}, {context_id: " + uuidA + "}]}"},
			bad: map[string]refused{
				"no_organization": {"circleci: {allow: [{project_id: " + uuidA + "}]}", "spec.circleci.organization_id"},
				"organization":    {"circleci: {organization_id: ../x, allow: [{project_id: " + uuidA + "}]}", "spec.circleci.organization_id"},
				"project":         {"circleci: {organization_id: " + uuidA + ", allow: [{project_id: '*'}]}", "spec.circleci.allow[0].project_id"},
				"empty_rule":      {"circleci: {organization_id: " + uuidA + ", allow: [{}]}", "spec.circleci.allow[0]"},
			},
		},
		"spacelift": {
			good: []string{
				"spacelift: {hostname: demo.app.spacelift.io, allow: [{space_id: root, caller_type: stack, scope: write}, {caller_id: infra}]}",
				"spacelift: {hostname: demo.app.spacelift.io, enable_glob_matching: true, allow: [{space_id: 'prod-*'}]}",
			},
			bad: map[string]refused{
				"no_hostname":  {"spacelift: {allow: [{space_id: root}]}", "spec.spacelift.hostname"},
				"hostname":     {"spacelift: {hostname: '*.app.spacelift.io', allow: [{space_id: root}]}", "spec.spacelift.hostname"},
				"only_scope":   {"spacelift: {hostname: h, allow: [{scope: write}]}", "spec.spacelift.allow[0]"},
				"glob_without": {"spacelift: {hostname: h, allow: [{space_id: 'prod-*'}]}", "spec.spacelift.allow[0].space_id"},
				"glob_all":     {"spacelift: {hostname: h, enable_glob_matching: true, allow: [{space_id: '*'}]}", "spec.spacelift.allow[0].space_id"},
				"scope":        {"spacelift: {hostname: h, allow: [{space_id: root, scope: admin}]}", "spec.spacelift.allow[0].scope"},
				"caller_type":  {"spacelift: {hostname: h, allow: [{space_id: root, caller_type: job}]}", "spec.spacelift.allow[0].caller_type"},
			},
		},
		"terraform_cloud": {
			good: []string{
				"terraform_cloud: {allow: [{organization_name: acme, workspace_name: web}, {organization_id: org-1, project_id: prj-1, run_phase: apply}]}",
				"terraform_cloud: {hostname: tfe.example.com, audience: teleport, allow: [{organization_name: acme, project_name: Default Project}]}",
			},
			bad: map[string]refused{
				"only_organization": {"terraform_cloud: {allow: [{organization_name: acme}]}", "spec.terraform_cloud.allow[0]"},
				"only_workspace":    {"terraform_cloud: {allow: [{workspace_name: web}]}", "spec.terraform_cloud.allow[0]"},
				"run_phase":         {"terraform_cloud: {allow: [{organization_name: a, workspace_name: w, run_phase: destroy}]}", "spec.terraform_cloud.allow[0].run_phase"},
				"glob":              {"terraform_cloud: {allow: [{organization_name: a, workspace_name: 'w*'}]}", "spec.terraform_cloud.allow[0].workspace_name"},
				"hostname":          {"terraform_cloud: {hostname: 'https://x', allow: [{organization_name: a, workspace_name: w}]}", "spec.terraform_cloud.hostname"},
			},
		},
		"bitbucket": {
			good: []string{"bitbucket: {audience: a, identity_provider_url: 'https://api.bitbucket.org/2.0/x', allow: [{workspace_uuid: '{" + uuidA + "}'}, {repository_uuid: '{" + uuidA + "}', branch_name: main, deployment_environment_uuid: '{" + uuidA + "}'}]}"},
			bad: map[string]refused{
				"no_audience": {"bitbucket: {identity_provider_url: 'https://x', allow: [{workspace_uuid: '{" + uuidA + "}'}]}", "spec.bitbucket.audience"},
				"no_url":      {"bitbucket: {audience: a, allow: [{workspace_uuid: '{" + uuidA + "}'}]}", "spec.bitbucket.identity_provider_url"},
				"http":        {"bitbucket: {audience: a, identity_provider_url: 'http://x', allow: [{workspace_uuid: '{" + uuidA + "}'}]}", "spec.bitbucket.identity_provider_url"},
				"no_braces":   {"bitbucket: {audience: a, identity_provider_url: 'https://x', allow: [{workspace_uuid: " + uuidA + "}]}", "spec.bitbucket.allow[0].workspace_uuid"},
				"only_branch": {"bitbucket: {audience: a, identity_provider_url: 'https://x', allow: [{branch_name: main}]}", "spec.bitbucket.allow[0]"},
			},
		},
		"azure_devops": {
			good: []string{"azure_devops: {organization_id: " + uuidA + ", allow: [{sub: 'p://acme/web/deploy'}, {project_id: " + uuidA + ", definition_id: '7'}, {project_name: web, pipeline_name: deploy all, repository_ref: refs/heads/main}]}"},
			bad: map[string]refused{
				"no_organization": {"azure_devops: {allow: [{project_name: web}]}", "spec.azure_devops.organization_id"},
				"name_for_id":     {"azure_devops: {organization_id: acme, allow: [{project_name: web}]}", "spec.azure_devops.organization_id"},
				"only_pipeline":   {"azure_devops: {organization_id: " + uuidA + ", allow: [{pipeline_name: deploy}]}", "spec.azure_devops.allow[0]"},
				"sub":             {"azure_devops: {organization_id: " + uuidA + ", allow: [{sub: 'p://acme/web'}]}", "spec.azure_devops.allow[0].sub"},
				"sub_glob":        {"azure_devops: {organization_id: " + uuidA + ", allow: [{sub: 'p://acme/web/*'}]}", "spec.azure_devops.allow[0].sub"},
				"definition":      {"azure_devops: {organization_id: " + uuidA + ", allow: [{project_name: w, definition_id: x}]}", "spec.azure_devops.allow[0].definition_id"},
			},
		},
		"env0": {
			good: []string{"env0: {allow: [{organization_id: o, project_id: p}, {organization_id: o, project_name: p, env0_tag: a b}]}"},
			bad: map[string]refused{
				"only_organization": {"env0: {allow: [{organization_id: o}]}", "spec.env0.allow[0]"},
				"only_project":      {"env0: {allow: [{project_id: p}]}", "spec.env0.allow[0]"},
				"glob":              {"env0: {allow: [{organization_id: '*', project_id: p}]}", "spec.env0.allow[0].organization_id"},
			},
		},
		"oidc": {
			good: []string{
				"oidc: {issuer: 'https://id.example.com/x', allow: [{must_match_fields: {sub: [a, b], runner.trusted: ['true']}, glob_fields: {ref: ['v*']}}]}",
				"oidc: {issuer: 'https://id.example.com', audience: x, static_jwks: '" + set + "', allow: [{must_match_fields: {sub: [a]}}]}",
				"oidc:\n  issuer: https://10.0.0.1:8443\n  ca: |" + strings.ReplaceAll(strings.TrimSuffix(ca, "\n"), "\n", "\n    ") + "\n  allow: [{must_match_fields: {sub: [a]}}]",
			},
			bad: map[string]refused{
				"no_issuer":        {"oidc: {allow: [{must_match_fields: {sub: [a]}}]}", "spec.oidc.issuer"},
				"http":             {"oidc: {issuer: 'http://x', allow: [{must_match_fields: {sub: [a]}}]}", "spec.oidc.issuer"},
				"query":            {"oidc: {issuer: 'https://x/?a=b', allow: [{must_match_fields: {sub: [a]}}]}", "spec.oidc.issuer"},
				"of_all_the_world": {"oidc: {issuer: 'https://gitlab.com', allow: [{must_match_fields: {sub: [a]}}, {must_match_fields: {ref: [main]}, glob_fields: {project_path: ['a/*']}}]}", "spec.oidc.allow[1].must_match_fields"},
				"with_a_slash":     {"oidc: {issuer: 'https://login.app.env0.com/', allow: [{must_match_fields: {deploymentType: [deploy]}}]}", "spec.oidc.allow[0].must_match_fields"},
				"only_glob":        {"oidc: {issuer: 'https://x', allow: [{glob_fields: {sub: ['a*']}}]}", "spec.oidc.allow[0]"},
				"only_issuer":      {"oidc: {issuer: 'https://x', allow: [{must_match_fields: {iss: ['https://x'], aud: [c]}}]}", "spec.oidc.allow[0].must_match_fields"},
				"glob_everything":  {"oidc: {issuer: 'https://x', allow: [{must_match_fields: {sub: [a]}, glob_fields: {ref: ['**']}}]}", "spec.oidc.allow[0].glob_fields[ref]"},
				"no_values":        {"oidc: {issuer: 'https://x', allow: [{must_match_fields: {sub: []}}]}", "spec.oidc.allow[0].must_match_fields[sub]"},
				"empty_value":      {"oidc: {issuer: 'https://x', allow: [{must_match_fields: {sub: ['']}}]}", "spec.oidc.allow[0].must_match_fields[sub]"},
				"no_name":          {"oidc: {issuer: 'https://x', allow: [{must_match_fields: {sub: [a], '': [b]}}]}", "spec.oidc.allow[0]"},
				"ca":               {"oidc: {issuer: 'https://x', ca: x, allow: [{must_match_fields: {sub: [a]}}]}", "spec.oidc.ca"},
				"ca_and_keys":      {"oidc: {issuer: 'https://x', ca: x, static_jwks: '" + set + "', allow: [{must_match_fields: {sub: [a]}}]}", "spec.oidc.ca"},
				"keys":             {"oidc: {issuer: 'https://x', static_jwks: '{\"keys\":[]}', allow: [{must_match_fields: {sub: [a]}}]}", "spec.oidc.static_jwks"},
				"foreign":          {"oidc: {issuer: 'https://x', allow: [{must_match_fields: {sub: [a]}}]}\ngcp: {allow: [{project_ids: [my-project-1]}]}", "spec.gcp"},
			},
		},
	}
	for method, tt := range tests {
		for _, spec := range tt.good {
			writeAndRead(t, readToken(t, method, spec))
		}
		for name, bad := range tt.bad {
			t.Run(method+"/"+name, func(t *testing.T) {
				_, err := types.ParseYAML("token.yaml", tokenYAML(method, bad.spec))
				if err == nil || !strings.Contains(err.Error(), " "+bad.path+": ") {
					t.Errorf("%v, want a problem at %s", err, bad.path)
				}
			})
		}
	}
}

// writeAndRead: what was read is written so that it reads as the same; an optional
// truth value that is false does not get lost.
func writeAndRead(t *testing.T, token *typesv1.Token) {
	t.Helper()
	text, err := types.MarshalYAML(token)
	if err != nil {
		t.Fatal(err)
	}
	again, err := types.ParseYAML("again.yaml", text)
	if err != nil || !proto.Equal(again[0], token) {
		t.Errorf("read again: %v\n%s", err, text)
	}
}

func TestOptionalTruth(t *testing.T) {
	token := readToken(t, "gitlab", "gitlab: {allow: [{project_path: a/b, ref_protected: false}, {project_path: a/b, ref_protected: true}, {project_path: a/b}]}")
	text, err := types.MarshalYAML(token)
	if err != nil {
		t.Fatal(err)
	}
	for want, n := range map[string]int{"ref_protected: false": 1, "ref_protected: true": 1} {
		if got := strings.Count(string(text), want); got != n {
			t.Errorf("%q stands %d times, want %d, in\n%s", want, got, n, text)
		}
	}
	row, _ := types.JoinMethodRow("gitlab")
	for i, want := range [][]string{{"false"}, {"true"}, nil} {
		var got []string
		for _, f := range row.Rules(token.GetSpec())[i].Fields() {
			if f.Name == "ref_protected" {
				got = f.Want
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("rule %d wants ref_protected %v, want %v", i, got, want)
		}
	}
}

func TestMatchSegments(t *testing.T) {
	tests := []struct {
		pattern, text string
		want          bool
	}{
		{"acme/web", "acme/web", true},
		{"acme/web", "acme/web2", false},
		{"acme/web", "Acme/web", false},
		{"acme/*", "acme/web", true},
		{"acme/*", "acme/", true},
		{"acme/*", "acme", false},
		{"acme/*", "acme/sub/web", false},
		{"acme/*", "evil/acme/web", false},
		{"acme/**", "acme/sub/web", true},
		{"acme/**", "acme/sub:web", false},
		{"acme/**/web", "acme/a/b/web", true},
		{"acme/**/web", "acme/web", false},
		{"*", "", true},
		{"*", "a:b", false},
		{"?", "a", true},
		{"?", "/", false},
		{"?", "", false},
		{"v?.*", "v1.2", true},
		{"*-*-*", "a-b-c", true},
		{"a*b*c", "aXbYc", true},
		{"a*b*c", "acb", false},
		{"project_path:acme/**:ref_type:branch:ref:main", "project_path:acme/a/b:ref_type:branch:ref:main", true},
		{"project_path:acme/**:ref_type:branch:ref:main", "project_path:acme/a:ref_type:tag:ref:x:ref_type:branch:ref:main", false},
		{"***", "a/b", true},
		{"", "", true},
		{"", "a", false},
		{"[a]", "a", false},
		{"\\*", "*", false},
		{strings.Repeat("*a", 400), strings.Repeat("a", 4000) + "b", false},
		{strings.Repeat("*", 2000), "a", false},
	}
	for _, tt := range tests {
		if got := types.MatchSegments(tt.pattern, tt.text); got != tt.want {
			t.Errorf("MatchSegments(%.60q, %.60q) = %v, want %v", tt.pattern, tt.text, got, tt.want)
		}
	}
}

func FuzzMatchSegments(f *testing.F) {
	f.Add("acme/*", "acme/web")
	f.Add("a**b?c", "a/b:c")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if !types.MatchSegments(pattern, text) {
			return
		}
		if !strings.ContainsAny(pattern, "*?") && pattern != text {
			t.Fatalf("the literal %q matches %q", pattern, text)
		}
		if strings.Count(pattern, ":") != strings.Count(text, ":") {
			t.Fatalf("%q matches %q over a colon", pattern, text)
		}
		if !strings.Contains(pattern, "**") && strings.Count(pattern, "/") != strings.Count(text, "/") {
			t.Fatalf("%q matches %q over a slash", pattern, text)
		}
	})
}

// TestTokensOfTheGuides: the tokens of the guides are accepted as they stand there.
func TestTokensOfTheGuides(t *testing.T) {
	for file, want := range map[string]int{"join-with-gcp.md": 1, "join-from-ci.md": 8, "join-with-oidc.md": 1} {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", "how-to", file))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
			block, _, _ = strings.Cut(block, "```")
			if strings.HasPrefix(block, "spec:") {
				block = "kind: token\nversion: v2\nmetadata:\n  name: ci-token\n" + block
			}
			if !strings.Contains(block, "kind: token") {
				continue
			}
			n++
			if _, err := types.ParseYAML(file, []byte(block)); err != nil {
				t.Errorf("%v\n%s", err, block)
			}
		}
		if n != want {
			t.Errorf("%s has %d tokens, want %d", file, n, want)
		}
	}
}
