package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

const (
	// defaultChanges is how many changes are shown one by one.
	defaultChanges = 50
	// maxChanges bounds what is looked for.
	maxChanges = 1_000_000
	// maxNodesNamed is how many nodes a line of the summary names.
	maxNodesNamed = 3
)

type simulateOptions struct {
	file, format string
	users        []string
	limit        int
}

func newAccessSimulate(a *app) *cobra.Command {
	var o simulateOptions
	cmd := &cobra.Command{
		Use:   "simulate -f role.yaml",
		Short: "Show who would gain or lose what if the roles of a file were stored",
		Long: "simulate compares what users may do now with what they might if the roles of the file replaced those of the\n" +
			"same name, against the users, roles and nodes that there are. It changes nothing. Locks are not looked at.\n" +
			"It needs the verbs list and read on user, role and node.",
		Args: screen.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.file == "" {
				return screen.Usage("tctl access simulate: -f is missing: the file with the roles as they might be")
			}
			if o.limit < 0 {
				return screen.Usage("--limit=%d: expected 0 or more", o.limit)
			}
			return runAccessSimulate(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "file with the roles; - is standard input")
	f.StringSliceVar(&o.users, "user", nil, "as if these users had the roles of the file; may be repeated")
	f.IntVar(&o.limit, "limit", defaultChanges, "how many changes to show one by one; more are summed up per user and login")
	// -f is the file here, as people know it.
	var other cobra.Command
	screen.FormatFlag(&other, &o.format, screen.Text, screen.JSON, screen.YAML)
	format := other.Flags().Lookup("format")
	format.Shorthand = ""
	f.AddFlag(format)
	return cmd
}

// simulation is what a change of roles would do.
type simulation struct {
	Roles  []string `json:"roles" yaml:"roles"`
	Users  int      `json:"users" yaml:"users"`
	Nodes  int      `json:"nodes" yaml:"nodes"`
	Gained int      `json:"gained" yaml:"gained"`
	Lost   int      `json:"lost" yaml:"lost"`
	// Logins are the changes one by one, at most as many as asked for; then Summary has
	// all of them.
	Logins  []loginChange  `json:"logins" yaml:"logins"`
	Summary []loginSummary `json:"summary,omitempty" yaml:"summary,omitempty"`
	Verbs   []verbChange   `json:"verbs" yaml:"verbs"`
	// Complete is false if there were too many changes to look for all.
	Complete bool `json:"complete" yaml:"complete"`
}

// loginChange is a login on a node that a user gains or loses.
type loginChange struct {
	Change string `json:"change" yaml:"change"`
	User   string `json:"user" yaml:"user"`
	Login  string `json:"login" yaml:"login"`
	Node   string `json:"node" yaml:"node"`
	NodeID string `json:"node_id" yaml:"node_id"`
	Reason string `json:"reason" yaml:"reason"`
}

// loginSummary sums up the changes of one user and login.
type loginSummary struct {
	Change string   `json:"change" yaml:"change"`
	User   string   `json:"user" yaml:"user"`
	Login  string   `json:"login" yaml:"login"`
	Count  int      `json:"count" yaml:"count"`
	Nodes  []string `json:"nodes" yaml:"nodes"`
}

// verbChange is a verb whose reach changes for a user.
type verbChange struct {
	User   string `json:"user" yaml:"user"`
	Kind   string `json:"kind" yaml:"kind"`
	Verb   string `json:"verb" yaml:"verb"`
	Before string `json:"before" yaml:"before"`
	After  string `json:"after" yaml:"after"`
}

const (
	gained = "+"
	lost   = "-"
)

func runAccessSimulate(ctx context.Context, a *app, o simulateOptions) error {
	roles, err := a.readRoles(o.file)
	if err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		before, err := a.loadWorld(ctx, conn)
		if err != nil {
			return err
		}
		result, err := simulate(before, roles, o.users, o.limit)
		if err != nil {
			return err
		}
		switch o.format {
		case screen.JSON:
			return screen.WriteJSON(a.Out, result)
		case screen.YAML:
			return screen.WriteYAML(a.Out, result)
		}
		return result.write(a)
	})
}

// readRoles reads a file of roles and checks them as the Auth Service would.
func (a *app) readRoles(path string) ([]*typesv1.Role, error) {
	name, data, err := a.readInput(path)
	if err != nil {
		return nil, err
	}
	list, err := types.ParseYAML(name, data)
	if err != nil {
		return nil, err
	}
	var out []*typesv1.Role
	for _, r := range list {
		role, ok := r.(*typesv1.Role)
		if !ok {
			return nil, fault.Invalid("%s has a %s: a simulation is about roles only", name, r.GetKind())
		}
		if err := types.Check(role); err != nil {
			return nil, fmt.Errorf("%s: role %q: %w", name, role.GetMetadata().GetName(), err)
		}
		if err := access.Check(role); err != nil {
			return nil, fmt.Errorf("%s: role %q: %w", name, role.GetMetadata().GetName(), err)
		}
		out = append(out, role)
	}
	if len(out) == 0 {
		return nil, fault.Invalid("%s has no role", name)
	}
	return out, nil
}

