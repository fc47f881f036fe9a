package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
)

func newConfig(a *app) *cobra.Command {
	var port uint16
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print a block for ~/.ssh/config, so that ssh, scp and rsync work through the Proxy",
		Args:  screen.Args(0, 0),
		RunE:  func(*cobra.Command, []string) error { return runConfig(a, port) },
	}
	cmd.Flags().Uint16VarP(&port, "port", "p", 0, "port of the servers' SSH service; servers behind a tunnel have none")
	return cmd
}

func runConfig(a *app, port uint16) error {
	if a.identityFile() != "" {
		return screen.Usage("config needs a login: OpenSSH cannot use an identity file")
	}
	home, err := a.home()
	if err != nil {
		return err
	}
	profile, err := home.Find(a.proxyAddr(), a.userName())
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fault.Invalid("cannot tell where tsh is: %w", err)
	}
	text, err := sshConfig(home, profile, self, screen.Env("HOME"), port)
	if err != nil {
		return err
	}
	return a.print("%s", text)
}

// sshConfig writes the block. The patterns with the Proxy's own name keep users'
// habits: what is for the cluster holds for it too, but it is not dialled through
// itself.
func sshConfig(home *client.Home, p client.Profile, self, userHome string, port uint16) (string, error) {
	paths := home.Paths(p)
	command := screen.ShellQuote(self) + " proxy ssh --cluster=" + screen.ShellQuote(p.Cluster) + " --proxy=" + screen.ShellQuote(p.Proxy) + " '%r@%h:%p'"
	if home.Dir() != filepath.Join(userHome, ".tsh") {
		command = "env TELEPORT_HOME=" + screen.ShellQuote(home.Dir()) + " " + command
	}
	for _, s := range []string{home.Dir(), self} {
		if strings.ContainsAny(s, "\"\n\r%$") {
			return "", fault.Unsupported("OpenSSH's configuration cannot hold the path %q", s)
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "# Begin Teleport configuration for %s, made by tsh config\n", p.Host())
	fmt.Fprintf(&out, "Host *.%s %s\n", p.Cluster, p.Host())
	fmt.Fprintf(&out, "    UserKnownHostsFile \"%s\"\n", paths.KnownHosts)
	fmt.Fprintf(&out, "    IdentityFile \"%s\"\n", paths.SSHKey)
	fmt.Fprintf(&out, "    CertificateFile \"%s\"\n", paths.SSHCert)
	out.WriteString("    IdentitiesOnly yes\n    StrictHostKeyChecking yes\n")
	fmt.Fprintf(&out, "Host *.%s !%s\n", p.Cluster, p.Host())
	if port != 0 {
		fmt.Fprintf(&out, "    Port %d\n", port)
	}
	fmt.Fprintf(&out, "    ProxyCommand %s\n", command)
	fmt.Fprintf(&out, "# End Teleport configuration for %s\n", p.Host())
	return out.String(), nil
}
