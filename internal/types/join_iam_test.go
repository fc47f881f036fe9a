package types_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// documentedIAM is the token of the guide, with its indentation.
const documentedIAM = `# token.yaml
kind: token
version: v2
metadata:
  # the token name is not a secret because instances must prove that they are
  # running in your AWS account to use this token
  name: iam-token
spec:
  # use the minimal set of roles required (e.g. Node, App, Kube, DB, WindowsDesktop)
  roles: [Node]

  # set the join method allowed for this token
  join_method: iam

  allow:
  # specify the AWS account which Teleport processes may join from
  - aws_account: "111111111111"
  # multiple allow rules are supported
  - aws_account: "222222222222"
  # aws_arn is optional and allows you to restrict the IAM role of joining
  # Teleport processes
  - aws_account: "333333333333"
    aws_arn: "arn:aws:sts::333333333333:assumed-role/teleport-node-role/i-*"
`

func TestIAMTokenOfTheGuide(t *testing.T) {
	list, err := types.ParseYAML("token.yaml", []byte(documentedIAM))
	if err != nil {
		t.Fatal(err)
	}
	token, ok := list[0].(*typesv1.Token)
	if !ok || len(list) != 1 {
		t.Fatalf("read %T and %d resources, want one token", list[0], len(list))
	}
	if err := types.Check(token); err != nil {
		t.Fatal(err)
	}
	row, _ := types.JoinMethodRow(token.GetSpec().GetJoinMethod())
	rules := row.Rules(token.GetSpec())
	if len(rules) != 3 {
		t.Fatalf("%d rules, want 3", len(rules))
	}
	fields := rules[2].Fields()
	if len(fields) != 2 || fields[0].Name != "aws_account" || fields[1].Name != "aws_arn" {
		t.Fatalf("the third rule compares %v, want aws_account first and aws_arn next", fields)
	}
	if !fields[1].Match(fields[1].Want[0], "arn:aws:sts::333333333333:assumed-role/teleport-node-role/i-0123456789abcdef0") {
		t.Error("the third rule does not match an instance of its role")
	}
}

func TestCheckIAM(t *testing.T) {
	const account = "333333333333"
	arn := func(pattern string) []*typesv1.AWSRule {
		return []*typesv1.AWSRule{{AwsAccount: account, AwsArn: pattern}}
	}
	acct := func(s string) []*typesv1.AWSRule { return []*typesv1.AWSRule{{AwsAccount: s}} }
	arnPath := []string{"spec.allow[0].aws_arn"}
	acctPath := []string{"spec.allow[0].aws_account"}
	rows := map[string]struct {
		allow []*typesv1.AWSRule
		want  []string
	}{
		"account":             {acct(account), nil},
		"account_zeros":       {acct("000000000012"), nil},
		"account_short":       {acct("33333333333"), acctPath},
		"account_long":        {acct("3333333333333"), acctPath},
		"account_glob":        {acct("33333333333*"), acctPath},
		"account_any":         {acct("*"), acctPath},
		"account_letters":     {acct("33333333333x"), acctPath},
		"account_dashes":      {acct("3333-3333-33"), acctPath},
		"account_other_digit": {acct("33333333333٣"), acctPath},
		"no_rule":             {nil, []string{"spec.allow"}},
		"empty_rule":          {[]*typesv1.AWSRule{{}}, []string{"spec.allow[0]"}},
		"arn_alone":           {[]*typesv1.AWSRule{{AwsArn: "arn:aws:sts::" + account + ":assumed-role/n/*"}}, []string{"spec.allow[0]"}},
		"second_rule": {
			[]*typesv1.AWSRule{{AwsAccount: account}, {AwsAccount: "1"}},
			[]string{"spec.allow[1].aws_account"},
		},
		"regions": {[]*typesv1.AWSRule{{AwsAccount: account, AwsRegions: []string{"us-east-1"}}}, []string{"spec.allow[0].aws_regions"}},
		"role":    {[]*typesv1.AWSRule{{AwsAccount: account, AwsRole: "arn:aws:iam::" + account + ":role/n"}}, []string{"spec.allow[0].aws_role"}},

		"arn_literal":           {arn("arn:aws:sts::333333333333:assumed-role/node/i-0abc"), nil},
		"arn_session":           {arn("arn:aws:sts::333333333333:assumed-role/node/i-*"), nil},
		"arn_one":               {arn("arn:aws:sts::333333333333:assumed-role/node-?/i-*"), nil},
		"arn_user":              {arn("arn:aws:iam::333333333333:user/path/*"), nil},
		"arn_root":              {arn("arn:aws:iam::333333333333:root"), nil},
		"arn_china":             {arn("arn:aws-cn:sts::333333333333:assumed-role/node/*"), nil},
		"arn_partition_any":     {arn("arn:*:sts::333333333333:assumed-role/node/*"), nil},
		"arn_service_any":       {arn("arn:aws:*::333333333333:*/node/*"), nil},
		"arn_short":             {arn("*:assumed-role/node/i-*"), nil},
		"arn_any":               {arn("*"), nil},
		"arn_partition_glob":    {arn("arn:aws*:sts::333333333333:assumed-role/node/*"), arnPath},
		"arn_partition_unknown": {arn("arn:gcp:sts::333333333333:assumed-role/node/*"), arnPath},
		"arn_account_other":     {arn("arn:aws:sts::333333333334:assumed-role/node/*"), arnPath},
		"arn_account_any":       {arn("arn:aws:sts::*:assumed-role/node/*"), arnPath},
		"arn_account_part":      {arn("arn:aws:sts::33333333333?:assumed-role/node/*"), arnPath},
		"arn_account_empty":     {arn("arn:aws:sts:::assumed-role/node/*"), arnPath},
		"arn_account_run":       {arn("arn:aws:sts::*assumed-role/node/*"), arnPath},
		"arn_wide_start":        {arn("*:*:*:*:*:assumed-role/node/*"), arnPath},
		"arn_no_resource":       {arn("arn:aws:sts::333333333333"), arnPath},
		"arn_no_arn":            {arn("teleport-node-role"), arnPath},
		"arn_resource_alone":    {arn("assumed-role/node/*"), arnPath},
		"arn_of_role":           {arn("arn:aws:iam::333333333333:role/node"), arnPath},
		"arn_no_session":        {arn("arn:aws:sts::333333333333:assumed-role/node"), arnPath},
		"arn_blank":             {arn("arn:aws:sts::333333333333:assumed-role/node /*"), arnPath},
		"arn_unicode":           {arn("arn:aws:sts::333333333333:assumed-role/nоde/*"), arnPath},
		"arn_long":              {arn("arn:aws:sts::333333333333:assumed-role/" + strings.Repeat("n", 2000) + "/*"), arnPath},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			token := &typesv1.Token{
				Kind: types.KindToken, Version: "v2", Metadata: &typesv1.Metadata{Name: "iam-token"},
				Spec: &typesv1.TokenSpec{Roles: []string{"Node"}, JoinMethod: types.JoinMethodIAM, Allow: row.allow},
			}
			if row.want == nil {
				if err := types.Check(token); err != nil {
					t.Errorf("Check: %v", err)
				}
				return
			}
			if d := cmp.Diff(row.want, problems(t, token)); d != "" {
				t.Errorf("problems (-want +got):\n%s", d)
			}
		})
	}
}

