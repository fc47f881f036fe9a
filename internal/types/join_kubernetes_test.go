package types_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// publicKey returns a key set of one key, and a certificate for that key.
func publicKey(t *testing.T) (set, certificate string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	text, err := json.Marshal(map[string]any{"keys": []any{map[string]any{"kty": "EC", "crv": "P-256", "kid": "k", "use": "sig", "x": b64(point[1:33]), "y": b64(point[33:])}}})
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestKubernetesTokens(t *testing.T) {
	set, certificate := publicKey(t)
	literal := []*typesv1.KubernetesRule{{ServiceAccount: "teleport:agent"}}
	rule := func(namespace, name string) *typesv1.KubernetesJoin {
		return &typesv1.KubernetesJoin{Allow: []*typesv1.KubernetesRule{{ServiceAccountNamespace: namespace, ServiceAccountName: name}}}
	}
	account := func(text string) *typesv1.KubernetesJoin {
		return &typesv1.KubernetesJoin{Allow: []*typesv1.KubernetesRule{{ServiceAccount: text}}}
	}
	for _, tt := range []struct {
		name string
		join *typesv1.KubernetesJoin
		// path is where the only problem stands; empty: the token is good.
		path string
	}{
		{"type_left_out", &typesv1.KubernetesJoin{Allow: literal}, ""},
		{"in_cluster", &typesv1.KubernetesJoin{Type: "in_cluster", Allow: literal}, ""},
		{"static_jwks", &typesv1.KubernetesJoin{Type: "static_jwks", StaticJwks: &typesv1.KubernetesJWKS{Jwks: set}, Allow: literal}, ""},
		{"oidc", &typesv1.KubernetesJoin{Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: "https://oidc.example.com/id/1"}, Allow: literal}, ""},
		{"oidc_own_ca", &typesv1.KubernetesJoin{Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: "https://10.0.0.1:6443", Ca: certificate}, Allow: literal}, ""},
		{"oidc_http_flagged", &typesv1.KubernetesJoin{Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: "http://10.0.0.1", InsecureAllowHttpIssuer: true}, Allow: literal}, ""},
		{"unknown_type", &typesv1.KubernetesJoin{Type: "remote", Allow: literal}, "spec.kubernetes.type"},
		{"type_in_capitals", &typesv1.KubernetesJoin{Type: "OIDC", Allow: literal}, "spec.kubernetes.type"},
		{"no_rules", &typesv1.KubernetesJoin{}, "spec.kubernetes.allow"},
		{"nothing", nil, "spec.kubernetes.allow"},
		{"no_jwks", &typesv1.KubernetesJoin{Type: "static_jwks", Allow: literal}, "spec.kubernetes.static_jwks.jwks"},
		{"jwks_not_json", &typesv1.KubernetesJoin{Type: "static_jwks", StaticJwks: &typesv1.KubernetesJWKS{Jwks: "keys"}, Allow: literal}, "spec.kubernetes.static_jwks.jwks"},
		{"jwks_without_keys", &typesv1.KubernetesJoin{Type: "static_jwks", StaticJwks: &typesv1.KubernetesJWKS{Jwks: `{"keys":[]}`}, Allow: literal}, "spec.kubernetes.static_jwks.jwks"},
		{"jwks_of_a_secret", &typesv1.KubernetesJoin{Type: "static_jwks", StaticJwks: &typesv1.KubernetesJWKS{Jwks: `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`}, Allow: literal}, "spec.kubernetes.static_jwks.jwks"},
		{"jwks_in_cluster", &typesv1.KubernetesJoin{StaticJwks: &typesv1.KubernetesJWKS{Jwks: set}, Allow: literal}, "spec.kubernetes.static_jwks"},
		{"jwks_beside_oidc", &typesv1.KubernetesJoin{Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: "https://a.example.com"}, StaticJwks: &typesv1.KubernetesJWKS{Jwks: set}, Allow: literal}, "spec.kubernetes.static_jwks"},
		{"oidc_beside_jwks", &typesv1.KubernetesJoin{Type: "static_jwks", Oidc: &typesv1.KubernetesOIDC{Issuer: "https://a.example.com"}, StaticJwks: &typesv1.KubernetesJWKS{Jwks: set}, Allow: literal}, "spec.kubernetes.oidc"},
		{"oidc_in_cluster", &typesv1.KubernetesJoin{Type: "in_cluster", Oidc: &typesv1.KubernetesOIDC{Issuer: "https://a.example.com"}, Allow: literal}, "spec.kubernetes.oidc"},
		{"no_issuer", &typesv1.KubernetesJoin{Type: "oidc", Allow: literal}, "spec.kubernetes.oidc.issuer"},
		{"http_issuer", &typesv1.KubernetesJoin{Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: "http://a.example.com"}, Allow: literal}, "spec.kubernetes.oidc.issuer"},
		{"file_issuer", &typesv1.KubernetesJoin{Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: "file:///etc", InsecureAllowHttpIssuer: true}, Allow: literal}, "spec.kubernetes.oidc.issuer"},
		{"issuer_with_query", &typesv1.KubernetesJoin{Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: "https://a.example.com?x=y"}, Allow: literal}, "spec.kubernetes.oidc.issuer"},
		{"ca_not_pem", &typesv1.KubernetesJoin{Type: "oidc", Oidc: &typesv1.KubernetesOIDC{Issuer: "https://a.example.com", Ca: "/etc/ca.pem"}, Allow: literal}, "spec.kubernetes.oidc.ca"},

		{"literal", account("team-a:web.v2"), ""},
		{"no_colon", account("agent"), "spec.kubernetes.allow[0].service_account"},
		{"two_colons", account("teleport:agent:x"), "spec.kubernetes.allow[0].service_account"},
		{"whole_subject", account("system:serviceaccount:teleport:agent"), "spec.kubernetes.allow[0].service_account"},
		{"no_namespace", account(":agent"), "spec.kubernetes.allow[0].service_account"},
		{"no_name", account("teleport:"), "spec.kubernetes.allow[0].service_account"},
		{"capitals", account("Teleport:agent"), "spec.kubernetes.allow[0].service_account"},
		{"space", account("teleport: agent"), "spec.kubernetes.allow[0].service_account"},
		{"wildcard_in_literal", account("teleport:*"), "spec.kubernetes.allow[0].service_account"},
		{"long_namespace", account(strings.Repeat("a", 64) + ":agent"), "spec.kubernetes.allow[0].service_account"},
		{"long_name", account("a:" + strings.Repeat("a", 254)), "spec.kubernetes.allow[0].service_account"},

		{"pair", rule("teleport", "agent"), ""},
		{"pair_with_wildcards", rule("team-*", "agent-?"), ""},
		{"whole_namespace", rule("teleport", "*"), ""},
		{"everything", rule("*", "*"), "spec.kubernetes.allow[0].service_account_namespace"},
		{"every_namespace", rule("*", "agent"), "spec.kubernetes.allow[0].service_account_namespace"},
		{"every_namespace_spelt_out", rule("?*", "agent"), "spec.kubernetes.allow[0].service_account_namespace"},
		{"namespace_alone", rule("teleport", ""), "spec.kubernetes.allow[0].service_account_name"},
		{"colon_in_namespace", rule("teleport:*", "agent"), "spec.kubernetes.allow[0].service_account_namespace"},
		{"dot_in_namespace", rule("team.a", "agent"), "spec.kubernetes.allow[0].service_account_namespace"},
		{"colon_in_name", rule("teleport", "x:agent"), "spec.kubernetes.allow[0].service_account_name"},
		{
			"literal_and_pair",
			&typesv1.KubernetesJoin{Allow: []*typesv1.KubernetesRule{{ServiceAccount: "a:b", ServiceAccountNamespace: "a", ServiceAccountName: "b"}}},
			"spec.kubernetes.allow[0]",
		},
		{
			"second_rule",
			&typesv1.KubernetesJoin{Allow: []*typesv1.KubernetesRule{literal[0], {ServiceAccount: "*:*"}}},
			"spec.kubernetes.allow[1].service_account",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			token := types.New(types.KindToken, "kube").(*typesv1.Token)
			token.Spec = &typesv1.TokenSpec{Roles: []string{"node"}, JoinMethod: "kubernetes", Kubernetes: tt.join}
			err := types.Check(token)
			if tt.path == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var problems types.Problems
			if !errors.As(err, &problems) || len(problems) != 1 || problems[0].Path != tt.path {
				t.Fatalf("Check = %v, want one problem at %s", err, tt.path)
			}
		})
	}
}

