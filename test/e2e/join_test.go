package e2e

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	room "teleport/test/cluster"
	"teleport/test/netns"
	"teleport/test/swtpm"
)

// TestJoin is about every way to join, with the built programs. It runs in a network
// where all clouds are, each at its own addresses, and one machine that is in all of
// them: first the scripts of testdata/join, which follow the guides of docs/how-to
// word for word, then what somebody between the machine and Auth could try.
func TestJoin(t *testing.T) {
	t.Setenv("TELEPORT_BIN", binaries)
	netns.Run(t, network(), func(t *testing.T) {
		c := newClouds(t)
		t.Setenv("SSL_CERT_FILE", c.roots)
		h := startHub(t, c)
		t.Run("scripts", func(t *testing.T) { testscript.Run(t, joinScripts(c, h)) })
		t.Run("attacks", func(t *testing.T) { attacks(t, c, h) })
	})
}

// hub is the cluster that is joined: one process with Auth and Proxy, at the address
// of the guides.
type hub struct {
	*room.Cluster
	// config is what tctl reads.
	config, pin string
}

func startHub(t *testing.T, c *clouds) *hub {
	t.Helper()
	cl, err := room.New(room.Config{Bin: binaries, Name: clusterName, User: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	cl.ProxyAddr = proxyAddr
	// The Auth Service has what nobody else has.
	started := t.Run("start", func(t *testing.T) {
		for name, value := range c.authEnv {
			t.Setenv(name, value)
		}
		if _, err := cl.Launch(t.Context(), room.Services{Name: "hub", Auth: true, Proxy: true}); err != nil {
			t.Fatal(err)
		}
	})
	if !started {
		t.FailNow()
	}
	// An invitation has the address of a Proxy in it.
	for out := ""; !strings.Contains(out, proxyAddr); time.Sleep(20 * time.Millisecond) {
		if out, err = cl.Tctl(t.Context(), "get", "proxies"); err != nil {
			t.Fatal(err)
		}
	}
	if err := cl.Invite(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Who comes this way has another address.
	relay(t, otherIP+":3025", cl.AuthAddr)
	invitation, err := cl.Token(t.Context(), "node", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return &hub{Cluster: cl, config: cl.Path("hub.yaml"), pin: invitation.Pin}
}

func joinScripts(c *clouds, h *hub) testscript.Params {
	p := scripts("testdata/join")
	p.Setup = func(env *testscript.Env) error {
		if err := setup(env); err != nil {
			return err
		}
		for name, value := range map[string]string{
			"HUB": h.config, "PIN": h.pin, "PROXY": proxyAddr, "AUTH_ADDR": h.AuthAddr, "OTHER": otherIP, "SSL_CERT_FILE": c.roots, "TELEPORT_HOME": h.Home(),
			"JOB_SECRET": jobSecret, "GITHUB_URL": githubRequest, "AZURE_DEVOPS_URL": azureDevopsRequest,
		} {
			env.Setenv(name, value)
		}
		return nil
	}
	p.Cmds["guide"] = guide
	p.Cmds["joins"] = joins
	p.Cmds["denied"] = denied
	p.Cmds["give"] = give
	p.Cmds["healthy"] = healthy
	p.Cmds["mint"] = c.mint
	p.Cmds["issuer"] = c.issuer
	p.Cmds["machine"] = c.machine
	p.Cmds["tpm"] = func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Setenv(args[0], swtpm.Start(c.t, "--create-ek-cert").Device)
	}
	return p
}

// guide GUIDE HEADING FILE [OLD NEW]... writes the first block of YAML below a heading
// of a guide in docs/how-to to a file, with what everybody has to replace replaced.
func guide(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || len(args)%2 == 0 {
		ts.Fatalf("usage: guide GUIDE HEADING FILE [OLD NEW]...")
	}
	text, err := os.ReadFile(filepath.Join(guides, args[0]+".md"))
	ts.Check(err)
	_, section, found := strings.Cut(string(text), "# "+args[1]+"\n")
	_, block, fenced := strings.Cut(section, "```yaml\n")
	block, _, closed := strings.Cut(block, "```\n")
	if !found || !fenced || !closed {
		ts.Fatalf("docs/how-to/%s.md has no block of YAML below %q", args[0], args[1])
	}
	for pair := range slices.Chunk(args[3:], 2) {
		if !strings.Contains(block, pair[0]) {
			ts.Fatalf("docs/how-to/%s.md, %s: no %q in:\n%s", args[0], args[1], pair[0], block)
		}
		block = strings.ReplaceAll(block, pair[0], pair[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(block), 0o600))
}

// guides is where they are.
var guides = func() string {
	dir, err := filepath.Abs("../../docs/how-to")
	if err != nil {
		return ""
	}
	return dir
}()

// asMachine are the flags by which several machines of a script share teleport.yaml.
func asMachine(ts *testscript.TestScript, node, config string) []string {
	return []string{"-c", config, "--data-dir=" + ts.MkAbs(node), "--nodename=" + node}
}

// joins NODE TOKEN [ATTRIBUTE=VALUE]... starts a machine with teleport.yaml and expects
// that it gets in by the token: a rehearsal says so, with and without the method in the
// configuration; tctl and tsh list it; the token shows it; and the audit log has it,
// with these attributes. The machine runs on.
func joins(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: joins NODE TOKEN [ATTRIBUTE=VALUE]...")
	}
	node, token := args[0], args[1]
	plain := regexp.MustCompile(`(?m)^ +method: .*\n`).ReplaceAllString(ts.ReadFile("teleport.yaml"), "")
	ts.Check(os.WriteFile(ts.MkAbs("unnamed.yaml"), []byte(plain), 0o600))
	for _, config := range []string{"teleport.yaml", "unnamed.yaml"} {
		ts.Check(ts.Exec("teleport", append([]string{"join", "--dry-run"}, asMachine(ts, node, config)...)...))
		if out := ts.ReadFile("stdout"); !strings.HasSuffix(out, "\nThis machine would be admitted.\n") || strings.Contains(out, "FAILED") {
			ts.Fatalf("the rehearsal with %s says:\n%s", config, out)
		}
	}
	start(ts, false, append([]string{node, "teleport", "start"}, asMachine(ts, node, "unnamed.yaml")...))
	within(ts, false, []string{"10s", "sh", "-c", "tsh ls --format=names | grep -qx " + node + " && tctl -c $HUB nodes ls | grep -q '^" + node + " '"})
	ts.Check(ts.Exec("tctl", "-c", ts.Getenv("HUB"), "tokens", "show", token))
	if !regexp.MustCompile(`(?m)^` + node + ` +\S+ +\S`).MatchString(ts.ReadFile("stdout")) {
		ts.Fatalf("the token does not show that %s used it:\n%s", node, ts.ReadFile("stdout"))
	}
	e := joinEvent(ts, "node_name", node)
	if e["success"] != true || e["token_name"] != token {
		ts.Fatalf("the event of the join is %v", e)
	}
	proved(ts, e, args[2:])
}

// denied NODE CODE [FILE [ATTRIBUTE=VALUE]...] makes the token of the file, if one is
// given, and expects that a machine with teleport.yaml is refused with the reason: by a
// rehearsal, on its standard error, and in the audit log with these attributes.
func denied(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: denied NODE CODE [FILE [ATTRIBUTE=VALUE]...]")
	}
	node, code := args[0], args[1]
	if len(args) > 2 {
		ts.Check(ts.Exec("tctl", "-c", ts.Getenv("HUB"), "create", "-f", args[2]))
	}
	var exit *exec.ExitError
	err := ts.Exec("teleport", append([]string{"join", "--dry-run"}, asMachine(ts, node, "teleport.yaml")...)...)
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(ts.ReadFile("stderr"), "["+code+"]") {
		ts.Fatalf("the rehearsal ended with %v\n%s%s", err, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
	start(ts, true, append([]string{node, "teleport", "start"}, asMachine(ts, node, "teleport.yaml")...))
	refused(ts, false, []string{node, "3", code, "."})
	e := joinEvent(ts, "hostname", node)
	if e["success"] != false || e["reason"] != code {
		ts.Fatalf("the event of the refusal is %v", e)
	}
	if len(args) > 3 {
		proved(ts, e, args[3:])
	}
}

// joinEvent returns the latest join of a machine that was no rehearsal.
func joinEvent(ts *testscript.TestScript, field, node string) map[string]any {
	cmd := exec.Command(filepath.Join(binaries, "tctl"), "-c", ts.Getenv("HUB"), "audit", "ls", "--type=instance.join", "--format=json", "--limit=200")
	cmd.Env = environ(ts)
	out, err := cmd.Output()
	ts.Check(err)
	var events []map[string]any
	ts.Check(json.Unmarshal(out, &events))
	for _, e := range events {
		if e[field] == node && e["dry_run"] == nil {
			return e
		}
	}
	ts.Fatalf("no event of %s among %d", node, len(events))
	return nil
}

// proved checks the attributes of an event.
func proved(ts *testscript.TestScript, event map[string]any, wanted []string) {
	attributes, _ := event["attributes"].(map[string]any)
	for _, w := range wanted {
		name, value, _ := strings.Cut(w, "=")
		if values, _ := attributes[name].([]any); !slices.Contains(values, any(value)) {
			ts.Fatalf("the event has %s %v, want %q: %v", name, attributes[name], value, event)
		}
	}
}

// give NAME... puts variables of the script into the environment of its daemons too.
func give(ts *testscript.TestScript, _ bool, args []string) {
	own(ts).given = append(own(ts).given, args...)
}

// healthy ADDRESS waits until a process says at its diag_addr that all is well.
func healthy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: healthy ADDRESS")
	}
	status := ""
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		resp, err := http.Get("http://" + args[0] + "/readyz")
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if status = resp.Status; resp.StatusCode == http.StatusOK {
			return
		}
	}
	ts.Fatalf("%s is not well after a minute: %s", args[0], status)
}

// mint PLATFORM FILE|-VAR [CLAIM VALUE]... writes a token of a platform to a file or a
// variable. Values are JSON; null leaves a claim out.
func (c *clouds) mint(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args)%2 != 0 {
		ts.Fatalf("usage: mint PLATFORM FILE|-VAR [CLAIM VALUE]...")
	}
	claims := map[string]any{}
	for pair := range slices.Chunk(args[2:], 2) {
		var v any
		ts.Check(json.Unmarshal([]byte(pair[1]), &v))
		claims[pair[0]] = v
	}
	token := c.Mint(args[0], claims)
	if name, ok := strings.CutPrefix(args[1], "-"); ok {
		ts.Setenv(name, token)
		return
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(token+"\n"), 0o600))
}

// issuer PLATFORM up|down|keys FILE lets an issuer answer, or not, or writes its keys.
func (c *clouds) issuer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: issuer PLATFORM up|down|keys FILE")
	}
	i := c.issuers[args[0]]
	if i == nil {
		ts.Fatalf("no issuer of %q", args[0])
	}
	if args[1] == "keys" {
		ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(i.JWKS()), 0o600))
		return
	}
	i.SetDown(args[1] == "down")
}

// machine ec2|oracle makes the machine another instance of the cloud; the id of an
// instance of EC2 is in $INSTANCE.
func (c *clouds) machine(ts *testscript.TestScript, neg bool, args []string) {
	switch {
	case !neg && len(args) == 1 && args[0] == "ec2":
		ts.Setenv("INSTANCE", c.NewEC2())
	case !neg && len(args) == 1 && args[0] == "oracle":
		c.NewOracle()
	default:
		ts.Fatalf("usage: machine ec2|oracle")
	}
}
