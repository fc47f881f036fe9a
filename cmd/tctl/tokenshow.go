package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/types"
)

const (
	// maxUsesShown is how many uses of a token are shown.
	maxUsesShown = 50
	// maxJoinsSearched is how many joins are searched for those by the token.
	maxJoinsSearched = 10_000
)

func newTokensShow(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "show TOKEN",
		Short: "Show what a join token allows, who made it, and who used it from where",
		Args:  screen.Args(1, 1),
		RunE:  func(cmd *cobra.Command, args []string) error { return runTokensShow(cmd.Context(), a, args[0], format) },
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

// shownToken is everything about one token.
type shownToken struct {
	ID         string            `json:"id" yaml:"id"`
	JoinMethod string            `json:"join_method" yaml:"join_method"`
	Roles      []string          `json:"roles" yaml:"roles"`
	BotName    string            `json:"bot_name,omitempty" yaml:"bot_name,omitempty"`
	Labels     map[string]string `json:"labels,omitempty" yaml:"labels,omitempty"`
	Principals []string          `json:"principals,omitempty" yaml:"principals,omitempty"`
	Rejoin     string            `json:"rejoin,omitempty" yaml:"rejoin,omitempty"`
	Static     bool              `json:"static,omitempty" yaml:"static,omitempty"`
	Expires    *time.Time        `json:"expires,omitempty" yaml:"expires,omitempty"`
	Uses       uint32            `json:"uses,omitempty" yaml:"uses,omitempty"`
	MaxUses    uint32            `json:"max_uses,omitempty" yaml:"max_uses,omitempty"`
	CreatedBy  string            `json:"created_by,omitempty" yaml:"created_by,omitempty"`
	Created    *time.Time        `json:"created,omitempty" yaml:"created,omitempty"`
	Rules      []shownRule       `json:"rules,omitempty" yaml:"rules,omitempty"`
	UsedBy     []tokenUse        `json:"used_by" yaml:"used_by"`
}

// shownRule is one allow rule.
type shownRule struct {
	Path   string       `json:"path" yaml:"path"`
	Fields []shownField `json:"fields" yaml:"fields"`
}

type shownField struct {
	Name string   `json:"name" yaml:"name"`
	Want []string `json:"want" yaml:"want"`
}

// tokenUse is one join by the token.
type tokenUse struct {
	HostID   string    `json:"host_id" yaml:"host_id"`
	Hostname string    `json:"hostname,omitempty" yaml:"hostname,omitempty"`
	Address  string    `json:"address,omitempty" yaml:"address,omitempty"`
	Time     time.Time `json:"time" yaml:"time"`
}

func runTokensShow(ctx context.Context, a *app, given, format string) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		token, err := findToken(ctx, conn, given)
		if err != nil {
			return err
		}
		shown := showToken(token)
		shown.UsedBy, err = searchUses(ctx, conn, token)
		if errors.Is(err, fault.ErrDenied) {
			_, _ = fmt.Fprintln(a.Err, "Your roles do not let you read the audit log, so only machines that are still in the cluster are shown.")
			shown.UsedBy, err = presentUses(ctx, conn, token)
		}
		if err != nil {
			return err
		}
		switch format {
		case screen.JSON:
			return screen.WriteJSON(a.Out, shown)
		case screen.YAML:
			return screen.WriteYAML(a.Out, shown)
		}
		return shown.write(a)
	})
}

// findToken returns the join token of the id or the secret, which is turned into the
// id here and not sent anywhere.
func findToken(ctx context.Context, conn grpc.ClientConnInterface, given string) (*typesv1.Token, error) {
	row, err := findListed(ctx, conn, given)
	if err != nil {
		return nil, err
	}
	if row.User != "" {
		return nil, fault.Invalid("%s is a link for user %q and admits no machine: tctl tokens ls shows all there is to it", row.ID, row.User)
	}
	r, err := getResource(ctx, conn, types.KindToken, row.ID)
	if err != nil {
		return nil, err
	}
	token, ok := r.(*typesv1.Token)
	if !ok {
		return nil, fault.Invalid("the Auth Service answered with something else than a token")
	}
	return token, nil
}

// findListed finds a token in the list by its id or its secret.
func findListed(ctx context.Context, conn grpc.ClientConnInterface, given string) (listedToken, error) {
	list, err := listTokens(ctx, conn)
	if err != nil {
		return listedToken{}, err
	}
	for _, id := range []func() string{
		func() string { return given },
		func() string { return keys.DeriveToken(given).ID },
	} {
		id := id()
		if i := slices.IndexFunc(list, func(t listedToken) bool { return t.ID == id }); i >= 0 {
			return list[i], nil
		}
	}
	return listedToken{}, fault.NotFound("there is no such token: tctl tokens ls shows the ids")
}

func showToken(t *typesv1.Token) *shownToken {
	spec, status := t.GetSpec(), t.GetStatus()
	out := &shownToken{
		ID: t.GetMetadata().GetName(), JoinMethod: spec.GetJoinMethod(), Roles: spec.GetRoles(), BotName: spec.GetBotName(),
		Labels: spec.GetLabels(), Principals: spec.GetPrincipals(), Rejoin: spec.GetRejoin(), Static: status.GetStatic(),
		Expires: timeOf(t.GetMetadata().GetExpires()), Uses: status.GetUses(), MaxUses: spec.GetMaxUses(),
		CreatedBy: status.GetCreatedBy(), Created: timeOf(status.GetCreated()), UsedBy: []tokenUse{},
	}
	if row, ok := types.JoinMethodRow(spec.GetJoinMethod()); ok && row.Rules != nil {
		for _, rule := range row.Rules(spec) {
			shown := shownRule{Path: rule.Path}
			for _, f := range rule.Fields() {
				shown.Fields = append(shown.Fields, shownField{f.Name, f.Want})
			}
			out.Rules = append(out.Rules, shown)
		}
	}
	return out
}

