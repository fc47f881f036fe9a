package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// maxInput bounds a file of resources.
const maxInput = 4 << 20

// reference is kind[/name] of a command line.
type reference struct {
	info types.KindInfo
	name string
}

func parseReference(s string, needName bool) (reference, error) {
	kind, name, _ := strings.Cut(s, "/")
	info, ok := types.Kind(kind)
	if !ok || !info.Served {
		return reference{}, screen.Usage("unknown kind %q: tctl list-kinds shows those that there are", kind)
	}
	if name == "" && info.Singleton {
		name = info.Name
	}
	if name == "" && needName {
		return reference{}, screen.Usage("%q: expected %s/NAME", s, info.Name)
	}
	return reference{info, name}, nil
}

func getResource(ctx context.Context, conn grpc.ClientConnInterface, kind, name string) (types.Resource, error) {
	resp, err := resourcev1.NewResourceServiceClient(conn).GetResource(ctx, &resourcev1.GetResourceRequest{Kind: kind, Name: name})
	if err != nil {
		return nil, fmt.Errorf("get %s %q: %w", kind, name, err)
	}
	return types.FromAny(resp.GetResource())
}

func updateResource(ctx context.Context, conn grpc.ClientConnInterface, r types.Resource) error {
	packed, err := types.ToAny(r)
	if err != nil {
		return err
	}
	_, err = resourcev1.NewResourceServiceClient(conn).UpdateResource(ctx, &resourcev1.UpdateResourceRequest{Resource: packed})
	if err != nil {
		return fmt.Errorf("update %s %q: %w", r.GetKind(), r.GetMetadata().GetName(), err)
	}
	return nil
}

// writeResources writes resources as JSON (a list), YAML (documents) or text.
func (a *app) writeResources(format string, list []types.Resource) error {
	switch format {
	case screen.JSON:
		text, err := types.MarshalJSON(list...)
		if err != nil {
			return err
		}
		return screen.WriteRawJSON(a.Out, text)
	case screen.YAML:
		text, err := types.MarshalYAML(list...)
		if err != nil {
			return err
		}
		return screen.WriteText(a.Out, text)
	}
	for i, part := range byKind(list) {
		info, _ := types.Kind(part[0].GetKind())
		titles := make([]string, len(info.Columns))
		for j, c := range info.Columns {
			titles[j] = c.Title
		}
		table := screen.NewTable(titles...)
		for _, r := range part {
			cells := make([]string, len(info.Columns))
			for j, c := range info.Columns {
				cells[j] = c.Value(r)
			}
			table.Row(cells...)
		}
		if i > 0 {
			if err := a.print("\n"); err != nil {
				return err
			}
		}
		if err := table.Write(a.Out); err != nil {
			return err
		}
	}
	return nil
}

// byKind cuts the list where the kind changes.
func byKind(list []types.Resource) [][]types.Resource {
	var out [][]types.Resource
	for _, r := range list {
		if n := len(out); n > 0 && out[n-1][0].GetKind() == r.GetKind() {
			out[n-1] = append(out[n-1], r)
			continue
		}
		out = append(out, []types.Resource{r})
	}
	return out
}

func newGet(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "get KIND[/NAME][,KIND[/NAME]...]",
		Short: "Show resources as YAML, e.g. tctl get role/access",
		Args:  screen.Args(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runGet(cmd.Context(), a, clean(strings.Split(strings.Join(args, ","), ",")), format)
		},
	}
	screen.FormatFlag(cmd, &format, screen.YAML, screen.JSON, screen.Text)
	return cmd
}

func runGet(ctx context.Context, a *app, names []string, format string) error {
	refs := make([]reference, len(names))
	for i, s := range names {
		var err error
		if refs[i], err = parseReference(s, false); err != nil {
			return err
		}
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		var list []types.Resource
		for _, ref := range refs {
			if ref.name == "" {
				some, err := client.List(ctx, conn, ref.info.Name)
				if err != nil {
					return err
				}
				list = append(list, some...)
				continue
			}
			r, err := getResource(ctx, conn, ref.info.Name, ref.name)
			if err != nil {
				return err
			}
			list = append(list, r)
		}
		return a.writeResources(format, list)
	})
}

func newCreate(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "create [-f] [FILE]",
		Short: "Make resources from YAML, from a file or standard input",
		Args:  screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCreate(cmd.Context(), a, strings.Join(args, ""), force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "overwrite resources that exist")
	return cmd
}

