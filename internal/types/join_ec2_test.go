package types_test

import (
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

func TestEC2Rules(t *testing.T) {
	const role = "arn:aws:iam::123456789012:role/path/teleport"
	for name, c := range map[string]struct {
		rule *typesv1.AWSRule
		ttl  string
		// want is part of the error, "" if there is none.
		want string
	}{
		"account":             {rule: &typesv1.AWSRule{AwsAccount: "123456789012"}},
		"account and regions": {rule: &typesv1.AWSRule{AwsAccount: "123456789012", AwsRegions: []string{"us-gov-east-1", "ap-southeast-5"}}, ttl: "1h30m"},
		"role":                {rule: &typesv1.AWSRule{AwsRole: role}},
		"role and account":    {rule: &typesv1.AWSRule{AwsRole: role, AwsAccount: "123456789012"}},
		"role in china":       {rule: &typesv1.AWSRule{AwsRole: "arn:aws-cn:iam::123456789012:role/x"}},
		"nothing":             {rule: &typesv1.AWSRule{}, want: "spec.allow[0]: the rule would admit too much: give aws_account or aws_role"},
		"regions only":        {rule: &typesv1.AWSRule{AwsRegions: []string{"us-east-1"}}, want: "spec.allow[0]: the rule would admit too much"},
		"account with stars":  {rule: &typesv1.AWSRule{AwsAccount: "*"}, want: "spec.allow[0].aws_account"},
		"arn":                 {rule: &typesv1.AWSRule{AwsAccount: "123456789012", AwsArn: "arn:aws:sts::123456789012:*"}, want: "spec.allow[0].aws_arn: belongs to join method \"iam\""},
		"role of another":     {rule: &typesv1.AWSRule{AwsRole: role, AwsAccount: "210987654321"}, want: "spec.allow[0].aws_role: is of account 123456789012"},
		"role with stars":     {rule: &typesv1.AWSRule{AwsRole: "arn:aws:iam::123456789012:role/*"}, want: "spec.allow[0].aws_role"},
		"role any account":    {rule: &typesv1.AWSRule{AwsRole: "arn:aws:iam::*:role/x"}, want: "spec.allow[0].aws_role"},
		"user for a role":     {rule: &typesv1.AWSRule{AwsRole: "arn:aws:iam::123456789012:user/x"}, want: "spec.allow[0].aws_role"},
		"role name only":      {rule: &typesv1.AWSRule{AwsRole: "teleport"}, want: "spec.allow[0].aws_role"},
		"region with stars":   {rule: &typesv1.AWSRule{AwsAccount: "123456789012", AwsRegions: []string{"us-*"}}, want: "spec.allow[0].aws_regions"},
		"region and zone":     {rule: &typesv1.AWSRule{AwsAccount: "123456789012", AwsRegions: []string{"US-EAST-1"}}, want: "spec.allow[0].aws_regions"},
		"ttl without unit":    {rule: &typesv1.AWSRule{AwsAccount: "123456789012"}, ttl: "5", want: "spec.aws_iid_ttl"},
		"ttl of nothing":      {rule: &typesv1.AWSRule{AwsAccount: "123456789012"}, ttl: "0s", want: "spec.aws_iid_ttl"},
		"ttl below nothing":   {rule: &typesv1.AWSRule{AwsAccount: "123456789012"}, ttl: "-5m", want: "spec.aws_iid_ttl"},
	} {
		t.Run(name, func(t *testing.T) {
			err := types.Check(&typesv1.Token{
				Kind: types.KindToken, Version: "v2", Metadata: &typesv1.Metadata{Name: "ec2"},
				Spec: &typesv1.TokenSpec{JoinMethod: "ec2", Roles: []string{"Node"}, Allow: []*typesv1.AWSRule{c.rule}, AwsIidTtl: c.ttl},
			})
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("Check = %v, want %q", err, c.want)
			}
		})
	}
	err := types.Check(&typesv1.Token{
		Kind: types.KindToken, Version: "v2", Metadata: &typesv1.Metadata{Name: "iam"},
		Spec: &typesv1.TokenSpec{JoinMethod: "iam", Roles: []string{"Node"}, Allow: []*typesv1.AWSRule{{AwsAccount: "123456789012"}}, AwsIidTtl: "5m"},
	})
	if err == nil || !strings.Contains(err.Error(), "spec.aws_iid_ttl: belongs to join method") {
		t.Errorf("aws_iid_ttl of an iam token: %v", err)
	}
}