func simulate(before *world, roles []*typesv1.Role, asIf []string, limit int) (*simulation, error) {
	after := *before
	after.roles = maps.Clone(before.roles)
	out := &simulation{Logins: []loginChange{}, Verbs: []verbChange{}, Nodes: len(before.nodes), Complete: true}
	for _, r := range roles {
		after.roles[r.GetMetadata().GetName()] = r
		out.Roles = append(out.Roles, r.GetMetadata().GetName())
	}
	for _, name := range asIf {
		if !slices.ContainsFunc(before.users, func(u *typesv1.User) bool { return u.GetMetadata().GetName() == name }) {
			return nil, fault.NotFound("there is no user %q: tctl users ls shows those that there are", name)
		}
	}
	sums := map[[3]string]*loginSummary{}
	for _, u := range before.users {
		name := u.GetMetadata().GetName()
		holds := func(role string) bool { return slices.Contains(u.GetSpec().GetRoles(), role) }
		if !slices.ContainsFunc(out.Roles, holds) && !slices.Contains(asIf, name) {
			continue
		}
		out.Users++
		was, is := before.subject(u), after.subject(u)
		if slices.Contains(asIf, name) {
			for _, r := range roles {
				if !holds(r.GetMetadata().GetName()) {
					is.Roles = append(is.Roles, r)
				}
			}
		}
		out.addLogins(was, is, before.nodes, limit, sums)
		out.addVerbs(was, is)
	}
	if out.Gained+out.Lost > limit {
		for _, key := range slices.SortedFunc(maps.Keys(sums), func(x, y [3]string) int { return slices.Compare(x[:], y[:]) }) {
			out.Summary = append(out.Summary, *sums[key])
		}
	}
	return out, nil
}

func (s *simulation) addLogins(was, is access.Subject, nodes []*typesv1.Server, limit int, sums map[[3]string]*loginSummary) {
	access.Differences(was, is, nodes, func(d access.Difference) bool {
		change := lost
		if d.Gained {
			change = gained
			s.Gained++
		} else {
			s.Lost++
		}
		c := loginChange{change, is.User, d.Login, d.Server.GetSpec().GetHostname(), d.Server.GetMetadata().GetName(), d.Decision.Reason}
		if len(s.Logins) < limit {
			s.Logins = append(s.Logins, c)
		}
		key := [3]string{c.User, c.Login, c.Change}
		sum := sums[key]
		if sum == nil {
			sum = &loginSummary{Change: change, User: c.User, Login: c.Login}
			sums[key] = sum
		}
		sum.Count++
		if len(sum.Nodes) < maxNodesNamed {
			sum.Nodes = append(sum.Nodes, firstOf(c.Node, c.NodeID))
		}
		s.Complete = s.Gained+s.Lost < maxChanges
		return s.Complete
	})
}

func (s *simulation) addVerbs(was, is access.Subject) {
	before, after := access.NewChecker(was), access.NewChecker(is)
	kinds := []string{types.KindEvent, types.KindSession}
	for _, k := range types.Kinds() {
		if k.Served {
			kinds = append(kinds, k.Name)
		}
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		for _, verb := range []string{types.VerbList, types.VerbRead, types.VerbCreate, types.VerbUpdate, types.VerbDelete} {
			if x, y := before.Reach(kind, verb), after.Reach(kind, verb); x != y {
				s.Verbs = append(s.Verbs, verbChange{is.User, kind, verb, x, y})
			}
		}
	}
}

func (s *simulation) write(a *app) error {
	err := a.print("Roles: %s. Users who hold them: %d. Nodes: %d. Logins gained: %d, lost: %d.\n",
		screen.Escape(strings.Join(s.Roles, ", ")), s.Users, s.Nodes, s.Gained, s.Lost)
	if err != nil {
		return err
	}
	if s.Users == 0 {
		return a.print("--user=NAME shows what they would do for a user who does not hold them.\n")
	}
	if !s.Complete {
		if err := a.print("There are too many changes to look for all: these are the first %d.\n", maxChanges); err != nil {
			return err
		}
	}
	if err := s.writeLogins(a); err != nil || len(s.Verbs) == 0 {
		return err
	}
	if err := a.print("\n"); err != nil {
		return err
	}
	table := screen.NewTable("User", "Verb", "Kind", "Before", "After")
	table.Gap = 2
	for _, v := range s.Verbs {
		table.Row(v.User, v.Verb, v.Kind, v.Before, v.After)
	}
	return table.Write(a.Out)
}

func (s *simulation) writeLogins(a *app) error {
	var table *screen.Table
	switch {
	case len(s.Summary) > 0:
		table = screen.NewTable("", "User", "Login", "Nodes", "Such as")
		for _, c := range s.Summary {
			table.Row(c.Change, c.User, c.Login, fmt.Sprint(c.Count), strings.Join(c.Nodes, ", "))
		}
	case len(s.Logins) > 0:
		table = screen.NewTable("", "User", "Login", "Node", "Because")
		for _, c := range s.Logins {
			table.Row(c.Change, c.User, c.Login, firstOf(c.Node, c.NodeID), c.Reason)
		}
	default:
		return nil
	}
	table.Gap = 2
	if err := a.print("\n"); err != nil {
		return err
	}
	return table.Write(a.Out)
}
