package oidc_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/jointest"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/test/oidcfake"
)

func row(t *testing.T, name string) platform {
	t.Helper()
	for _, p := range platforms() {
		if p.name == name {
			return p
		}
	}
	t.Fatalf("no platform %q", name)
	return platform{}
}

// TestWhereTheTokenIs has the ways of the generic method to its token, good and bad.
func TestWhereTheTokenIs(t *testing.T) {
	w := newWorld(t, row(t, "oidc"))
	dir := t.TempDir()
	write := func(name, content string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	token := w.token(w.aud)
	good := write("good", token+"\n")
	tests := map[string]struct {
		settings map[string]string
		// want is part of the error; empty: it is admitted.
		want string
	}{
		"env":             {map[string]string{"oidc.env": "MY_TOKEN"}, ""},
		"file":            {map[string]string{"oidc.file": good}, ""},
		"command":         {map[string]string{"oidc.command": "cat " + good}, ""},
		"nothing":         {nil, "oidc.env, .file and .command; 0 of them"},
		"two":             {map[string]string{"oidc.env": "MY_TOKEN", "oidc.file": good}, "2 of them"},
		"env_empty":       {map[string]string{"oidc.env": "NO_TOKEN"}, "NO_TOKEN"},
		"no_file":         {map[string]string{"oidc.file": filepath.Join(dir, "none")}, "no such file"},
		"folder":          {map[string]string{"oidc.file": dir}, "is a directory"},
		"file_too_long":   {map[string]string{"oidc.file": write("long", strings.Repeat("x", jwt.MaxToken+1))}, "bytes: the most is"},
		"file_endless":    {map[string]string{"oidc.file": "/dev/zero"}, "bytes: the most is"},
		"no_command":      {map[string]string{"oidc.command": " "}, "is empty"},
		"command_unknown": {map[string]string{"oidc.command": filepath.Join(dir, "none")}, "none"},
		"command_fails":   {map[string]string{"oidc.command": "false"}, "exit status 1"},
		"command_endless": {map[string]string{"oidc.command": "cat /dev/zero"}, "more than a token"},
		"command_shell":   {map[string]string{"oidc.command": "cat " + good + " ; true"}, "exit status"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := w.setup()
			s.Machine.Settings = tt.settings
			_, err := jointest.Attempt(t.Context(), fresh(t, "oidc"), s, [32]byte{1})
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if fault.Code(err) != method.CodeCredentials || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), token[:24]) {
				t.Errorf("the error has the token in it: %v", err)
			}
		})
	}
}

