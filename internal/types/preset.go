package types

import (
	typesv1 "teleport/api/types/v1"
)

// Names of the roles that every cluster starts with.
const (
	PresetAccess  = "access"
	PresetEditor  = "editor"
	PresetAuditor = "auditor"
)

// PresetRoles returns the roles that a cluster starts with: access (use
// resources), editor (administer) and auditor (read what happened).
func PresetRoles() []*typesv1.Role {
	preset := func(name, description string, allow *typesv1.RoleConditions) *typesv1.Role {
		return &typesv1.Role{
			Kind: KindRole, Version: roleKind().Version(),
			Metadata: &typesv1.Metadata{Name: name, Description: description},
			Spec:     &typesv1.RoleSpec{Allow: allow},
		}
	}
	reads := []string{VerbList, VerbRead}
	access := preset(PresetAccess, "Access cluster resources", &typesv1.RoleConditions{
		Logins:     []string{"{{internal.logins}}"},
		NodeLabels: everyLabel(),
		AppLabels:  everyLabel(),
		DbLabels:   everyLabel(),
		DbUsers:    []string{"{{internal.db_users}}"},
		DbNames:    []string{"{{internal.db_names}}"},
		DbRoles:    []string{"{{internal.db_roles}}"},
	})
	yes := true
	access.Spec.Options = &typesv1.RoleOptions{ForwardAgent: &yes}
	return []*typesv1.Role{
		access,
		preset(PresetEditor, "Edit cluster configuration", &typesv1.RoleConditions{
			Rules: []*typesv1.Rule{{
				Resources: []string{
					KindUser, KindRole, KindToken, KindNode, KindProxy, KindAuthServer, KindInstance,
					KindCertAuthority, KindEvent, KindSession, KindLock, KindClusterAlert,
					KindApp, KindAppServer, KindDatabase, KindDatabaseServer,
				},
				Verbs: []string{Wildcard},
			}},
		}),
		preset(PresetAuditor, "Review cluster events and sessions", &typesv1.RoleConditions{
			Rules: []*typesv1.Rule{
				{Resources: []string{KindEvent, KindSession}, Verbs: reads},
				{Resources: []string{KindNode, KindApp, KindAppServer, KindDatabase, KindDatabaseServer, KindLock, KindClusterAlert, KindSessionTracker}, Verbs: reads},
			},
		}),
	}
}
