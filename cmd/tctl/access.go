package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newAccess(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "access", Short: "Explain decisions about access, and try changes of roles"},
		newAccessExplain(a), newAccessSimulate(a))
}

func newAccessExplain(a *app) *cobra.Command {
	var format string
	var what asked
	cmd := &cobra.Command{
		Use:   "explain USER LOGIN@NODE | USER --app=APP | USER --db=DATABASE | EVENT-ID",
		Short: "Say which rule allows or refuses somebody, and what each role says",
		Long: "explain decides as the node would, by the user, the roles, the node and the locks as they are now, and shows\n" +
			"what each role says. EVENT-ID is the id that a user who was refused was shown (audit event ...).\n" +
			"It needs the verbs list and read on user, role and node (app_server, db_server), for an event list on event, and\n" +
			"list on lock to know locks.",
		Args: screen.Args(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runAccessExplain(cmd.Context(), a, args, what, format)
		},
	}
	cmd.Flags().StringVar(&what.app, "app", "", "name of an application")
	cmd.Flags().StringVar(&what.db, "db", "", "name of a database")
	cmd.Flags().StringVar(&what.dbUser, "db-user", "", "database user; with --db")
	cmd.Flags().StringVar(&what.dbName, "db-name", "", "database of the server; with --db")
	cmd.MarkFlagsMutuallyExclusive("app", "db")
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

// explanation is an answer with what each role says.
type explanation struct {
	User   string `json:"user" yaml:"user"`
	Login  string `json:"login,omitempty" yaml:"login,omitempty"`
	Node   string `json:"node,omitempty" yaml:"node,omitempty"`
	NodeID string `json:"node_id,omitempty" yaml:"node_id,omitempty"`
	App    string `json:"app,omitempty" yaml:"app,omitempty"`
	DB     string `json:"db,omitempty" yaml:"db,omitempty"`
	DBUser string `json:"db_user,omitempty" yaml:"db_user,omitempty"`
	DBName string `json:"db_name,omitempty" yaml:"db_name,omitempty"`
	// Allowed and the others are the decision as it is now.
	Allowed bool          `json:"allowed" yaml:"allowed"`
	Role    string        `json:"role,omitempty" yaml:"role,omitempty"`
	Rule    string        `json:"rule" yaml:"rule"`
	Lock    string        `json:"lock,omitempty" yaml:"lock,omitempty"`
	Reason  string        `json:"reason" yaml:"reason"`
	Roles   []roleVerdict `json:"roles" yaml:"roles"`
	// Event is what was decided then.
	Event *explainedEvent `json:"event,omitempty" yaml:"event,omitempty"`
}

type roleVerdict struct {
	Role    string `json:"role" yaml:"role"`
	Verdict string `json:"verdict" yaml:"verdict"`
	Rule    string `json:"rule,omitempty" yaml:"rule,omitempty"`
	Why     string `json:"why" yaml:"why"`
}

type explainedEvent struct {
	ID     string    `json:"id" yaml:"id"`
	Time   time.Time `json:"time" yaml:"time"`
	Role   string    `json:"role,omitempty" yaml:"role,omitempty"`
	Rule   string    `json:"rule,omitempty" yaml:"rule,omitempty"`
	Reason string    `json:"reason" yaml:"reason"`
}

// asked is what somebody may or may not use, other than a node.
type asked struct{ app, db, dbUser, dbName string }

func (q asked) resource() bool { return q.app != "" || q.db != "" }

func runAccessExplain(ctx context.Context, a *app, args []string, what asked, format string) error {
	var user, login, node string
	switch {
	case (what.dbUser != "" || what.dbName != "") && what.db == "":
		return screen.Usage("--db-user and --db-name go with --db")
	case what.resource() && len(args) == 2:
		return screen.Usage("%q: expected the name of a user alone with --app or --db", args[1])
	case what.resource():
		user = args[0]
	case len(args) == 2:
		var ok bool
		if login, node, ok = strings.Cut(args[1], "@"); !ok || login == "" || node == "" {
			return screen.Usage("%q: expected LOGIN@NODE, such as root@web-1", args[1])
		}
		user = args[0]
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		var event *explainedEvent
		if len(args) == 1 && !what.resource() {
			e, err := findEvent(ctx, conn, args[0], audit.AuthAttemptFailure.Type, audit.SessionRejected.Type, audit.DatabaseSessionStartFailure.Type, audit.AppSessionStartFailure.Type)
			if err != nil {
				return err
			}
			event = &explainedEvent{ID: e.GetUid(), Time: e.GetTime().AsTime(), Role: text(e, "role"), Rule: text(e, "rule"), Reason: firstOf(text(e, "reason"), text(e, "error"))}
			user, login, node = text(e, "user"), text(e, "login"), firstOf(text(e, "server_id"), text(e, "target"))
			what = asked{app: text(e, "app_name"), db: text(e, "db_service"), dbUser: text(e, "db_user"), dbName: text(e, "db_name")}
			if login == "" && !what.resource() {
				return fault.Invalid("event %s was refused before a login was known, by %s: %s", e.GetUid(), firstOf(text(e, "proxy_id"), "the Proxy"), event.Reason)
			}
		}
		world, err := a.loadWorld(ctx, conn)
		if err != nil {
			return err
		}
		var out *explanation
		if what.resource() {
			out, err = a.explainResource(ctx, conn, world, user, what)
		} else {
			out, err = world.explain(user, login, node)
		}
		if err != nil {
			return err
		}
		out.Event = event
		switch format {
		case screen.JSON:
			return screen.WriteJSON(a.Out, out)
		case screen.YAML:
			return screen.WriteYAML(a.Out, out)
		}
		return out.write(a)
	})
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// world is what decisions are made from.
type world struct {
	users []*typesv1.User
	roles map[string]*typesv1.Role
	nodes []*typesv1.Server
	// locks are those in force.
	locks []*typesv1.Lock
	// tokens are the ids of the tokens that hosts joined with, where a lock is about one.
	tokens map[string]string
	now    time.Time
}

// loadWorld reads what decisions are made from, with the rights of the caller.
func (a *app) loadWorld(ctx context.Context, conn grpc.ClientConnInterface) (*world, error) {
	w := &world{roles: map[string]*typesv1.Role{}}
	var err error
	if w.users, err = listOf[*typesv1.User](ctx, conn, types.KindUser); err != nil {
		return nil, err
	}
	if w.nodes, err = listOf[*typesv1.Server](ctx, conn, types.KindNode); err != nil {
		return nil, err
	}
	roles, err := listOf[*typesv1.Role](ctx, conn, types.KindRole)
	if err != nil {
		return nil, err
	}
	for _, r := range roles {
		w.roles[r.GetMetadata().GetName()] = r
	}
	locks, err := listOf[*typesv1.Lock](ctx, conn, types.KindLock)
	if errors.Is(err, fault.ErrDenied) {
		_, _ = fmt.Fprintln(a.Err, "Your roles do not let you list locks, so they are left out.")
		err = nil
	}
	w.now = a.now()
	w.locks = slices.DeleteFunc(locks, func(l *typesv1.Lock) bool { return !access.LockInForce(l, w.now) })
	if err != nil || !slices.ContainsFunc(w.locks, func(l *typesv1.Lock) bool { return l.GetSpec().GetTarget().GetJoinToken() != "" }) {
		return w, err
	}
	hosts, err := listOf[*typesv1.Instance](ctx, conn, types.KindInstance)
	if errors.Is(err, fault.ErrDenied) {
		_, _ = fmt.Fprintln(a.Err, "Your roles do not let you list instances, so locks about join tokens are left out.")
		err = nil
	}
	w.tokens = map[string]string{}
	for _, h := range hosts {
		w.tokens[h.GetMetadata().GetName()] = h.GetSpec().GetToken()
	}
	return w, err
}

// listOf lists the resources of a kind.
func listOf[T types.Resource](ctx context.Context, conn grpc.ClientConnInterface, kind string) ([]T, error) {
	list, err := client.List(ctx, conn, kind)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(list))
	for _, r := range list {
		if t, ok := r.(T); ok {
			out = append(out, t)
		}
	}
	return out, nil
}

