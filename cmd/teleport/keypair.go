package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/join/boundkeypair"
)

type keypairCreateOptions struct{ dataDir, path, format string }

func (a *app) newKeypair() *cobra.Command {
	group := &cobra.Command{
		Use:   "keypair",
		Short: "The key that join method bound_keypair knows this machine by",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var o keypairCreateOptions
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make the key before the first join, and print the public half for the token",
		Long: `Make the key before the first join, and print the public half for the token's
spec.bound_keypair.onboarding.initial_public_key. A key that is there is kept.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.runKeypairCreate(o) },
	}
	cmd.Flags().StringVar(&o.dataDir, "data-dir", config.DefaultDataDir, "the data directory of the machine's teleport")
	cmd.Flags().StringVar(&o.path, "key-path", "", "the file of the key, if it is not in the data directory")
	cmd.Flags().StringVarP(&o.format, "format", "f", "text", "text or json")
	group.AddCommand(cmd)
	return group
}

func (a *app) runKeypairCreate(o keypairCreateOptions) error {
	if o.format != "text" && o.format != "json" {
		return fault.Invalid("bad --format=%q: expected text or json", o.format)
	}
	path := o.path
	if path == "" {
		if err := os.MkdirAll(o.dataDir, 0o700); err != nil {
			return fmt.Errorf("make data directory: %w", err)
		}
		path = filepath.Join(o.dataDir, boundkeypair.KeyFile)
	}
	public, created, err := boundkeypair.CreateKey(path)
	if err != nil {
		return err
	}
	if !created {
		fmt.Fprintf(a.stderr, "%s exists already and was not changed\n", path)
	}
	if o.format == "json" {
		return json.NewEncoder(a.stdout).Encode(map[string]string{"public_key": public})
	}
	_, err = fmt.Fprintln(a.stdout, public)
	return err
}
