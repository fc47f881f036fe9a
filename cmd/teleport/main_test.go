package main

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teleport/internal/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

type result struct {
	code           int
	stdout, stderr string
}

// run executes a command line as the program would.
func run(t *testing.T, configPath string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app{stdout: &out, stderr: &errOut, configPath: configPath}
	code := a.run(t.Context(), args)
	return result{code, out.String(), errOut.String()}
}

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

func TestVersion(t *testing.T) {
	want := "Teleport v0.1.0-dev git:unknown " + runtime.Version() + "\n"
	for _, args := range [][]string{{"version"}, {"--version"}} {
		if r := run(t, "", args...); r.code != 0 || r.stdout != want {
			t.Errorf("teleport %v = %+v, want %q", args, r, want)
		}
	}
	if r := run(t, "", "version", "--raw"); r.code != 0 || r.stdout != "0.1.0-dev\n" {
		t.Errorf("version --raw = %+v", r)
	}
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("version: v3\nnope: 1\nssh_service: {enabled: perhaps}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no_arguments", nil, 0, ""},
		{"help", []string{"--help"}, 0, ""},
		{"unknown_command", []string{"strat"}, 2, `ERROR: unknown command "strat"`},
		{"unknown_flag", []string{"configure", "--rolls=node"}, 2, "ERROR: unknown flag: --rolls"},
		{"unknown_subcommand", []string{"install", "upstart"}, 2, "ERROR: unknown command"},
		{"extra_argument", []string{"version", "now"}, 2, "ERROR: unknown command"},
		{"bad_role", []string{"configure", "--roles=nod"}, 2, `ERROR: --roles: unknown service type "nod"`},
		{"unsupported_role", []string{"configure", "--roles=kube", "--proxy=a:1"}, 2, "ERROR: --roles: kube is not supported yet"},
		{"app_without_role", []string{"configure", "--roles=node", "--proxy=a:1", "--app-name=a", "--app-uri=http://a"}, 2, "add --roles=app"},
		{"app_without_uri", []string{"app", "start", "--name=a", "--auth-server=a:1"}, 2, "both its name and its uri"},
		{"bad_app", []string{"app", "start", "--name=A", "--uri=ftp://a", "--auth-server=a:1"}, 2, `application "A": `},
		{"app_elsewhere", []string{"start", "--roles=node", "--app-name=a", "--app-uri=http://a", "--auth-server=a:1"}, 2, "add --roles=app"},
		{"app_of_cloud", []string{"app", "start", "--cloud=AWS"}, 2, "not supported yet"},
		{"app_without_cluster", []string{"app", "start", "--name=a", "--uri=http://a"}, 2, "teleport.proxy_server"},
		{"db_without_protocol", []string{"db", "start", "--name=a", "--uri=a:1", "--auth-server=a:1"}, 2, "its name, its protocol and its uri"},
		{"bad_db", []string{"db", "start", "--name=a", "--protocol=x", "--uri=a:1", "--auth-server=a:1"}, 2, `unknown protocol "x"`},
		{"db_without_certificates", []string{"db", "start", "--name=a", "--protocol=redis", "--uri=a:1", "--ca-cert=/none.pem", "--auth-server=a:1"}, 2, "cannot read the file"},
		{"db_bad_label", []string{"db", "configure", "create", "--labels=env"}, 2, "--labels:"},
		{"db_discovery", []string{"db", "configure", "create", "--rds-discovery", "us-east-1"}, 2, "not supported yet"},
		{"bad_label", []string{"configure", "--node-labels=env"}, 2, "ERROR: --node-labels:"},
		{"bad_pin", []string{"configure", "--ca-pin=1234"}, 2, "ERROR: --ca-pin: bad pin"},
		{"bad_generated_value", []string{"node", "configure", "--proxy=https://a"}, 2, "teleport.proxy_server: bad address"},
		{"bad_output", []string{"configure", "-o", "fiel"}, 2, `ERROR: bad --output="fiel"`},
		{"bad_output_url", []string{"configure", "-o", "file://etc/x"}, 2, "ERROR: bad --output="},
		{"output_cannot_be_written", []string{"configure", "-o", dir + "/no/such/dir/file"}, 1, "ERROR: write output:"},
		{"test_missing_file", []string{"configure", "--test", dir + "/none.yaml"}, 2, "does not exist"},
		{"test_bad_file", []string{"configure", "--test", bad}, 2, bad + ":2:1: nope: unknown key"},
		{"bad_unit_path", []string{"install", "systemd", "--teleport-path=./teleport"}, 2, "ERROR: bad --teleport-path"},
		{"bad_unit_env", []string{"install", "systemd", "--env-file=/a b"}, 2, "ERROR: bad --env-file"},
		{"bad_fd_limit", []string{"install", "systemd", "--fd-limit=10"}, 2, "ERROR: bad --fd-limit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := run(t, filepath.Join(dir, "teleport.yaml"), tt.args...)
			if r.code != tt.code || !strings.Contains(r.stderr, tt.want) {
				t.Errorf("teleport %v = %+v, want code %d and %q", tt.args, r, tt.code, tt.want)
			}
			if tt.code != 0 && r.stdout != "" {
				t.Errorf("a failed command wrote to stdout: %q", r.stdout)
			}
		})
	}
	r := run(t, "", "configure", "--test", bad)
	if !strings.HasSuffix(r.stderr, "ERROR: 2 problems in the configuration\n") || strings.Count(r.stderr, "\n") != 3 {
		t.Errorf("problems are reported as:\n%s", r.stderr)
	}
}

func TestConfigureToUsualFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "teleport.yaml")
	args := []string{"configure", "--roles=node", "--token=join-token", "--proxy=teleport.example.com:443", "--node-name=host", "-o", "file"}
	r := run(t, path, args...)
	if r.code != 0 || r.stdout != "" || !strings.Contains(r.stderr, path) {
		t.Fatalf("configure = %+v", r)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Join.TokenName != "join-token" || cfg.ProxyServer != "teleport.example.com:443" || !cfg.SSH.Enabled || cfg.Auth.Enabled || cfg.Proxy.Enabled {
		t.Errorf("config = %+v", cfg)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of a file with a token = %v, %v", info.Mode(), err)
	}
	if r := run(t, path, "configure", "--test", path); r.code != 0 || !strings.Contains(r.stdout, "valid") {
		t.Errorf("configure --test = %+v", r)
	}
	if r := run(t, path, args...); r.code != 0 {
		t.Errorf("the same file again = %+v", r)
	}
	r = run(t, path, "configure", "-o", "file")
	if r.code != 1 || !strings.Contains(r.stderr, path+" exists already and was not changed") {
		t.Errorf("over another file = %+v", r)
	}
	if again, err := config.Load(path); err != nil || again.Join.TokenName != "join-token" {
		t.Errorf("the file was changed: %v", err)
	}
}

func TestConfigureOutputs(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, out := range []string{"file://" + dir + "/a.yaml", dir + "/b.yaml", "./c.yaml"} {
		if r := run(t, "", "configure", "-o", out); r.code != 0 || r.stdout != "" {
			t.Errorf("-o %s = %+v", out, r)
		}
	}
	for _, name := range []string{"a.yaml", "b.yaml", "c.yaml"} {
		if _, err := config.Load(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r := run(t, "", "configure", "--output=stdout"); r.code != 0 || !strings.HasPrefix(r.stdout, "version: v3\n") || r.stderr != "" {
		t.Errorf("stdout = %+v", r)
	}
	r := run(t, "", "configure", "--data-dir=./data", "--cert-file=cert.pem", "--key-file=key.pem")
	for _, want := range []string{dir + "/data", dir + "/cert.pem", dir + "/key.pem"} {
		if !strings.Contains(r.stdout, `"`+want+`"`) {
			t.Errorf("relative path did not become %s:\n%s", want, r.stdout)
		}
	}
}

func TestNodeConfigureIsConfigureWithRole(t *testing.T) {
	flags := []string{"--token=/etc/token", "--auth-server=192.0.2.1:3025", "--node-labels=env=prod", "--node-name=host", "--data-dir=/data"}
	long := run(t, "", append([]string{"configure", "--roles=node"}, flags...)...)
	short := run(t, "", append([]string{"node", "configure"}, flags...)...)
	if long.code != 0 || long != short {
		t.Errorf("configure --roles=node = %+v\nnode configure = %+v", long, short)
	}
	if r := run(t, "", "node", "configure", "--proxy=a:1", "--labels=env=prod"); !strings.Contains(r.stdout, `"env": "prod"`) {
		t.Errorf("--labels = %+v", r)
	}
	if !strings.Contains(long.stdout, "\n  ca_pin: \"\"\n") {
		t.Errorf("the line for the pin is missing:\n%s", long.stdout)
	}
}

// What db configure create and configure --roles=app write is what the daemon takes.
func TestConfigureServed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "teleport.yaml")
	load := func(args ...string) *config.Config {
		t.Helper()
		_ = os.Remove(path)
		if r := run(t, path, append(args, "-o", "file")...); r.code != 0 {
			t.Fatalf("teleport %v = %+v", args, r)
		}
		cfg, err := config.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	cfg := load("db", "configure", "create")
	if cfg.ProxyServer != "0.0.0.0:3080" || cfg.Join.TokenName != "/tmp/token" || !cfg.DB.Enabled || cfg.SSH.Enabled || cfg.DB.Matchers[0]["*"] == nil {
		t.Errorf("config = %+v", cfg)
	}
	cfg = load("db", "configure", "create", "--name=sales", "--protocol=Postgres", "--uri=db:5432", "--labels=env=prod,a=b", "--trust-system-cert-pool",
		"--dynamic-resources-labels=env=prod", "--dynamic-resources-labels=env=dev", "--proxy=p:443", "--token=t", "--description=Orders")
	db := cfg.DB.Databases[0]
	if db.GetMetadata().GetLabels()["a"] != "b" || db.GetSpec().GetProtocol() != "postgres" || !db.GetSpec().GetTls().GetTrustSystemCertPool() || len(cfg.DB.Matchers) != 2 {
		t.Errorf("config = %+v", cfg.DB)
	}
	r := run(t, "", "db", "configure", "create", "--name=sales", "--protocol=mysql", "--uri=db:1", "--ca-cert-file=/not/here.pem")
	if r.code != 0 || !strings.Contains(r.stdout, `ca_cert_file: "/not/here.pem"`) {
		t.Errorf("a file of another machine = %+v", r)
	}
	cfg = load("configure", "--roles=app,db", "--app-name=grafana", "--app-uri=http://localhost:3000", "--proxy=p:443", "--token=t")
	if !cfg.App.Enabled || !cfg.DB.Enabled || cfg.App.Apps[0].GetSpec().GetUri() != "http://localhost:3000" {
		t.Errorf("config = %+v", cfg.App)
	}
}

// What is given by flags comes to what the file has.
func TestStartServed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "teleport.yaml")
	text := "version: v3\nteleport: {proxy_server: \"p:443\"}\nauth_service: {enabled: no}\nproxy_service: {enabled: no}\n" +
		"app_service: {enabled: no, apps: [{name: one, uri: http://one}]}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o := startOptions{configFile: path, roles: "app"}
	o.app, o.appLabels = config.AppParams{Name: "two", URI: "http://two", PublicAddr: "two.example.com"}, "env=prod"
	cfg, err := o.load()
	if err != nil {
		t.Fatal(err)
	}
	if !cfg.App.Enabled || cfg.SSH.Enabled || len(cfg.App.Apps) != 2 || cfg.App.Apps[1].GetMetadata().GetLabels()["env"] != "prod" {
		t.Errorf("config = %+v", cfg)
	}
	o.app.Name = "one"
	if _, err := o.load(); err == nil || !strings.Contains(err.Error(), `has an application "one" already`) {
		t.Errorf("an application of the file again = %v", err)
	}
	o = startOptions{configFile: path, roles: "db"}
	o.db = config.DatabaseParams{Name: "sales", Protocol: "postgres", URI: "db:5432"}
	if cfg, err = o.load(); err != nil || !cfg.DB.Enabled || cfg.App.Enabled || len(cfg.DB.Databases) != 1 {
		t.Errorf("config = %+v, %v", cfg, err)
	}
}

