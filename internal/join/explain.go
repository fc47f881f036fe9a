package join

import (
	"context"
	"strings"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/fault"
	"teleport/internal/join/method"
)

// explain ends a rehearsal. A refusal counts and is recorded like any other; it comes
// back as the last check.
func (s *Server) explain(ctx context.Context, a *attempt, cause error) error {
	out := &joinv1.Explanation{Checks: a.checks, Rules: explainRules(a.rules, cause == nil)}
	if cause != nil {
		refused := s.refuse(ctx, a, cause)
		out.Code, out.Message = fault.Code(refused), refused.Error()
		out.Checks = append(out.Checks, &joinv1.Explanation_Check{Name: checkOf(out.Code), Detail: out.Message})
	}
	return a.stream.Send(&joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Explanation{Explanation: out}})
}

// explainRules shows rules compared with what the machine proved. What they want is
// for those who may read the token, and for a machine that they admit.
func explainRules(rules []method.RuleResult, admitted bool) []*joinv1.Explanation_Rule {
	out := make([]*joinv1.Explanation_Rule, 0, len(rules))
	for _, r := range rules {
		rule := &joinv1.Explanation_Rule{Path: r.Path, Matched: r.Matched}
		for _, f := range r.Fields {
			field := &joinv1.Explanation_Field{Name: f.Name, Got: strings.Join(clipAll(f.Got, maxClaim), ", "), Matched: f.Matched}
			if admitted && r.Matched {
				field.Want = strings.Join(clipAll(f.Want, maxClaim), ", ")
			}
			rule.Fields = append(rule.Fields, field)
		}
		out = append(out, rule)
	}
	return out
}

// checkOf names the step that a reason code belongs to.
func checkOf(code string) string {
	switch code {
	case CodeClockSkew:
		return "clock"
	case CodeTokenUnknown, CodeTokenExpired, CodeTokenRevoked, CodeTokenUsedUp, CodeMethodMismatch:
		return "token"
	case method.CodeRuleMismatch:
		return "rules"
	case CodeIdentityInvalid, CodeIdentityCloned, CodeHostRemoved, CodeRejoinDenied, method.CodeProofReplayed:
		return "identity"
	case CodeLocked:
		return "locks"
	case CodeRoleNotAllowed:
		return "roles"
	case CodeNameReserved, CodePrincipalDenied:
		return "names"
	}
	return "proof"
}
