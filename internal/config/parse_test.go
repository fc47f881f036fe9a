package config_test

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/testing/protocmp"

	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/types"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/errors/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := config.Parse("teleport.yaml", data)
			if err == nil {
				t.Fatalf("Parse accepted the file: %+v", cfg)
			}
			var problems *config.Error
			if !errors.As(err, &problems) || !errors.Is(err, fault.ErrInvalid) {
				t.Fatalf("error is %T, want *config.Error of kind ErrInvalid", err)
			}
			for _, p := range problems.Problems {
				if p.File != "teleport.yaml" || p.Line == 0 || p.Column == 0 {
					t.Errorf("problem without a place: %+v", p)
				}
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", err.Error()+"\n")
		})
	}
}

func TestErrorsNeverShowSecrets(t *testing.T) {
	const secret = "s3cr3t-value"
	for _, text := range []string{
		"auth_service: {tokens: [" + secret + "]}",
		"auth_service: {tokens: ['" + secret + ":node']}",
		"auth_service: {tokens: ['node:" + secret + " x']}",
		"version: v3\nteleport: {auth_token: {a: " + secret + "}}",
		"version: v3\nteleport: {auth_token: " + secret + ", join_params: {token_name: " + secret + "}}",
	} {
		_, err := config.Parse("t.yaml", []byte(text))
		if err == nil {
			t.Errorf("%q was accepted", text)
			continue
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestConfigIsSafeToPrint(t *testing.T) {
	cfg := parse(t, "version: v3\nteleport: {auth_token: s3cr3t}\nauth_service: {tokens: ['node:s3cr3t']}")
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "join", cfg.Join, "token", cfg.Auth.Tokens[0], "config", cfg)
	if text := b.String() + fmt.Sprintf("%v %+v %s", cfg, *cfg, cfg.Join); strings.Contains(text, "s3cr3t") {
		t.Errorf("a secret is shown: %s", text)
	}
}

func TestEverything(t *testing.T) {
	got, err := config.Load("testdata/valid/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := &config.Config{
		Version: "v3", Nodename: "web-1.example.com", DataDir: "/var/lib/teleport-1", PIDFile: "/run/teleport-1.pid",
		Join: config.JoinParams{Method: "token", TokenName: "abcd123"},
		CAPins: []string{
			"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			"sha256:ffff456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		},
		AuthServer: "auth.example.com:3025", AdvertiseIP: "10.0.0.7", DiagAddr: "127.0.0.1:3000",
		Log:     config.Log{Output: "stdout", Severity: slog.LevelDebug, Format: "json", ExtraFields: []string{"timestamp", "level", "caller"}},
		Storage: config.Storage{Type: "sqlite", Path: "/srv/db"},
		Auth: config.AuthConfig{
			Enabled: true, ListenAddr: "127.0.0.1:4025", PublicAddrs: []string{"auth.example.com:4025"}, ClusterName: "teleport.example.com",
			Tokens: []config.StaticToken{
				{Roles: []types.SystemRole{types.RoleNode, types.RoleProxy}, Value: "secret-token-value"},
				{Roles: []types.SystemRole{types.RoleAuth}, Value: "another:with:colons"},
			},
		},
		Proxy: config.ProxyConfig{
			Enabled: true, WebListenAddr: "0.0.0.0:443", PublicAddrs: []string{"teleport.example.com:443", "[2001:db8::1]:443"},
			HTTPSKeypairs:               []config.Keypair{{KeyFile: "/etc/ssl/key.pem", CertFile: "/etc/ssl/cert.pem"}},
			HTTPSKeypairsReloadInterval: 36 * time.Hour,
		},
		SSH: config.SSHConfig{
			Enabled: true, ListenAddr: "0.0.0.0:5022", PublicAddrs: []string{"node.example.com:5022"},
			Labels: map[string]string{"env": "prod", "count": "10", "ratio": "1.10", "beta": "yes", "note": ""},
			Commands: []config.Command{
				{Name: "hostname", Command: []string{"hostname"}, Period: time.Minute},
				{Name: "arch", Command: []string{"uname", "-p"}, Period: time.Minute},
			},
			X11: config.X11Config{Enabled: true, DisplayOffset: 20, MaxDisplay: 30},
			PAM: config.PAMConfig{
				Enabled: true, ServiceName: "teleport", UseAuth: true,
				Environment: map[string]string{"EMAIL": "{{external.email}}", "LOGINS": "may be {{internal.logins}}", "SITE": "12"},
			},
		},
		App: everyApp(),
		DB:  everyDatabase(),
	}
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(config.Config{}), protocmp.Transform()); d != "" {
		t.Errorf("config (-want +got):\n%s", d)
	}
	if got.DatabaseFile() != "/srv/db/sqlite.db" || got.LocalSocket() != "/var/lib/teleport-1/auth.sock" || got.File() != "testdata/valid/everything.yaml" {
		t.Errorf("DatabaseFile %q, LocalSocket %q, File %q", got.DatabaseFile(), got.LocalSocket(), got.File())
	}
}

func TestRealProductFileThatAsksForNothingMore(t *testing.T) {
	got, err := config.Load("testdata/valid/real_product.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got.Auth.Enabled || got.Proxy.Enabled || !got.SSH.Enabled {
		t.Errorf("enabled: auth %v proxy %v ssh %v", got.Auth.Enabled, got.Proxy.Enabled, got.SSH.Enabled)
	}
	if got.ProxyServer != "teleport.example.com:3080" || got.Join.TokenName != "abc" || len(got.CAPins) != 0 || got.DiagAddr != "" {
		t.Errorf("proxy_server %q, pins %v, diag %q", got.ProxyServer, got.CAPins, got.DiagAddr)
	}
}

func TestDefaults(t *testing.T) {
	for name, cfg := range map[string]*config.Config{"no_file": config.Default(), "empty_file": parse(t, ""), "only_a_comment": parse(t, "# nothing\n")} {
		t.Run(name, func(t *testing.T) {
			if !cfg.Auth.Enabled || !cfg.Proxy.Enabled || !cfg.SSH.Enabled {
				t.Errorf("enabled: auth %v proxy %v ssh %v", cfg.Auth.Enabled, cfg.Proxy.Enabled, cfg.SSH.Enabled)
			}
			if cfg.Nodename == "" || cfg.DataDir != "/var/lib/teleport" || cfg.DatabaseFile() != "/var/lib/teleport/backend/sqlite.db" {
				t.Errorf("nodename %q, data dir %q", cfg.Nodename, cfg.DataDir)
			}
			if cfg.Auth.ListenAddr != "0.0.0.0:3025" || cfg.Proxy.WebListenAddr != "0.0.0.0:3080" || cfg.SSH.ListenAddr != "0.0.0.0:3022" {
				t.Errorf("addresses %q %q %q", cfg.Auth.ListenAddr, cfg.Proxy.WebListenAddr, cfg.SSH.ListenAddr)
			}
			if err := cfg.Check(); err != nil {
				t.Errorf("Check = %v", err)
			}
		})
	}
	if v := config.Default().Version; v != config.V3 {
		t.Errorf("version without a file = %q", v)
	}
	if v := parse(t, "").Version; v != config.V1 {
		t.Errorf("version of a file without one = %q", v)
	}
}

func TestBooleans(t *testing.T) {
	for text, want := range map[string]bool{
		"yes": true, "y": true, "N": false, "Yes": true, "YES": true, `"yes"`: true, "'On'": true, "on": true, "true": true, "True": true, `"TRUE"`: true,
		"no": false, "No": false, `"no"`: false, "off": false, "OFF": false, "false": false, "'False'": false,
	} {
		cfg := parse(t, "version: v3\nssh_service:\n  enabled: "+text+"\n")
		if cfg.SSH.Enabled != want {
			t.Errorf("enabled: %s is read as %v", text, cfg.SSH.Enabled)
		}
	}
	for _, text := range []string{"ye", "1", "nope", `""`, "~", "[yes]"} {
		if _, err := config.Parse("t", []byte("version: v3\nssh_service:\n  enabled: "+text+"\n")); err == nil {
			t.Errorf("enabled: %s is accepted", text)
		}
	}
}

func TestVersions(t *testing.T) {
	cfg, err := config.Load("testdata/valid/v1_agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.AuthServer != "teleport.example.com:443" || cfg.ProxyServer != "" {
		t.Errorf("auth_servers became %q, %q", cfg.AuthServer, cfg.ProxyServer)
	}
	for _, v := range []string{"", "version: v1\n", "version: v2\n"} {
		cfg := parse(t, v+"auth_service: {enabled: no}\n")
		if cfg.AuthServer != "127.0.0.1:3025" {
			t.Errorf("%q without an address: auth server %q", v, cfg.AuthServer)
		}
		cfg = parse(t, v+"teleport: {auth_servers: auth.example.com}\nauth_service: {enabled: no}\n")
		if cfg.AuthServer != "auth.example.com:3025" {
			t.Errorf("%q with one address as a string: auth server %q", v, cfg.AuthServer)
		}
	}
}

func TestAnchors(t *testing.T) {
	cfg, err := config.Load("testdata/valid/anchors.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Auth.ClusterName != "teleport.example.com" || cfg.Auth.PublicAddrs[0] != "teleport.example.com:3025" || cfg.SSH.Labels["env"] != "prod" {
		t.Errorf("config = %+v", cfg)
	}
}

func TestByteOrderMarkAndCarriageReturns(t *testing.T) {
	cfg := parse(t, "\ufeffversion: v3\r\nssh_service:\r\n  enabled: no\r\n")
	if cfg.Version != "v3" || cfg.SSH.Enabled {
		t.Errorf("version %q, ssh %v", cfg.Version, cfg.SSH.Enabled)
	}
}

func TestPublicAddrTakesPortOfListener(t *testing.T) {
	cfg := parse(t, "proxy_service: {public_addr: a.example.com, web_listen_addr: '0.0.0.0:443'}\nssh_service: {public_addr: [b, 'c:1'], listen_addr: '127.0.0.1:0'}")
	if d := cmp.Diff([]string{"a.example.com:443"}, cfg.Proxy.PublicAddrs); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"b:3022", "c:1"}, cfg.SSH.PublicAddrs); d != "" {
		t.Error(d)
	}
}

