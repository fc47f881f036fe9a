package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"teleport/internal/client/screen"
	"teleport/internal/config"
	"teleport/internal/enroll"
	"teleport/internal/fault"
	"teleport/internal/join/all"
	"teleport/internal/types"
)

// joinOpenSSHOptions are the flags of `teleport join openssh`.
type joinOpenSSHOptions struct {
	proxyServer    string
	token          string
	method         string
	address        string
	labels         string
	principals     []string
	dataDir        string
	sshdConfig     string
	restart        bool
	checkCommand   string
	restartCommand string
	caPins         []string
	insecure       bool
}

const (
	defaultProxyPort      = "443"
	defaultSSHPort        = "22"
	defaultCheckCommand   = "sshd -t -f"
	defaultRestartCommand = "systemctl restart sshd"
)

func (a *app) newJoinOpenSSH() *cobra.Command {
	var o joinOpenSSHOptions
	cmd := &cobra.Command{
		Use:   "openssh --proxy-server=HOST --token=TOKEN",
		Short: "Enrol this machine, whose SSH server is OpenSSH, without an agent",
		Long: `Enrol this machine, whose SSH server is OpenSSH: join the cluster, get host
certificates for the host keys of its sshd, have the sshd show them and trust the
logins that the cluster signs, and list the machine as a server. Nothing stays
running, and this program may be deleted afterwards.

Run it again to renew the certificates, which are good for a year: within seven days
no token is needed, later one is. Everything that it writes is replaced as a whole.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runJoinOpenSSH(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.proxyServer, "proxy-server", "", "address of the Proxy Service (host:port, or host for port 443)")
	f.StringVar(&o.token, "token", "", "join token, or the absolute path of a file with it")
	f.StringVar(&o.method, "join-method", "", "join method of the token; empty leaves it to the token")
	f.StringVar(&o.address, "address", "", "address at which Proxies reach the sshd (host:port; default the host name and port 22)")
	f.StringVar(&o.labels, "labels", "", "labels of the server (key=value,...)")
	f.StringSliceVar(&o.principals, "additional-principals", nil, "more names and addresses for the host certificates (comma-separated)")
	f.StringVar(&o.dataDir, "data-dir", config.DefaultDataDir, "data directory; what belongs to this command is in its folder openssh")
	f.StringVar(&o.sshdConfig, "openssh-config", "/etc/ssh/sshd_config", "configuration file of the sshd")
	f.BoolVar(&o.restart, "restart-sshd", false, "restart the sshd at the end")
	f.StringVar(&o.checkCommand, "sshd-check-command", defaultCheckCommand, "command that checks a configuration, whose path follows; its first word is the sshd")
	f.StringVar(&o.restartCommand, "sshd-restart-command", defaultRestartCommand, "command that restarts the sshd")
	f.StringArrayVar(&o.caPins, "ca-pin", nil, "CA pin of the cluster (may be repeated)")
	f.BoolVar(&o.insecure, "insecure", false, "do not verify the server that is joined (never in production)")
	return cmd
}

// params turns the flags into what package enroll works with.
func (o joinOpenSSHOptions) params() (enroll.Params, error) {
	var none enroll.Params
	if o.proxyServer == "" {
		return none, fault.Invalid("--proxy-server is needed: the address of the Proxy Service")
	}
	hostname, err := os.Hostname()
	if err != nil {
		return none, fmt.Errorf("find out the name of this host: %w", err)
	}
	p := enroll.Params{
		Proxy: withPort(o.proxyServer, defaultProxyPort), Method: o.method, Methods: all.Methods(), Insecure: o.insecure,
		Hostname: strings.ToLower(hostname), Addr: withPort(o.address, defaultSSHPort), Principals: o.principals,
		Dir: filepath.Join(o.dataDir, "openssh"), SSHDConfig: o.sshdConfig, CheckCommand: strings.Fields(o.checkCommand),
	}
	if o.address == "" {
		p.Addr = net.JoinHostPort(p.Hostname, defaultSSHPort)
	}
	if o.restart {
		p.RestartCommand = strings.Fields(o.restartCommand)
	}
	if p.Labels, err = types.ParseLabels(o.labels); err != nil {
		return none, fmt.Errorf("--labels: %w", err)
	}
	if p.Pins, err = config.ParsePins(o.caPins); err != nil {
		return none, fmt.Errorf("--ca-pin: %w", err)
	}
	if o.token == "" {
		return p, nil
	}
	secret, err := config.ReadToken(o.token)
	if err != nil {
		return none, fmt.Errorf("--token: %w", err)
	}
	var pins []string
	p.Token, pins = config.SplitJoinString(secret)
	p.Pins = append(p.Pins, pins...)
	return p, nil
}

// withPort adds the port to an address that has none.
func withPort(addr, port string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), port)
}

func (a *app) runJoinOpenSSH(ctx context.Context, o joinOpenSSHOptions) error {
	p, err := o.params()
	if err != nil {
		return err
	}
	p.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	p.Say = func(line string) { fmt.Fprintln(a.stdout, screen.Escape(line)) }
	r, err := enroll.Run(ctx, p)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "The host certificates are good until %s: run this again before.\n", r.Expires.UTC().Format(time.RFC3339))
	return nil
}
