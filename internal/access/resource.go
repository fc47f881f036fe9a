package access

import (
	"fmt"
	"slices"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// Fields of a role that decide about applications and databases, as they appear in
// Decision.Rule.
const (
	ruleAllowAppLabels = "allow.app_labels"
	ruleDenyAppLabels  = "deny.app_labels"
	ruleAllowDBLabels  = "allow.db_labels"
	ruleDenyDBLabels   = "deny.db_labels"
	ruleAllowDBUsers   = "allow.db_users"
	ruleDenyDBUsers    = "deny.db_users"
	ruleAllowDBNames   = "allow.db_names"
	ruleDenyDBNames    = "deny.db_names"
)

// names is a compiled list of names that a role speaks of.
type names struct {
	list []string
	// every is set by `*`.
	every bool
	// broken says why one of them cannot be decided.
	broken error
}

func compileNames(values []string, traits map[string][]string) names {
	var n names
	for _, text := range values {
		if text == wildcard {
			n.every = true
			continue
		}
		t, err := parseTemplate(text)
		if err != nil {
			n.broken = err
			continue
		}
		for _, v := range t.expand(traits) {
			// A trait cannot bring in the wildcard, nor what no name may be.
			if v != wildcard && types.ValidDatabaseUser(v) == nil {
				n.list = append(n.list, v)
			}
		}
	}
	return n
}

func (n names) allows(name string) bool {
	return n.every && name != "" || slices.Contains(n.list, name)
}

func (n names) denies(name string) bool {
	return n.every || n.broken != nil || slices.Contains(n.list, name)
}

// App decides whether the subject may use an application with the labels, which is
// also whether it sees that there is one.
func (c *Checker) App(labels map[string]string) Decision {
	return c.decide(question{
		what:    "this application",
		missing: ruleAllowAppLabels,
		denied: func(r role) string {
			if r.deny.appLabels.denies(labels) {
				return ruleDenyAppLabels
			}
			return ""
		},
		allowed: func(r role) (bool, string) {
			if r.allow.appLabels.allows(labels) {
				return true, ruleAllowAppLabels
			}
			return false, ""
		},
	})
}

// SeesDatabase decides whether a database with the labels exists for the subject: it
// shows in lists and can be dialled.
func (c *Checker) SeesDatabase(labels map[string]string) Decision {
	return c.decide(question{
		what:    "this database",
		missing: ruleAllowDBLabels,
		denied: func(r role) string {
			if r.deny.dbLabels.denies(labels) {
				return ruleDenyDBLabels
			}
			return ""
		},
		allowed: func(r role) (bool, string) {
			if r.allow.dbLabels.allows(labels) {
				return true, ruleAllowDBLabels
			}
			return false, ""
		},
	})
}

// DatabaseLogin is what a user wants to be at a database.
type DatabaseLogin struct {
	// User is the database user and Name the database of the server.
	User, Name string
	// AnyUser and AnyName say that the protocol has no such thing, or that it is not
	// what is asked here.
	AnyUser, AnyName bool
}

// Database decides whether the subject may log in to a database with the labels. One
// role must allow the labels, the user and the name together; a denial of any of them
// by any role wins.
func (c *Checker) Database(labels map[string]string, login DatabaseLogin) Decision {
	return c.decide(question{
		what:    login.text(),
		missing: ruleAllowDBLabels,
		denied: func(r role) string {
			switch {
			case r.deny.dbLabels.denies(labels):
				return ruleDenyDBLabels
			case !login.AnyUser && r.deny.dbUsers.denies(login.User):
				return ruleDenyDBUsers
			case !login.AnyName && r.deny.dbNames.denies(login.Name):
				return ruleDenyDBNames
			}
			return ""
		},
		allowed: func(r role) (bool, string) {
			rule, ok := r.allowsDatabase(labels, login)
			return ok, rule
		},
	})
}

// allowsDatabase returns whether the allow half of a role is enough, and the field that
// decided. A role that is about other databases did not come near.
func (r role) allowsDatabase(labels map[string]string, login DatabaseLogin) (rule string, ok bool) {
	switch {
	case !r.allow.dbLabels.allows(labels):
		return "", false
	case !login.AnyUser && !r.allow.dbUsers.allows(login.User):
		return ruleAllowDBUsers, false
	case !login.AnyName && !r.allow.dbNames.allows(login.Name):
		return ruleAllowDBNames, false
	}
	return ruleAllowDBLabels, true
}

func (l DatabaseLogin) text() string {
	switch {
	case l.AnyUser && l.AnyName:
		return "this database"
	case l.AnyName:
		return fmt.Sprintf("user %q of this database", l.User)
	case l.AnyUser:
		return fmt.Sprintf("database %q of this server", l.Name)
	}
	return fmt.Sprintf("user %q in database %q of this server", l.User, l.Name)
}

// DatabaseUsers returns the database users that the subject may be at a database with
// the labels, sorted; any says that others are allowed, too.
func (c *Checker) DatabaseUsers(labels map[string]string) (users []string, any bool) {
	return c.databaseNames(labels, func(cond condition) names { return cond.dbUsers },
		func(name string) DatabaseLogin { return DatabaseLogin{User: name, AnyName: true} })
}

// DatabaseNames returns the databases of a server with the labels that the subject may
// go to, sorted; any says that others are allowed, too.
func (c *Checker) DatabaseNames(labels map[string]string) (list []string, any bool) {
	return c.databaseNames(labels, func(cond condition) names { return cond.dbNames },
		func(name string) DatabaseLogin { return DatabaseLogin{Name: name, AnyUser: true} })
}

func (c *Checker) databaseNames(labels map[string]string, of func(condition) names, login func(string) DatabaseLogin) (out []string, any bool) {
	for _, r := range c.roles {
		if !r.allow.dbLabels.allows(labels) {
			continue
		}
		any = any || of(r.allow).every
		out = append(out, of(r.allow).list...)
	}
	denied := func(name string) bool { return !c.Database(labels, login(name)).Allowed }
	out = slices.DeleteFunc(sorted(out), denied)
	for _, r := range c.roles {
		any = any && !of(r.deny).every && of(r.deny).broken == nil && !r.deny.dbLabels.denies(labels)
	}
	return out, any
}

// SeesResource decides whether a server exists for the subject: a node, or who serves
// an application or a database, or one of those itself. Of other kinds it refuses all.
func (c *Checker) SeesResource(r types.Resource) Decision {
	switch r := r.(type) {
	case *typesv1.Server:
		return c.Sees(types.ServerLabels(r))
	case *typesv1.AppServer:
		return c.App(types.AppServerLabels(r))
	case *typesv1.DatabaseServer:
		return c.SeesDatabase(types.DatabaseServerLabels(r))
	case *typesv1.App:
		return c.App(types.AppLabels(r))
	case *typesv1.Database:
		return c.SeesDatabase(types.DatabaseLabels(r))
	}
	return Decision{Reason: fmt.Sprintf("a %s is nothing to connect to", r.GetKind())}
}

// DatabaseUser says whether a database user may be made for a session, and how.
type DatabaseUser struct {
	// Mode is types.DatabaseUserOff, DatabaseUserKeep or DatabaseUserBestEffortDrop.
	Mode string
	// Roles are those that the user gets on the database, sorted.
	Roles []string
}

// DatabaseUserOf decides about the making of users of a database with the labels. Any
// role that allows the database may ask for it; the user is kept if one of them says
// so. It gets the roles of those roles, without those that a role denies there.
func DatabaseUserOf(s Subject, labels map[string]string) DatabaseUser {
	out := DatabaseUser{Mode: types.DatabaseUserOff}
	for _, r := range s.Roles {
		allow := r.GetSpec().GetAllow()
		if !compileSelector(allow.GetDbLabels(), s.Traits).allows(labels) {
			continue
		}
		switch mode := r.GetSpec().GetOptions().GetCreateDbUserMode(); mode {
		case types.DatabaseUserKeep:
			out.Mode = mode
		case types.DatabaseUserBestEffortDrop:
			if out.Mode == types.DatabaseUserOff {
				out.Mode = mode
			}
		default:
			continue
		}
		for _, text := range allow.GetDbRoles() {
			if t, err := parseTemplate(text); err == nil {
				out.Roles = append(out.Roles, t.expand(s.Traits)...)
			}
		}
	}
	if out.Mode == types.DatabaseUserOff {
		return out
	}
	for _, r := range s.Roles {
		deny := r.GetSpec().GetDeny()
		if len(deny.GetDbRoles()) == 0 || len(deny.GetDbLabels()) > 0 && !compileSelector(deny.GetDbLabels(), s.Traits).denies(labels) {
			continue
		}
		out.Roles = without(out.Roles, deny.GetDbRoles(), s.Traits)
	}
	out.Roles = slices.DeleteFunc(out.Roles, func(name string) bool { return types.ValidDatabaseUser(name) != nil })
	out.Roles = sorted(out.Roles)
	return out
}

// Headers returns the values of a header that an application's requests get: a template
// becomes one for each value of the trait. One that cannot be understood has none.
func Headers(value string, traits map[string][]string) []string {
	t, err := parseTemplate(value)
	if err != nil {
		return nil
	}
	return t.expand(traits)
}
