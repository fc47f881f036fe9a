package ssh_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/keys"
	"teleport/internal/mux"
	"teleport/internal/service/ssh"
	"teleport/internal/types"
)

func TestRefusals(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	bob := w.person(t, "bob", []string{w.login}, []string{"nobody"}, nil)
	carol := w.person(t, "carol", []string{w.login}, []string{"unknown-role"}, nil)
	mallory := w.person(t, "mallory", []string{"daemon"}, []string{"dev"}, nil)
	old := w.person(t, "old", []string{w.login}, []string{"dev"}, func(r *ca.UserRequest) { r.TTL = time.Second })
	away := w.person(t, "away", []string{w.login}, []string{"dev"}, func(r *ca.UserRequest) {
		r.Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	})
	for time.Now().Unix() < int64(old.cert.ValidBefore) {
		<-time.After(50 * time.Millisecond)
	}
	denied := fmt.Sprintf("access denied to %s connecting to %s", w.login, node)
	tests := []struct {
		name         string
		who          *person
		login        string
		text         string
		code         int
		event        string
		field, value string
	}{
		{"role_without_login", bob, w.login, denied, 255, "T3007W", "user", "bob"},
		{"role_not_known", carol, w.login, denied, 255, "T3007W", "user", "carol"},
		{"login_not_in_certificate", mallory, w.login, denied, 255, "T3007W", "user", "mallory"},
		{"expired", old, w.login, "your certificate has expired", 255, "", "", ""},
		{"wrong_source", away, w.login, "Permission denied", 255, "", "", ""},
		{"no_such_local_user", alice, "no-such-user", "there is no user \"no-such-user\" on this host", 254, "T1006W", "user", "alice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.events.reset()
			got := runCmd(t, tt.who.ssh(tt.login, "echo in"))
			if got.code != tt.code || got.out != "" || !strings.Contains(got.err, tt.text) {
				t.Errorf("ssh = %+v, want exit %d and %q", got, tt.code, tt.text)
			}
			if tt.event == "" {
				return
			}
			e := w.events.wait(t, tt.event, nil)
			if field(e, tt.field) != tt.value || field(e, "success") != false || field(e, "reason") == "" {
				t.Errorf("event = %v, want %s=%s, a reason, no success", e, tt.field, tt.value)
			}
			if !strings.Contains(got.err, e.GetUid()) {
				t.Errorf("the user was not told the event %s: %q", e.GetUid(), got.err)
			}
		})
	}
}

// A key that is only offered is no proof: the client must be told nothing and the
// audit log must not name its owner.
func TestOfferIsNoProof(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	thief := must(gossh.NewSignerFromSigner(must(keys.Generate(keys.Ed25519))))
	stolen := certOf{alice.cert, thief}
	_, err := gossh.Dial("tcp", w.addr, &gossh.ClientConfig{
		User: w.login, Auth: []gossh.AuthMethod{gossh.PublicKeys(stolen)}, HostKeyCallback: gossh.InsecureIgnoreHostKey(),
	})
	if err == nil {
		t.Error("logged in with somebody's certificate and another key")
	}
	w.events.mu.Lock()
	defer w.events.mu.Unlock()
	if len(w.events.all) != 0 {
		t.Errorf("events of an unproved identity: %v", w.events.all)
	}
}

// certOf signs with a key that is not the certificate's.
type certOf struct {
	cert *gossh.Certificate
	gossh.Signer
}

func (c certOf) PublicKey() gossh.PublicKey { return c.cert }

func TestForeignCertificates(t *testing.T) {
	w, other := start(t, nil), start(t, nil)
	foreign := other.alice(t)
	foreign.w = w
	plain := must(gossh.NewSignerFromSigner(must(keys.Generate(keys.Ed25519))))
	for name, key := range map[string]gossh.Signer{
		"other_cluster": foreign.key, "plain_key": plain, "host_certificate": w.holder.SSHSigner(types.RoleNode),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := gossh.Dial("tcp", w.addr, &gossh.ClientConfig{
				User: w.login, Auth: []gossh.AuthMethod{gossh.PublicKeys(key)}, HostKeyCallback: gossh.InsecureIgnoreHostKey(),
			})
			if err == nil {
				t.Error("it was let in")
			}
		})
	}
	for _, method := range []gossh.AuthMethod{gossh.Password("x"), gossh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return nil, nil })} {
		if _, err := gossh.Dial("tcp", w.addr, &gossh.ClientConfig{User: w.login, Auth: []gossh.AuthMethod{method}, HostKeyCallback: gossh.InsecureIgnoreHostKey()}); err == nil {
			t.Errorf("let in by %T", method)
		}
	}
}

