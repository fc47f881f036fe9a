package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newEdit(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "edit KIND/NAME",
		Short: "Change a resource in an editor ($TELEPORT_EDITOR, $VISUAL, $EDITOR or vi)",
		Args:  screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseReference(args[0], true)
			if err != nil {
				return err
			}
			if !ref.info.Writable {
				return screen.Usage("a %s is made by the cluster itself and cannot be edited", ref.info.Name)
			}
			return runEdit(cmd.Context(), a, ref)
		},
	}
}

func runEdit(ctx context.Context, a *app, ref reference) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		old, err := getResource(ctx, conn, ref.info.Name, ref.name)
		if err != nil {
			return err
		}
		before, err := types.MarshalYAML(old)
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "tctl-edit-")
		if err != nil {
			return fault.Invalid("make a file to edit: %w", err)
		}
		path := filepath.Join(dir, ref.info.Name+".yaml")
		if err := a.edit(ctx, conn, old, before, path); err != nil {
			if _, serr := os.Stat(path); serr == nil {
				return fault.Invalid("%w\nWhat you wrote is in %s", err, path)
			}
			_ = os.RemoveAll(dir)
			return err
		}
		return os.RemoveAll(dir)
	})
}

// edit lets the user change the file and stores the result. It removes the file if
// there is nothing in it to keep.
func (a *app) edit(ctx context.Context, conn grpc.ClientConnInterface, old types.Resource, before []byte, path string) error {
	if err := os.WriteFile(path, before, 0o600); err != nil {
		return fault.Invalid("write the file to edit: %w", err)
	}
	if err := a.openEditor(ctx, path); err != nil {
		_ = os.Remove(path)
		return err
	}
	after, err := os.ReadFile(path)
	if err != nil {
		return fault.Invalid("read the file back: %w", err)
	}
	if bytes.Equal(before, after) {
		return a.print("Nothing was changed\n")
	}
	list, err := types.ParseYAML(filepath.Base(path), after)
	if err != nil {
		return err
	}
	name := old.GetMetadata().GetName()
	if len(list) != 1 || list[0].GetKind() != old.GetKind() || list[0].GetMetadata().GetName() != name {
		return fault.Invalid("expected one %s of the same name %q: a resource cannot be renamed", old.GetKind(), name)
	}
	edited := list[0]
	if m := edited.GetMetadata(); m.GetRevision() == "" {
		m.Revision = old.GetMetadata().GetRevision()
	}
	if err := updateResource(ctx, conn, edited); err != nil {
		return err
	}
	return a.print("%s %q has been updated\n", old.GetKind(), screen.Escape(name))
}

// openEditor runs the user's editor, whose command may have arguments.
func (a *app) openEditor(ctx context.Context, path string) error {
	words := strings.Fields(screen.Env("TELEPORT_EDITOR", "VISUAL", "EDITOR"))
	if len(words) == 0 {
		words = []string{"vi"}
	}
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], path)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.Err
	if err := cmd.Run(); err != nil {
		return fault.Invalid("editor %q: %w", words[0], err)
	}
	return nil
}
