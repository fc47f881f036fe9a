package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func generate(t *testing.T, p config.GenerateParams) (string, *config.Config) {
	t.Helper()
	data, err := config.Generate(p)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Parse("generated.yaml", data)
	if err != nil {
		t.Fatalf("what was generated is refused: %v\n%s", err, data)
	}
	return string(data), cfg
}

func TestGenerateGolden(t *testing.T) {
	pin := "sha256:" + strings.Repeat("a", 64)
	for name, p := range map[string]config.GenerateParams{
		"cluster": {
			NodeName: "host", ClusterName: "teleport.example.com", PublicAddr: "teleport.example.com:443",
			CertFile: "/etc/ssl/cert.pem", KeyFile: "/etc/ssl/key.pem",
		},
		"node": {
			NodeName: "host", Roles: []types.SystemRole{types.RoleNode}, Token: "join-token", ProxyServer: "teleport.example.com:443",
			NodeLabels: map[string]string{"env": "prod", "app": `a "b" \c: #d`},
		},
		"node_direct": {
			NodeName: "host", Roles: []types.SystemRole{types.RoleNode}, Token: "/etc/token", AuthServer: "192.0.2.1:3025", CAPins: []string{pin},
		},
		"app": {
			NodeName: "host", Roles: []types.SystemRole{types.RoleApp}, Token: "/etc/token", ProxyServer: "teleport.example.com:443",
			App: config.AppParams{Name: "grafana", URI: "http://localhost:3000", PublicAddr: "grafana.example.com", Labels: map[string]string{"env": "prod"}},
		},
		"app_and_db": {
			NodeName: "host", Roles: []types.SystemRole{types.RoleApp, types.RoleDB}, Token: "/etc/token", ProxyServer: "teleport.example.com:443",
		},
		"db": {
			NodeName: "host", Roles: []types.SystemRole{types.RoleDB}, Token: "/etc/token", ProxyServer: "teleport.example.com:443",
			DB: config.DatabaseParams{
				Name: "sales", Protocol: "postgres", URI: "db.internal:5432", Description: `the "orders"`, Labels: map[string]string{"env": "prod"},
				CACertFile: "/not/here.pem", TrustSystemCertPool: true,
				Matchers: []map[string]string{{"env": "prod", "team": "a"}, {"*": "*"}},
			},
		},
		"proxy": {
			NodeName: "host", Roles: []types.SystemRole{types.RoleProxy}, Token: "t", AuthServer: "a:3025", CAPins: []string{pin, pin}, DataDir: "/data",
		},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := config.Generate(p)
			if err != nil {
				t.Fatal(err)
			}
			text := string(data)
			golden(t, "testdata/generate/"+name+".golden", text)
		})
	}
}

// The guide edits the generated file with sed 's| ca_pin: ""| ca_pin: "..."|'.
func TestGeneratedPinLineCanBeEdited(t *testing.T) {
	pin := "sha256:" + strings.Repeat("a", 64)
	text, cfg := generate(t, config.GenerateParams{Roles: []types.SystemRole{types.RoleNode}, Token: "t", AuthServer: "a:3025"})
	if len(cfg.CAPins) != 0 {
		t.Errorf("pins = %v", cfg.CAPins)
	}
	edited := strings.Replace(text, ` ca_pin: ""`, ` ca_pin: "`+pin+`"`, 1)
	if d := cmp.Diff([]string{pin}, parse(t, edited).CAPins); d != "" {
		t.Errorf("pins after the edit (-want +got):\n%s\n%s", d, edited)
	}
}

func TestGenerateDefaultsToACluster(t *testing.T) {
	_, cfg := generate(t, config.GenerateParams{})
	if !cfg.Auth.Enabled || !cfg.Proxy.Enabled || !cfg.SSH.Enabled || cfg.Version != config.V3 {
		t.Errorf("config = %+v", cfg)
	}
	if len(cfg.SSH.Commands) != 1 || cfg.SSH.Commands[0].Name != "hostname" {
		t.Errorf("commands = %+v", cfg.SSH.Commands)
	}
}

