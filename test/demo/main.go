// Command demo runs the main job the way a person would, with the built binaries:
// a cluster on embedded storage, an agent that joins by token through the Proxy, a
// user, and a shell command on the agent through its reverse tunnel. It prints each
// step with its command, stays up until Ctrl-C and cleans up after itself. It needs
// no root and no particular port. `make demo` builds and runs it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/pquerna/otp/totp"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is one run.
type demo struct {
	bin, dir, login string
	proxy           string
	daemons         []*exec.Cmd
}

const demoUser = "alice"

func run(ctx context.Context) error {
	bin, err := filepath.Abs("build")
	if err != nil {
		return err
	}
	me, err := user.Current()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "teleport-demo-")
	if err != nil {
		return err
	}
	d := &demo{bin: bin, dir: dir, login: me.Username}
	defer d.cleanUp()
	began := time.Now()
	for _, step := range []func(context.Context) error{d.cluster, d.user, d.agent, d.ssh} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("\nReady after %.1f s. From another terminal:\n\n", time.Since(began).Seconds())
	fmt.Printf("  export TELEPORT_HOME=%s\n", d.path("tsh"))
	fmt.Printf("  %s ls\n  %s ssh %s@demo-node\n", d.tool("tsh"), d.tool("tsh"), d.login)
	fmt.Printf("  %s -c %s status\n\n", d.tool("tctl"), d.path("cluster.yaml"))
	fmt.Printf("Web and everything else: https://%s   Logs: %s/*.log\nCtrl-C ends it and removes %s.\n", d.proxy, dir, dir)
	<-ctx.Done()
	fmt.Println("\nCleaning up.")
	return nil
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }
func (d *demo) tool(name string) string { return filepath.Join(d.bin, name) }

// cluster starts an Auth and a Proxy Service in one process.
func (d *demo) cluster(ctx context.Context) error {
	say("1. A cluster: Auth Service and Proxy Service in one process, state in SQLite")
	auth, err := freeAddr()
	if err != nil {
		return err
	}
	if d.proxy, err = freeAddr(); err != nil {
		return err
	}
	err = d.write("cluster.yaml", `version: v3
teleport:
  nodename: demo-cluster
  data_dir: `+d.path("cluster")+`
auth_service:
  enabled: yes
  cluster_name: demo
  listen_addr: `+auth+`
proxy_service:
  enabled: yes
  web_listen_addr: `+d.proxy+`
  public_addr: `+d.proxy+`
ssh_service:
  enabled: no
`)
	if err != nil {
		return err
	}
	return d.start(ctx, "cluster", "start", "-c", d.path("cluster.yaml"))
}

// user invites a user and redeems the invitation as that user.
func (d *demo) user(ctx context.Context) error {
	say("2. A user: invited by tctl, logged in by tsh (password and one-time code)")
	out, err := d.run(ctx, "tctl", "-c", d.path("cluster.yaml"), "users", "add", demoUser, "--roles=access,editor", "--logins="+d.login)
	if err != nil {
		return err
	}
	link := regexp.MustCompile(`https://\S+`).FindString(out)
	if link == "" {
		return fmt.Errorf("no invitation in %q", out)
	}
	return d.redeem(ctx, link)
}

// redeem answers the questions of tsh as a person would.
func (d *demo) redeem(ctx context.Context, link string) error {
	args := []string{"login", "--proxy=" + d.proxy, "--invite=" + link}
	show("tsh", args...)
	cmd := exec.CommandContext(ctx, d.tool("tsh"), args...)
	cmd.Env = d.env()
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
	password := rand.Text()
	if _, err := fmt.Fprintf(stdin, "%s\n%s\n", password, password); err != nil {
		return err
	}
	secret := regexp.MustCompile(`\b[A-Z2-7]{26,}\b`)
	answered := false
	for lines := bufio.NewScanner(r); lines.Scan(); {
		found := secret.FindString(lines.Text())
		if answered || found == "" {
			continue
		}
		answered = true
		code, err := totp.GenerateCode(found, time.Now())
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(stdin, code); err != nil {
			return err
		}
	}
	if err := <-ended; err != nil {
		return fmt.Errorf("tsh login: %w", err)
	}
	_, err = d.run(ctx, "tsh", "status")
	return err
}