// subject is the user as its certificate will have it at the next login.
func (w *world) subject(u *typesv1.User) access.Subject {
	s := access.Subject{User: u.GetMetadata().GetName(), Traits: map[string][]string{}}
	for name, values := range u.GetSpec().GetTraits() {
		s.Traits[name] = values.GetValues()
	}
	for _, name := range u.GetSpec().GetRoles() {
		if r := w.roles[name]; r != nil {
			s.Roles = append(s.Roles, r)
		}
	}
	return s
}

// findNode finds a node by its host id or its name.
func (w *world) findNode(name string) (*typesv1.Server, error) {
	host, _, err := net.SplitHostPort(name)
	if err != nil {
		host = name
	}
	var found []*typesv1.Server
	for _, n := range w.nodes {
		if n.GetMetadata().GetName() == host {
			return n, nil
		}
		if n.GetSpec().GetHostname() == host {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nil, fault.NotFound("there is no node %q: tctl nodes ls shows those that there are", name)
	case 1:
		return found[0], nil
	}
	var ids []string
	for _, n := range found {
		ids = append(ids, n.GetMetadata().GetName())
	}
	return nil, fault.Invalid("%d nodes are named %q: use one of the ids %s", len(found), name, strings.Join(ids, ", "))
}

func (w *world) explain(name, login, nodeName string) (*explanation, error) {
	i := slices.IndexFunc(w.users, func(u *typesv1.User) bool { return u.GetMetadata().GetName() == name })
	if i < 0 {
		return nil, fault.NotFound("there is no user %q: tctl users ls shows those that there are", name)
	}
	node, err := w.findNode(nodeName)
	if err != nil {
		return nil, err
	}
	s := w.subject(w.users[i])
	s.Locks, s.ServerID = w.locks, node.GetMetadata().GetName()
	d, verdicts := access.ExplainLogin(s, login, types.ServerLabels(node))
	if d.Allowed {
		d = w.beyondRoles(s, login, node, d)
	}
	out := &explanation{User: name, Login: login, Node: node.GetSpec().GetHostname(), NodeID: node.GetMetadata().GetName()}
	out.fill(w, w.users[i], d, verdicts)
	return out, nil
}

// beyondRoles decides what a node decides beyond whether the roles allow a login.
func (w *world) beyondRoles(s access.Subject, login string, node *typesv1.Server, d access.Decision) access.Decision {
	f := access.Facts{User: s.User, Login: login, ServerID: s.ServerID, JoinToken: w.tokens[s.ServerID]}
	for _, r := range s.Roles {
		f.Roles = append(f.Roles, r.GetMetadata().GetName())
	}
	if l := access.FindLock(w.locks, f, w.now); l != nil {
		return access.Decision{Rule: access.RuleLock, Lock: l.GetMetadata().GetName(), Reason: access.LockText(l)}
	}
	if broken := access.OptionsOf(s).Broken; broken != nil {
		return access.Decision{Rule: "options", Reason: broken.Error()}
	}
	if alone := access.Alone(s, types.KindSSH); node.GetSubKind() == types.SubKindOpenSSH && !alone.Allowed {
		alone.Reason += ", and on a server that runs only OpenSSH there is none"
		return alone
	}
	return d
}

// fill adds the decision and what each role of the user says.
func (x *explanation) fill(w *world, user *typesv1.User, d access.Decision, verdicts []access.Verdict) {
	x.Allowed, x.Role, x.Rule, x.Lock, x.Reason, x.Roles = d.Allowed, d.Role, d.Rule, d.Lock, d.Reason, []roleVerdict{}
	for _, v := range verdicts {
		x.Roles = append(x.Roles, roleVerdict(v))
	}
	for _, role := range user.GetSpec().GetRoles() {
		if w.roles[role] == nil {
			x.Roles = append(x.Roles, roleVerdict{Role: role, Verdict: access.VerdictNothing, Why: "there is no role of this name, or you may not read it"})
		}
	}
}

func (x *explanation) write(a *app) error {
	verdict := "REFUSED"
	if x.Allowed {
		verdict = "allowed"
	}
	rows := [][2]string{{"User", x.User}}
	for _, row := range [][2]string{
		{"Login", x.Login},
		{"Node", strings.TrimSpace(x.Node + " " + x.NodeID)},
		{"Application", x.App},
		{"Database", x.DB},
		{"Database User", x.DBUser},
		{"Database Name", x.DBName},
	} {
		if row[1] != "" {
			rows = append(rows, row)
		}
	}
	rows = append(rows, [2]string{"Now", verdict + ": " + x.Reason})
	if x.Event != nil {
		rows = append(rows, [2]string{"Then", fmt.Sprintf("REFUSED: %s (%s UTC)", x.Event.Reason, x.Event.Time.UTC().Format(time.DateTime))})
	}
	if err := screen.Pairs(a.Out, "", rows...); err != nil {
		return err
	}
	if err := a.print("\n"); err != nil {
		return err
	}
	table := screen.NewTable("Role", "Verdict", "Rule", "Why")
	table.Gap = 2
	for _, r := range x.Roles {
		table.Row(r.Role, r.Verdict, r.Rule, r.Why)
	}
	return table.Write(a.Out)
}
