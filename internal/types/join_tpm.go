package types

import typesv1 "teleport/api/types/v1"

func tpmMethod() JoinMethod {
	return ruleMethod(JoinMethodTPM, "tpm", "spec.tpm.allow",
		func(s *typesv1.TokenSpec) []*typesv1.TPMRule { return s.GetTpm().GetAllow() },
		RuleField{Name: "ek_public_hash", Trust: true},
		RuleField{Name: "ek_certificate_serial"},
	)
}