func TestEdits(t *testing.T) {
	agent := "version: v3\nauth_service: {enabled: no}\nproxy_service: {enabled: no}\n"
	if _, err := config.Parse("t.yaml", []byte(agent)); err == nil {
		t.Error("an agent without an address is accepted")
	}
	cfg, err := config.Parse("t.yaml", []byte(agent), func(c *config.Config) error { c.AuthServer = "auth.example.com"; return nil })
	if err != nil {
		t.Fatalf("the address came from a flag: %v", err)
	}
	if cfg.AuthServer != "auth.example.com:3025" {
		t.Errorf("auth server = %q", cfg.AuthServer)
	}
	_, err = config.Parse("t.yaml", []byte(agent), func(c *config.Config) error {
		c.AuthServer, c.DataDir, c.DiagAddr, c.Nodename, c.AdvertiseIP, c.PIDFile = "https://x", "rel", "9", "a b", "::", "x.pid"
		return nil
	})
	for _, key := range []string{"teleport.auth_server", "teleport.data_dir", "teleport.diag_addr", "teleport.nodename", "teleport.advertise_ip", "teleport.pid_file"} {
		if err == nil || !strings.Contains(err.Error(), key+": bad") {
			t.Errorf("a bad flag for %s is not reported: %v", key, err)
		}
	}
	failed := errors.New("no")
	if _, err := config.Parse("t.yaml", nil, func(*config.Config) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error of an edit = %v", err)
	}
}

