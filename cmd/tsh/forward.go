package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
)

// extras are what tsh ssh does beyond a session.
type extras struct {
	local, remote, dynamic []string
	agent, noCommand       bool
	background             bool
	x11, x11Trusted        bool
	x11Timeout             time.Duration
	options                []string
	onLocalhost            bool
	jump                   string

	// ttySet and keepGoing come from -o.
	tty       string
	keepGoing bool
	env       []string
}

func (e *extras) flags(f *pflag.FlagSet) {
	f.StringArrayVarP(&e.local, "forward", "L", nil, "[bind:]port:host:port or socket: lead connections to it here to a host or socket on the server's side")
	f.StringArrayVarP(&e.remote, "remote-forward", "R", nil, "[bind:]port:host:port or socket: lead connections to it on the server to a host or socket on this side; [bind:]port alone is a SOCKS 5 server there")
	f.StringArrayVarP(&e.dynamic, "dynamic-forward", "D", nil, "[bind:]port: a SOCKS 5 server here whose connections leave from the server")
	f.BoolVarP(&e.agent, "forward-agent", "A", false, "let programs on the server use the SSH agent here")
	f.BoolVarP(&e.noCommand, "no-remote-exec", "N", false, "run nothing, only forward")
	f.BoolVarP(&e.background, "fork-after-authentication", "f", false, "go on in the background once connected; needs a command or -N")
	f.BoolVarP(&e.x11, "x11-untrusted", "X", false, "let programs on the server draw on the display here; the X server does not trust them")
	f.BoolVarP(&e.x11Trusted, "x11-trusted", "Y", false, "let programs on the server draw on the display here and do everything there")
	f.DurationVar(&e.x11Timeout, "x11-untrusted-timeout", 10*time.Minute, "how long programs may begin to draw with -X; 0 is without end")
	f.StringArrayVarP(&e.options, "option", "o", nil, "an option as in ssh_config, such as ForwardAgent=yes")
	f.BoolVar(&e.onLocalhost, "local", false, "run the command here, with the forwards in place")
	jumpFlag(f, &e.jump)
}

// jumpFlag adds the flag with the servers to go through.
func jumpFlag(f *pflag.FlagSet, to *string) {
	f.StringVarP(to, "jumphost", "J", "", "[user@]host[:port],...: servers of the cluster to go through, one after the other")
}

// apply reads the options of -o into the flags that say the same.
func (e *extras) apply() error {
	for _, o := range e.options {
		name, value, ok := strings.Cut(o, "=")
		if !ok {
			name, value, ok = strings.Cut(o, " ")
		}
		if value = strings.TrimSpace(value); !ok || value == "" {
			return screen.Usage("-o %q: expected Name=value", o)
		}
		if err := e.option(strings.ToLower(strings.TrimSpace(name)), value); err != nil {
			return err
		}
	}
	return nil
}

func (e *extras) option(name, value string) error {
	yes, no := strings.EqualFold(value, "yes"), strings.EqualFold(value, "no")
	flag := map[string]*bool{
		"forwardagent": &e.agent, "forwardx11": &e.x11, "forwardx11trusted": &e.x11Trusted, "forkafterauthentication": &e.background,
	}[name]
	switch {
	case flag != nil && (yes || no):
		*flag = yes
	case name == "localforward":
		e.local = append(e.local, strings.Replace(value, " ", ":", 1))
	case name == "remoteforward":
		e.remote = append(e.remote, strings.Replace(value, " ", ":", 1))
	case name == "dynamicforward":
		e.dynamic = append(e.dynamic, value)
	case name == "proxyjump":
		e.jump = value
	case name == "requesttty" && (yes || no || value == "force" || value == "auto"):
		e.tty = value
	case name == "exitonforwardfailure" && (yes || no):
		e.keepGoing = no
	case name == "setenv" && strings.Contains(value, "="):
		e.env = append(e.env, value)
	case name == "stricthostkeychecking" && yes, name == "batchmode" && (yes || no), name == "addkeystoagent" && no:
	case name == "stricthostkeychecking":
		return screen.Usage("-o StrictHostKeyChecking=%s: host certificates are always checked", value)
	default:
		return screen.Usage("-o %s=%s is not supported: use ForwardAgent, ForwardX11, ForwardX11Trusted, LocalForward, RemoteForward, DynamicForward, "+
			"ProxyJump, RequestTTY, SetEnv, ExitOnForwardFailure or ForkAfterAuthentication", name, value)
	}
	return nil
}

