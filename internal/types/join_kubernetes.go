package types

import typesv1 "teleport/api/types/v1"

func kubernetesMethod() JoinMethod {
	return ruleMethod(JoinMethodKubernetes, "kubernetes", "spec.kubernetes.allow",
		func(s *typesv1.TokenSpec) []*typesv1.KubernetesRule { return s.GetKubernetes().GetAllow() },
		RuleField{Name: "service_account", Trust: true},
		RuleField{Name: "service_account_namespace", Trust: true},
		RuleField{Name: "service_account_name", Trust: true},
	)
}
