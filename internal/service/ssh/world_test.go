package ssh_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	auditv1 "teleport/api/audit/v1"
	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/service/ssh"
	"teleport/internal/state"
	"teleport/internal/types"
)

const (
	hostID  = "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f"
	cluster = "example.com"
	node    = "node-1"
	// testUser is made by TestMain, in an /etc of its own, when the tests run as root.
	testUser = "tlp-ssh-test"
)

var root = os.Geteuid() == 0

// ownEtc is set in the process that has an /etc and a /home of its own.
const ownEtc = "TELEPORT_TEST_OWN_ETC"

func TestMain(m *testing.M) { os.Exit(withUser(m)) }

// withUser runs the tests with a local user to log in as. Root does so in namespaces
// where the processes are those of the run alone and /etc, /home, /run and the folder
// for temporary files are its own: the users of this machine stay as they are, and
// several runs at the same time do not meet.
func withUser(m *testing.M) int {
	if !root || slices.Contains(os.Args, "-test.fuzzworker") {
		return m.Run() // a fuzz worker talks over descriptors that it has inherited
	}
	if os.Getenv(ownEtc) == "" {
		code, err := inOwnEtc()
		if err != nil {
			fmt.Fprintln(os.Stderr, "an /etc for the tests:", err)
			return 1
		}
		return code
	}
	if out, err := exec.Command("useradd", "-m", "-s", "/bin/bash", "-G", "games", testUser).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "useradd: %v: %s\n", err, out)
		return 1
	}
	return m.Run()
}

