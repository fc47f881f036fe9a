package access_test

import (
	"errors"
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func queried() *typesv1.Server {
	return &typesv1.Server{
		Kind: types.KindNode, Version: "v2", Metadata: &typesv1.Metadata{Name: "6805dda3", Labels: map[string]string{"env": "prod", "team": "a,b", "empty": ""}},
		Spec: &typesv1.ServerSpec{Hostname: "web-1", CmdLabels: map[string]*typesv1.CommandLabel{"arch": {Result: "x86_64"}}},
	}
}

func TestQuery(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want bool
	}{
		"label":             {`labels["env"] == "prod"`, true},
		"label_dot":         {`labels.env == "prod"`, true},
		"other_value":       {`labels["env"] == "test"`, false},
		"absent_is_empty":   {`labels["nope"] == ""`, true},
		"command_label":     {`labels["arch"] == "x86_64"`, true},
		"not_equal":         {`labels["env"] != "test"`, true},
		"name":              {`name == "web-1"`, true},
		"and":               {`name == "web-1" && labels["env"] == "test"`, false},
		"or":                {`name == "web-2" || labels["env"] == "prod"`, true},
		"not":               {`!(name == "web-2")`, true},
		"equals":            {`equals(labels["env"], "prod")`, true},
		"exists":            {`exists(labels["empty"])`, true},
		"exists_not":        {`exists(labels["nope"])`, false},
		"search":            {`search("WEB", "prod")`, true},
		"search_all":        {`search("web", "nope")`, false},
		"search_id":         {`search("6805")`, true},
		"has_prefix":        {`hasPrefix(name, "web-")`, true},
		"has_prefix_not":    {`hasPrefix(name, "db")`, false},
		"split":             {`contains(split(labels["team"], ","), "b")`, true},
		"split_not":         {`contains(split(labels["team"], ","), "a,b")`, false},
		"contains_text":     {`contains(name, "eb")`, true},
		"contains_text_not": {`contains(name, "db")`, false},
		"resource_field":    {`resource.spec.hostname == "web-1" && resource.metadata.name == "6805dda3"`, true},
		"several_lines":     {"name == \"web-1\"\n&& true", true},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := access.ParseQuery(types.KindNode, tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if got := q.Match(queried()); got != tt.want {
				t.Errorf("Match(%s) = %v, want %v", tt.text, got, tt.want)
			}
		})
	}
	var none *access.Query
	if !none.Match(queried()) {
		t.Error("no query leaves a resource out")
	}
}

func TestQueryRefusals(t *testing.T) {
	for text, says := range map[string]string{
		``:                                "not a condition",
		`labels["env"]`:                   "expected true or false",
		`labels["env"] = "prod"`:          "no place",
		`env == "prod"`:                   "a query asks about",
		`user.metadata.name == "alice"`:   "a query asks about",
		`resource.spec.nope == ""`:        "has no field",
		`exists(name)`:                    "exists takes a label",
		`exists()`:                        "takes 1 values",
		`search()`:                        "takes 1 to",
		`hasPrefix(name)`:                 "takes 2 values",
		`split(name, ",") == "a"`:         "the other side",
		`contains(true, "a")`:             "contains needs a list",
		`contains(name, true)`:            "contains needs a text",
		`nope(name)`:                      "hasPrefix",
		`labels["env"] == true`:           "the other side",
		`has_suffix(name, "x")`:           "unknown function",
		strings.Repeat("!", 400) + "true": "too large",
	} {
		if _, err := access.ParseQuery(types.KindNode, text); !errors.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("ParseQuery(%.40q) = %v, want %q", text, err, says)
		}
	}
	// A condition of a rule has no functions of queries.
	role := types.New(types.KindRole, "r").(*typesv1.Role)
	role.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{Rules: []*typesv1.Rule{{Resources: []string{types.KindNode}, Verbs: []string{types.VerbRead}, Where: `search("a")`}}}}
	if err := access.Check(role); err == nil || !strings.Contains(err.Error(), `unknown function "search"`) {
		t.Errorf("Check = %v, want a refusal of search", err)
	}
}

func FuzzQuery(f *testing.F) {
	f.Add(`labels["env"] == "prod" && !hasPrefix(name, "old-")`)
	f.Add(`contains(split(labels.team, ","), "b") || exists(labels["x"])`)
	f.Add(`search("a", name)`)
	f.Fuzz(func(t *testing.T, text string) {
		q, err := access.ParseQuery(types.KindNode, text)
		if (q == nil) == (err == nil) {
			t.Fatalf("ParseQuery(%q) = %v, %v", text, q, err)
		}
		if err == nil {
			q.Match(queried())
		}
	})
}

// TestDescribed: people name an application and not the agents that serve it.
func TestDescribed(t *testing.T) {
	app := &typesv1.App{Metadata: &typesv1.Metadata{Name: "grafana", Labels: map[string]string{"env": "dev"}}, Spec: &typesv1.AppSpec{
		DynamicLabels: map[string]*typesv1.CommandLabel{"arch": {Result: "arm"}, "env": {Result: "hidden"}},
	}}
	served := &typesv1.AppServer{Metadata: &typesv1.Metadata{Name: "grafana@h-1", Labels: map[string]string{"env": "prod"}}, Spec: &typesv1.AppServerSpec{App: app}}
	db := &typesv1.Database{Metadata: &typesv1.Metadata{Name: "sales", Labels: map[string]string{"env": "dev"}}}
	servedDB := &typesv1.DatabaseServer{Metadata: &typesv1.Metadata{Name: "sales@h-1", Labels: map[string]string{"env": "prod"}}, Spec: &typesv1.DatabaseServerSpec{Database: db}}
	for _, tt := range []struct {
		kind, query string
		resource    types.Resource
	}{
		{types.KindAppServer, `name == "grafana" && labels.env == "prod"`, served},
		{types.KindDatabaseServer, `name == "sales" && labels.env == "prod"`, servedDB},
		{types.KindApp, `name == "grafana" && labels.env == "dev" && labels.arch == "arm"`, app},
		{types.KindDatabase, `name == "sales" && labels.env == "dev"`, db},
	} {
		q, err := access.ParseQuery(tt.kind, tt.query)
		if err != nil || !q.Match(tt.resource) {
			t.Errorf("%s does not match %v (%v)", tt.query, tt.resource, err)
		}
	}
}
