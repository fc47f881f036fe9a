package types

import (
	"strings"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// ec2Method is the row of ec2: spec.allow[] with aws_account or aws_role, which are both
// literal and name one account, and aws_regions.
func ec2Method() JoinMethod {
	m := ruleMethod(JoinMethodEC2, "allow", "spec.allow",
		func(s *typesv1.TokenSpec) []*typesv1.AWSRule { return s.GetAllow() },
		RuleField{Name: "aws_account", Trust: true, Check: checkAWSAccount},
		RuleField{
			Name: "aws_role", Attribute: "aws_account", Trust: true, Check: checkEC2Role,
			Match: func(role, account string) bool { return roleAccount(role) == account },
		},
		RuleField{Name: "aws_regions", Attribute: "aws_region", Check: checkAWSRegion},
	)
	m.Sections = append(m.Sections, "aws_iid_ttl")
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		if _, err := EC2DocumentTTL(s); err != nil {
			add("spec.aws_iid_ttl", "%s", err)
		}
		for i, rule := range m.Rules(s) {
			r := s.GetAllow()[i]
			if r.GetAwsArn() != "" {
				add(rule.Path+".aws_arn", "belongs to join method %q: the identity document of an instance names no role", JoinMethodIAM)
			}
			if account := roleAccount(r.GetAwsRole()); account != "" && r.GetAwsAccount() != "" && account != r.GetAwsAccount() {
				add(rule.Path+".aws_role", "is of account %s, and aws_account is %s: a role sees the instances of its own account only", account, r.GetAwsAccount())
			}
		}
	}
	return m
}

// Bounds of aws_iid_ttl.
const (
	defaultEC2DocumentTTL = 5 * time.Minute
	maxEC2DocumentTTL     = 10 * 365 * 24 * time.Hour
)

// EC2DocumentTTL returns how long after its start the identity document of an instance
// is good for a token.
func EC2DocumentTTL(s *typesv1.TokenSpec) (time.Duration, error) {
	text := s.GetAwsIidTtl()
	if text == "" {
		return defaultEC2DocumentTTL, nil
	}
	ttl, err := time.ParseDuration(text)
	if err != nil || ttl < time.Second || ttl > maxEC2DocumentTTL {
		return 0, fault.Invalid("%q is not a time from 1s to %s: expected one like 5m or 1h30m", text, maxEC2DocumentTTL)
	}
	return ttl, nil
}

// roleAccount returns the account of the ARN of a role, "" if it is not one.
func roleAccount(arn string) string {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || !strings.HasPrefix(parts[1], "aws") || parts[2] != "iam" || parts[3] != "" ||
		checkAWSAccount(parts[4]) != nil || len(parts[5]) <= len("role/") || !strings.HasPrefix(parts[5], "role/") {
		return ""
	}
	return parts[4]
}

func checkEC2Role(arn string) error {
	if roleAccount(arn) == "" || strings.ContainsFunc(arn, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '*' || r == '?' }) {
		return fault.Invalid("%q is not the ARN of a role that the Auth Service can assume: expected one like arn:aws:iam::123456789012:role/NAME, without wildcards", arn)
	}
	return nil
}

// checkAWSRegion finds what cannot be the name of a region.
func checkAWSRegion(region string) error {
	if strings.Trim(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.Count(region, "-") < 2 {
		return fault.Invalid("%q is not an AWS region: expected one like us-east-1, without wildcards", region)
	}
	return nil
}
