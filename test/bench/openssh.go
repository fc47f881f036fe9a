package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"teleport/test/cluster"
)

// flavour is a choice of algorithms for stock OpenSSH, on every leg of a way.
type flavour struct {
	name, lines string
}

func stockDefault() flavour { return flavour{"default", ""} }

func curve25519() flavour { return flavour{"curve25519", "    KexAlgorithms curve25519-sha256\n"} }

func aesGCM() flavour { return flavour{"aes128-gcm", "    Ciphers aes128-gcm@openssh.com\n"} }

// openSSH is the peer: a bastion and a target, and the target once more behind a
// reverse tunnel (ssh -R) that it holds to the bastion.
type openSSH struct {
	dir              string
	bastion, target  *exec.Cmd
	tunnels          []*exec.Cmd
	bastionAddr, top string
}

// aliases of the configurations that startOpenSSH writes.
const (
	direct  = "direct"
	jump    = "jump"
	reverse = "reverse"
)

func startOpenSSH(ctx context.Context, parent string) (*openSSH, error) {
	o := &openSSH{dir: filepath.Join(parent, "openssh")}
	if err := o.start(ctx); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

func (o *openSSH) start(ctx context.Context) error {
	if err := os.Mkdir(o.dir, 0o700); err != nil {
		return err
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", o.path(key)).CombinedOutput(); err != nil {
			return fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	public, err := os.ReadFile(o.path("user.pub"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.path("authorized"), public, 0o600); err != nil {
		return err
	}
	var targetAddr string
	if o.bastion, o.bastionAddr, err = o.sshd(ctx, "bastion"); err != nil {
		return err
	}
	if o.target, targetAddr, err = o.sshd(ctx, "target"); err != nil {
		return err
	}
	o.top = targetAddr
	for _, f := range []flavour{stockDefault(), curve25519(), aesGCM()} {
		behind, err := cluster.FreeAddr()
		if err != nil {
			return err
		}
		if err := o.configure(f, behind); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "ssh", "-F", o.config(f), "-N", "-o", "ExitOnForwardFailure=yes", "-R", behind+":"+targetAddr, "bastion")
		if err := cmd.Start(); err != nil {
			return err
		}
		o.tunnels = append(o.tunnels, cmd)
		if err := waitForPort(ctx, behind); err != nil {
			return fmt.Errorf("ssh -R: %w", err)
		}
	}
	return nil
}

func (o *openSSH) path(name string) string { return filepath.Join(o.dir, name) }
func (o *openSSH) config(f flavour) string { return o.path("ssh_" + f.name) }
func (o *openSSH) pids() []int             { return append(o.ends(), o.holders()...) }
func (o *openSSH) ends() []int             { return []int{o.bastion.Process.Pid, o.target.Process.Pid} }

func (o *openSSH) args(f flavour, h string, c ...string) []string {
	return append([]string{"ssh", "-F", o.config(f), h}, c...)
}

// holders are the processes that hold the reverse tunnels: those of the target, and
// of the bastion those that live (their time counts only when they end).
func (o *openSSH) holders() []int {
	var out []int
	for _, t := range o.tunnels {
		out = append(out, t.Process.Pid)
	}
	return append(out, descendants(o.bastion.Process.Pid, "sshd")...)
}

// sshd starts a server of its own on a free port.
func (o *openSSH) sshd(ctx context.Context, name string) (*exec.Cmd, string, error) {
	addr, err := cluster.FreeAddr()
	if err != nil {
		return nil, "", err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, "", err
	}
	text := `ListenAddress ` + host + `
Port ` + port + `
HostKey ` + o.path("host") + `
AuthorizedKeysFile ` + o.path("authorized") + `
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
MaxStartups 1000
MaxSessions 1000
UseDNS no
PrintMotd no
PrintLastLog no
LogLevel ERROR
`
	if err := os.WriteFile(o.path(name+"_config"), []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	if os.Getuid() == 0 {
		// sshd confines its first steps to this folder, which Debian's service makes.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			return nil, "", err
		}
	}
	path, err := sshdPath()
	if err != nil {
		return nil, "", err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "-D", "-e", "-f", o.path(name+"_config"))
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	if err := waitForPort(ctx, addr); err != nil {
		return cmd, "", fmt.Errorf("%s: %w: %s", name, err, stderr.String())
	}
	return cmd, addr, nil
}

// sshdPath finds sshd, which is not in the path of everybody; it wants to be called
// by its full name.
func sshdPath() (string, error) {
	if path, err := exec.LookPath("sshd"); err == nil {
		return path, nil
	}
	const usual = "/usr/sbin/sshd"
	if _, err := os.Stat(usual); err != nil {
		return "", errors.New("no sshd: install openssh-server and openssh-client (make test-deps does)")
	}
	return usual, nil
}

// configure writes the client's configuration for one flavour.
func (o *openSSH) configure(f flavour, behind string) error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	var hosts, b strings.Builder
	for alias, at := range map[string]string{"bastion": o.bastionAddr, direct: o.top, jump: o.top, reverse: behind} {
		host, port, err := net.SplitHostPort(at)
		if err != nil {
			return err
		}
		fmt.Fprintf(&hosts, "Host %s\n    HostName %s\n    Port %s\n", alias, host, port)
	}
	fmt.Fprintf(&hosts, "Host %s\n    ProxyJump bastion\n", jump)
	b.WriteString(hosts.String())
	fmt.Fprintf(&b, `Host *
    User %s
    IdentityFile %s
    IdentitiesOnly yes
    UserKnownHostsFile %s
    GlobalKnownHostsFile /dev/null
    HostKeyAlias bench
    StrictHostKeyChecking yes
    UpdateHostKeys no
    LogLevel ERROR
    BatchMode yes
%s`, me.Username, o.path("user"), o.path("known_hosts"), f.lines)
	key, err := os.ReadFile(o.path("host.pub"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.path("known_hosts"), append([]byte("bench "), key...), 0o600); err != nil {
		return err
	}
	return os.WriteFile(o.config(f), []byte(b.String()), 0o600)
}

func waitForPort(ctx context.Context, addr string) error {
	for range 500 {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("nobody listens on %s", addr)
}

func (o *openSSH) close() {
	for _, cmd := range append(o.tunnels, o.target, o.bastion) {
		if cmd != nil && cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
}
