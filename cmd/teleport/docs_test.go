package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The reference names every command and every flag.
func TestReferenceIsComplete(t *testing.T) {
	data, err := os.ReadFile("../../docs/reference/cli-teleport.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	a := &app{stdout: io.Discard, stderr: io.Discard}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
			return
		}
		if !cmd.HasSubCommands() && !strings.Contains(doc, cmd.CommandPath()) {
			t.Errorf("%s is not documented", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !f.Hidden && !strings.Contains(doc, "--"+f.Name) {
				t.Errorf("%s --%s is not documented", cmd.CommandPath(), f.Name)
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(a.newRoot())
}