// Roles that change while a connection is up count for its next session.
func TestRolesAreAskedForEachSession(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	c := alice.dial(t, w.login)
	if out, err := session(t, c).Output("echo one"); err != nil || string(out) != "one\n" {
		t.Fatalf("first session = %q, %v", out, err)
	}
	w.setRole(role("dev"))
	out, err := session(t, c).CombinedOutput("echo two")
	if err == nil || !strings.Contains(string(out), "access denied") {
		t.Errorf("session after the role was changed = %q, %v, want it denied", out, err)
	}
	w.events.wait(t, "T1006W", nil)
}

func session(t testing.TB, c *gossh.Client) *gossh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// The Proxy says who the client is, and only the Proxy.
func TestClientAddress(t *testing.T) {
	w := start(t, nil)
	away := w.person(t, "away", []string{w.login}, []string{"dev"}, func(r *ca.UserRequest) {
		r.Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	})
	for _, tt := range []struct {
		addr string
		in   bool
	}{{"192.0.2.7:4711", true}, {"198.51.100.1:4711", false}, {"nonsense", false}} {
		client, server := tcpPair(t)
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan struct{})
		go func() {
			defer close(served)
			w.svc.HandleConn(ctx, server, tt.addr)
		}()
		conn, chans, reqs, err := gossh.NewClientConn(client, "node", &gossh.ClientConfig{
			User: w.login, Auth: []gossh.AuthMethod{gossh.PublicKeys(away.key)}, HostKeyCallback: gossh.InsecureIgnoreHostKey(),
		})
		if (err == nil) != tt.in {
			t.Errorf("login from %s through a tunnel: %v, want success %t", tt.addr, err, tt.in)
		}
		if err == nil {
			out, err := session(t, gossh.NewClient(conn, chans, reqs)).Output("echo $SSH_CLIENT")
			if err != nil || !strings.HasPrefix(string(out), "192.0.2.7 4711 ") {
				t.Errorf("SSH_CLIENT = %q, %v, want 192.0.2.7 4711", out, err)
			}
			e := w.events.wait(t, "T2000I", nil)
			if field(e, "addr.remote") != tt.addr {
				t.Errorf("addr.remote = %v, want %s", field(e, "addr.remote"), tt.addr)
			}
		}
		cancel()
		<-served
	}
}

// A direct connection of the Proxy begins with who the client is.
func TestRelayedClientAddress(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	for service, want := range map[types.SystemRole]string{types.RoleProxy: "192.0.2.9 4712 ", types.RoleNode: ""} {
		nc := must(net.Dial("tcp", w.addr))
		if err := mux.WriteRelayed(nc, "192.0.2.9:4712", mux.PurposeNode, w.holder.Certificate(service), time.Now()); err != nil {
			t.Fatal(err)
		}
		conn, chans, reqs, err := gossh.NewClientConn(nc, w.addr, &gossh.ClientConfig{
			User: w.login, Auth: []gossh.AuthMethod{gossh.PublicKeys(alice.key)}, HostKeyCallback: gossh.InsecureIgnoreHostKey(),
		})
		if want == "" {
			if err == nil {
				t.Errorf("a %s announced a client's address and was believed", service)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		out, err := session(t, gossh.NewClient(conn, chans, reqs)).Output("echo $SSH_CLIENT")
		if err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("SSH_CLIENT = %q, %v, want %q", out, err, want)
		}
		_ = conn.Close()
	}
}

func tcpPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	defer func() { _ = ln.Close() }()
	client = must(net.Dial("tcp", ln.Addr().String()))
	server = must(ln.Accept())
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return client, server
}

