package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client/clienttest"
	"teleport/internal/types"
)

// putToken adds a token of method iam, with events of joins by it.
func putToken(t *testing.T, c *clienttest.Cluster) {
	t.Helper()
	token := types.New(types.KindToken, "iam-token").(*typesv1.Token)
	token.Spec = &typesv1.TokenSpec{
		Roles: []string{"Node", "App"}, JoinMethod: "iam", MaxUses: 9, Labels: map[string]string{"env": "prod"}, Principals: []string{"*.example.com"},
		Allow: []*typesv1.AWSRule{
			{AwsAccount: "111111111111"},
			{AwsAccount: "333333333333", AwsArn: "arn:aws:sts::333333333333:assumed-role/node-role/i-*"},
		},
	}
	token.Status = &typesv1.TokenStatus{Uses: 2, CreatedBy: "alice", Created: timestamppb.New(now())}
	c.Resources.Put(token)
	c.Tokens.List = []*tokenv1.ListedToken{{Id: "iam-token", Roles: token.Spec.Roles}, {Id: "link", User: "bob", Usage: "invite"}}
	event := func(uid, code string, at time.Duration, fields map[string]any) *auditv1.Event {
		s, err := structpb.NewStruct(fields)
		if err != nil {
			t.Fatal(err)
		}
		return &auditv1.Event{Event: "instance.join", Code: code, Uid: uid, Time: timestamppb.New(now().Add(at)), Fields: s}
	}
	c.Events = []*auditv1.Event{
		event("e-3", "TJ002E", 3*time.Minute, map[string]any{
			"token_name": "iam-token", "method": "iam", "reason": "rule_mismatch",
			"attributes": map[string]any{"aws_account": []any{"333333333333"}, "aws_arn": []any{"arn:aws:sts::333333333333:assumed-role/other/i-1"}},
		}),
		event("e-2", "TJ002I", 2*time.Minute, map[string]any{"token_name": "iam-token", "method": "iam", "host_id": "host-2", "node_name": "db\x1b[1m", "addr.remote": "192.0.2.2:40"}),
		event("e-1", "TJ002I", time.Minute, map[string]any{"token_name": "other", "host_id": "host-x"}),
		event("e-0", "TJ002I", time.Minute, map[string]any{
			"token_name": "iam-token", "method": "iam", "host_id": "host-1", "node_name": "web", "addr.remote": "192.0.2.1:40",
			"attributes": map[string]any{"aws_account": []any{"111111111111"}, "aws_arn": []any{"arn:aws:sts::111111111111:assumed-role/x/i-1"}},
		}),
		event("e-4", "TJ002E", 0, map[string]any{"token_name": "iam-token", "method": "iam", "reason": "proof_malformed", "error": "the proof is none"}),
	}
}

func TestTokensShow(t *testing.T) {
	c := setUp(t)
	putToken(t, c)
	want := `Token          iam-token
Method         iam
Type           Node,App
Labels         env=prod
Principals     *.example.com
Expires (UTC)  never
Uses           2 of 9
Made by        alice, 2023-03-30 18:12:52

A machine must match one of these rules:

spec.allow[0]
  aws_account  111111111111

spec.allow[1]
  aws_account  333333333333
  aws_arn      arn:aws:sts::333333333333:assumed-role/node-role/i-*

Used by:

Host      UUID   Address      Time (UTC)
--------- ------ ------------ -------------------
db\x1b[1m host-2 192.0.2.2:40 2023-03-30 18:14:52
web       host-1 192.0.2.1:40 2023-03-30 18:13:52
`
	if diff := cmp.Diff(want, ok(t, "", "tokens", "show", "iam-token")); diff != "" {
		t.Error(diff)
	}
	var shown shownToken
	if err := json.Unmarshal([]byte(ok(t, "", "tokens", "show", "iam-token", "--format=json")), &shown); err != nil || len(shown.UsedBy) != 2 || len(shown.Rules) != 2 || shown.MaxUses != 9 {
		t.Errorf("--format=json: %+v, %v", shown, err)
	}
	fails(t, 1, "there is no such token", "tokens", "show", "nothing")
	fails(t, 1, `"bob" and admits no machine`, "tokens", "show", "link")
	fails(t, 2, "an argument is missing", "tokens", "show")
}

