package access

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// Fields that decide about sessions of several people, as they appear in Decision.Rule.
const (
	ruleAllowJoin = "allow.join_sessions"
	ruleDenyJoin  = "deny.join_sessions"
	// RuleOwner is Decision.Rule of what somebody may do because the session is theirs.
	RuleOwner = "owner"
	// RuleCompany is Decision.Rule of what is refused to those who may not be alone.
	RuleCompany = "allow.require_session_join"
)

// Attendee is somebody who takes part in a session of somebody else.
type Attendee struct {
	Subject
	Mode string
}

// Requirements is what the roles of a session's owner ask of the company in it: each
// role that asks for something must be content, and a role is content with one of its
// policies. They do not change and may be used by several goroutines.
type Requirements struct {
	owner string
	roles []requirement
}

// requirement is what one role asks for.
type requirement struct {
	role     string
	policies []policy
}

// policy is a compiled SessionRequirePolicy.
type policy struct {
	name, text string
	// filter is nil if it cannot be decided: then nobody counts.
	filter *predicate
	modes  []string
	count  int
	pause  bool
}

// RequirementsOf returns what the roles of the owner ask of sessions of the kind. A
// policy that cannot be understood counts nobody.
func RequirementsOf(owner Subject, kind string) Requirements {
	out := Requirements{owner: owner.User}
	for _, r := range owner.Roles {
		q := requirement{role: r.GetMetadata().GetName()}
		for _, p := range r.GetSpec().GetAllow().GetRequireSessionJoin() {
			if !matchName(p.GetKinds(), kind) {
				continue
			}
			filter, err := compileFilter(p.GetFilter())
			if err != nil {
				filter = nil
			}
			q.policies = append(q.policies, policy{
				name: p.GetName(), text: p.GetFilter(), filter: filter, modes: p.GetModes(),
				count: max(int(p.GetCount()), 1), pause: p.GetOnLeave() == types.OnLeavePause,
			})
		}
		if len(q.policies) > 0 {
			out.roles = append(out.roles, q)
		}
	}
	return out
}

// None reports whether the owner may be alone.
func (r Requirements) None() bool { return len(r.roles) == 0 }

// Alone decides whether the subject may do what others could not follow, where a
// session of the kind is concerned.
func Alone(s Subject, kind string) Decision {
	r := RequirementsOf(s, kind)
	if r.None() {
		return Decision{Allowed: true, Rule: RuleCompany, Reason: fmt.Sprintf("no role of %q asks for company in sessions of kind %q", s.User, kind)}
	}
	name := r.roles[0].role
	return Decision{Role: name, Rule: RuleCompany, Reason: fmt.Sprintf("role %q asks for company in sessions of kind %q, by %s", name, kind, RuleCompany)}
}

// Need is what one role still asks for.
type Need struct {
	// Role asks; one of Wants is enough.
	Role  string
	Wants []Want
}

// Want is what is missing for one policy.
type Want struct {
	Policy, Filter string
	Modes          []string
	// Missing is how many more people must come.
	Missing int
}

// Standing is how the company of a session stands to what is asked for.
type Standing struct {
	// Met says that the session may go on.
	Met bool
	// Needs are those of the roles that are not content.
	Needs []Need
	// content has, for each role that asks, which of its policies are met.
	content [][]bool
}

// Check holds the company against what is asked for. The owner does not count, and
// nobody counts twice.
func (r Requirements) Check(company []Attendee) Standing {
	out := Standing{Met: true}
	for _, q := range r.roles {
		need := Need{Role: q.role}
		met := make([]bool, len(q.policies))
		for i, p := range q.policies {
			missing := p.count - p.counted(r.owner, company)
			met[i] = missing <= 0
			need.Wants = append(need.Wants, Want{Policy: p.name, Filter: p.text, Modes: p.modes, Missing: missing})
		}
		out.content = append(out.content, met)
		if !slices.Contains(met, true) {
			out.Met = false
			out.Needs = append(out.Needs, need)
		}
	}
	return out
}

// counted returns how many people of the company the policy counts.
func (p policy) counted(owner string, company []Attendee) int {
	if p.filter == nil {
		return 0
	}
	seen := map[string]bool{}
	for _, a := range company {
		if a.User == owner || !slices.Contains(p.modes, a.Mode) {
			continue
		}
		s := scope{user: a.User, traits: a.Traits}
		for _, r := range a.Roles {
			s.roles = append(s.roles, r.GetMetadata().GetName())
		}
		if ok, err := p.filter.decide(s); ok && err == nil {
			seen[a.User] = true
		}
	}
	return len(seen)
}

// Pauses reports whether a session that went on with the company of before is to be
// paused, and not terminated, now that somebody left. A role that is not content any
// more has it paused if each policy that it was content with says so; all such roles
// must.
func (r Requirements) Pauses(before, now Standing) bool {
	if len(before.content) != len(r.roles) || len(now.content) != len(r.roles) {
		return false
	}
	for i, q := range r.roles {
		if slices.Contains(now.content[i], true) {
			continue
		}
		for j, p := range q.policies {
			if before.content[i][j] && !p.pause {
				return false
			}
		}
		if !slices.Contains(before.content[i], true) {
			return false
		}
	}
	return true
}

// String says in a line what is missing, as in `1 moderator ("oversight")`.
func (n Need) String() string {
	return n.text(func(w Want) string { return fmt.Sprintf("(%q)", w.Policy) })
}

// Verbose also says who counts, and which role asks.
func (n Need) Verbose() string {
	return n.text(func(w Want) string { return fmt.Sprintf("of whom %s is true (%q)", w.Filter, w.Policy) }) + fmt.Sprintf(", as role %q asks", n.Role)
}