func runCreate(ctx context.Context, a *app, path string, force bool) error {
	name, data, err := a.readInput(path)
	if err != nil {
		return err
	}
	list, err := types.ParseYAML(name, data)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fault.Invalid("%s has no resources", name)
	}
	for _, r := range list {
		if info, ok := types.Kind(r.GetKind()); !ok || !info.Writable {
			return fault.Invalid("%s: a %s is made by the cluster itself: tctl list-kinds shows what can be created", name, r.GetKind())
		}
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		for _, r := range list {
			made, what, err := create(ctx, conn, r, force)
			if err != nil {
				return err
			}
			if err := a.print("%s %q has been %s\n", made.GetKind(), screen.Escape(made.GetMetadata().GetName()), what); err != nil {
				return err
			}
			if token, ok := made.(*typesv1.Token); ok && token.GetStatus().GetBoundKeypair().GetRegistrationSecret() != "" {
				if err := a.print("Registration secret, shown only now: %s\n", token.GetStatus().GetBoundKeypair().GetRegistrationSecret()); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// create returns the resource as it is now: the name of a token that was written
// with its secret is an id afterwards.
func create(ctx context.Context, conn grpc.ClientConnInterface, r types.Resource, force bool) (types.Resource, string, error) {
	packed, err := types.ToAny(r)
	if err != nil {
		return nil, "", err
	}
	api := resourcev1.NewResourceServiceClient(conn)
	label := r.GetKind()
	if label != types.KindToken { // whose name may be a secret
		label += fmt.Sprintf(" %q", r.GetMetadata().GetName())
	}
	if !force {
		resp, err := api.CreateResource(ctx, &resourcev1.CreateResourceRequest{Resource: packed})
		if errors.Is(err, fault.ErrExists) {
			return nil, "", fault.Exists("%s exists already: use tctl create -f to overwrite it", label)
		}
		if err != nil {
			return nil, "", fmt.Errorf("create %s: %w", label, err)
		}
		made, err := types.FromAny(resp.GetResource())
		return made, "created", err
	}
	resp, err := api.UpsertResource(ctx, &resourcev1.UpsertResourceRequest{Resource: packed})
	if err != nil {
		return nil, "", fmt.Errorf("create %s: %w", label, err)
	}
	what := "updated"
	if resp.GetCreated() {
		what = "created"
	}
	made, err := types.FromAny(resp.GetResource())
	return made, what, err
}

// readInput reads the file, or standard input for "" and "-".
func (a *app) readInput(path string) (name string, data []byte, err error) {
	name, in := "standard input", a.In
	if path != "" && path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", nil, fault.Invalid("%w", err)
		}
		defer func() { _ = f.Close() }()
		name, in = path, f
	} else if screen.IsTerminal(a.In) {
		_, _ = fmt.Fprintln(a.Err, "Reading YAML from standard input; end with Ctrl-D.")
	}
	data, err = io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return "", nil, fault.Invalid("read %s: %w", name, err)
	}
	if len(data) > maxInput {
		return "", nil, fault.Limit("%s is larger than %d bytes", name, maxInput)
	}
	return name, data, nil
}

func newRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm KIND/NAME",
		Short: "Delete a resource, e.g. tctl rm role/dev",
		Args:  screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseReference(args[0], true)
			if err != nil {
				return err
			}
			return runRm(cmd.Context(), a, ref)
		},
	}
}

func runRm(ctx context.Context, a *app, ref reference) error {
	if ref.info.Name == types.KindToken {
		return runTokensRm(ctx, a, ref.name) // the name may be a secret
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		req := &resourcev1.DeleteResourceRequest{Kind: ref.info.Name, Name: ref.name}
		if _, err := resourcev1.NewResourceServiceClient(conn).DeleteResource(ctx, req); err != nil {
			return fmt.Errorf("delete %s %q: %w", ref.info.Name, ref.name, err)
		}
		return a.print("%s %q has been deleted\n", ref.info.Name, screen.Escape(ref.name))
	})
}

func newListKinds(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "list-kinds",
		Short: "List the kinds of resources",
		Args:  screen.Args(0, 0),
		RunE:  func(*cobra.Command, []string) error { return runListKinds(a, format) },
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

// kindRow is a row of list-kinds.
type kindRow struct {
	Kind     string   `json:"kind" yaml:"kind"`
	Plural   string   `json:"plural" yaml:"plural"`
	Aliases  []string `json:"aliases,omitempty" yaml:"aliases,omitempty"`
	Writable bool     `json:"writable" yaml:"writable"`
}

func runListKinds(a *app, format string) error {
	var rows []kindRow
	for _, k := range types.Kinds() {
		if k.Served {
			rows = append(rows, kindRow{k.Name, k.Plural, k.Aliases, k.Writable})
		}
	}
	switch format {
	case screen.JSON:
		return screen.WriteJSON(a.Out, rows)
	case screen.YAML:
		return screen.WriteYAML(a.Out, rows)
	}
	table := screen.NewTable("Kind", "Also", "Commands")
	for _, r := range rows {
		commands := "get, rm"
		if r.Writable {
			commands = "create, get, edit, rm"
		}
		also := slices.DeleteFunc(append([]string{r.Plural}, r.Aliases...), func(s string) bool { return s == r.Kind })
		table.Row(r.Kind, strings.Join(also, ", "), commands)
	}
	return table.Write(a.Out)
}