func TestMatchGlob(t *testing.T) {
	const node = "arn:aws:sts::333333333333:assumed-role/node/i-0"
	rows := []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true},
		{"", "a", false},
		{"*", "", true},
		{"**", "a", true},
		{"?", "", false},
		{"?", "a", true},
		{"?", "ab", false},
		{"a?c", "abc", true},
		{"a*c", "ac", true},
		{"a*c", "abcbc", true},
		{"a*c", "abcb", false},
		{"*?", "", false},
		{"?*?", "ab", true},
		{"a*b?d*", "axxbxbcdyy", true},
		{node, node, true},
		{node, strings.ToUpper(node), false},
		{node, node + "0", false},
		{"arn:aws:sts::333333333333:assumed-role/node/i-*", node, true},
		{"arn:aws:sts::333333333333:assumed-role/node/i-*", "x" + node, false},
		// A * takes slashes and colons: the documents say any run of characters.
		{"arn:aws:sts::333333333333:assumed-role/node*/i-0", "arn:aws:sts::333333333333:assumed-role/node-a/b/i-0", true},
		{"*:assumed-role/node/*", node, true},
		{"arn:*:assumed-role/node/*", node, true},
		// Nothing but * and ? means something else than itself.
		{"[a]", "a", false},
		{"[a]", "[a]", true},
		{`\*`, `\x`, true},
		{".", "a", false},
	}
	for _, row := range rows {
		if got := types.MatchGlob(row.pattern, row.text); got != row.want {
			t.Errorf("MatchGlob(%q, %q) = %v, want %v", row.pattern, row.text, got, row.want)
		}
	}
}

// FuzzMatchGlob compares it with the regular expression of the same meaning, whose
// time is linear.
func FuzzMatchGlob(f *testing.F) {
	for _, seed := range [][2]string{
		{"a*b?", "axxbc"},
		{"*?*", "ab"},
		{strings.Repeat("*a", 100), strings.Repeat("a", 99) + "b"},
		{"arn:aws:sts::*", "arn:aws:sts::1:x\n"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		var re strings.Builder
		for _, b := range []byte(pattern) {
			switch b {
			case '*':
				re.WriteString(".*")
			case '?':
				re.WriteString(".")
			default:
				re.WriteString(regexp.QuoteMeta(string(rune(b))))
			}
		}
		want := regexp.MustCompile(`(?s)\A` + re.String() + `\z`).MatchString(latin1(text))
		if got := types.MatchGlob(pattern, text); got != want {
			t.Errorf("MatchGlob(%q, %q) = %v, want %v", pattern, text, got, want)
		}
	})
}

// latin1 makes a character of each byte, as the glob sees them.
func latin1(s string) string {
	out := make([]rune, 0, len(s))
	for _, b := range []byte(s) {
		out = append(out, rune(b))
	}
	return string(out)
}

// TestIAMGuide reads the token of our own guide.
func TestIAMGuide(t *testing.T) {
	text, err := os.ReadFile("../../docs/how-to/join-with-iam.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```yaml\n# token.yaml\n")
	yaml, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("the guide has no token.yaml")
	}
	list, err := types.ParseYAML("token.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	if err := types.Check(list[0]); err != nil {
		t.Error(err)
	}
}