// A name without a namespace admits what anybody who may make a namespace makes.
func TestKubernetesNameAloneIsNoTrust(t *testing.T) {
	token := types.New(types.KindToken, "kube").(*typesv1.Token)
	token.Spec = &typesv1.TokenSpec{Roles: []string{"node"}, JoinMethod: "kubernetes", Kubernetes: &typesv1.KubernetesJoin{
		Allow: []*typesv1.KubernetesRule{{ServiceAccountName: "agent"}},
	}}
	err := types.Check(token)
	for _, want := range []string{"spec.kubernetes.allow[0]: the rule would admit too much", "spec.kubernetes.allow[0].service_account_namespace: missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check = %v, want %q in it", err, want)
		}
	}
}

func TestKubernetesTokenAsYAML(t *testing.T) {
	set, _ := publicKey(t)
	list, err := types.ParseYAML("token.yaml", []byte(`kind: token
version: v2
metadata:
  name: kubernetes-token
spec:
  roles: [Node]
  join_method: kubernetes
  kubernetes:
    type: static_jwks
    static_jwks:
      jwks: |
        `+set+`
    allow:
    - service_account: "teleport:agent"
    - service_account_namespace: "team-*"
      service_account_name: "agent"
`))
	if err != nil {
		t.Fatal(err)
	}
	if err := types.Check(list[0]); err != nil {
		t.Fatal(err)
	}
	row, _ := types.JoinMethodRow("kubernetes")
	rules := row.Rules(list[0].(*typesv1.Token).GetSpec())
	if len(rules) != 2 || len(rules[1].Fields()) != 2 {
		t.Fatalf("%d rules, want 2 and the second with two fields", len(rules))
	}
	namespace := rules[1].Fields()[0]
	for text, want := range map[string]bool{"team-a": true, "team-": true, "team": false, "xteam-a": false} {
		if got := namespace.Match(namespace.Want[0], text); got != want {
			t.Errorf("namespace %q matches %q: %t, want %t", text, namespace.Want[0], got, want)
		}
	}
}
