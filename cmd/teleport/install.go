package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"teleport/internal/config"
	"teleport/internal/fault"
)

// unitOptions are the flags of `teleport install systemd`.
type unitOptions struct {
	envFile      string
	fdLimit      int
	pidFile      string
	teleportPath string
	output       string
}

const (
	minFDLimit = 1024
	maxFDLimit = 1 << 30
)

func (a *app) newInstall() *cobra.Command {
	install := &cobra.Command{
		Use:   "install",
		Short: "Write what the operating system needs to run the daemon",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var o unitOptions
	cmd := &cobra.Command{
		Use:   "systemd",
		Short: "Write a systemd unit",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.runInstallSystemd(o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.envFile, "env-file", "/etc/default/teleport", "file with environment variables; it may be missing")
	f.IntVar(&o.fdLimit, "fd-limit", 524288, "limit on open files")
	f.StringVar(&o.pidFile, "pid-file", "/run/teleport.pid", "file to write the process id to")
	f.StringVar(&o.teleportPath, "teleport-path", "", "path of the teleport program (default: this one)")
	f.StringVarP(&o.output, "output", "o", "stdout", "stdout, a path or file:///path")
	install.AddCommand(cmd)
	return install
}

func (a *app) runInstallSystemd(o unitOptions) error {
	if o.teleportPath == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the path of this program, give it with --teleport-path: %w", err)
		}
		o.teleportPath = self
	}
	unit, err := systemdUnit(o)
	if err != nil {
		return err
	}
	path, err := a.output(o.output, "", []byte(unit), 0o644)
	if err != nil || path == "" {
		return err
	}
	_, err = fmt.Fprintf(a.stderr, "Wrote the unit to %s. Enable and start it:\n\n  systemctl enable teleport\n  systemctl start teleport\n", path)
	return err
}

// systemdUnit returns the text of the unit. The process is not started again
// when it said that its configuration is wrong or that the cluster refused it:
// both need a person.
func systemdUnit(o unitOptions) (string, error) {
	for _, p := range []struct{ flag, path string }{
		{"--env-file", o.envFile}, {"--pid-file", o.pidFile}, {"--teleport-path", o.teleportPath},
	} {
		if !filepath.IsAbs(p.path) || strings.ContainsFunc(p.path, oddInUnit) {
			return "", fault.Invalid("bad %s=%q: expected an absolute path without spaces, quotes, %% or $", p.flag, p.path)
		}
	}
	if o.fdLimit < minFDLimit || o.fdLimit > maxFDLimit {
		return "", fault.Invalid("bad --fd-limit=%d: expected a number from %d to %d", o.fdLimit, minFDLimit, maxFDLimit)
	}
	return strings.Join([]string{
		"[Unit]",
		"Description=Teleport",
		"After=network-online.target",
		"Wants=network-online.target",
		"StartLimitIntervalSec=0",
		"",
		"[Service]",
		"Type=simple",
		"NotifyAccess=all",
		"EnvironmentFile=-" + o.envFile,
		"ExecStart=" + o.teleportPath + " start --config=" + config.DefaultPath + " --pid-file=" + o.pidFile,
		"ExecReload=/bin/kill -HUP $MAINPID",
		"Restart=on-failure",
		"RestartSec=5",
		"RestartPreventExitStatus=2 3",
		fmt.Sprintf("LimitNOFILE=%d", o.fdLimit),
		"",
		"[Install]",
		"WantedBy=multi-user.target",
		"",
	}, "\n"), nil
}

// oddInUnit reports characters that systemd would take for syntax.
func oddInUnit(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune(`"'\%$;#`, r)
}
