package types

import (
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// iamMethod is the row of iam: spec.allow[] with aws_account, which is literal and
// compared first, and aws_arn with wildcards.
func iamMethod() JoinMethod {
	m := ruleMethod(JoinMethodIAM, "allow", "spec.allow",
		func(s *typesv1.TokenSpec) []*typesv1.AWSRule { return s.GetAllow() },
		RuleField{Name: "aws_account", Trust: true, Check: checkAWSAccount},
		RuleField{Name: "aws_arn", Match: MatchGlob},
	)
	m.Check = func(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
		for i, rule := range m.Rules(s) {
			r := s.GetAllow()[i]
			if len(r.GetAwsRegions()) > 0 {
				add(rule.Path+".aws_regions", "belongs to join method %q: an IAM role is not in a region; leave it out", JoinMethodEC2)
			}
			if r.GetAwsRole() != "" {
				add(rule.Path+".aws_role", "belongs to join method %q; to restrict the role of the machine give aws_arn, e.g. %q",
					JoinMethodEC2, "arn:aws:sts::111111111111:assumed-role/NAME/*")
			}
			if checkAWSAccount(r.GetAwsAccount()) != nil {
				continue // reported by the field itself
			}
			if err := checkARNPattern(r.GetAwsArn(), r.GetAwsAccount()); err != nil {
				add(rule.Path+".aws_arn", "%s", err)
			}
		}
	}
	return m
}

// checkAWSAccount finds what is wrong with the number of an account.
func checkAWSAccount(account string) error {
	if len(account) != 12 || strings.ContainsFunc(account, func(r rune) bool { return r < '0' || r > '9' }) {
		return fault.Invalid("%q is not an AWS account: expected its 12 digits in quotes, without wildcards", account)
	}
	return nil
}

// checkARNPattern finds what is wrong with the wanted ARN of a rule, whose account is
// known to be compared on its own. What stands at the place of the account must be the
// same account; and a pattern that no answer of AWS can match is a mistake.
func checkARNPattern(pattern, account string) error {
	if pattern == "" {
		return nil
	}
	if strings.ContainsFunc(pattern, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fault.Invalid("an ARN has neither blanks nor characters beyond ASCII")
	}
	parts := strings.SplitN(pattern, ":", 6)
	if len(parts) < 5 {
		if !strings.Contains(pattern, "*") || !strings.HasPrefix(pattern, "*") && !strings.HasPrefix(pattern, "arn") {
			return fault.Invalid("%q is not an ARN: expected one like %q", pattern, exampleARN(account))
		}
		return nil // the * stands for the missing parts
	}
	if parts[0] != "arn" {
		return fault.Invalid("%q is not an ARN: expected one like %q", pattern, exampleARN(account))
	}
	if partition := parts[1]; partition != "*" && (!strings.HasPrefix(partition, "aws") || strings.ContainsAny(partition, "*?")) {
		return fault.Invalid("the partition %q: expected aws, aws-cn, aws-us-gov, another one as it is, or *", partition)
	}
	if parts[4] != account {
		return fault.Invalid("the account in it, %q, is not the aws_account of the rule: write %q there, without wildcards", parts[4], account)
	}
	if len(parts) == 6 {
		return checkARNResource(parts[2], parts[5], account)
	}
	return fault.Invalid("%q ends with the account: expected one like %q", pattern, exampleARN(account))
}

// checkARNResource refuses the ARNs that people take from the IAM console and that no
// caller ever has: a machine is a session of a role, not the role.
func checkARNResource(service, resource, account string) error {
	if service == "iam" && strings.HasPrefix(resource, "role/") {
		return fault.Invalid("a machine is a session of a role and never the role itself: write %q, without the path of the role", exampleARN(account))
	}
	if strings.HasPrefix(resource, "assumed-role/") && strings.Count(resource, "/") == 1 && !strings.Contains(resource, "*") {
		return fault.Invalid("the name of the session is missing: end it with /*")
	}
	return nil
}

func exampleARN(account string) string {
	return "arn:aws:sts::" + account + ":assumed-role/NAME/*"
}

// MatchGlob reports whether all of text fits the pattern: * stands for any run of
// characters, none included, ? for exactly one, and everything else for itself, case
// and all. A * takes slashes and colons like any other character. The time is bounded
// by the product of both lengths, whatever the pattern.
func MatchGlob(pattern, text string) bool {
	p, t := 0, 0
	star, mark := -1, 0 // the last *, and where in the text it was tried to end
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			// Only the last * needs to take one more: an earlier one could not do better.
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
