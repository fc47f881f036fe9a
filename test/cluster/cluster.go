// Package cluster runs a real cluster on loopback with the built binaries, the way
// a person does: files of configuration, `teleport start`, an invitation redeemed at
// the prompts of tsh, tokens made with tctl. It is for the demo and the benchmark;
// it imports nothing of the product and decides nothing.
package cluster

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pquerna/otp/totp"
)

// Config says what to run.
type Config struct {
	// Bin is the folder of teleport, tctl and tsh.
	Bin string
	// Name is the name of the cluster.
	Name string
	// User is the name of the Teleport user that Invite makes.
	User string
	// UserFlags are more flags of `tctl users add`.
	UserFlags []string
	// Out gets each command and what it printed; nil shows nothing.
	Out io.Writer
}

// Cluster is a folder with the configuration, the data and the logs of daemons.
type Cluster struct {
	cfg Config
	// Dir is removed by Close.
	Dir string
	// Login is the local user that runs this program, and that sessions run as.
	Login string
	// AuthAddr and ProxyAddr are loopback addresses that nobody listened on.
	AuthAddr, ProxyAddr string
	// Password and OTPSecret are those of the user, once Invite has redeemed the
	// invitation.
	Password, OTPSecret string

	daemons []*Daemon
}

// New makes the folder; nothing runs yet.
func New(cfg Config) (*Cluster, error) {
	bin, err := filepath.Abs(cfg.Bin)
	if err != nil {
		return nil, err
	}
	cfg.Bin = bin
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	for _, tool := range []string{"teleport", "tctl", "tsh"} {
		if _, err := os.Stat(filepath.Join(bin, tool)); err != nil {
			return nil, fmt.Errorf("%w: run `make build` first", err)
		}
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, Login: me.Username}
	for _, addr := range []*string{&c.AuthAddr, &c.ProxyAddr} {
		if *addr, err = FreeAddr(); err != nil {
			return nil, err
		}
	}
	c.Dir, err = os.MkdirTemp("", "teleport-"+cfg.Name+"-")
	return c, err
}

// Close ends the daemons, the last first, and removes the folder.
func (c *Cluster) Close() {
	for _, d := range slices.Backward(c.daemons) {
		d.Stop()
	}
	_ = os.RemoveAll(c.Dir)
}

// Path returns a name in the folder.
func (c *Cluster) Path(name string) string { return filepath.Join(c.Dir, name) }

// Tool returns the path of a built program.
func (c *Cluster) Tool(name string) string { return filepath.Join(c.cfg.Bin, name) }

// Home is the profile folder of tsh.
func (c *Cluster) Home() string { return c.Path("tsh") }

// Env is the environment of the tools: the cluster's own profile folder, not yours.
func (c *Cluster) Env() []string { return append(os.Environ(), "TELEPORT_HOME="+c.Home()) }

// Services is the configuration of one daemon.
type Services struct {
	// Name names the daemon's files: <Name>.yaml, <Name>.log and the folder <Name>.
	Name string
	// Host is its name in the cluster; Name if empty.
	Host             string
	Auth, Proxy, SSH bool
	// Join is how a daemon without Auth gets in.
	Join Invitation
	// Direct makes it dial the Auth Service instead of the Proxy.
	Direct bool
	// Diag is the address of health and metrics, if wanted.
	Diag string
	// Labels of the SSH Service.
	Labels map[string]string
	// More are lines of further services.
	More string
}

// Invitation is what `tctl tokens add` prints. Method is token if empty.
type Invitation struct{ Token, Pin, Method string }