func TestLoadFailures(t *testing.T) {
	_, err := config.Load(filepath.Join(t.TempDir(), "none.yaml"))
	if !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := config.Load(t.TempDir()); err == nil {
		t.Error("a directory is accepted")
	}
}

func TestHostileFiles(t *testing.T) {
	deep := func(open string, n int) string { return "teleport: " + strings.Repeat(open, n) }
	tests := map[string]string{
		"too_large":        strings.Repeat("# comment\n", 30000),
		"many_words":       "x: [" + strings.Repeat("1,", 30000) + "1]",
		"deep_flow_list":   deep("[", 100000),
		"deep_flow_map":    deep("{a: ", 50000),
		"deep_block_list":  strings.Repeat("- ", 100000),
		"deep_question":    strings.Repeat("? ", 100000),
		"deep_anchor":      deep("&a ", 80000),
		"deep_tag":         deep("!!a ", 60000),
		"far_right":        "a:\n" + strings.Repeat(" ", 5000) + "b: 1",
		"indent_staircase": staircase(600),
		"alias_bomb":       "version: v3\nssh_service:\n  labels:\n    a: &a x\n" + strings.Repeat("    b: *a\n", 5000),
		"many_labels":      "ssh_service: {labels: {" + manyLabels(3000) + "}}",
		"nul":              "teleport: {nodename: \"a\\0b\"}",
		"not_utf8":         "teleport: {nodename: \xff\xfe}",
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			if _, err := config.Parse("t.yaml", []byte(text)); err == nil {
				t.Error("accepted")
			} else if n := len(err.Error()); n > 20000 {
				t.Errorf("the error has %d bytes", n)
			}
			if d := time.Since(began); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func staircase(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%sa:\n", strings.Repeat(" ", i))
	}
	return b.String()
}

func manyLabels(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d: v, ", i)
	}
	return b.String()
}

func FuzzParse(f *testing.F) {
	for _, dir := range []string{"errors", "valid"} {
		files, err := filepath.Glob("testdata/" + dir + "/*.yaml")
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := config.Parse("t.yaml", data)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("error of kind %v: %v", fault.Kind(err), err)
			}
			return
		}
		if err := cfg.Check(); err != nil {
			t.Errorf("accepted, but a second Check says %v", err)
		}
	})
}

// Displays are numbers of ports, in order.
func TestDisplays(t *testing.T) {
	for text, want := range map[string]config.X11Config{
		"{}": {DisplayOffset: 10, MaxDisplay: 1010}, "{enabled: yes, display_offset: 59000}": {Enabled: true, DisplayOffset: 59000, MaxDisplay: 59535},
	} {
		got, err := config.Parse("t", []byte("version: v3\nssh_service:\n  x11: "+text+"\n"))
		if err != nil || got.SSH.X11 != want {
			t.Errorf("x11: %s = %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"{display_offset: 60000}", "{display_offset: -1}", "{display_offset: ten}", "{display_offset: 20, max_display: 19}"} {
		if _, err := config.Parse("t", []byte("version: v3\nssh_service:\n  x11: "+text+"\n")); err == nil {
			t.Errorf("x11: %s is accepted", text)
		}
	}
}
