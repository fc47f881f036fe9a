package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// Lives of the links when nothing else is said, and the most they may be; Auth
// enforces the same.
const (
	defaultInviteTTL = time.Hour
	maxInviteTTL     = 48 * time.Hour
	defaultResetTTL  = 8 * time.Hour
	maxResetTTL      = 24 * time.Hour
)

// traitFlag is a flag that sets a trait of a user.
type traitFlag struct{ flag, trait, help string }

func traitFlags() []traitFlag {
	return []traitFlag{
		{"logins", "logins", "users to log in as on servers"},
		{"db-users", "db_users", "database users"},
		{"db-names", "db_names", "databases"},
		{"db-roles", "db_roles", "database roles"},
		{"kubernetes-users", "kubernetes_users", "Kubernetes users"},
		{"kubernetes-groups", "kubernetes_groups", "Kubernetes groups"},
		{"windows-logins", "windows_logins", "Windows users"},
		{"aws-role-arns", "aws_role_arns", "AWS roles"},
		{"azure-identities", "azure_identities", "Azure identities"},
		{"gcp-service-accounts", "gcp_service_accounts", "GCP service accounts"},
	}
}

// userOptions are the roles and traits given on the command line; only flags that
// were given are in them.
type userOptions struct {
	roles  []string
	traits map[string]*[]string
	ttl    time.Duration
	format string
}

// addFlags adds --<prefix>roles and the trait flags.
func (o *userOptions) addFlags(f *pflag.FlagSet, prefix, rolesHelp string) {
	f.StringSliceVar(&o.roles, prefix+"roles", nil, rolesHelp)
	o.traits = map[string]*[]string{}
	for _, t := range traitFlags() {
		o.traits[t.trait] = f.StringSlice(prefix+t.flag, nil, t.help+", comma-separated")
	}
}

// apply sets on the user what was given; an empty value clears.
func (o *userOptions) apply(f *pflag.FlagSet, prefix string, spec *typesv1.UserSpec) (changed bool) {
	if f.Changed(prefix + "roles") {
		spec.Roles, changed = clean(o.roles), true
	}
	for _, t := range traitFlags() {
		if !f.Changed(prefix + t.flag) {
			continue
		}
		changed = true
		if spec.Traits == nil {
			spec.Traits = map[string]*typesv1.Strings{}
		}
		if values := clean(*o.traits[t.trait]); len(values) > 0 {
			spec.Traits[t.trait] = &typesv1.Strings{Values: values}
		} else {
			delete(spec.Traits, t.trait)
		}
	}
	return changed
}

// clean trims, and drops what is empty or said twice.
func clean(list []string) []string {
	var out []string
	for _, s := range list {
		if s = strings.TrimSpace(s); s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func newUsers(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "users", Aliases: []string{"user"}, Short: "Invite, list, change and delete users"},
		newUsersAdd(a), newUsersLs(a), newUsersRm(a), newUsersReset(a), newUsersUpdate(a))
}

func newUsersAdd(a *app) *cobra.Command {
	var o userOptions
	cmd := &cobra.Command{
		Use:   "add NAME --roles=access --logins=root,ubuntu",
		Short: "Make a user and an invite link, good for one use",
		Args:  screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(clean(o.roles)) == 0 {
				return screen.Usage("tctl users add: --roles is missing, e.g. --roles=access")
			}
			user := types.New(types.KindUser, args[0]).(*typesv1.User)
			if user.Spec == nil {
				user.Spec = &typesv1.UserSpec{}
			}
			o.apply(cmd.Flags(), "", user.Spec)
			return runUsersAdd(cmd.Context(), a, user, o)
		},
	}
	o.addFlags(cmd.Flags(), "", "roles of the user, comma-separated (access, editor, auditor, or your own)")
	cmd.Flags().DurationVar(&o.ttl, "ttl", defaultInviteTTL, "how long the link works, at most 48h")
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

func runUsersAdd(ctx context.Context, a *app, user *typesv1.User, o userOptions) error {
	if o.ttl < time.Minute || o.ttl > maxInviteTTL {
		return fault.Invalid("--ttl=%s: a link may work from 1m to %s", o.ttl, screen.Duration(maxInviteTTL))
	}
	if err := types.Check(user); err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		resp, err := userv1.NewUserServiceClient(conn).CreateUser(ctx, &userv1.CreateUserRequest{User: user, Ttl: durationpb.New(o.ttl)})
		if err != nil {
			return fmt.Errorf("make user %q: %w", user.GetMetadata().GetName(), err)
		}
		return a.writeLink(user.GetMetadata().GetName(), "has been created but has no password yet", resp.GetInvitation(), o)
	})
}

// link is an invitation for programs.
type link struct {
	User    string    `json:"user" yaml:"user"`
	URL     string    `json:"url" yaml:"url"`
	Token   string    `json:"token" yaml:"token"`
	Expires time.Time `json:"expires" yaml:"expires"`
}

