package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"teleport/internal/client"
	"teleport/internal/client/screen"
)

type sshOptions struct {
	port       uint16
	tty, noTTY bool
	target     string
	command    []string
}

func newSSH(a *app) *cobra.Command {
	var o sshOptions
	cmd := &cobra.Command{
		Use:   "ssh [flags] [user@]host [--] [command...]",
		Short: "Run a shell or a command on a server",
		Long: "Run a shell, or the command, on a server named by its host name or host id.\n\n" +
			"The exit code is that of the command; 128 plus the signal's number if a signal ended it; 1 if tsh itself failed.",
		Args: screen.Args(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target, o.command = args[0], args[1:]
			return runSSH(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.Uint16VarP(&o.port, "port", "p", 0, "port of the server; servers behind a tunnel have none")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&o.noTTY, "no-tty", "T", false, "give the shell no terminal")
	f.BoolP("quiet", "q", false, "say nothing but errors, which is so anyway")
	return cmd
}

func runSSH(ctx context.Context, a *app, o sshOptions) error {
	t, err := parseTarget(o.target, false)
	if err != nil {
		return err
	}
	if len(o.command) > 0 && o.command[0] == "--" {
		o.command = o.command[1:]
	}
	c, s, err := a.client(ctx)
	if err != nil {
		return err
	}
	login, err := a.loginFor(t, s)
	if err != nil {
		return err
	}
	conn, err := c.SSH(ctx, login, t.host, nodePort(uint32(o.port)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	screen.ReleaseSignals(ctx)
	run := client.Session{
		Command: strings.Join(o.command, " "),
		PTY:     !o.noTTY && (o.tty || len(o.command) == 0 && screen.IsTerminal(a.In)),
		Term:    screen.Env("TERM"), Stdin: a.In, Stdout: a.Out, Stderr: a.Err,
	}
	code, err := run.Run(context.WithoutCancel(ctx), conn)
	if err != nil {
		return err
	}
	if code != screen.ExitOK {
		return screen.Code(code)
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
	if cluster != "" && cluster != s.profile.Cluster {
		return screen.Usage("you are logged in to cluster %q, not to %q", s.profile.Cluster, cluster)
	}
	node, err := c.DialNode(ctx, t.host, nodePort(t.port))
	if err != nil {
		return err
	}
	defer func() { _ = node.Close() }()
	screen.ReleaseSignals(ctx)
	return node.Relay(a.In, a.Out)
}

// nodePort leaves out the ports that OpenSSH fills in by itself.
func nodePort(port uint32) uint32 {
	if port == 22 || port == 3022 {
		return 0
	}
	return port
}