// Configure writes the configuration of a daemon and returns its path.
func (c *Cluster) Configure(s Services) (string, error) {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("version: v3\nteleport:\n  nodename: %s\n  data_dir: %s", cmp.Or(s.Host, s.Name), c.Path(s.Name))
	if s.Diag != "" {
		line("  diag_addr: %s", s.Diag)
	}
	if !s.Auth {
		if s.Direct {
			line("  auth_server: %s", c.AuthAddr)
		} else {
			line("  proxy_server: %s", c.ProxyAddr)
		}
		line("  ca_pin: %q\n  join_params:\n    method: %s\n    token_name: %s", s.Join.Pin, cmp.Or(s.Join.Method, "token"), s.Join.Token)
	}
	line("auth_service:\n  enabled: %s", yesNo(s.Auth))
	if s.Auth {
		line("  cluster_name: %s\n  listen_addr: %s", c.cfg.Name, c.AuthAddr)
	}
	line("proxy_service:\n  enabled: %s", yesNo(s.Proxy))
	if s.Proxy {
		line("  web_listen_addr: %s\n  public_addr: %s", c.ProxyAddr, c.ProxyAddr)
	}
	line("ssh_service:\n  enabled: %s", yesNo(s.SSH))
	if s.SSH && (s.Auth || s.Direct) {
		addr, err := FreeAddr()
		if err != nil {
			return "", err
		}
		line("  listen_addr: %s", addr)
	}
	if len(s.Labels) > 0 {
		line("  labels:")
		for k, v := range s.Labels {
			line("    %s: %s", k, v)
		}
	}
	b.WriteString(s.More)
	path := c.Path(s.Name + ".yaml")
	return path, os.WriteFile(path, []byte(b.String()), 0o600)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// Launch configures a daemon, starts it and waits until it is ready.
func (c *Cluster) Launch(ctx context.Context, s Services) (*Daemon, error) {
	path, err := c.Configure(s)
	if err != nil {
		return nil, err
	}
	return c.Start(ctx, s.Name, path)
}

// authFile is the configuration that tctl reads: that of the daemon with Auth.
func (c *Cluster) authFile() (string, error) {
	for _, d := range c.daemons {
		text, err := os.ReadFile(d.config)
		if err == nil && bytes.Contains(text, []byte("auth_service:\n  enabled: yes")) {
			return d.config, nil
		}
	}
	return "", errors.New("no daemon with the Auth Service was started")
}

// Tctl runs tctl on the Auth Service's host.
func (c *Cluster) Tctl(ctx context.Context, args ...string) (string, error) {
	path, err := c.authFile()
	if err != nil {
		return "", err
	}
	return c.Run(ctx, "tctl", append([]string{"-c", path}, args...)...)
}

// Token makes a join token for a type of service, good for ttl.
func (c *Cluster) Token(ctx context.Context, kind string, ttl time.Duration) (Invitation, error) {
	out, err := c.Tctl(ctx, "tokens", "add", "--type="+kind, "--ttl="+strings.TrimSuffix(ttl.String(), "0s"))
	if err != nil {
		return Invitation{}, err
	}
	token := regexp.MustCompile(`--token=(\S+)`).FindStringSubmatch(out)
	pin := regexp.MustCompile(`--ca-pin=(sha256:[0-9a-f]{64})`).FindStringSubmatch(out)
	if token == nil || pin == nil {
		return Invitation{}, fmt.Errorf("no token in %q", out)
	}
	return Invitation{Token: token[1], Pin: pin[1]}, nil
}

// Invite makes the user and redeems the invitation as that user: afterwards tsh is
// logged in.
func (c *Cluster) Invite(ctx context.Context) error {
	out, err := c.Tctl(ctx, append([]string{"users", "add", c.cfg.User, "--roles=access,editor", "--logins=" + c.Login}, c.cfg.UserFlags...)...)
	if err != nil {
		return err
	}
	link := regexp.MustCompile(`https://\S+`).FindString(out)
	if link == "" {
		return fmt.Errorf("no invitation in %q", out)
	}
	return c.redeem(ctx, link)
}

// redeem answers the questions of tsh as a person would.
func (c *Cluster) redeem(ctx context.Context, link string) error {
	args := []string{"login", "--proxy=" + c.ProxyAddr, "--invite=" + link}
	c.show("tsh", args)
	cmd := exec.CommandContext(ctx, c.Tool("tsh"), args...)
	cmd.Env = c.Env()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		_ = w.Close()
		ended <- err
	}()
	c.Password = rand.Text()
	if _, err := fmt.Fprintf(stdin, "%s\n%s\n", c.Password, c.Password); err != nil {
		return err
	}
	secret := regexp.MustCompile(`\b[A-Z2-7]{26,}\b`)
	var said strings.Builder
	answered := false
	for lines := bufio.NewScanner(r); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		found := secret.FindString(lines.Text())
		if answered || found == "" {
			continue
		}
		answered, c.OTPSecret = true, found
		code, err := totp.GenerateCode(found, time.Now())
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(stdin, code); err != nil {
			return err
		}
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("tsh login: %w\n%s", err, said.String())
	}
	return nil
}

// WaitListed waits until tsh lists a host.
func (c *Cluster) WaitListed(ctx context.Context, name string, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s is not listed after %s", name, limit))
	defer cancel()
	for {
		out, err := c.Quiet(ctx, "tsh", "ls", "--format=names")
		if err == nil && slices.Contains(strings.Fields(out), name) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; tsh ls said: %s", context.Cause(ctx), out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Run shows a command, runs it and shows its output.
func (c *Cluster) Run(ctx context.Context, tool string, args ...string) (string, error) {
	c.show(tool, args)
	out, err := c.Quiet(ctx, tool, args...)
	for line := range strings.Lines(out) {
		fmt.Fprint(c.cfg.Out, "    ", line)
	}
	if err != nil {
		return out, fmt.Errorf("%s %s: %w\n%s", tool, strings.Join(args, " "), err, out)
	}
	return out, nil
}

// Quiet runs a command and returns what it printed.
func (c *Cluster) Quiet(ctx context.Context, tool string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Tool(tool), args...)
	cmd.Env = c.Env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *Cluster) show(tool string, args []string) {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if strings.ContainsAny(a, " $#") {
			quoted[i] = "'" + a + "'"
		}
	}
	fmt.Fprintln(c.cfg.Out, "  $", tool, strings.Join(quoted, " "))
}

// FreeAddr returns a loopback address that nobody listens on.
func FreeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
