package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// defaultTokenTTL is the life of a token when nothing else is said.
const defaultTokenTTL = 30 * time.Minute

type tokenOptions struct {
	roles, value, labels, format string
	ttl                          time.Duration
	maxUses                      uint32
	serves                       servesOptions
}

func newTokens(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "tokens", Aliases: []string{"token"}, Short: "Invite machines to the cluster"},
		newTokensAdd(a), newTokensLs(a), newTokensShow(a), newTokensTest(a), newTokensRm(a))
}

func newTokensAdd(a *app) *cobra.Command {
	var o tokenOptions
	cmd := &cobra.Command{
		Use:   "add --type=node",
		Short: "Make a join token; its secret is shown once",
		Args:  screen.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.roles == "" {
				return screen.Usage("tctl tokens add: --type is missing, e.g. --type=node")
			}
			return runTokensAdd(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.roles, "type", "", "what may join, comma-separated: app, auth, bot, db, discovery, kube, node, proxy, windowsdesktop")
	f.DurationVar(&o.ttl, "ttl", defaultTokenTTL, "how long the token works")
	f.StringVar(&o.value, "value", "", "secret to use instead of a random one (it shows in the shell's history)")
	f.StringVar(&o.labels, "labels", "", "labels that every machine that joins gets, a=b,c=d")
	f.Uint32Var(&o.maxUses, "max-uses", 0, "how many machines may join; 0 is no limit")
	o.serves.addFlags(f)
	o.formatFlag(cmd)
	return cmd
}

// formatFlag adds --format; without it, what to do with the token is said as well.
func (o *tokenOptions) formatFlag(cmd *cobra.Command) {
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	flag := cmd.Flags().Lookup("format")
	flag.Usage = "print only the token: text, json, yaml"
	flag.DefValue, o.format = "", ""
}

func runTokensAdd(ctx context.Context, a *app, o tokenOptions) error {
	req, err := o.request()
	if err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		resp, err := tokenv1.NewTokenServiceClient(conn).CreateToken(ctx, req)
		if err != nil {
			return fmt.Errorf("make a token: %w", err)
		}
		made := newToken{serves: o.serves, Token: resp.GetSecret(), ID: resp.GetToken().GetMetadata().GetName(), Roles: req.GetRoles(), Labels: req.GetLabels()}
		if exp := resp.GetToken().GetMetadata().GetExpires(); exp != nil {
			made.Expires = exp.AsTime()
		}
		switch o.format {
		case screen.Text:
			return a.print("%s\n", screen.Escape(made.Token))
		case screen.JSON:
			return screen.WriteJSON(a.Out, made)
		case screen.YAML:
			return screen.WriteYAML(a.Out, made)
		}
		status, err := statusv1.NewStatusServiceClient(conn).GetStatus(ctx, &statusv1.GetStatusRequest{})
		if err != nil {
			// The token exists and its secret is not shown again: say it anyway.
			status = &statusv1.GetStatusResponse{}
			_, _ = fmt.Fprintf(a.Err, "The address and the CA pin could not be asked for: %s\n", screen.Escape(err.Error()))
		}
		return made.write(a.Out, o.ttl, status)
	})
}

func (o tokenOptions) request() (*tokenv1.CreateTokenRequest, error) {
	roles, err := types.ParseSystemRoles(o.roles)
	if err != nil {
		return nil, err
	}
	labels, err := types.ParseLabels(o.labels)
	if err != nil {
		return nil, err
	}
	if err := o.serves.check(roles); err != nil {
		return nil, err
	}
	if o.ttl < time.Second {
		return nil, fault.Invalid("--ttl=%s: a token has to work for a second at least", o.ttl)
	}
	req := &tokenv1.CreateTokenRequest{Ttl: durationpb.New(o.ttl), Value: o.value, Labels: labels, MaxUses: o.maxUses}
	for _, r := range roles {
		req.Roles = append(req.Roles, string(r))
	}
	return req, nil
}

