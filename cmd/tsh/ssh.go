package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"teleport/internal/client"
	"teleport/internal/client/screen"
)

type sshOptions struct {
	extras
	company
	port    uint16
	ttyFlag bool
	noTTY   bool
	cluster string
	logDir  string
	target  string
	command []string
}

func newSSH(a *app) *cobra.Command {
	var o sshOptions
	cmd := &cobra.Command{
		Use:   "ssh [flags] [user@]host|label=value [--] [command...]",
		Short: "Run a shell or a command on a server, and forward ports, sockets, agent and display",
		Long: "Run a shell, or the command, on a server named by its host name or host id, or the command on all\n" +
			"servers with the labels (a=b,c=d), on several at the same time.\n\n" +
			"The exit code is that of the command; 128 plus the signal's number if a signal ended it; 1 if tsh itself failed.",
		Args: screen.Args(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target, o.command = args[0], args[1:]
			if len(o.command) > 0 && o.command[0] == "--" {
				o.command = o.command[1:]
			}
			return runSSH(cmd.Context(), a, &o)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.Uint16VarP(&o.port, "port", "p", 0, "port of the server; servers behind a tunnel have none")
	f.BoolVarP(&o.ttyFlag, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&o.noTTY, "no-tty", "T", false, "give the shell no terminal")
	f.BoolP("quiet", "q", false, "say nothing but errors, which is so anyway")
	f.StringVarP(&o.cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	f.StringVar(&o.logDir, "log-dir", "", "keep the output of each server in files in this directory")
	o.extras.flags(f)
	o.company.flags(f)
	a.resumeFlag(f)
	return cmd
}

func runSSH(ctx context.Context, a *app, o *sshOptions) error {
	t, err := parseTarget(o.target, false)
	if err != nil {
		return err
	}
	if err := errors.Join(o.apply(), o.extras.check(o.command), o.company.check()); err != nil {
		return err
	}
	list, err := o.forwards()
	if err != nil {
		return err
	}
	ready, background := isBackground()
	if o.background && !background {
		return goBackground()
	}
	c, s, err := a.client(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(o.cluster); err != nil {
		return err
	}
	login, err := a.loginFor(t, s)
	if err != nil {
		return err
	}
	if t.byLabel() || o.logDir != "" {
		hosts, err := a.hosts(ctx, c, t)
		if err != nil {
			return err
		}
		if len(hosts) > 1 || o.logDir != "" {
			return runOnMany(ctx, a, c, login, hosts, o)
		}
		t.host = hosts[0].id
	}
	conn, err := a.connect(ctx, c, s, o.jump, login, t.host, uint32(o.port))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	fwd, display, err := o.start(ctx, a, conn, list)
	if err != nil {
		return err
	}
	defer fwd.Close()
	ready(o.noCommand)
	code, err := o.work(ctx, a, conn, fwd, display)
	if err != nil {
		return err
	}
	if code != screen.ExitOK {
		return screen.Code(code)
	}
	return nil
}

// connect opens a connection to a host, through those to jump over if there are any.
func (a *app) connect(ctx context.Context, c *client.Client, s *session, jump, login, host string, port uint32) (*ssh.Client, error) {
	if jump == "" {
		return c.SSH(ctx, login, host, nodePort(port))
	}
	var via *ssh.Client
	for hop := range strings.SplitSeq(jump, ",") {
		t, err := parseTarget(hop, true)
		if err != nil {
			return nil, err
		}
		who, err := a.loginFor(t, s)
		if err != nil {
			return nil, err
		}
		if via == nil {
			via, err = c.SSH(ctx, who, t.host, nodePort(t.port))
		} else {
			via, err = c.Jump(ctx, via, who, t.host, t.port)
		}
		if err != nil {
			return nil, err
		}
	}
	return c.Jump(ctx, via, login, host, port)
}

// work runs what is to be run, there or here, or waits.
func (o *sshOptions) work(ctx context.Context, a *app, conn *ssh.Client, fwd *client.Forwarder, display *client.Display) (int, error) {
	switch {
	case o.onLocalhost:
		return runHere(ctx, a, o.command)
	case o.noCommand:
		return screen.ExitOK, fwd.Wait(ctx)
	}
	screen.ReleaseSignals(ctx)
	terminal := !o.noTTY && (o.ttyFlag || len(o.command) == 0 && screen.IsTerminal(a.In))
	switch strings.ToLower(o.tty) {
	case "yes", "force":
		terminal = true
	case "no":
		terminal = false
	}
	run := client.Session{
		Command: strings.Join(o.command, " "), PTY: terminal, NoEscapes: !a.escapes,
		Env: slices.Concat(localeEnv(), o.env, o.environ()), Agent: o.agent, Display: display, Note: a.note,
		Term: screen.Env("TERM"), Stdin: a.In, Stdout: a.Out, Stderr: a.Err,
	}
	return run.Run(context.WithoutCancel(ctx), conn)
}

// localeEnv are the variables that say which language and alphabet the terminal has.
func localeEnv() []string {
	var out []string
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "LC_") || strings.HasPrefix(v, "LANG=") {
			out = append(out, v)
		}
	}
	return out
}

// inCluster refuses a cluster, of the command line or of the environment, that is not
// the session's.
func (s *session) inCluster(name string) error {
	name = or(name, "TELEPORT_CLUSTER")
	if name != "" && name != s.profile.Cluster {
		return screen.Usage("you are logged in to cluster %q, not to %q", s.profile.Cluster, name)
	}
	return nil
}

func newProxy(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "proxy", Short: "Connect other programs through the Proxy"}, newProxySSH(a))
}

func newProxySSH(a *app) *cobra.Command {
	var cluster string
	cmd := &cobra.Command{
		Use:   "ssh [user@]host[:port]",
		Short: "Connect standard input and output to a server's SSH service (OpenSSH's ProxyCommand)",
		Args:  screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runProxySSH(cmd.Context(), a, cluster, args[0])
		},
	}
	cmd.Flags().StringVarP(&cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	a.resumeFlag(cmd.Flags())
	return cmd
}

func runProxySSH(ctx context.Context, a *app, cluster, name string) error {
	t, err := parseTarget(name, true)
	if err != nil {
		return err
	}
	c, s, err := a.client(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(cluster); err != nil {
		return err
	}
	node, err := c.DialNode(ctx, t.host, nodePort(t.port))
	if err != nil {
		return err
	}
	defer func() { _ = node.Close() }()
	return relay(ctx, a, node)
}

// nodePort leaves out the ports that OpenSSH fills in by itself.
func nodePort(port uint32) uint32 {
	if port == 22 || port == 3022 {
		return 0
	}
	return port
}
