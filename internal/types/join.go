package types

import (
	"fmt"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	typesv1 "teleport/api/types/v1"
)

// Names of the join methods, as spec.join_method has them.
const (
	JoinMethodToken          = "token"
	JoinMethodIAM            = "iam"
	JoinMethodEC2            = "ec2"
	JoinMethodAzure          = "azure"
	JoinMethodGCP            = "gcp"
	JoinMethodKubernetes     = "kubernetes"
	JoinMethodOracle         = "oracle"
	JoinMethodTPM            = "tpm"
	JoinMethodGitHub         = "github"
	JoinMethodGitLab         = "gitlab"
	JoinMethodCircleCI       = "circleci"
	JoinMethodSpacelift      = "spacelift"
	JoinMethodTerraformCloud = "terraform_cloud"
	JoinMethodBitbucket      = "bitbucket"
	JoinMethodAzureDevops    = "azure_devops"
	JoinMethodEnv0           = "env0"
	JoinMethodOIDC           = "oidc"
	JoinMethodBoundKeypair   = "bound_keypair"
)

// JoinMethod is a row: what a token of the method may say.
type JoinMethod struct {
	Name string
	// Sections are the fields of the spec that belong to the method, besides those
	// that all tokens have.
	Sections []string
	// Rules returns the allow rules of a token. Nil if the method has none: its proof
	// alone admits.
	Rules func(*typesv1.TokenSpec) []JoinRule
	// Check reports what is wrong with the sections beyond the fields of the rules;
	// path is whole, e.g. "spec.azure.allow[0].tenant". Nil: nothing to check.
	Check func(s *typesv1.TokenSpec, add func(path, format string, args ...any))

	fields []RuleField
}

// RuleField is one field that a rule of a method may have.
type RuleField struct {
	// Name as people write it.
	Name string
	// Attribute is what it is compared with; empty: the attribute of that name.
	Attribute string
	// Trust: a rule must have one of these, or it would admit too much.
	Trust bool
	// Match compares what the rule wants with what was proven. Nil is equality.
	Match func(want, got string) bool
	// Check finds what is wrong with a wanted value. Nil: any text is good.
	Check func(string) error
}

// JoinRule is one allow rule of a token.
type JoinRule struct {
	// Path is where it stands, e.g. "spec.allow[0]".
	Path    string
	message protoreflect.Message
	fields  []RuleField
}

// RuleValue is a field that a rule sets.
type RuleValue struct {
	RuleField
	// Want are the values of which one must match.
	Want []string
}

// joinMethodNames has every method once, in the order of the documents.
func joinMethodNames() []string {
	return []string{
		JoinMethodToken, JoinMethodIAM, JoinMethodEC2, JoinMethodAzure, JoinMethodGCP, JoinMethodKubernetes, JoinMethodOracle,
		JoinMethodGitHub, JoinMethodGitLab, JoinMethodCircleCI, JoinMethodSpacelift, JoinMethodTerraformCloud, JoinMethodBitbucket,
		JoinMethodAzureDevops, JoinMethodEnv0, JoinMethodOIDC, JoinMethodTPM, JoinMethodBoundKeypair,
	}
}

// JoinMethodNames returns the names of the join methods.
func JoinMethodNames() []string { return joinMethodNames() }

// JoinMethodRow returns the row of a method.
func JoinMethodRow(name string) (JoinMethod, bool) {
	switch name {
	case JoinMethodToken:
		return JoinMethod{Name: name}, true
	case JoinMethodIAM:
		return iamMethod(), true
	case JoinMethodEC2:
		return ec2Method(), true
	case JoinMethodAzure:
		return azureMethod(), true
	case JoinMethodGCP:
		return gcpMethod(), true
	case JoinMethodKubernetes:
		return kubernetesMethod(), true
	case JoinMethodOracle:
		return oracleMethod(), true
	case JoinMethodTPM:
		return tpmMethod(), true
	case JoinMethodGitHub:
		return githubMethod(), true
	case JoinMethodGitLab:
		return gitlabMethod(), true
	case JoinMethodCircleCI:
		return circleciMethod(), true
	case JoinMethodSpacelift:
		return spaceliftMethod(), true
	case JoinMethodTerraformCloud:
		return terraformCloudMethod(), true
	case JoinMethodBitbucket:
		return bitbucketMethod(), true
	case JoinMethodAzureDevops:
		return azureDevopsMethod(), true
	case JoinMethodEnv0:
		return env0Method(), true
	case JoinMethodOIDC:
		return oidcMethod(), true
	case JoinMethodBoundKeypair:
		return boundKeypairMethod(), true
	}
	return JoinMethod{}, false
}

