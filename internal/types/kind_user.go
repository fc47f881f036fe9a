package types

import (
	"fmt"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// TraitLogins is the trait behind {{internal.logins}}.
const TraitLogins = "logins"

func userKind() KindInfo {
	return KindInfo{
		Name: KindUser, Plural: "users",
		New:      func() Resource { return &typesv1.User{} },
		Defaults: defaults(defaultUser),
		Validate: validate(validateUser),
		Columns: []Column{
			nameColumn("User"),
			column("Roles", func(u *typesv1.User) string { return strings.Join(u.GetSpec().GetRoles(), ",") }),
		},
		Writable: true, Served: true,
		versions: []string{"v2"},
		name:     ValidName,
	}
}

func defaultUser(u *typesv1.User) {
	if u.Spec == nil {
		u.Spec = &typesv1.UserSpec{}
	}
}

func validateUser(u *typesv1.User, c *checker) {
	c.names("spec.roles", u.GetSpec().GetRoles(), ValidName)
	traits := u.GetSpec().GetTraits()
	if len(traits) > maxLabels {
		c.add("spec.traits", "%d traits, the most is %d", len(traits), maxLabels)
		return
	}
	for _, k := range sortedKeys(traits) {
		at := "spec.traits[" + k + "]"
		if k == "" || len(k) > maxLabelKey {
			c.add(at, "the name of a trait has 1 to %d bytes", maxLabelKey)
			continue
		}
		c.text(at, k, maxLabelKey)
		values := traits[k].GetValues()
		if k == TraitLogins {
			c.names(at, values, ValidLogin)
			continue
		}
		if len(values) > maxList {
			c.add(at, "%d values, the most is %d", len(values), maxList)
			continue
		}
		for i, v := range values {
			c.text(fmt.Sprintf("%s[%d]", at, i), v, maxLabelValue)
		}
	}
	c.time("status.created", u.GetStatus().GetCreated())
}

func credentialKind() KindInfo {
	return KindInfo{
		Name: KindCredential, Plural: "credentials",
		New:      func() Resource { return &typesv1.Credential{} },
		Validate: validate(validateCredential),
		Secret:   secret(func(r *typesv1.Credential) { r.Spec = nil }),
		Columns:  []Column{nameColumn("User")},
		versions: []string{"v1"},
		name:     ValidName,
	}
}

func validateCredential(r *typesv1.Credential, c *checker) {
	for i, t := range r.GetSpec().GetFailures() {
		c.time(fmt.Sprintf("spec.failures[%d]", i), t)
	}
	c.time("spec.locked_until", r.GetSpec().GetLockedUntil())
}

// Usages of a UserToken.
const (
	UsageInvite = "invite"
	UsageReset  = "reset"
)

func userTokenKind() KindInfo {
	return KindInfo{
		Name: KindUserToken, Plural: "user_tokens",
		New:      func() Resource { return &typesv1.UserToken{} },
		Validate: validate(validateUserToken),
		Secret: secret(func(r *typesv1.UserToken) {
			if r.Spec != nil {
				r.Spec.TokenHash, r.Spec.TotpSecret = nil, ""
			}
		}),
		Columns: []Column{
			nameColumn("Token"),
			column("User", func(r *typesv1.UserToken) string { return r.GetSpec().GetUser() }),
		},
		versions: []string{"v1"},
		name:     ValidName,
	}
}

func validateUserToken(r *typesv1.UserToken, c *checker) {
	c.check("spec.user", ValidName(r.GetSpec().GetUser()))
	if u := r.GetSpec().GetUsage(); u != UsageInvite && u != UsageReset {
		c.check("spec.usage", fault.Invalid("%q: use %s or %s", u, UsageInvite, UsageReset))
	}
	if n := len(r.GetSpec().GetTokenHash()); n != 32 {
		c.add("spec.token_hash", "%d bytes, a SHA-256 has 32", n)
	}
	if r.GetMetadata().GetExpires() == nil {
		c.add("metadata.expires", "missing: such a token must expire")
	}
	c.time("spec.created", r.GetSpec().GetCreated())
}
