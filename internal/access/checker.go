package access

import (
	"fmt"
	"slices"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// Life of user certificates.
const (
	// DefaultSessionTTL is used when neither the user nor a role says.
	DefaultSessionTTL = 12 * time.Hour
	// MaxSessionTTL is never exceeded.
	MaxSessionTTL = 30 * time.Hour
)

// Fields of a role that decide, as they appear in Decision.Rule.
const (
	ruleAllowLogins = "allow.logins"
	ruleAllowLabels = "allow.node_labels"
	ruleAllowRules  = "allow.rules"
	ruleDenyLogins  = "deny.logins"
	ruleDenyLabels  = "deny.node_labels"
	ruleDenyRules   = "deny.rules"
)

// Checker decides for one subject. It holds the roles compiled, so that
// deciding about many resources costs no compilation. It does not change and
// may be used by several goroutines; a subject whose roles change needs a new one.
type Checker struct {
	user  string
	roles []role
	// scope is what the conditions of rules see, without a resource.
	scope scope
	// locks are those in force.
	locks               []*typesv1.Lock
	serverID, mfaDevice string
}

// role is a compiled role.
type role struct {
	name        string
	allow, deny condition
	// ttl is the longest session; negative when the role does not say.
	ttl time.Duration
}

// condition is the allow or the deny half of a role.
type condition struct {
	logins []string
	// everyLogin is set by `*`, which works under deny only.
	everyLogin bool
	// loginsBroken says why a login of the role cannot be decided.
	loginsBroken error
	labels       selector
	rules        []rule
	joins        []joining

	appLabels, dbLabels selector
	dbUsers, dbNames    names
}

// NewChecker compiles the subject's roles. A value that cannot be understood
// grants nothing where it stands under allow, and refuses everything of its
// field where it stands under deny: an agent older than the role errs on the
// safe side. Check finds such values when a role is written.
func NewChecker(s Subject) *Checker {
	c := &Checker{user: s.User, scope: scope{user: s.User, traits: s.Traits}, locks: s.Locks, serverID: s.ServerID, mfaDevice: s.MFADevice}
	for _, r := range s.Roles {
		if r == nil {
			continue
		}
		compiled := role{
			name:  r.GetMetadata().GetName(),
			allow: compileCondition(r.GetSpec().GetAllow(), s.Traits, false),
			deny:  compileCondition(r.GetSpec().GetDeny(), s.Traits, true),
			ttl:   -1,
		}
		if text := r.GetSpec().GetOptions().GetMaxSessionTtl(); text != "" {
			ttl, err := types.ParseDuration(text)
			if err != nil {
				ttl = 0
			}
			compiled.ttl = ttl
		}
		c.roles = append(c.roles, compiled)
		c.scope.roles = append(c.scope.roles, compiled.name)
	}
	return c
}

func compileCondition(rc *typesv1.RoleConditions, traits map[string][]string, deny bool) condition {
	c := condition{
		labels: compileSelector(rc.GetNodeLabels(), traits), rules: compileRules(rc.GetRules()), joins: compileJoining(rc.GetJoinSessions()),
		appLabels: compileSelector(rc.GetAppLabels(), traits), dbLabels: compileSelector(rc.GetDbLabels(), traits),
		dbUsers: compileNames(rc.GetDbUsers(), traits), dbNames: compileNames(rc.GetDbNames(), traits),
	}
	for _, text := range rc.GetLogins() {
		if deny && text == wildcard {
			c.everyLogin = true
			continue
		}
		t, err := parseTemplate(text)
		if err == nil && t.trait == "" {
			err = types.ValidLogin(text)
		}
		if err != nil {
			c.loginsBroken = err
			continue
		}
		for _, login := range t.expand(traits) {
			if types.ValidLogin(login) == nil {
				c.logins = append(c.logins, login)
			}
		}
	}
	return c
}

func (c condition) deniesLogin(login string) bool {
	return c.everyLogin || c.loginsBroken != nil || slices.Contains(c.logins, login)
}

// question is what all decisions have in common: a role denies by a field, or
// allows by a field, or comes near.
type question struct {
	// what is asked, for the reason.
	what string
	// login is the operating-system user that is asked for, if there is one.
	login string
	// denied returns the field by which the role refuses, or "".
	denied func(role) string
	// allowed returns whether the role allows, and the field that decided; a
	// refusing role that returns a field came near.
	allowed func(role) (bool, string)
	// missing is the field to name when no role came near.
	missing string
}

// decide is the algebra: a lock refuses; a denial by any role wins; then one role must allow;
// otherwise no.
func (c *Checker) decide(q question) Decision {
	if d, locked := c.locked(q.login); locked {
		return d
	}
	for _, r := range c.roles {
		if rule := q.denied(r); rule != "" {
			return Decision{Role: r.name, Rule: rule, Reason: fmt.Sprintf("role %q refuses %s by %s", r.name, q.what, rule)}
		}
	}
	near, nearRule := "", ""
	for _, r := range c.roles {
		ok, rule := q.allowed(r)
		if ok {
			return Decision{Allowed: true, Role: r.name, Rule: rule, Reason: fmt.Sprintf("role %q allows %s by %s", r.name, q.what, rule)}
		}
		if near == "" && rule != "" {
			near, nearRule = r.name, rule
		}
	}
	switch {
	case len(c.roles) == 0:
		return Decision{Rule: q.missing, Reason: fmt.Sprintf("user %q has no known role, and nothing is allowed by default", c.user)}
	case near != "":
		return Decision{Rule: nearRule, Reason: fmt.Sprintf("no role allows %s: role %q comes near, but its %s does not match", q.what, near, nearRule)}
	}
	return Decision{Rule: q.missing, Reason: fmt.Sprintf("no role of user %q allows %s by %s", c.user, q.what, q.missing)}
}

// Login decides whether the subject may log in as the operating-system user on
// a node with the labels. Login and labels must be allowed by the same role.
func (c *Checker) Login(login string, labels map[string]string) Decision {
	if err := types.ValidLogin(login); err != nil {
		return Decision{Rule: ruleAllowLogins, Reason: err.Error()}
	}
	return c.decide(question{
		what:    fmt.Sprintf("login %q on this node", login),
		login:   login,
		missing: ruleAllowLogins,
		denied: func(r role) string {
			switch {
			case r.deny.deniesLogin(login):
				return ruleDenyLogins
			case r.deny.labels.denies(labels):
				return ruleDenyLabels
			}
			return ""
		},
		allowed: func(r role) (bool, string) {
			if !slices.Contains(r.allow.logins, login) {
				return false, ""
			}
			if !r.allow.labels.allows(labels) {
				return false, ruleAllowLabels
			}
			return true, ruleAllowLogins
		},
	})
}

// Sees decides whether a node with the labels exists for the subject: it shows
// in lists and can be dialled.
func (c *Checker) Sees(labels map[string]string) Decision {
	return c.decide(question{
		what:    "this node",
		missing: ruleAllowLabels,
		denied: func(r role) string {
			if r.deny.labels.denies(labels) {
				return ruleDenyLabels
			}
			return ""
		},
		allowed: func(r role) (bool, string) {
			if r.allow.labels.allows(labels) {
				return true, ruleAllowLabels
			}
			return false, ""
		},
	})
}

// Logins returns the operating-system users that any role allows and none
// denies by name, sorted; they become the principals of the certificate.
func (c *Checker) Logins() []string {
	var out []string
	for _, r := range c.roles {
		for _, login := range r.allow.logins {
			if !slices.ContainsFunc(c.roles, func(other role) bool { return other.deny.deniesLogin(login) }) {
				out = append(out, login)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// SessionTTL returns how long a certificate may live: what was asked (0:
// DefaultSessionTTL), but no longer than the shortest max_session_ttl of the
// roles, than limit (0: none) and than MaxSessionTTL. The answer is 0 when a
// role's max_session_ttl is no duration: then nothing may be issued.
func (c *Checker) SessionTTL(asked, limit time.Duration) time.Duration {
	ttl := asked
	if ttl <= 0 {
		ttl = DefaultSessionTTL
	}
	ttl = min(ttl, MaxSessionTTL)
	if limit > 0 {
		ttl = min(ttl, limit)
	}
	for _, r := range c.roles {
		if r.ttl >= 0 {
			ttl = min(ttl, r.ttl)
		}
	}
	return ttl
}

// Login is Checker.Login for one decision.
func Login(s Subject, login string, labels map[string]string) Decision {
	return NewChecker(s).Login(login, labels)
}

// Sees is Checker.Sees for one decision; to filter a list use a Checker.
func Sees(s Subject, labels map[string]string) Decision { return NewChecker(s).Sees(labels) }

// Logins is Checker.Logins for one subject.
func Logins(s Subject) []string { return NewChecker(s).Logins() }

// SessionTTL is Checker.SessionTTL for one subject.
func SessionTTL(s Subject, asked, limit time.Duration) time.Duration {
	return NewChecker(s).SessionTTL(asked, limit)
}
