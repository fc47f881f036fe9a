package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The reference names every command and every flag.
func TestReference(t *testing.T) {
	data, err := os.ReadFile("../../docs/reference/cli-tctl.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if !cmd.HasSubCommands() && !strings.Contains(text, cmd.CommandPath()) {
			t.Errorf("%q is not described", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			plain := strings.Contains(text, "--"+f.Name)
			trait := strings.HasPrefix(f.Name, "set-") && strings.Contains(text, "--"+strings.TrimPrefix(f.Name, "set-"))
			short := f.Shorthand != "" && strings.Contains(text, "`-"+f.Shorthand)
			if !plain && !trait && !short {
				t.Errorf("%s --%s is not described", cmd.CommandPath(), f.Name)
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}