// agent joins a second process through the Proxy with a token.
func (d *demo) agent(ctx context.Context) error {
	say("3. An agent: a token good for five minutes, and a process that joins with it through the Proxy")
	out, err := d.run(ctx, "tctl", "-c", d.path("cluster.yaml"), "tokens", "add", "--type=node", "--ttl=5m")
	if err != nil {
		return err
	}
	token := regexp.MustCompile(`--token=(\S+)`).FindStringSubmatch(out)
	pin := regexp.MustCompile(`--ca-pin=(sha256:[0-9a-f]{64})`).FindStringSubmatch(out)
	if token == nil || pin == nil {
		return fmt.Errorf("no token in %q", out)
	}
	err = d.write("agent.yaml", `version: v3
teleport:
  nodename: demo-node
  data_dir: `+d.path("agent")+`
  proxy_server: `+d.proxy+`
  ca_pin: "`+pin[1]+`"
  join_params:
    method: token
    token_name: `+token[1]+`
auth_service:
  enabled: no
proxy_service:
  enabled: no
ssh_service:
  enabled: yes
  labels:
    env: demo
`)
	if err != nil {
		return err
	}
	return d.start(ctx, "agent", "start", "-c", d.path("agent.yaml"))
}

// ssh runs a command on the agent through its reverse tunnel.
func (d *demo) ssh(ctx context.Context) error {
	say("4. A shell command on the agent: tsh, through the Proxy and the agent's reverse tunnel")
	deadline := time.Now().Add(10 * time.Second)
	for {
		out, err := d.quiet(ctx, "tsh", "ls", "--format=names")
		if err == nil && strings.Contains(out, "demo-node") {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("the agent is not listed after 10 s")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := d.run(ctx, "tsh", "ls"); err != nil {
		return err
	}
	_, err := d.run(ctx, "tsh", "ssh", d.login+"@demo-node", "echo hello from $(hostname), logged in as $(id -un), cluster $SSH_TELEPORT_CLUSTER_NAME")
	return err
}

// run shows a command, runs it and shows its output.
func (d *demo) run(ctx context.Context, tool string, args ...string) (string, error) {
	show(tool, args...)
	out, err := d.quiet(ctx, tool, args...)
	for line := range strings.Lines(out) {
		fmt.Print("    ", line)
	}
	if err != nil {
		return out, fmt.Errorf("%s %s: %w", tool, args[0], err)
	}
	return out, nil
}

func (d *demo) quiet(ctx context.Context, tool string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.tool(tool), args...)
	cmd.Env = d.env()
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	err := cmd.Run()
	return both.String(), err
}

// env is the environment of the tools: the demo's own profile folder, not yours.
func (d *demo) env() []string { return append(os.Environ(), "TELEPORT_HOME="+d.path("tsh")) }

// start runs a daemon and waits until it says that it is ready.
func (d *demo) start(ctx context.Context, name string, args ...string) error {
	show("teleport", args...)
	logPath := d.path(name + ".log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(d.tool("teleport"), args...)
	cmd.Stdout, cmd.Stderr = log, log
	// Ctrl-C is for the demo, which stops its daemons in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.daemons = append(d.daemons, cmd)
	deadline := time.Now().Add(30 * time.Second)
	for {
		text, err := os.ReadFile(logPath)
		switch {
		case err != nil:
			return err
		case bytes.Contains(text, []byte("Teleport is ready.")):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline) || cmd.Process.Signal(syscall.Signal(0)) != nil:
			return fmt.Errorf("%s did not become ready:\n%s", name, text)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (d *demo) cleanUp() {
	for i := len(d.daemons) - 1; i >= 0; i-- {
		_ = d.daemons[i].Process.Signal(syscall.SIGTERM)
		_ = d.daemons[i].Wait()
	}
	_ = os.RemoveAll(d.dir)
}

func (d *demo) write(name, text string) error {
	return os.WriteFile(d.path(name), []byte(text), 0o600)
}

func say(text string) { fmt.Printf("\n== %s\n\n", text) }

func show(tool string, args ...string) {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if strings.ContainsAny(a, " $#") {
			quoted[i] = "'" + a + "'"
		}
	}
	fmt.Println("  $", tool, strings.Join(quoted, " "))
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