// TestTokensShowBySecret: the secret is turned into the id here.
func TestTokensShowBySecret(t *testing.T) {
	c := setUp(t)
	token := types.New(types.KindToken, clienttest.Derive(secret)).(*typesv1.Token)
	token.Spec = &typesv1.TokenSpec{Roles: []string{"Node"}, JoinMethod: "token"}
	token.Status = &typesv1.TokenStatus{Static: true}
	c.Resources.Put(token)
	c.Tokens.List = []*tokenv1.ListedToken{{Id: token.GetMetadata().GetName()}}
	out := ok(t, "", "tokens", "show", secret)
	if strings.Contains(out, secret) || !strings.Contains(out, "Static") || strings.Contains(out, "Used by") {
		t.Errorf("tokens show = %s", out)
	}
	if out := ok(t, "x: y", "tokens", "test", secret, "--as=-"); strings.Contains(out, secret) || !strings.Contains(out, "tokens of method token have no rules") {
		t.Errorf("tokens test = %s", out)
	}
}

func TestTokensTest(t *testing.T) {
	c := setUp(t)
	putToken(t, c)
	good := filepath.Join(t.TempDir(), "me.json")
	if err := os.WriteFile(good, []byte(`{"UserId": "A:i-1", "Account": "333333333333", "Arn": "arn:aws:sts::333333333333:assumed-role/node-role/i-1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	want := `Token iam-token, method iam, compared with an AWS caller identity (not verified)

spec.allow[0]: does not match
Field        Want          Got           Result
-----------  ------------  ------------  --------------
aws_account  111111111111  333333333333  does not match

spec.allow[1]: matches
Field        Want                                                  Got                                                   Result
-----------  ----------------------------------------------------  ----------------------------------------------------  -------
aws_account  333333333333                                          333333333333                                          matches
aws_arn      arn:aws:sts::333333333333:assumed-role/node-role/i-*  arn:aws:sts::333333333333:assumed-role/node-role/i-1  matches

The machine would be admitted: spec.allow[1] matches.
`
	if diff := cmp.Diff(want, ok(t, "", "tokens", "test", "iam-token", "--as="+good)); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		name, in string
		args     []string
		code     int
		says     []string
	}{
		{"attributes", "aws_account: \"111111111111\"\n", []string{"--as=-"}, 0, []string{"attributes (not verified)", "spec.allow[0] matches"}},
		{"no_match", "aws_account: \"222222222222\"\n", []string{"--as=-"}, 1, []string{"NOT be admitted: no rule of the token matches", "(nothing)"}},
		{"admitted_event", "", []string{"--from-audit=e-0"}, 0, []string{"as the Auth Service verified it", "spec.allow[0] matches"}},
		{"refused_event", "", []string{"--from-audit=e-3"}, 1, []string{"assumed-role/other/i-1", "NOT be admitted"}},
		{"nothing_was_verified", "", []string{"--from-audit=e-4"}, 1, []string{"nothing was verified in this join", "proof_malformed"}},
		{"no_such_event", "", []string{"--from-audit=e-9"}, 1, []string{`no event "e-9" of type instance.join`}},
		{"neither", "", nil, 2, []string{"give either --as=FILE or --from-audit=ID"}},
		{"both", "", []string{"--as=x", "--from-audit=y"}, 2, []string{"give either"}},
		{"nonsense", "hello", []string{"--as=-"}, 1, []string{"standard input: neither a token (JWT) nor attributes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out, talk := tctl(t, tt.in, append([]string{"tokens", "test", "iam-token"}, tt.args...)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, says := range tt.says {
				if !strings.Contains(out+talk, says) {
					t.Errorf("%q is not in\n%s%s", says, out, talk)
				}
			}
		})
	}
	code, out, _ := tctl(t, "", "tokens", "test", "iam-token", "--from-audit=e-3", "--format=json")
	var result trial
	if err := json.Unmarshal([]byte(out), &result); err != nil || code != 1 || result.Admitted || len(result.Rules) != 2 || !result.Rules[1].Fields[0].Matched || result.Rules[1].Fields[1].Matched {
		t.Errorf("--format=json: %d, %+v, %v", code, result, err)
	}
}

// TestTokensTestSpent: a rule that matches does not help a token that is over.
func TestTokensTestSpent(t *testing.T) {
	c := setUp(t)
	putToken(t, c)
	token := c.Resources.Get(types.KindToken, "iam-token").(*typesv1.Token)
	token.Status.Uses = 9
	fails := func(says string) {
		t.Helper()
		if code, out, _ := tctl(t, "", "tokens", "test", "iam-token", "--from-audit=e-0"); code != 1 || !strings.Contains(out, says) {
			t.Errorf("exit code %d, %s; want 1 and %q", code, out, says)
		}
	}
	fails("every join that the token is good for (9) is used")
	token.Metadata.Expires = timestamppb.New(time.Now().Add(-time.Minute))
	fails("the token has expired")
}
