package types

import (
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// Kinds of method kubernetes, as spec.kubernetes.type has them; empty is in_cluster.
const (
	KubernetesInCluster  = "in_cluster"
	KubernetesStaticJWKS = "static_jwks"
	KubernetesOIDC       = "oidc"
)

// KubernetesType returns spec.kubernetes.type, or its default.
func KubernetesType(k *typesv1.KubernetesJoin) string {
	if k.GetType() == "" {
		return KubernetesInCluster
	}
	return k.GetType()
}

// The rule of method kubernetes. Wildcards stand in the namespace or in the name, each
// a field of its own, so that none of them swallows the colon of service_account. Trust
// rests on the namespace: whoever may make one calls the accounts in it as they like.
func kubernetesMethod() JoinMethod {
	m := ruleMethod(JoinMethodKubernetes, "kubernetes", "spec.kubernetes.allow",
		func(s *typesv1.TokenSpec) []*typesv1.KubernetesRule { return s.GetKubernetes().GetAllow() },
		RuleField{Name: "service_account", Trust: true, Check: checkServiceAccount},
		RuleField{Name: "service_account_namespace", Trust: true, Match: MatchGlob, Check: checkNamespaceGlob},
		RuleField{Name: "service_account_name", Match: MatchGlob, Check: checkAccountGlob},
	)
	m.Check = checkKubernetes
	return m
}

func checkKubernetes(s *typesv1.TokenSpec, add func(path, format string, args ...any)) {
	k := s.GetKubernetes()
	kind := KubernetesType(k)
	problem("spec.kubernetes.type", oneOf(KubernetesInCluster, KubernetesStaticJWKS, KubernetesOIDC)(kind), add)
	switch {
	case kind == KubernetesStaticJWKS:
		problem("spec.kubernetes.static_jwks.jwks", checkStaticJWKS(k.GetStaticJwks().GetJwks()), add)
	case k.GetStaticJwks() != nil:
		add("spec.kubernetes.static_jwks", "belongs to type %q, and spec.kubernetes.type is %q", KubernetesStaticJWKS, kind)
	}
	switch {
	case kind == KubernetesOIDC:
		o := k.GetOidc()
		problem("spec.kubernetes.oidc.issuer", checkIssuerURL(o.GetIssuer(), o.GetInsecureAllowHttpIssuer()), add)
		if ca := o.GetCa(); ca != "" {
			problem("spec.kubernetes.oidc.ca", checkIssuerCA(ca), add)
		}
	case k.GetOidc() != nil:
		add("spec.kubernetes.oidc", "belongs to type %q, and spec.kubernetes.type is %q", KubernetesOIDC, kind)
	}
	for i, r := range k.GetAllow() {
		path := rulePath("spec.kubernetes.allow", i)
		namespace, name := r.GetServiceAccountNamespace() != "", r.GetServiceAccountName() != ""
		switch {
		case r.GetServiceAccount() != "" && (namespace || name):
			add(path, "give service_account, or service_account_namespace and service_account_name, not both")
		case namespace && !name:
			add(path+".service_account_name", "missing: it goes with service_account_namespace; * is every account of the namespace")
		case name && !namespace:
			add(path+".service_account_namespace", "missing: it goes with service_account_name")
		}
	}
}

// checkServiceAccount accepts "namespace:name", to the letter.
func checkServiceAccount(value string) error {
	namespace, name, ok := strings.Cut(value, ":")
	switch {
	case strings.ContainsAny(value, "*?"):
		return fault.Invalid("%q has a wildcard, and this field is compared to the letter: use service_account_namespace and service_account_name", value)
	case !ok || !fitsAccount(namespace, maxNamespace, "-") || !fitsAccount(name, maxAccount, "-."):
		return fault.Invalid("%q: expected the namespace and the name of a service account, such as \"teleport:agent\"", value)
	}
	return nil
}

// Lengths of names in Kubernetes: a DNS label and a DNS subdomain.
const (
	maxNamespace = 63
	maxAccount   = 253
)

func checkNamespaceGlob(value string) error {
	if strings.Trim(value, "*?") == "" {
		return fault.Invalid("%q would admit every namespace of the cluster: write what the namespaces have in common", value)
	}
	if !fitsAccount(value, maxNamespace, "-*?") {
		return fault.Invalid("%q: expected the name of a namespace, or a pattern with * and ?", value)
	}
	return nil
}

func checkAccountGlob(value string) error {
	if !fitsAccount(value, maxAccount, "-.*?") {
		return fault.Invalid("%q: expected the name of a service account without its namespace, or a pattern with * and ?", value)
	}
	return nil
}

// fitsAccount reports whether a name has 1 to most characters of those that names in
// Kubernetes have, and others.
func fitsAccount(name string, most int, others string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return name != "" && len(name) <= most
}
