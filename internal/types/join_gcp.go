package types

import (
	"regexp"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// The rule of method gcp. The attributes are project_id, service_account (its e-mail
// address), location (the zone and the region of a virtual machine) and vm, which is
// "true" or "false".
func gcpMethod() JoinMethod {
	m := ruleMethod(JoinMethodGCP, "gcp", "spec.gcp.allow",
		func(s *typesv1.TokenSpec) []*typesv1.GCPRule { return s.GetGcp().GetAllow() },
		RuleField{Name: "project_ids", Attribute: "project_id", Trust: true, Check: checkGCPProject},
		RuleField{Name: "service_accounts", Attribute: "service_account", Check: checkGCPServiceAccount},
		RuleField{Name: "locations", Attribute: "location", Check: checkGCPLocation},
		RuleField{Name: "vm", Match: func(want, got string) bool { return want == "optional" || got == "true" }, Check: checkGCPVM},
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		for i, r := range s.GetGcp().GetAllow() {
			if r.GetVm() == "optional" && len(r.GetLocations()) > 0 {
				add(rulePath("spec.gcp.allow", i)+".vm", "only virtual machines have a location: leave out vm or locations")
			}
		}
	}
	return m
}

func checkGCPProject(id string) error {
	// A project of an organization's own domain is written example.com:project.
	if !regexp.MustCompile(`^([a-z0-9][a-z0-9.-]*[a-z0-9]:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$`).MatchString(id) {
		return fault.Invalid("%q is not the ID of a project (6 to 30 lower-case letters, digits and hyphens; neither its name nor its number, and no wildcards)", id)
	}
	return nil
}

func checkGCPServiceAccount(email string) error {
	local, domain, ok := strings.Cut(email, "@")
	if !ok || local == "" || !strings.HasSuffix(domain, ".gserviceaccount.com") || strings.ContainsAny(email, "*? ") || strings.ToLower(email) != email {
		return fault.Invalid("%q is not the e-mail address of a service account, such as agent@my-project.iam.gserviceaccount.com", email)
	}
	return nil
}

func checkGCPLocation(location string) error {
	if !regexp.MustCompile(`^[a-z]+-[a-z]+[0-9]+(-[a-z])?$`).MatchString(location) {
		return fault.Invalid("%q is neither a region such as europe-west4 nor a zone such as europe-west4-a", location)
	}
	return nil
}

func checkGCPVM(value string) error {
	if value != "required" && value != "optional" {
		return fault.Invalid("%q: expected required or optional", value)
	}
	return nil
}
