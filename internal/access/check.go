package access

import (
	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// Check finds what this package could not decide about a role, however its
// holder's traits are: unknown templates, patterns that do not compile, a `*`
// where it does not work, durations that are none. types.Check has looked at the
// role's form; this is to be called after it, before a role is stored.
func Check(r *typesv1.Role) error {
	var problems types.Problems
	if text := r.GetSpec().GetOptions().GetMaxSessionTtl(); text != "" {
		if _, err := types.ParseDuration(text); err != nil {
			problems = append(problems, types.Problem{Path: "spec.options.max_session_ttl", Text: err.Error()})
		}
	}
	allow := compileCondition(r.GetSpec().GetAllow(), nil, false)
	deny := compileCondition(r.GetSpec().GetDeny(), nil, true)
	for _, part := range []struct {
		path string
		err  error
	}{
		{"spec.allow.logins", allow.loginsBroken},
		{"spec.allow.node_labels", allow.labels.broken},
		{"spec.deny.logins", deny.loginsBroken},
		{"spec.deny.node_labels", deny.labels.broken},
		{"spec.allow.app_labels", allow.appLabels.broken},
		{"spec.allow.db_labels", allow.dbLabels.broken},
		{"spec.allow.db_users", allow.dbUsers.broken},
		{"spec.allow.db_names", allow.dbNames.broken},
		{"spec.deny.app_labels", deny.appLabels.broken},
		{"spec.deny.db_labels", deny.dbLabels.broken},
		{"spec.deny.db_users", deny.dbUsers.broken},
		{"spec.deny.db_names", deny.dbNames.broken},
	} {
		if part.err != nil {
			problems = append(problems, types.Problem{Path: part.path, Text: part.err.Error()})
		}
	}
	checkRules("spec.allow.rules", r.GetSpec().GetAllow().GetRules(), &problems)
	checkRules("spec.deny.rules", r.GetSpec().GetDeny().GetRules(), &problems)
	checkFilters("spec.allow.require_session_join", r.GetSpec().GetAllow().GetRequireSessionJoin(), &problems)
	if len(problems) == 0 {
		return nil
	}
	return problems
}
