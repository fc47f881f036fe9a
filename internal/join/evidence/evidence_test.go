package evidence_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	"teleport/internal/join/evidence"
)

// jwt makes a token of the claims that nobody signed.
func jwt(claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256"}`)) + "." + enc([]byte(claims)) + "." + enc([]byte("signature")) + "\n"
}

func TestRead(t *testing.T) {
	tests := []struct {
		name, in, form string
		// want must be among the attributes.
		want map[string][]string
	}{
		{
			"caller_identity", `{"UserId": "AROA:i-1", "Account": "111111111111", "Arn": "arn:aws:sts::111111111111:assumed-role/node/i-1"}`,
			evidence.FormCallerIdentity,
			map[string][]string{"aws_account": {"111111111111"}, "aws_arn": {"arn:aws:sts::111111111111:assumed-role/node/i-1"}, "aws_user_id": {"AROA:i-1"}},
		},
		{
			"caller_identity_in_yaml", "Account: \"000000000001\"\nArn: arn:aws:iam::000000000001:user/x\n", evidence.FormCallerIdentity,
			map[string][]string{"aws_account": {"000000000001"}, "aws_arn": {"arn:aws:iam::000000000001:user/x"}},
		},
		{
			"instance_document", `{"accountId": "111111111111", "region": "eu-west-1", "instanceId": "i-1", "version": "2017-09-30"}`, evidence.FormInstance,
			map[string][]string{"aws_account": {"111111111111"}, "aws_region": {"eu-west-1"}, "aws_instance_id": {"i-1"}},
		},
		{"attributes", "aws_account: \"111111111111\"\nlist: [a, 2]\nyes: true\n", evidence.FormAttributes, map[string][]string{"aws_account": {"111111111111"}, "list": {"a", "2"}, "yes": {"true"}}},
		{"attributes_in_json", `{"repository_id": 123456789012345678, "x": ["y"]}`, evidence.FormAttributes, map[string][]string{"repository_id": {"123456789012345678"}, "x": {"y"}}},
		{
			"kubernetes", jwt(`{"iss":"https://kubernetes.default.svc","sub":"system:serviceaccount:apps:agent","kubernetes.io":{"pod":{"name":"p"}}}`), evidence.FormJWT,
			map[string][]string{"service_account": {"apps:agent"}, "service_account_namespace": {"apps"}, "service_account_name": {"agent"}, "kubernetes.io.pod.name": {"p"}},
		},
		{
			"gcp", jwt(`{"iss":"https://accounts.google.com","email":"a@p1.iam.gserviceaccount.com","google":{"compute_engine":{"project_id":"p1","zone":"europe-west4-a","instance_id":"7"}}}`), evidence.FormJWT,
			map[string][]string{"project_id": {"p1"}, "service_account": {"a@p1.iam.gserviceaccount.com"}, "location": {"europe-west4-a", "europe-west4"}, "vm": {"true"}},
		},
		{
			"gcp_without_a_machine", jwt(`{"iss":"https://accounts.google.com","email":"a@p1.iam.gserviceaccount.com"}`), evidence.FormJWT,
			map[string][]string{"project_id": {"p1"}, "vm": {"false"}},
		},
		{"github", jwt(`{"iss":"https://token.actions.githubusercontent.com","repository":"a/b","repository_id":"12","aud":["x","y"]}`), evidence.FormJWT, map[string][]string{"repository": {"a/b"}, "repository_id": {"12"}, "aud": {"x", "y"}}},
		{"bitbucket", jwt(`{"workspaceUuid":"{w}","branchName":"main"}`), evidence.FormJWT, map[string][]string{"workspace_uuid": {"{w}"}, "branch_name": {"main"}}},
		{"circleci", jwt(`{"oidc.circleci.com/project-id":"p","oidc.circleci.com/context-ids":["a","b"]}`), evidence.FormJWT, map[string][]string{"project_id": {"p"}, "context_id": {"a", "b"}}},
		{"terraform", jwt(`{"terraform_organization_id":"org-1","terraform_run_phase":"plan"}`), evidence.FormJWT, map[string][]string{"organization_id": {"org-1"}, "run_phase": {"plan"}}},
		{
			"azure", jwt(`{"tid":"t","xms_mirid":"/subscriptions/s/resourcegroups/g/providers/Microsoft.Compute/virtualMachines/vm"}`), evidence.FormJWT,
			map[string][]string{"tenant": {"t"}, "subscription": {"s"}, "resource_group": {"g"}},
		},
		{"azure_devops", jwt(`{"sub":"p://org/proj/pipe","prj_id":"1"}`), evidence.FormJWT, map[string][]string{"project_name": {"proj"}, "pipeline_name": {"pipe"}, "project_id": {"1"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := evidence.Read([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if got.Form != tt.form {
				t.Errorf("form = %q, want %q", got.Form, tt.form)
			}
			for name, want := range tt.want {
				if diff := cmp.Diff(want, got.Attributes[name]); diff != "" {
					t.Errorf("%s: %s", name, diff)
				}
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	nested := strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20)
	for name, in := range map[string]string{
		"empty": "", "nothing": "{}", "list": "[1, 2]", "text": "hello", "nested": "a: {b: c}", "broken_json": `{"a": `,
		"too_long": strings.Repeat("a", evidence.MaxSize+1), "deep_claims": jwt(nested), "list_of_lists": `{"a": [[1]]}`,
	} {
		if got, err := evidence.Read([]byte(in)); err == nil {
			t.Errorf("%s: read %v, want an error", name, got)
		}
	}
}

func TestFromEvent(t *testing.T) {
	fields, err := structpb.NewStruct(map[string]any{"attributes": map[string]any{"aws_account": []any{"1"}, "x": "y"}, "method": "iam"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"aws_account": {"1"}, "x": {"y"}}
	if diff := cmp.Diff(want, evidence.FromEvent(fields).Attributes); diff != "" {
		t.Error(diff)
	}
	if got := evidence.FromEvent(nil).Attributes; len(got) != 0 {
		t.Errorf("an event without attributes has %v", got)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(`{"Account": "1", "Arn": "2"}`)
	f.Add(jwt(`{"a":{"b":[1,true,"c"]}}`))
	f.Add("a: b")
	f.Fuzz(func(t *testing.T, in string) {
		got, err := evidence.Read([]byte(in))
		if err == nil && (got.Form == "" || len(got.Attributes) == 0) {
			t.Fatalf("%q: %v, %v", in, got, err)
		}
	})
}
