package types_test

import (
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

func TestAzureRules(t *testing.T) {
	const guid = "0000000b-0000-4000-8000-000000000001"
	for name, c := range map[string]struct {
		rule *typesv1.AzureRule
		// want is part of the error, "" if there is none.
		want string
	}{
		"subscription":     {rule: &typesv1.AzureRule{Subscription: guid}},
		"in capitals":      {rule: &typesv1.AzureRule{Subscription: strings.ToUpper(guid)}},
		"tenant":           {rule: &typesv1.AzureRule{Tenant: guid}},
		"groups":           {rule: &typesv1.AzureRule{Subscription: guid, ResourceGroups: []string{"Nodes", "gr(ü).n_1-2"}}},
		"nothing":          {rule: &typesv1.AzureRule{}, want: "spec.azure.allow[0]: the rule would admit too much: give subscription or tenant"},
		"groups only":      {rule: &typesv1.AzureRule{ResourceGroups: []string{"nodes"}}, want: "spec.azure.allow[0]: the rule would admit too much"},
		"any subscription": {rule: &typesv1.AzureRule{Subscription: "*"}, want: "spec.azure.allow[0].subscription"},
		"name of a tenant": {rule: &typesv1.AzureRule{Tenant: "contoso.onmicrosoft.com"}, want: "spec.azure.allow[0].tenant"},
		"dashes elsewhere": {rule: &typesv1.AzureRule{Tenant: "0000000b0-000-4000-8000-000000000001"}, want: "spec.azure.allow[0].tenant"},
		"groups with star": {rule: &typesv1.AzureRule{Subscription: guid, ResourceGroups: []string{"nodes", "*"}}, want: "spec.azure.allow[0].resource_groups"},
		"group with path":  {rule: &typesv1.AzureRule{Subscription: guid, ResourceGroups: []string{"a/b"}}, want: "spec.azure.allow[0].resource_groups"},
	} {
		t.Run(name, func(t *testing.T) {
			err := types.Check(&typesv1.Token{
				Kind: types.KindToken, Version: "v2", Metadata: &typesv1.Metadata{Name: "azure"},
				Spec: &typesv1.TokenSpec{JoinMethod: "azure", Roles: []string{"Node"}, Azure: &typesv1.AzureJoin{Allow: []*typesv1.AzureRule{c.rule}}},
			})
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("Check = %v, want %q", err, c.want)
			}
		})
	}
}