func TestGenerateRefusals(t *testing.T) {
	node, app, db := []types.SystemRole{types.RoleNode}, []types.SystemRole{types.RoleApp}, []types.SystemRole{types.RoleDB}
	for name, tt := range map[string]struct {
		params config.GenerateParams
		want   string
		kind   error
	}{
		"old_version":          {config.GenerateParams{Version: "v1"}, "--version", fault.ErrInvalid},
		"unsupported_role":     {config.GenerateParams{Roles: []types.SystemRole{types.RoleKube}}, "--roles: kube", fault.ErrUnsupported},
		"app_of_node":          {config.GenerateParams{Roles: node, ProxyServer: "a:1", App: config.AppParams{Name: "a", URI: "http://a"}}, "--roles=app", fault.ErrInvalid},
		"app_without_uri":      {config.GenerateParams{Roles: app, ProxyServer: "a:1", App: config.AppParams{Name: "a"}}, "--app-uri", fault.ErrInvalid},
		"app_without_name":     {config.GenerateParams{Roles: app, ProxyServer: "a:1", App: config.AppParams{PublicAddr: "a"}}, "--app-name", fault.ErrInvalid},
		"bad_app":              {config.GenerateParams{Roles: app, ProxyServer: "a:1", App: config.AppParams{Name: "A", URI: "ftp://a"}}, "app_service.apps[0].uri", fault.ErrInvalid},
		"db_without_protocol":  {config.GenerateParams{Roles: db, ProxyServer: "a:1", DB: config.DatabaseParams{Name: "a", URI: "a:1"}}, "--protocol", fault.ErrInvalid},
		"db_without_name":      {config.GenerateParams{Roles: db, ProxyServer: "a:1", DB: config.DatabaseParams{URI: "a:1"}}, "--name", fault.ErrInvalid},
		"bad_db":               {config.GenerateParams{Roles: db, ProxyServer: "a:1", DB: config.DatabaseParams{Name: "a", URI: "a:1", Protocol: "x"}}, "databases[0].protocol", fault.ErrInvalid},
		"relative_ca":          {config.GenerateParams{Roles: db, ProxyServer: "a:1", DB: config.DatabaseParams{Name: "a", URI: "a:1", Protocol: "redis", CACertFile: "a"}}, "absolute", fault.ErrInvalid},
		"app_without_proxy":    {config.GenerateParams{Roles: []types.SystemRole{types.RoleAuth, types.RoleApp}}, "reached through a Proxy only", fault.ErrInvalid},
		"unknown_method":       {config.GenerateParams{Roles: node, ProxyServer: "a:1", JoinMethod: "ldap"}, "--join-method", fault.ErrInvalid},
		"auth_with_proxy":      {config.GenerateParams{ProxyServer: "a:1"}, "add --roles=node", fault.ErrInvalid},
		"two_addresses":        {config.GenerateParams{Roles: node, ProxyServer: "a:1", AuthServer: "b:1"}, "not both", fault.ErrInvalid},
		"no_address":           {config.GenerateParams{Roles: node}, "--proxy=host:port", fault.ErrInvalid},
		"cluster_name_of_node": {config.GenerateParams{Roles: node, ProxyServer: "a:1", ClusterName: "x"}, "--cluster-name", fault.ErrInvalid},
		"public_addr_of_node":  {config.GenerateParams{Roles: node, ProxyServer: "a:1", PublicAddr: "x:1"}, "--public-addr", fault.ErrInvalid},
		"cert_without_key":     {config.GenerateParams{CertFile: "/a"}, "--key-file", fault.ErrInvalid},
		"labels_without_node":  {config.GenerateParams{Roles: []types.SystemRole{types.RoleProxy}, AuthServer: "a:1", NodeLabels: map[string]string{"a": "b"}}, "--node-labels", fault.ErrInvalid},
		"relative_path":        {config.GenerateParams{DataDir: "data"}, "absolute", fault.ErrInvalid},
		"bad_address":          {config.GenerateParams{Roles: node, ProxyServer: "https://a"}, "teleport.proxy_server: bad address", fault.ErrInvalid},
		"bad_name":             {config.GenerateParams{NodeName: "a b"}, "teleport.nodename: bad", fault.ErrInvalid},
		"bad_pin":              {config.GenerateParams{CAPins: []string{"sha256:1"}}, "teleport.ca_pin: bad", fault.ErrInvalid},
		"line_break":           {config.GenerateParams{ClusterName: "a\nssh_service: {}"}, "", fault.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Generate(tt.params)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, tt.kind) {
				t.Errorf("Generate = %v, want an error with %q of kind %v", err, tt.want, tt.kind)
			}
		})
	}
}

// Whatever the parameters are, what comes out is accepted and says what was asked.
func TestGenerateRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := config.GenerateParams{
			Roles:       []types.SystemRole{types.RoleNode},
			Token:       rapid.String().Draw(rt, "token"),
			ProxyServer: "teleport.example.com:443",
			NodeLabels:  rapid.MapOf(rapid.StringMatching(`[a-z]{1,8}`), rapid.String()).Draw(rt, "labels"),
		}
		data, err := config.Generate(p)
		if err != nil {
			return
		}
		cfg, err := config.Parse("t.yaml", data)
		if err != nil {
			rt.Fatalf("refused: %v\n%s", err, data)
		}
		if cfg.Join.TokenName != strings.TrimSpace(p.Token) {
			rt.Fatalf("token %q became %q", p.Token, cfg.Join.TokenName)
		}
		for k, v := range p.NodeLabels {
			if cfg.SSH.Labels[k] != v {
				rt.Fatalf("label %q: %q became %q", k, v, cfg.SSH.Labels[k])
			}
		}
	})
}
