package types

import (
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
)

func clusterNameKind() KindInfo {
	return KindInfo{
		Name: KindClusterName, Plural: KindClusterName, Singleton: true,
		New:      func() Resource { return &typesv1.ClusterName{} },
		Validate: validate(validateClusterName),
		Columns: []Column{
			column("Cluster", func(r *typesv1.ClusterName) string { return r.GetSpec().GetClusterName() }),
			column("ID", func(r *typesv1.ClusterName) string { return r.GetSpec().GetClusterId() }),
		},
		Served:   true,
		versions: []string{"v2"},
	}
}

func validateClusterName(r *typesv1.ClusterName, c *checker) {
	c.check("spec.cluster_name", ValidHostname(r.GetSpec().GetClusterName()))
	c.check("spec.cluster_id", ValidName(r.GetSpec().GetClusterId()))
}

// Types of certificate authority.
const (
	CAHost     = "host"
	CAUser     = "user"
	CADB       = "db"
	CADBClient = "db_client"
	CAOpenSSH  = "openssh"
	CAJWT      = "jwt"
)

func caTypes() []string {
	return []string{CAHost, CAUser, CADB, CADBClient, CAOpenSSH, CAJWT}
}

func certAuthorityKind() KindInfo {
	return KindInfo{
		Name: KindCertAuthority, Plural: "cert_authorities", Aliases: []string{"ca", "cas"},
		New:      func() Resource { return &typesv1.CertAuthority{} },
		Validate: validate(validateCertAuthority),
		Secret: secret(func(r *typesv1.CertAuthority) {
			clearPrivate(r.GetSpec().GetActiveKeys())
			clearPrivate(r.GetSpec().GetAdditionalTrustedKeys())
		}),
		Columns: []Column{
			nameColumn("Type"),
			column("Cluster", func(r *typesv1.CertAuthority) string { return r.GetSpec().GetClusterName() }),
		},
		Served:   true,
		versions: []string{"v2"},
		name:     ValidName,
	}
}

func clearPrivate(keys *typesv1.CertAuthorityKeys) {
	for _, k := range keys.GetSsh() {
		k.PrivateKey = nil
	}
	for _, k := range keys.GetTls() {
		k.PrivateKey = nil
	}
	for _, k := range keys.GetJwt() {
		k.PrivateKey = nil
	}
}

func validateCertAuthority(r *typesv1.CertAuthority, c *checker) {
	s := r.GetSpec()
	if !slices.Contains(caTypes(), s.GetType()) {
		c.add("spec.type", "%q is not a type of authority: use %s", s.GetType(), strings.Join(caTypes(), ", "))
	}
	if s.GetType() != r.GetMetadata().GetName() {
		c.add("metadata.name", "%q: an authority is named after its type, %q", r.GetMetadata().GetName(), s.GetType())
	}
	c.check("spec.cluster_name", ValidHostname(s.GetClusterName()))
	if k := s.GetActiveKeys(); len(k.GetSsh())+len(k.GetTls())+len(k.GetJwt()) == 0 {
		c.add("spec.active_keys", "missing: an authority needs a key")
	}
	c.time("spec.last_rotated", s.GetLastRotated())
}
