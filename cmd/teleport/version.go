package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"teleport/internal/version"
)

type versionOptions struct{ raw bool }

func (a *app) newVersion() *cobra.Command {
	var o versionOptions
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.runVersion(o) },
	}
	cmd.Flags().BoolVar(&o.raw, "raw", false, "print the bare version number")
	return cmd
}

func (a *app) runVersion(o versionOptions) error {
	text := version.Line()
	if o.raw {
		text = version.Version
	}
	_, err := fmt.Fprintln(a.stdout, text)
	return err
}