// writeLink says what to do with an invitation.
func (a *app) writeLink(user, what string, inv *userv1.Invitation, o userOptions) error {
	l := link{User: user, URL: inv.GetUrl(), Token: inv.GetToken(), Expires: inv.GetExpires().AsTime()}
	switch o.format {
	case screen.JSON:
		return screen.WriteJSON(a.Out, l)
	case screen.YAML:
		return screen.WriteYAML(a.Out, l)
	}
	return l.write(a.Out, what, o.ttl)
}

func (l link) write(w io.Writer, what string, ttl time.Duration) error {
	var out strings.Builder
	fmt.Fprintf(&out, "User %q %s. Send the user this link, which works once and for %s:\n", screen.Escape(l.User), what, screen.Duration(ttl))
	if l.URL == "" {
		fmt.Fprintf(&out, "https://ADDRESS-OF-THE-PROXY:3080/web/invite/%s\n\n", screen.Escape(l.Token))
		out.WriteString("No Proxy is known yet: put its address into the link.\n")
	} else {
		fmt.Fprintf(&out, "%s\n\n", screen.Escape(l.URL))
		fmt.Fprintf(&out, "It is redeemed with: tsh login --invite='%s'\n", screen.Escape(l.URL))
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func newUsersReset(a *app) *cobra.Command {
	var o userOptions
	cmd := &cobra.Command{
		Use:   "reset NAME",
		Short: "Make a link for a new password and second factor; the old ones stop working at once",
		Args:  screen.Args(1, 1),
		RunE:  func(cmd *cobra.Command, args []string) error { return runUsersReset(cmd.Context(), a, args[0], o) },
	}
	cmd.Flags().DurationVar(&o.ttl, "ttl", defaultResetTTL, "how long the link works, at most 24h")
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

func runUsersReset(ctx context.Context, a *app, name string, o userOptions) error {
	if o.ttl < time.Minute || o.ttl > maxResetTTL {
		return fault.Invalid("--ttl=%s: a link may work from 1m to %s", o.ttl, screen.Duration(maxResetTTL))
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		resp, err := userv1.NewUserServiceClient(conn).ResetUser(ctx, &userv1.ResetUserRequest{User: name, Ttl: durationpb.New(o.ttl)})
		if err != nil {
			return fmt.Errorf("reset user %q: %w", name, err)
		}
		return a.writeLink(name, "has been reset: the old password and second factor no longer work", resp.GetInvitation(), o)
	})
}

func newUsersLs(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List users",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runUsersLs(cmd.Context(), a, format) },
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

func runUsersLs(ctx context.Context, a *app, format string) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		list, err := client.List(ctx, conn, types.KindUser)
		if err != nil {
			return err
		}
		if format != screen.Text {
			return a.writeResources(format, list)
		}
		table := screen.NewTable("User", "Roles")
		for _, r := range list {
			if u, ok := r.(*typesv1.User); ok {
				table.Row(u.GetMetadata().GetName(), strings.Join(u.GetSpec().GetRoles(), ","))
			}
		}
		return table.Write(a.Out)
	})
}

func newUsersRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME[,NAME...]",
		Short: "Delete users; certificates that they hold are good until they expire",
		Args:  screen.Args(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runUsersRm(cmd.Context(), a, clean(strings.Split(strings.Join(args, ","), ",")))
		},
	}
}

func runUsersRm(ctx context.Context, a *app, names []string) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		api := resourcev1.NewResourceServiceClient(conn)
		for _, name := range names {
			if _, err := api.DeleteResource(ctx, &resourcev1.DeleteResourceRequest{Kind: types.KindUser, Name: name}); err != nil {
				return fmt.Errorf("delete user %q: %w", name, err)
			}
			if err := a.print("User %q has been deleted\n", screen.Escape(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

func newUsersUpdate(a *app) *cobra.Command {
	var o userOptions
	cmd := &cobra.Command{
		Use:   "update NAME --set-roles=access,editor --set-logins=root",
		Short: "Change the roles and logins of a user; an empty value clears",
		Args:  screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runUsersUpdate(cmd.Context(), a, args[0], func(spec *typesv1.UserSpec) bool { return o.apply(cmd.Flags(), "set-", spec) })
		},
	}
	o.addFlags(cmd.Flags(), "set-", "roles of the user, comma-separated")
	return cmd
}

func runUsersUpdate(ctx context.Context, a *app, name string, change func(*typesv1.UserSpec) bool) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		r, err := getResource(ctx, conn, types.KindUser, name)
		if err != nil {
			return err
		}
		user, ok := r.(*typesv1.User)
		if !ok {
			return fault.Invalid("the cluster answered with a %s when asked for a user", r.GetKind())
		}
		if user.Spec == nil {
			user.Spec = &typesv1.UserSpec{}
		}
		if !change(user.Spec) {
			return screen.Usage("tctl users update: nothing to change: give --set-roles, --set-logins or another --set- flag")
		}
		if err := types.Check(user); err != nil {
			return err
		}
		if err := updateResource(ctx, conn, user); err != nil {
			return err
		}
		return a.print("User %q has been updated: the changes hold from the next login\n", screen.Escape(name))
	})
}