// ruleMethod makes the row of a method whose rules are rules(spec), a list of
// messages whose fields are those of the table.
func ruleMethod[M proto.Message](name, section, path string, rules func(*typesv1.TokenSpec) []M, fields ...RuleField) JoinMethod {
	for i := range fields {
		if fields[i].Attribute == "" {
			fields[i].Attribute = fields[i].Name
		}
		if fields[i].Match == nil {
			fields[i].Match = func(want, got string) bool { return want == got }
		}
	}
	return JoinMethod{
		Name: name, Sections: []string{section}, fields: fields,
		Rules: func(s *typesv1.TokenSpec) []JoinRule {
			list := rules(s)
			out := make([]JoinRule, 0, len(list))
			for i, m := range list {
				out = append(out, JoinRule{Path: path + "[" + strconv.Itoa(i) + "]", message: m.ProtoReflect(), fields: fields})
			}
			return out
		},
	}
}

// Fields returns the fields that the rule sets, in the order of the table. A map
// of a rule is a field per key, compared with the attribute of that name.
func (r JoinRule) Fields() []RuleValue {
	var out []RuleValue
	descs := r.message.Descriptor().Fields()
	for _, f := range r.fields {
		d := descs.ByName(protoreflect.Name(f.Name))
		if d == nil || !r.message.Has(d) {
			continue
		}
		v := r.message.Get(d)
		switch {
		case d.IsMap():
			keys := map[string][]string{}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if values, ok := v.Message().Interface().(*typesv1.Strings); ok {
					keys[k.String()] = values.GetValues()
				}
				return true
			})
			for _, k := range sortedKeys(keys) {
				one := f
				one.Name, one.Attribute = fmt.Sprintf("%s[%s]", f.Name, k), k
				out = append(out, RuleValue{one, keys[k]})
			}
		case d.IsList():
			var want []string
			for i := range v.List().Len() {
				want = append(want, v.List().Get(i).String())
			}
			out = append(out, RuleValue{f, want})
		case d.Kind() == protoreflect.BoolKind:
			out = append(out, RuleValue{f, []string{strconv.FormatBool(v.Bool())}})
		default:
			out = append(out, RuleValue{f, []string{v.String()}})
		}
	}
	return out
}

// checkJoin checks the part of a token that belongs to its join method.
func checkJoin(s *typesv1.TokenSpec, c *checker) {
	row, ok := JoinMethodRow(s.GetJoinMethod())
	if !ok {
		c.add("spec.join_method", "unknown join method %q: use one of %s", s.GetJoinMethod(), joinWords(joinMethodNames()))
		return
	}
	foreignSections(s, row, c)
	if row.Rules != nil {
		rules := row.Rules(s)
		if len(rules) == 0 {
			c.add(rulesPath(row), "missing: a token of method %q admits by its allow rules, and it has none", row.Name)
		}
		if len(rules) > maxJoinRules {
			c.add(rulesPath(row), "%d rules, the most is %d", len(rules), maxJoinRules)
			return
		}
		for _, rule := range rules {
			rule.check(c)
		}
	}
	if row.Check != nil {
		row.Check(s, c.add)
	}
}

// maxJoinRules and maxRuleValues bound what a join compares.
const (
	maxJoinRules  = 256
	maxRuleValues = 256
)

func (r JoinRule) check(c *checker) {
	trusted := false
	for _, f := range r.Fields() {
		trusted = trusted || f.Trust
		at := r.Path + "." + f.Name
		if len(f.Want) == 0 || len(f.Want) > maxRuleValues {
			c.add(at, "expected 1 to %d values", maxRuleValues)
		}
		for _, want := range f.Want {
			switch {
			case want == "":
				c.add(at, "an empty value matches nothing: leave the field out, or give a value")
			case len(want) > maxLabelValue:
				c.add(at, "a value of %d bytes, the most is %d", len(want), maxLabelValue)
			case f.Check != nil:
				c.check(at, f.Check(want))
			}
		}
	}
	if !trusted {
		var names []string
		for _, f := range r.fields {
			if f.Trust {
				names = append(names, f.Name)
			}
		}
		c.add(r.Path, "the rule would admit too much: give %s", orWords(names))
	}
}

// foreignSections refuses what belongs to another method: it would have no effect.
func foreignSections(s *typesv1.TokenSpec, row JoinMethod, c *checker) {
	own := map[string]bool{}
	for _, name := range row.Sections {
		own[name] = true
	}
	m := s.ProtoReflect()
	for _, name := range joinMethodNames() {
		other, _ := JoinMethodRow(name)
		for _, section := range other.Sections {
			if d := m.Descriptor().Fields().ByName(protoreflect.Name(section)); d != nil && m.Has(d) && !own[section] {
				own[section] = true // once
				c.add("spec."+section, "belongs to join method %q, and spec.join_method is %q", name, row.Name)
			}
		}
	}
}

func rulesPath(row JoinMethod) string {
	if row.Sections[0] == "allow" {
		return "spec.allow"
	}
	return "spec." + row.Sections[0] + ".allow"
}

func joinWords(words []string) string {
	out := ""
	for i, w := range words {
		if i > 0 {
			out += ", "
		}
		out += w
	}
	return out
}

func orWords(words []string) string {
	switch n := len(words); n {
	case 0:
		return "a field that trust can rest on"
	case 1:
		return words[0]
	default:
		return joinWords(words[:n-1]) + " or " + words[n-1]
	}
}