// The guide's own command must work on the file.
func TestPinBySed(t *testing.T) {
	sed, err := exec.LookPath("sed")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "teleport.yaml")
	if r := run(t, path, "configure", "--roles=node", "--token=t", "--auth-server=a:3025", "-o", "file"); r.code != 0 {
		t.Fatalf("configure = %+v", r)
	}
	pin := "sha256:" + strings.Repeat("ab", 32)
	if out, err := exec.Command(sed, "-i", `s| ca_pin: ""| ca_pin: "`+pin+`"|`, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cfg, err := config.Load(path)
	if err != nil || len(cfg.CAPins) != 1 || cfg.CAPins[0] != pin {
		t.Errorf("pins = %v, %v", cfg, err)
	}
}

func TestInstallSystemd(t *testing.T) {
	r := run(t, "", "install", "systemd", "--teleport-path=/usr/local/bin/teleport")
	if r.code != 0 {
		t.Fatalf("install systemd = %+v", r)
	}
	golden(t, "testdata/teleport.service.golden", r.stdout)
	dir := t.TempDir()
	for _, out := range []string{filepath.Join(dir, "a.service"), "file://" + filepath.Join(dir, "b.service")} {
		if r := run(t, "", "install", "systemd", "-o", out, "--env-file=/etc/sysconfig/teleport", "--fd-limit=65536", "--pid-file=/run/t.pid"); r.code != 0 {
			t.Fatalf("-o %s = %+v", out, r)
		}
		data, err := os.ReadFile(strings.TrimPrefix(out, "file://"))
		if err != nil {
			t.Fatal(err)
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"EnvironmentFile=-/etc/sysconfig/teleport\n", "LimitNOFILE=65536\n", "--pid-file=/run/t.pid\n", "ExecStart=" + self + " start --config=/etc/teleport.yaml"} {
			if !strings.Contains(string(data), want) {
				t.Errorf("%s lacks %q:\n%s", out, want, data)
			}
		}
	}
	if r := run(t, "", "install", "systemd", "-o", filepath.Join(dir, "a.service")); r.code != 1 || !strings.Contains(r.stderr, "exists already") {
		t.Errorf("over another unit = %+v", r)
	}
}
