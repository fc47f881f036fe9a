package types

import (
	"fmt"
	"slices"
	"strings"
	"time"

	typesv1 "teleport/api/types/v1"
)

// What a machine may do that joined before (spec.rejoin).
const (
	// RejoinDeny refuses it.
	RejoinDeny = "deny"
	// RejoinSameKey admits it if it still has the key of its identity.
	RejoinSameKey = "same-key"
	// RejoinReplace gives it a new identity and revokes the old one.
	RejoinReplace = "replace"
)

func tokenKind() KindInfo {
	return KindInfo{
		Name: KindToken, Plural: "tokens",
		New:      func() Resource { return &typesv1.Token{} },
		Defaults: defaults(defaultToken),
		Validate: validate(validateToken),
		Secret: secret(func(t *typesv1.Token) {
			if t.Status == nil {
				return
			}
			t.Status.Verifier = nil
			if b := t.Status.BoundKeypair; b != nil {
				b.RegistrationVerifier, b.StateHash, b.PreviousStateHash = nil, nil, nil
			}
		}),
		Columns: []Column{
			nameColumn("Token"),
			column("Type", func(t *typesv1.Token) string { return strings.Join(t.GetSpec().GetRoles(), ",") }),
			column("Labels", func(t *typesv1.Token) string { return labelText(t.GetMetadata().GetLabels()) }),
			column("Expiry Time (UTC)", func(t *typesv1.Token) string {
				if e := t.GetMetadata().GetExpires(); e != nil {
					return e.AsTime().UTC().Format("02 Jan 06 15:04 UTC")
				}
				return "never"
			}),
		},
		Remember: 24 * time.Hour,
		Writable: true, Served: true,
		versions: []string{"v2"},
		name:     validTokenName,
	}
}

func labelText(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for _, k := range sortedKeys(labels) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}

// defaultToken spells the roles as the certificates do, and makes tokens of bots
// single-use.
func defaultToken(t *typesv1.Token) {
	if t.Spec == nil {
		t.Spec = &typesv1.TokenSpec{}
	}
	s := t.Spec
	if s.JoinMethod == "" {
		s.JoinMethod = JoinMethodToken
	}
	for i, name := range s.Roles {
		if r, err := ParseSystemRole(name); err == nil {
			s.Roles[i] = string(r)
		}
	}
	if slices.Contains(s.Roles, string(RoleBot)) && s.MaxUses == 0 {
		s.MaxUses = 1
	}
}

func validateToken(t *typesv1.Token, c *checker) {
	s := t.GetSpec()
	if len(s.GetRoles()) == 0 {
		c.add("spec.roles", "missing: name the services that the token admits, such as Node")
	}
	seen := make(map[SystemRole]bool)
	for i, name := range s.GetRoles() {
		at := fmt.Sprintf("spec.roles[%d]", i)
		r, err := ParseSystemRole(name)
		switch {
		case err != nil:
			c.check(at, err)
		case seen[r]:
			c.add(at, "%q is there twice", name)
		}
		seen[r] = true
	}
	checkJoin(s, c)
	switch s.GetRejoin() {
	case "", RejoinDeny, RejoinSameKey, RejoinReplace:
	default:
		c.add("spec.rejoin", "%q is not a policy: use %s, %s or %s", s.GetRejoin(), RejoinDeny, RejoinSameKey, RejoinReplace)
	}
	switch {
	case s.GetBotName() == "":
	case !seen[RoleBot]:
		c.add("spec.bot_name", "only goes with the role %s", RoleBot)
	default:
		c.check("spec.bot_name", ValidName(s.GetBotName()))
	}
	if seen[RoleBot] && s.GetMaxUses() > 1 {
		c.add("spec.max_uses", "%d: a token with the role %s is good for one use", s.GetMaxUses(), RoleBot)
	}
	c.labels("spec.labels", s.GetLabels())
	if len(s.GetPrincipals()) > maxJoinRules {
		c.add("spec.principals", "%d patterns, the most is %d", len(s.GetPrincipals()), maxJoinRules)
	}
	for i, p := range s.GetPrincipals() {
		c.check(fmt.Sprintf("spec.principals[%d]", i), validHostPattern(p))
	}
	c.time("status.created", t.GetStatus().GetCreated())
}