// TestPlatformsThatAreAsked: GitHub and Azure DevOps give a token on request.
func TestPlatformsThatAreAsked(t *testing.T) {
	for name, vars := range map[string][2]string{
		"github":       {"ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"},
		"azure_devops": {"SYSTEM_OIDCREQUESTURI", "SYSTEM_ACCESSTOKEN"},
	} {
		tests := map[string]struct {
			change func(w *world)
			code   string
		}{
			"no_address":   {func(w *world) { w.vars[vars[0]] = "" }, method.CodeCredentials},
			"no_secret":    {func(w *world) { w.vars[vars[1]] = "" }, method.CodeCredentials},
			"other_secret": {func(w *world) { w.vars[vars[1]] = "x" }, method.CodeCredentials},
			"no_url":       {func(w *world) { w.vars[vars[0]] = "://" }, method.CodeCredentials},
			"not_https":    {func(w *world) { w.vars[vars[0]] = "http://runner.example.com/github" }, method.CodeMetadata},
			"broken":       {func(w *world) { w.status = http.StatusInternalServerError }, method.CodeCredentials},
			"not_json": {func(w *world) {
				w.server.Handle("runner.example.com", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			}, method.CodeCredentials},
		}
		for test, tt := range tests {
			t.Run(name+"/"+test, func(t *testing.T) {
				w := newWorld(t, row(t, name))
				tt.change(w)
				_, err := jointest.Attempt(t.Context(), fresh(t, name), w.setup(), [32]byte{1})
				if fault.Code(err) != tt.code {
					t.Errorf("%v (code %q), want code %q", err, fault.Code(err), tt.code)
				}
				if err != nil && strings.Contains(err.Error(), "request-secret") {
					t.Errorf("the error has the secret in it: %v", err)
				}
			})
		}
	}
}

// TestOtherInstances: the issuer is the one that the token of the cluster names.
func TestOtherInstances(t *testing.T) {
	tests := map[string]struct {
		platform, issuer string
		change           func(*typesv1.TokenSpec)
		env              string
	}{
		"github_enterprise_cloud":  {"github", "https://token.actions.githubusercontent.com/acme", func(s *typesv1.TokenSpec) { s.GetGithub().EnterpriseSlug = "acme" }, ""},
		"github_enterprise_server": {"github", "https://git.example.com/_services/token", func(s *typesv1.TokenSpec) { s.GetGithub().EnterpriseServerHost = "git.example.com" }, ""},
		"gitlab_of_ones_own":       {"gitlab", "https://git.example.com", func(s *typesv1.TokenSpec) { s.GetGitlab().Domain = "git.example.com" }, ""},
		"terraform_enterprise":     {"terraform_cloud", "https://tfe.example.com", func(s *typesv1.TokenSpec) { s.GetTerraformCloud().Hostname = "tfe.example.com" }, ""},
		"circleci_first_token":     {"circleci", "https://oidc.circleci.com/org/" + uuid1, func(*typesv1.TokenSpec) {}, "CIRCLE_OIDC_TOKEN"},
		"spacelift_globs": {"spacelift", "https://demo.app.spacelift.io", func(s *typesv1.TokenSpec) {
			s.GetSpacelift().EnableGlobMatching = true
			s.GetSpacelift().GetAllow()[0].SpaceId = "legacy-*"
		}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := row(t, tt.platform)
			p.issuer = tt.issuer
			if tt.env != "" {
				p.env = tt.env
			}
			w := newWorld(t, p)
			s := w.setup()
			tt.change(s.Spec)
			if _, err := jointest.Attempt(t.Context(), fresh(t, tt.platform), s, [32]byte{1}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestStaticKeys: with keys that were written down nothing is fetched, and no others
// are good.
func TestStaticKeys(t *testing.T) {
	for name, set := range map[string]func(*typesv1.TokenSpec, string){
		"oidc":   func(s *typesv1.TokenSpec, jwks string) { s.GetOidc().StaticJwks = jwks },
		"github": func(s *typesv1.TokenSpec, jwks string) { s.GetGithub().StaticJwks = jwks },
		"gitlab": func(s *typesv1.TokenSpec, jwks string) { s.GetGitlab().StaticJwks = jwks },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, row(t, name))
			s := w.setup()
			set(s.Spec, w.issuer.JWKS())
			if _, err := jointest.Attempt(t.Context(), fresh(t, name), s, [32]byte{1}); err != nil {
				t.Fatal(err)
			}
			set(s.Spec, oidcfake.Set(oidcfake.NewKey(t, "ES256"), oidcfake.NewKey(t, "ES256")))
			if _, err := jointest.Attempt(t.Context(), fresh(t, name), s, [32]byte{1}); fault.Code(err) != method.CodeProofSignature {
				t.Errorf("other keys: %v", err)
			}
			if document, keys := w.issuer.Requests(); document+keys != 0 {
				t.Errorf("%d requests to the issuer", document+keys)
			}
		})
	}
}

// TestGitLabVariable: the name of the variable is the job's to choose.
func TestGitLabVariable(t *testing.T) {
	p := row(t, "gitlab")
	p.env, p.settings = "JOIN_JWT", "gitlab.token_env_var_name=JOIN_JWT"
	if _, err := jointest.Attempt(t.Context(), fresh(t, "gitlab"), newWorld(t, p).setup(), [32]byte{1}); err != nil {
		t.Error(err)
	}
}