// inOwnEtc runs this program again and returns its exit code.
func inOwnEtc() (int, error) {
	// The kernel ends the other process when this thread ends.
	runtime.LockOSThread()
	dir, err := os.MkdirTemp("", "teleport-etc-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// The shell stays, as the process that others are left to.
	const script = `set -e; dir=$0
mount --make-rprivate /
mount -t proc proc /proc
cp -a /etc "$dir/etc"; mkdir "$dir/home" "$dir/run" "$dir/run/sshd" "$dir/run/lock"; mkdir -m 1777 "$dir/tmp"
for own in etc home run; do mount --bind "$dir/$own" "/$own"; done
mount --bind "$dir/tmp" /var/tmp
mkdir -p -m 750 /etc/sudoers.d
set +e
"$@"; exit $?`
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("sh", append([]string{"-c", script, dir, self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), ownEtc+"=yes", "TMPDIR=/var/tmp")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if cmd.ProcessState == nil {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// events is an audit log in memory.
type events struct {
	mu   sync.Mutex
	all  []*auditv1.Event
	fail bool
	more chan struct{}
}

func (e *events) emit(_ context.Context, evs ...*auditv1.Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fail {
		return errors.New("log is full")
	}
	e.all = append(e.all, evs...)
	close(e.more)
	e.more = make(chan struct{})
	return nil
}

// wait returns the first event of the type and code that fits, when it comes.
func (e *events) wait(t testing.TB, code string, fits func(*auditv1.Event) bool) *auditv1.Event {
	t.Helper()
	limit := time.After(15 * time.Second)
	for {
		e.mu.Lock()
		for _, ev := range e.all {
			if ev.GetCode() == code && (fits == nil || fits(ev)) {
				e.mu.Unlock()
				return ev
			}
		}
		more, all := e.more, slices.Clone(e.all)
		e.mu.Unlock()
		select {
		case <-more:
		case <-limit:
			t.Fatalf("no event %s came; there are %v", code, all)
		}
	}
}

func (e *events) reset() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = nil
}

// refuse makes the log full.
func (e *events) refuse() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fail = true
}

func field(e *auditv1.Event, name string) any { return e.GetFields().AsMap()[name] }

// world is a cluster as far as a node needs one.
type world struct {
	cas    []*typesv1.CertAuthority
	signer *ca.Signer
	holder *state.Holder
	cache  *cache.Cache
	events *events
	nodes  chan *typesv1.Server
	svc    *ssh.Service
	addr   string
	dir    string
	login  string
	stop   func()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func strs(s ...string) *typesv1.Strings { return &typesv1.Strings{Values: s} }

// role allows logins on hosts with any value of the label env.
func role(name string, logins ...string) *typesv1.Role {
	r := types.New(types.KindRole, name).(*typesv1.Role)
	r.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{Logins: logins, NodeLabels: map[string]*typesv1.Strings{"env": strs("test")}}}
	return r
}

// start runs an SSH Service on a free port of this machine.
func start(t testing.TB, change func(*ssh.Config)) *world {
	t.Helper()
	now := time.Now()
	w := &world{
		cache: cache.New(), events: &events{more: make(chan struct{})}, nodes: make(chan *typesv1.Server, 16), dir: t.TempDir(), login: testUser,
	}
	if !root {
		w.login = must(user.Current()).Username
	}
	for _, typ := range []string{ca.TypeHost, ca.TypeUser} {
		w.cas = append(w.cas, must(ca.Generate(keystore.Software(), cluster, typ, now.Add(-time.Hour))))
	}
	w.signer = must(ca.NewSigner(keystore.Software(), w.cas, time.Now))
	w.holder = must(state.NewHolder(w.join(t)))
	w.cache.Reset()
	for _, r := range []*typesv1.Role{role("dev", w.login, "root"), role("nobody"), role("ghost", "no-such-user")} {
		w.setRole(r)
	}
	w.cache.Synced(1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := ssh.Config{
		Holder: w.holder, Cache: w.cache, Emit: w.events.emit, Listener: ln, Hostname: node, Labels: map[string]string{"env": "test"},
		Announce: func(s *typesv1.Server) { w.nodes <- s }, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if *allPAM && root {
		withPAM(t, permitted(), nil)(&cfg)
	}
	if change != nil {
		change(&cfg)
	}
	w.addr = ln.Addr().String()
	if w.svc, err = ssh.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.svc.Run(ctx, func() { close(ready) }) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	t.Cleanup(w.stop)
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("Run = %v before it was ready", err)
	}
	known := strings.Join(w.holder.Trust().KnownHosts("*"), "\n") + "\n"
	write(t, w.path("known_hosts"), known)
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *world) setRole(r *typesv1.Role) {
	w.cache.Apply(types.Change{Kind: types.KindRole, Name: r.GetMetadata().GetName(), Resource: r})
}

// join returns the state of a host with the roles Node and Proxy.
func (w *world) join(t testing.TB) *state.State {
	t.Helper()
	tlsKey, sshKey := must(keys.Generate(keys.ECDSAP256)), must(keys.Generate(keys.Ed25519))
	sshPublic := must(gossh.NewPublicKey(sshKey.Public()))
	roles := []types.SystemRole{types.RoleNode, types.RoleProxy}
	issue := func(service types.SystemRole) *joinv1.ServiceCertificates {
		req := ca.HostRequest{
			Identity: identity.Identity{Cluster: cluster, Host: &identity.Host{ID: hostID, Name: node, Roles: roles, Service: service, Generation: 1}},
			TLSKey:   must(keys.PublicDER(tlsKey.Public())),
		}
		if service != types.RoleProxy {
			req.SSHKey = sshPublic.Marshal()
		}
		tlsDER, sshWire, err := w.signer.Host(req)
		if err != nil {
			t.Fatal(err)
		}
		return &joinv1.ServiceCertificates{Tls: tlsDER, Ssh: sshWire}
	}
	process := issue("")
	grant := &joinv1.Grant{
		HostId: hostID, ClusterName: cluster, Roles: []string{"Node", "Proxy"}, Generation: 1,
		Certificates: &joinv1.HostCertificates{Tls: process.GetTls(), Ssh: process.GetSsh(), Services: map[string]*joinv1.ServiceCertificates{
			"Node": issue(types.RoleNode), "Proxy": issue(types.RoleProxy),
		}},
		Authorities: []*typesv1.CertAuthority{ca.Public(w.cas[0]), ca.Public(w.cas[1])},
	}
	return &state.State{
		Cluster: cluster, HostID: hostID, Hostname: node, Roles: roles, Generation: 1,
		TLSKey: must(keys.MarshalPrivate(tlsKey)), SSHKey: must(keys.MarshalPrivate(sshKey)), Grant: must(proto.Marshal(grant)),
	}
}

// person is somebody with a certificate on disk.
type person struct {
	w    *world
	file string
	cert *gossh.Certificate
	key  gossh.Signer
}

// person makes a user certificate; change may alter the request.
func (w *world) person(t testing.TB, name string, logins []string, roles []string, change func(*ca.UserRequest)) *person {
	t.Helper()
	key, tlsKey := must(keys.Generate(keys.Ed25519)), must(keys.Generate(keys.ECDSAP256))
	signer := must(gossh.NewSignerFromSigner(key))
	req := ca.UserRequest{
		Identity: identity.Identity{Cluster: cluster, User: &identity.User{Name: name, Logins: logins, Roles: roles}},
		TLSKey:   must(keys.PublicDER(tlsKey.Public())), SSHKey: signer.PublicKey().Marshal(), TTL: time.Hour, PermitPTY: true,
	}
	if change != nil {
		change(&req)
	}
	_, wire, err := w.signer.User(req)
	if err != nil {
		t.Fatal(err)
	}
	cert := must(ca.ParseSSHCertificate(wire))
	p := &person{w: w, file: w.path("id-" + name), cert: cert, key: must(gossh.NewCertSigner(cert, signer))}
	block := must(gossh.MarshalPrivateKey(key, ""))
	write(t, p.file, string(pem.EncodeToMemory(block)))
	write(t, p.file+"-cert.pub", string(gossh.MarshalAuthorizedKey(cert)))
	return p
}

// alice may log in as the test user and root.
func (w *world) alice(t testing.TB) *person {
	return w.person(t, "alice", []string{w.login, "root", "no-such-user"}, []string{"dev", "ghost"}, nil)
}

// options are those of every OpenSSH program.
func (p *person) options() []string {
	_, port, _ := net.SplitHostPort(p.w.addr)
	return []string{
		"-F", "none", "-i", p.file, "-o", "CertificateFile=" + p.file + "-cert.pub", "-o", "Port=" + port, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=" + node, "-o", "UserKnownHostsFile=" + p.w.path("known_hosts"), "-o", "GlobalKnownHostsFile=none",
	}
}

// ssh returns the stock client with its arguments behind the usual options.
func (p *person) ssh(login string, args ...string) *exec.Cmd {
	return exec.Command("ssh", slices.Concat(p.options(), []string{"-l", login, "127.0.0.1"}, args)...)
}

// result is what a program did.
type result struct {
	out, err string
	code     int
}

func runCmd(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a program that must succeed.
func ok(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	r := runCmd(t, cmd)
	if r.code != 0 {
		t.Fatalf("%v: exit %d, want 0; output %q, error output %q", cmd.Args, r.code, r.out, r.err)
	}
	return r.out
}

func (p *person) dial(t testing.TB, login string) *gossh.Client {
	t.Helper()
	c, err := p.tryDial(login)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (p *person) tryDial(login string) (*gossh.Client, error) {
	return gossh.Dial("tcp", p.w.addr, &gossh.ClientConfig{
		User: login, Auth: []gossh.AuthMethod{gossh.PublicKeys(p.key)},
		HostKeyCallback: p.w.holder.Trust().HostKeyCallback(types.RoleNode, node), Timeout: 10 * time.Second,
	})
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }
