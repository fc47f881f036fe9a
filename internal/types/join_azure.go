package types

import (
	"strings"
	"unicode"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// azureMethod is the row of azure: spec.azure.allow[] with subscription or tenant, which
// are literal, and resource_groups, which Azure compares without regard to case.
func azureMethod() JoinMethod {
	return ruleMethod(JoinMethodAzure, "azure", "spec.azure.allow",
		func(s *typesv1.TokenSpec) []*typesv1.AzureRule { return s.GetAzure().GetAllow() },
		RuleField{Name: "subscription", Trust: true, Match: strings.EqualFold, Check: checkGUID},
		RuleField{Name: "tenant", Trust: true, Match: strings.EqualFold, Check: checkGUID},
		RuleField{Name: "resource_groups", Attribute: "resource_group", Match: strings.EqualFold, Check: checkResourceGroup},
	)
}

func checkGUID(id string) error {
	hex := strings.ReplaceAll(id, "-", "")
	if len(id) != 36 || len(hex) != 32 || id[8] != '-' || id[13] != '-' || id[18] != '-' || id[23] != '-' ||
		strings.Trim(hex, "0123456789abcdefABCDEF") != "" {
		return fault.Invalid("%q is not the id of a subscription or tenant of Azure: expected one like 00000000-0000-0000-0000-000000000000, without wildcards", id)
	}
	return nil
}

func checkResourceGroup(name string) error {
	if len(name) > 90 || strings.ContainsFunc(name, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_.()", r)
	}) {
		return fault.Invalid("%q is not the name of a resource group of Azure: expected letters, digits and -_.(), without wildcards", name)
	}
	return nil
}
