package types_test

import (
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// checkMachineSpec checks a token with the spec, and returns the text of what is wrong.
func checkMachineSpec(t *testing.T, method string, fill func(*typesv1.TokenSpec)) string {
	t.Helper()
	token := types.New(types.KindToken, "machines").(*typesv1.Token)
	token.Spec = &typesv1.TokenSpec{JoinMethod: method, Roles: []string{"Node"}}
	fill(token.Spec)
	if err := types.Check(token); err != nil {
		return err.Error()
	}
	return ""
}

func TestOracleRules(t *testing.T) {
	const tenancy = "ocid1.tenancy.oc1..aaaa"
	for name, c := range map[string]struct {
		rule *typesv1.OracleRule
		want string // part of what is wrong; empty if it is good
	}{
		"tenancy":             {&typesv1.OracleRule{Tenancy: tenancy}, ""},
		"everything":          {&typesv1.OracleRule{Tenancy: tenancy, ParentCompartments: []string{"ocid1.compartment.oc1..b", tenancy}, Regions: []string{"phx", "eu-frankfurt-1"}, Instances: []string{"ocid1.instance.oc1.phx.c"}}, ""},
		"without tenancy":     {&typesv1.OracleRule{Regions: []string{"phx"}}, "spec.oracle.allow[0]: the rule would admit too much: give tenancy"},
		"instance alone":      {&typesv1.OracleRule{Instances: []string{"ocid1.instance.oc1.phx.c"}}, "give tenancy"},
		"wildcard":            {&typesv1.OracleRule{Tenancy: "*"}, "spec.oracle.allow[0].tenancy: "},
		"compartment as such": {&typesv1.OracleRule{Tenancy: "ocid1.compartment.oc1..b"}, "expected that of a tenancy"},
		"name":                {&typesv1.OracleRule{Tenancy: "acme"}, "is not an OCID"},
		"upper case":          {&typesv1.OracleRule{Tenancy: strings.ToUpper(tenancy)}, "is not an OCID"},
		"unknown region":      {&typesv1.OracleRule{Tenancy: tenancy, Regions: []string{"moon-1"}}, "spec.oracle.allow[0].regions: \"moon-1\" is not a region"},
		"bad compartment":     {&typesv1.OracleRule{Tenancy: tenancy, ParentCompartments: []string{"prod"}}, "spec.oracle.allow[0].parent_compartments: "},
		"bad instance":        {&typesv1.OracleRule{Tenancy: tenancy, Instances: []string{tenancy}}, "spec.oracle.allow[0].instances: "},
		"too many instances":  {&typesv1.OracleRule{Tenancy: tenancy, Instances: repeat("ocid1.instance.oc1.phx.c", 101)}, "101 instances, the most is 100"},
		"no rule":             {nil, "spec.oracle.allow: missing"},
	} {
		t.Run(name, func(t *testing.T) {
			got := checkMachineSpec(t, types.JoinMethodOracle, func(s *typesv1.TokenSpec) {
				s.Oracle = &typesv1.OracleJoin{}
				if c.rule != nil {
					s.Oracle.Allow = []*typesv1.OracleRule{c.rule}
				}
			})
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func repeat(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

func TestFindOracleRegion(t *testing.T) {
	for name, want := range map[string]string{
		"phx": "us-phoenix-1", "us-phoenix-1": "us-phoenix-1", "fra": "eu-frankfurt-1", "ric": "us-gov-ashburn-1", "hnw": "sa-riodejaneiro-1",
		"": "", "us-phoenix": "", "us-phoenix-1 phx": "", "evil": "", ", ": "", "PHX": "",
	} {
		r, ok := types.FindOracleRegion(name)
		if r.Name != want || ok != (want != "") {
			t.Errorf("FindOracleRegion(%q) = %v, %v, want %q", name, r, ok, want)
		}
	}
	if r, _ := types.FindOracleRegion("ric"); r.Domain != "oraclegovcloud.com" || r.Realm != "oc3" || r.Short != "ric" {
		t.Errorf("ric is %v", r)
	}
	row, ok := types.JoinMethodRow(types.JoinMethodOracle)
	if !ok {
		t.Fatal("no row")
	}
	spec := &typesv1.TokenSpec{Oracle: &typesv1.OracleJoin{Allow: []*typesv1.OracleRule{{Regions: []string{"phx"}}}}}
	field := row.Rules(spec)[0].Fields()[0]
	for got, want := range map[string]bool{"us-phoenix-1": true, "phx": true, "us-ashburn-1": false, "": false, "another": false} {
		if field.Match("phx", got) != want || field.Match("us-phoenix-1", got) != want {
			t.Errorf("region %q matches phx: %v, want %v", got, !want, want)
		}
	}
}

func FuzzParseOCID(f *testing.F) {
	for _, s := range []string{"ocid1.instance.oc1.phx.aaaa", "ocid1.tenancy.oc1..aaaa", "ocid1.x.oc1.phx.future.aaaa", "ocid1....", "ocid1.instance.oc1.phx@evil.aaaa", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := types.ParseOCID(s)
		if err != nil {
			return
		}
		if id.Type == "" || id.Realm == "" || strings.ContainsAny(s, "/@:?#%\\ \r\n") {
			t.Errorf("ParseOCID(%q) = %v", s, id)
		}
	})
}