// newToken is a token that was just made.
type newToken struct {
	// Token is the secret.
	Token   string            `json:"token" yaml:"token"`
	ID      string            `json:"id" yaml:"id"`
	Roles   []string          `json:"roles" yaml:"roles"`
	Labels  map[string]string `json:"labels,omitempty" yaml:"labels,omitempty"`
	Expires time.Time         `json:"expires" yaml:"expires"`

	serves servesOptions
}

// write says how to use the token.
func (t newToken) write(w io.Writer, ttl time.Duration, status *statusv1.GetStatusResponse) error {
	var out strings.Builder
	fmt.Fprintf(&out, "The invite token: %s\n", screen.Escape(t.Token))
	fmt.Fprintf(&out, "This token will expire in %s.\n", screen.Amount(ttl))
	if !slices.Equal(t.Roles, []string{string(types.RoleBot)}) {
		t.writeCommand(&out, ttl, status)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (t newToken) writeCommand(out *strings.Builder, ttl time.Duration, status *statusv1.GetStatusResponse) {
	flags := make([]string, 0, len(t.Roles))
	for _, r := range t.Roles {
		flags = append(flags, types.SystemRole(r).Flag())
	}
	addr := joinAddr(status)
	command, more := t.serves.command()
	if command == "" {
		command, more = "teleport start", []string{"--roles=" + strings.Join(flags, ",")}
		out.WriteString("\nRun this on the new node to join the cluster:\n")
	} else {
		out.WriteString("\nRun this on a machine that reaches it, to make it available in the cluster:\n")
	}
	fmt.Fprintf(out, "\n> %s \\\n", command)
	for _, flag := range more {
		fmt.Fprintf(out, "   %s \\\n", flag)
	}
	fmt.Fprintf(out, "   --token=%s \\\n", screen.Escape(t.Token))
	for _, pin := range status.GetCaPins() {
		fmt.Fprintf(out, "   --ca-pin=%s \\\n", screen.Escape(pin))
	}
	fmt.Fprintf(out, "   --auth-server=%s\n", addr)
	out.WriteString("\nPlease note:\n\n")
	fmt.Fprintf(out, "  - This invitation token will expire in %s\n", screen.Amount(ttl))
	fmt.Fprintf(out, "  - %s must be reachable from the new node\n", addr)
}

// joinAddr returns the address that new machines should dial: the Proxy's public
// one, otherwise that of Auth.
func joinAddr(status *statusv1.GetStatusResponse) string {
	for _, list := range [][]string{status.GetProxyAddrs(), status.GetAuthAddrs()} {
		for _, addr := range list {
			if _, _, err := net.SplitHostPort(addr); err == nil {
				return screen.Escape(addr)
			}
		}
	}
	return "ADDRESS-OF-THE-PROXY:3080"
}

func newTokensLs(a *app) *cobra.Command {
	var format, labels string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List join tokens and invitations; secrets are not kept, so only ids are shown",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runTokensLs(cmd.Context(), a, labels, format) },
	}
	cmd.Flags().StringVar(&labels, "labels", "", "only tokens with these labels, a=b,c=d")
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

// listedToken is a row of the list.
type listedToken struct {
	ID         string            `json:"id" yaml:"id"`
	Roles      []string          `json:"roles,omitempty" yaml:"roles,omitempty"`
	JoinMethod string            `json:"join_method,omitempty" yaml:"join_method,omitempty"`
	Labels     map[string]string `json:"labels,omitempty" yaml:"labels,omitempty"`
	Expires    *time.Time        `json:"expires,omitempty" yaml:"expires,omitempty"`
	Static     bool              `json:"static,omitempty" yaml:"static,omitempty"`
	User       string            `json:"user,omitempty" yaml:"user,omitempty"`
	Usage      string            `json:"usage,omitempty" yaml:"usage,omitempty"`
	Uses       uint32            `json:"uses" yaml:"uses"`
	MaxUses    uint32            `json:"max_uses,omitempty" yaml:"max_uses,omitempty"`
}

func listTokens(ctx context.Context, conn grpc.ClientConnInterface) ([]listedToken, error) {
	resp, err := tokenv1.NewTokenServiceClient(conn).ListTokens(ctx, &tokenv1.ListTokensRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return tokenRows(resp.GetTokens()), nil
}

// tokenRows puts the token that expires next first, and those that never do last.
func tokenRows(list []*tokenv1.ListedToken) []listedToken {
	out := make([]listedToken, 0, len(list))
	for _, t := range list {
		row := listedToken{
			ID: t.GetId(), Roles: t.GetRoles(), JoinMethod: t.GetJoinMethod(), Labels: t.GetLabels(), Static: t.GetStatic(),
			User: t.GetUser(), Usage: t.GetUsage(), Uses: t.GetUses(), MaxUses: t.GetMaxUses(),
		}
		if t.GetExpires() != nil {
			exp := t.GetExpires().AsTime()
			row.Expires = &exp
		}
		out = append(out, row)
	}
	slices.SortStableFunc(out, func(x, y listedToken) int {
		switch {
		case x.Expires == nil && y.Expires == nil:
			return cmp.Compare(x.ID, y.ID)
		case x.Expires == nil:
			return 1
		case y.Expires == nil:
			return -1
		}
		return cmp.Or(x.Expires.Compare(*y.Expires), cmp.Compare(x.ID, y.ID))
	})
	return out
}

func runTokensLs(ctx context.Context, a *app, labels, format string) error {
	want, err := types.ParseLabels(labels)
	if err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		all, err := listTokens(ctx, conn)
		if err != nil {
			return err
		}
		list := slices.DeleteFunc(all, func(t listedToken) bool {
			for name, value := range want {
				if t.Labels[name] != value {
					return true
				}
			}
			return false
		})
		switch format {
		case screen.JSON:
			return screen.WriteJSON(a.Out, list)
		case screen.YAML:
			return screen.WriteYAML(a.Out, list)
		}
		return tokenTable(list, a.now()).Write(a.Out)
	})
}

func tokenTable(list []listedToken, now time.Time) *screen.Table {
	table := screen.NewTable("Token", "Type", "Labels", "Expiry Time (UTC)")
	for _, t := range list {
		table.Row(t.ID, t.typeColumn(), t.labelsColumn(), t.expiryColumn(now))
	}
	return table
}

func (t listedToken) typeColumn() string {
	switch {
	case t.User != "" && t.Usage == "reset":
		return "User reset"
	case t.User != "":
		return "User signup"
	}
	return strings.Join(t.Roles, ",")
}

// labelsColumn names the user of an invitation, which has no labels.
func (t listedToken) labelsColumn() string {
	if t.User != "" {
		return "user=" + t.User
	}
	return screen.Labels(t.Labels)
}

func (t listedToken) expiryColumn(now time.Time) string {
	if t.Expires == nil {
		return "never"
	}
	return screen.Expiry(*t.Expires, now)
}

func newTokensRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm TOKEN",
		Short: "Revoke a token or an invitation, given by its id or its secret",
		Args:  screen.Args(1, 1),
		RunE:  func(cmd *cobra.Command, args []string) error { return runTokensRm(cmd.Context(), a, args[0]) },
	}
}

// runTokensRm looks the token up in the list first, so that a secret is turned into
// its id here and never sent anywhere.
func runTokensRm(ctx context.Context, a *app, given string) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		row, err := findListed(ctx, conn, given)
		if err != nil {
			return err
		}
		id := row.ID
		_, err = tokenv1.NewTokenServiceClient(conn).DeleteToken(ctx, &tokenv1.DeleteTokenRequest{Id: id})
		if errors.Is(err, fault.ErrNotFound) {
			return fault.NotFound("token %s has expired or was deleted by somebody else", id)
		}
		if err != nil {
			return fmt.Errorf("delete token %s: %w", id, err)
		}
		return a.print("Token %s has been deleted\n", screen.Escape(id))
	})
}
