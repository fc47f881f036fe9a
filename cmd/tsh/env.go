package main

import (
	"github.com/spf13/cobra"

	"teleport/internal/client"
	"teleport/internal/client/screen"
)

func newEnv(a *app) *cobra.Command {
	var format string
	var unset bool
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print commands that set the Proxy and cluster for a shell: eval $(tsh env)",
		Args:  screen.Args(0, 0),
		RunE:  func(*cobra.Command, []string) error { return runEnv(a, format, unset) },
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	cmd.Flags().BoolVar(&unset, "unset", false, "print commands that clear what tsh env sets")
	return cmd
}

func runEnv(a *app, format string, unset bool) error {
	if unset {
		return a.print("unset TELEPORT_PROXY\nunset TELEPORT_CLUSTER\n")
	}
	home, err := a.home()
	if err != nil {
		return err
	}
	var p client.Profile
	if p, err = home.Find(a.proxyAddr(), a.userName()); err != nil {
		return err
	}
	values := map[string]string{"TELEPORT_PROXY": p.Proxy, "TELEPORT_CLUSTER": p.Cluster}
	switch format {
	case screen.JSON:
		return screen.WriteJSON(a.Out, values)
	case screen.YAML:
		return screen.WriteYAML(a.Out, values)
	}
	return a.print("export TELEPORT_PROXY=%s\nexport TELEPORT_CLUSTER=%s\n", screen.ShellQuote(p.Proxy), screen.ShellQuote(p.Cluster))
}