func (n Need) text(about func(Want) string) string {
	parts := make([]string, 0, len(n.Wants))
	for _, w := range n.Wants {
		who := strings.Join(w.Modes, " or ")
		if w.Missing != 1 {
			who = strings.Join(w.Modes, "s or ") + "s"
		}
		parts = append(parts, fmt.Sprintf("%d more %s %s", w.Missing, who, about(w)))
	}
	return strings.Join(parts, ", or ")
}

// compileFilter reads the filter of a policy: a condition over a participant.
func compileFilter(text string) (*predicate, error) {
	p, err := compileIn(&compiler{field: compileParticipant}, text)
	if err != nil {
		return nil, err
	}
	return p, p.check(nil)
}

// compileParticipant reads fields of a user; user.roles, user.name and
// user.traits["x"] are older spellings.
func compileParticipant(e ast.Expr) (node, error) {
	e = longer(e)
	n, err := compileField(e)
	if err != nil {
		return nil, err
	}
	if f, ok := n.(field); ok && f.path[0] != "user" {
		return nil, fault.Invalid(`%s: only the participant is known: use user.spec.roles, user.metadata.name or user.spec.traits["name"]`, f)
	}
	return n, nil
}

// longer writes an old spelling out.
func longer(e ast.Expr) ast.Expr {
	if index, ok := e.(*ast.IndexExpr); ok {
		return &ast.IndexExpr{X: longer(index.X), Index: index.Index}
	}
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return e
	}
	user, ok := sel.X.(*ast.Ident)
	if !ok || user.Name != "user" {
		return e
	}
	part := map[string]string{"roles": "spec", "traits": "spec", "name": "metadata"}[sel.Sel.Name]
	if part == "" {
		return e
	}
	return &ast.SelectorExpr{X: &ast.SelectorExpr{X: user, Sel: ast.NewIdent(part)}, Sel: sel.Sel}
}

// joining is a compiled SessionJoinPolicy.
type joining struct {
	name         string
	roles        []pattern
	kinds, modes []string
}

func compileJoining(policies []*typesv1.SessionJoinPolicy) []joining {
	out := make([]joining, 0, len(policies))
	for _, p := range policies {
		j := joining{name: p.GetName(), kinds: p.GetKinds(), modes: p.GetModes()}
		for _, r := range p.GetRoles() {
			j.roles = append(j.roles, pattern{parts: strings.Split(r, wildcard)})
		}
		out = append(out, j)
	}
	return out
}

func (j joining) covers(ownerRoles []string, kind, mode string) bool {
	return matchName(j.kinds, kind) && slices.Contains(j.modes, mode) &&
		slices.ContainsFunc(ownerRoles, func(r string) bool {
			return slices.ContainsFunc(j.roles, func(p pattern) bool { return p.match(r) })
		})
}

// Gathering is a session that somebody might join.
type Gathering struct {
	// Kind is that of the session, such as ssh.
	Kind string
	// Owner began it, with the roles of these names.
	Owner      string
	OwnerRoles []string
}

// MayJoin decides whether the subject may join the session in the mode. Owners may
// join their own sessions as observers and peers, unless a role denies it.
func (c *Checker) MayJoin(g Gathering, mode string) Decision {
	what := fmt.Sprintf("joining a session of %q as %s", g.Owner, mode)
	d := c.decide(question{
		what:    what,
		login:   types.LoginJoin,
		missing: ruleAllowJoin,
		denied: func(r role) string {
			if slices.ContainsFunc(r.deny.joins, func(j joining) bool { return j.covers(g.OwnerRoles, g.Kind, mode) }) {
				return ruleDenyJoin
			}
			return ""
		},
		allowed: func(r role) (bool, string) {
			near := ""
			for _, j := range r.allow.joins {
				if j.covers(g.OwnerRoles, g.Kind, mode) {
					return true, ruleAllowJoin
				}
				near = ruleAllowJoin
			}
			return false, near
		},
	})
	own := g.Owner == c.user && (mode == types.ModeObserver || mode == types.ModePeer)
	if !d.Allowed && own && d.Rule != RuleLock && d.Rule != ruleDenyJoin {
		return Decision{Allowed: true, Rule: RuleOwner, Reason: fmt.Sprintf("the session is %q's own", c.user)}
	}
	return d
}

// SeesSession decides whether the session is in the subject's lists: it is if it may
// be joined in any mode, or is the subject's own.
func (c *Checker) SeesSession(g Gathering) Decision {
	var d Decision
	for _, mode := range types.Modes() {
		if d = c.MayJoin(g, mode); d.Allowed || d.Rule == RuleLock {
			return d
		}
	}
	if g.Owner == c.user {
		return Decision{Allowed: true, Rule: RuleOwner, Reason: fmt.Sprintf("the session is %q's own", c.user)}
	}
	return d
}

// JoinsSome decides whether there may be sessions of the kind that the subject may
// join although they are not its own. It serves to refuse early.
func (c *Checker) JoinsSome(kind string) Decision {
	return c.decide(question{
		what:    fmt.Sprintf("joining sessions of kind %q", kind),
		login:   types.LoginJoin,
		missing: ruleAllowJoin,
		denied:  func(role) string { return "" },
		allowed: func(r role) (bool, string) {
			if slices.ContainsFunc(r.allow.joins, func(j joining) bool { return matchName(j.kinds, kind) }) {
				return true, ruleAllowJoin
			}
			return false, ""
		},
	})
}

// checkFilters finds filters that could never be decided.
func checkFilters(path string, policies []*typesv1.SessionRequirePolicy, problems *types.Problems) {
	for i, p := range policies {
		if _, err := compileFilter(p.GetFilter()); err != nil {
			*problems = append(*problems, types.Problem{Path: fmt.Sprintf("%s[%d].filter", path, i), Text: err.Error()})
		}
	}
}