func TestEnvironment(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	t.Setenv("LC_TEST", "fine")
	t.Setenv("LANG", "C.UTF-8")
	t.Setenv("BASH_ENV", "/tmp/evil")
	t.Setenv("LD_PRELOAD_X", "evil")
	t.Setenv("DAEMON_SECRET", "hidden")
	cmd := alice.ssh(w.login, "-o", "SendEnv=LC_TEST LANG BASH_ENV LD_PRELOAD_X", "env; echo HOME=$HOME PWD=$PWD")
	// Options have to come before the host.
	cmd.Args = append([]string{cmd.Args[0], "-o", "SendEnv=LC_TEST LANG BASH_ENV LD_PRELOAD_X"}, alice.ssh(w.login, "env").Args[1:]...)
	out := ok(t, cmd)
	env := map[string]string{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[k] = v
	}
	want := map[string]string{
		"LC_TEST": "fine", "LANG": "C.UTF-8", "USER": w.login, "LOGNAME": w.login, "SSH_TELEPORT_USER": "alice", "SSH_TELEPORT_HOST_UUID": hostID,
		"SSH_TELEPORT_CLUSTER_NAME": cluster,
	}
	for k, v := range want {
		if env[k] != v {
			t.Errorf("%s = %q, want %q", k, env[k], v)
		}
	}
	for _, k := range []string{"BASH_ENV", "LD_PRELOAD_X", "DAEMON_SECRET", "SSH_TTY", "TERM"} {
		if v, set := env[k]; set && v != "dumb" {
			t.Errorf("%s = %q, want it unset", k, v)
		}
	}
	for _, k := range []string{"SSH_CONNECTION", "SSH_CLIENT", "SSH_SESSION_ID", "PATH", "SHELL", "HOME"} {
		if env[k] == "" {
			t.Errorf("%s is not set", k)
		}
	}
	if root && (env["HOME"] != "/home/"+testUser || env["PWD"] != env["HOME"]) {
		t.Errorf("HOME = %q, PWD = %q", env["HOME"], env["PWD"])
	}
}

func TestLabels(t *testing.T) {
	minute := time.Minute
	w := start(t, func(c *ssh.Config) {
		c.Commands = []ssh.Command{
			{Name: "arch", Command: []string{"sh", "-c", "printf '  two\\nlines  '; head -c 100000 /dev/zero | tr '\\0' x"}, Period: minute},
			{Name: "broken", Command: []string{"/no/such/program"}, Period: minute},
			{Name: "fails", Command: []string{"sh", "-c", "exit 3"}, Period: minute},
		}
		c.AdvertiseAddr = "node-1.example.com:3022"
	})
	n := <-w.nodes
	if n.GetKind() != types.KindNode || n.GetMetadata().GetName() != hostID || n.GetSpec().GetHostname() != node || n.GetSpec().GetAddr() != "node-1.example.com:3022" {
		t.Errorf("announced %v", n)
	}
	labels := types.ServerLabels(n)
	if labels["env"] != "test" || !strings.HasPrefix(labels["arch"], "two lines") || len(labels["arch"]) > 1024 {
		t.Errorf("labels = %.200v", labels)
	}
	if !strings.HasPrefix(labels["broken"], "error: ") || labels["fails"] != "error: exit status 3" {
		t.Errorf("labels of failed commands = %q, %q", labels["broken"], labels["fails"])
	}
	for _, bad := range []ssh.Command{{Name: "x", Command: []string{"true"}, Period: time.Second}, {Name: "", Command: []string{"true"}, Period: minute}, {Name: "env", Command: []string{"true"}, Period: minute}} {
		_, err := ssh.New(ssh.Config{
			Holder: w.holder, Cache: w.cache, Emit: w.events.emit, Hostname: node, Labels: map[string]string{"env": "test"},
			Announce: func(*typesv1.Server) {}, Log: discardLog(), Commands: []ssh.Command{bad},
		})
		if err == nil {
			t.Errorf("New accepted the command label %+v", bad)
		}
	}
}