func timeOf(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	out := t.AsTime()
	return &out
}

// searchUses returns the joins by the token, which the audit log has, the latest
// first.
func searchUses(ctx context.Context, conn grpc.ClientConnInterface, t *typesv1.Token) ([]tokenUse, error) {
	out := []tokenUse{}
	req := &auditv1.SearchEventsRequest{Types: []string{audit.InstanceJoin.Type}, From: t.GetStatus().GetCreated(), Limit: maxEventPage}
	for searched := 0; searched < maxJoinsSearched && len(out) < maxUsesShown; searched += maxEventPage {
		resp, err := auditv1.NewAuditServiceClient(conn).SearchEvents(ctx, req)
		if err != nil {
			return out, fmt.Errorf("search the audit log: %w", err)
		}
		for _, e := range resp.GetEvents() {
			fields := e.GetFields().GetFields()
			if e.GetCode() == audit.InstanceJoin.Code && fields["token_name"].GetStringValue() == t.GetMetadata().GetName() {
				out = append(out, tokenUse{fields["host_id"].GetStringValue(), fields["node_name"].GetStringValue(), fields["addr.remote"].GetStringValue(), e.GetTime().AsTime()})
			}
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	return out, nil
}

// presentUses returns the latest join of each machine whose latest was by the token.
func presentUses(ctx context.Context, conn grpc.ClientConnInterface, t *typesv1.Token) ([]tokenUse, error) {
	list, err := client.List(ctx, conn, types.KindInstance)
	if err != nil {
		return nil, err
	}
	out := []tokenUse{}
	for _, r := range list {
		if i, ok := r.(*typesv1.Instance); ok && i.GetSpec().GetToken() == t.GetMetadata().GetName() {
			out = append(out, tokenUse{i.GetMetadata().GetName(), i.GetSpec().GetHostname(), i.GetStatus().GetRemoteAddr(), i.GetStatus().GetJoined().AsTime()})
		}
	}
	slices.SortStableFunc(out, func(x, y tokenUse) int { return y.Time.Compare(x.Time) })
	return out[:min(len(out), maxUsesShown)], nil
}

func (t *shownToken) write(a *app) error {
	rows := [][2]string{{"Token", t.ID}, {"Method", t.JoinMethod}, {"Type", strings.Join(t.Roles, ",")}}
	more := func(name, value string) {
		if value != "" {
			rows = append(rows, [2]string{name, value})
		}
	}
	more("Bot", t.BotName)
	more("Labels", screen.Labels(t.Labels))
	more("Principals", strings.Join(t.Principals, ", "))
	more("Rejoin", t.Rejoin)
	expires := "never"
	if t.Expires != nil {
		expires = screen.Expiry(*t.Expires, a.now())
	}
	more("Expires (UTC)", expires)
	uses := "no limit" // and then they are not counted
	if t.MaxUses > 0 {
		uses = fmt.Sprintf("%d of %d", t.Uses, t.MaxUses)
	}
	more("Uses", uses)
	made := t.CreatedBy
	if t.Created != nil {
		made += ", " + t.Created.UTC().Format(time.DateTime)
	}
	more("Made by", made)
	if t.Static {
		more("Static", "yes: auth_service.tokens of the Auth Service's configuration file")
	}
	if err := screen.Pairs(a.Out, "", rows...); err != nil {
		return err
	}
	if err := t.writeRules(a); err != nil || len(t.UsedBy) == 0 {
		return err
	}
	if err := a.print("\nUsed by:\n\n"); err != nil {
		return err
	}
	table := screen.NewTable("Host", "UUID", "Address", "Time (UTC)")
	for _, u := range t.UsedBy {
		table.Row(u.Hostname, u.HostID, u.Address, u.Time.UTC().Format(time.DateTime))
	}
	return table.Write(a.Out)
}

func (t *shownToken) writeRules(a *app) error {
	if len(t.Rules) == 0 {
		return nil
	}
	if err := a.print("\nA machine must match one of these rules:\n"); err != nil {
		return err
	}
	for _, rule := range t.Rules {
		if err := a.print("\n%s\n", screen.Escape(rule.Path)); err != nil {
			return err
		}
		var rows [][2]string
		for _, f := range rule.Fields {
			rows = append(rows, [2]string{screen.Escape(f.Name), strings.Join(f.Want, " or ")})
		}
		if err := screen.Pairs(a.Out, "  ", rows...); err != nil {
			return err
		}
	}
	return nil
}

// findEvent finds an event of one of the types by its id, the newest first.
func findEvent(ctx context.Context, conn grpc.ClientConnInterface, id string, kinds ...string) (*auditv1.Event, error) {
	req := &auditv1.SearchEventsRequest{Types: kinds, Limit: maxEventPage}
	for searched := 0; searched < maxEvents; searched += maxEventPage {
		resp, err := auditv1.NewAuditServiceClient(conn).SearchEvents(ctx, req)
		if err != nil {
			return nil, fmt.Errorf("search the audit log: %w", err)
		}
		if i := slices.IndexFunc(resp.GetEvents(), func(e *auditv1.Event) bool { return e.GetUid() == id }); i >= 0 {
			return resp.GetEvents()[i], nil
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	return nil, fault.NotFound("there is no event %q of type %s: tctl audit ls --type=%s --format=json shows them with their uid", id, strings.Join(kinds, " or "), strings.Join(kinds, ","))
}

// text returns a field of an event.
func text(e *auditv1.Event, name string) string {
	if s, ok := e.GetFields().GetFields()[name].GetKind().(*structpb.Value_StringValue); ok {
		return s.StringValue
	}
	return ""
}