// forwards reads -L, -R and -D.
func (e *extras) forwards() ([]client.Forward, error) {
	var out []client.Forward
	add := func(flag, spec string, remote, socks, mayBeSocks bool) error {
		fw, err := client.ParseForward(spec, remote)
		if err == nil && fw.Socks() != socks && (!fw.Socks() || !mayBeSocks) {
			form := "[bind:]port:host:port"
			if socks {
				form = "[bind:]port"
			}
			err = fmt.Errorf("%q does not fit: expected %s", spec, form)
		}
		if err != nil {
			return screen.Usage("-%s %v", flag, err)
		}
		out = append(out, fw)
		return nil
	}
	for _, spec := range e.local {
		if err := add("L", spec, false, false, false); err != nil {
			return nil, err
		}
	}
	for _, spec := range e.remote {
		if err := add("R", spec, true, false, true); err != nil {
			return nil, err
		}
	}
	for _, spec := range e.dynamic {
		if err := add("D", spec, false, true, false); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// check refuses what does not go together.
func (e *extras) check(command []string) error {
	switch {
	case e.background && len(command) == 0 && !e.noCommand:
		return screen.Usage("-f needs a command or -N")
	case e.onLocalhost && len(command) == 0:
		return screen.Usage("--local needs a command")
	case e.noCommand && len(command) > 0 && !e.onLocalhost:
		return screen.Usage("-N runs nothing, and a command is given")
	}
	return nil
}

// start puts everything in place that does not need a session.
func (e *extras) start(ctx context.Context, a *app, conn *ssh.Client, list []client.Forward) (*client.Forwarder, *client.Display, error) {
	f := client.NewForwarder(conn, a.note)
	for _, fw := range list {
		if err := f.Start(fw); err != nil {
			if !e.keepGoing {
				f.Close()
				return nil, nil, err
			}
			a.note(err.Error())
		}
	}
	if e.agent {
		socket, err := client.AgentSocket()
		if err == nil {
			err = f.ForwardAgent(socket)
		}
		if err != nil {
			f.Close()
			return nil, nil, err
		}
	}
	if !e.x11 && !e.x11Trusted {
		return f, nil, nil
	}
	d, err := client.OpenDisplay(ctx, screen.Env("DISPLAY"), e.x11Trusted, e.x11Timeout)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	f.ForwardDisplay(d)
	return f, d, nil
}

// note tells the user something in a line of its own.
func (a *app) note(text string) {
	_, _ = fmt.Fprint(a.Err, "tsh: "+screen.Escape(text)+"\r\n")
}

// readyFD is the descriptor on which a tsh that was started by -f says that it is
// connected, in the environment of that tsh.
const readyFD = "TSH_READY_FD"

// isBackground reports whether this tsh was started by -f, and returns how it says that
// it is connected.
func isBackground() (ready func(silent bool), background bool) {
	if os.Getenv(readyFD) != "3" {
		return func(bool) {}, false
	}
	_ = os.Unsetenv(readyFD)
	pipe := os.NewFile(3, "ready")
	return func(silent bool) {
		if silent {
			dropOutput()
		}
		_, _ = pipe.Write([]byte{1})
		_ = pipe.Close()
	}, true
}

// dropOutput makes output and errors go nowhere: whoever reads them would wait for a
// process in the background for ever.
func dropOutput() {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer func() { _ = null.Close() }()
	for _, fd := range []int{1, 2} {
		_ = unix.Dup3(int(null.Fd()), fd, 0)
	}
}

// goBackground starts this tsh again without a terminal and returns when that one is
// connected; if it ends before, with its exit code.
func goBackground() error {
	self, err := os.Executable()
	if err != nil {
		return fault.Invalid("cannot tell where tsh is: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fault.Invalid("open a pipe: %w", err)
	}
	defer func() { _ = r.Close() }()
	cmd := exec.Command(self, os.Args[1:]...) //nolint:gosec // this program itself, as it was called
	cmd.Env = append(os.Environ(), readyFD+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fault.Invalid("start tsh in the background: %w", err)
	}
	if n, _ := r.Read(make([]byte, 1)); n == 1 {
		return cmd.Process.Release()
	}
	_ = cmd.Wait()
	return screen.Code(cmd.ProcessState.ExitCode())
}

// runHere runs a command on this machine and returns its exit code.
func runHere(ctx context.Context, a *app, command []string) (int, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.Err
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return 0, fault.Invalid("run %s here: %w", command[0], err)
	}
	return cmd.ProcessState.ExitCode(), nil
}