func TestCredentials(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	if !root {
		got := runCmd(t, alice.ssh("root", "id"))
		if got.code != 254 || !strings.Contains(got.err, "can only log in its own user") {
			t.Errorf("login as root without being root = %+v", got)
		}
		return
	}
	status := ok(t, alice.ssh(w.login, "grep -E '^(Uid|Gid|Groups|CapEff|CapPrm):' /proc/self/status | tr '\\t' ' '"))
	ids := must(exec.Command("id", "-u", testUser).Output())
	uid := strings.TrimSpace(string(ids))
	groups := strings.TrimSpace(string(must(exec.Command("id", "-G", testUser).Output())))
	for _, want := range []string{
		fmt.Sprintf("Uid: %s %s %s %s\n", uid, uid, uid, uid), "CapEff: 0000000000000000\n", "CapPrm: 0000000000000000\n",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("status of a session = %q, want %q", status, want)
		}
	}
	if got := strings.TrimSpace(ok(t, alice.ssh(w.login, "id -G"))); got != groups {
		t.Errorf("groups = %q, want %q", got, groups)
	}
	if got := ok(t, alice.ssh("root", "id -u")); got != "0\n" {
		t.Errorf("root is %q", got)
	}
}

func TestClosedAccounts(t *testing.T) {
	if !root {
		return
	}
	w := start(t, nil)
	alice := w.alice(t)
	command := func(t *testing.T, args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Run("expired", func(t *testing.T) {
		command(t, "chage", "-E", "1", testUser)
		defer command(t, "chage", "-E", "-1", testUser)
		if got := runCmd(t, alice.ssh(w.login, "echo in")); got.code != 254 || !strings.Contains(got.err, "expired") {
			t.Errorf("login to an expired account = %+v", got)
		}
	})
	t.Run("nologin_shell", func(t *testing.T) {
		command(t, "usermod", "-s", "/usr/sbin/nologin", testUser)
		defer command(t, "usermod", "-s", "/bin/bash", testUser)
		if got := runCmd(t, alice.ssh(w.login, "echo in")); got.code != 1 || !strings.Contains(got.out, "not available") {
			t.Errorf("login with the shell nologin = %+v", got)
		}
		if got := runCmd(t, exec.Command("sftp", append(alice.options(), "-b", "/dev/null", w.login+"@127.0.0.1")...)); got.code == 0 {
			t.Errorf("sftp with the shell nologin = %+v", got)
		}
	})
	t.Run("home_missing", func(t *testing.T) {
		command(t, "usermod", "-d", "/no/such/home", testUser)
		defer command(t, "usermod", "-d", "/home/"+testUser, testUser)
		if got := runCmd(t, alice.ssh(w.login, "pwd")); got.out != "/\n" || !strings.Contains(got.err, "/no/such/home") {
			t.Errorf("login without a home = %+v", got)
		}
	})
}

// A program that is refused again and again does not flood the audit log.
func TestRepeatedRefusalsAreCounted(t *testing.T) {
	w := start(t, nil)
	bob := w.person(t, "bob", []string{w.login}, []string{"nobody"}, nil)
	for range 5 {
		if _, err := bob.tryDial(w.login); err == nil {
			t.Fatal("bob was let in")
		}
	}
	w.stop()
	first := w.events.wait(t, "T3007W", nil)
	sum := w.events.wait(t, "T3007W", func(e *auditv1.Event) bool { return field(e, "repeated") != nil })
	w.events.mu.Lock()
	defer w.events.mu.Unlock()
	if len(w.events.all) != 2 || field(sum, "repeated") != 4.0 || field(sum, "first_event") != first.GetUid() {
		t.Errorf("events = %v, want one, and one that counts four more", w.events.all)
	}
}

func TestRejectedEventSaysWhy(t *testing.T) {
	w := start(t, nil)
	bob := w.person(t, "bob", []string{w.login}, []string{"nobody"}, nil)
	runCmd(t, bob.ssh(w.login, "true"))
	e := w.events.wait(t, "T3007W", func(e *auditv1.Event) bool { return field(e, "user") == "bob" })
	if reason, _ := field(e, "reason").(string); reason == "" || strings.Contains(reason, "ask an administrator") {
		t.Errorf("reason = %q, want the decision's own", reason)
	}
}
