package login_test

import (
	"errors"
	"testing"

	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// TestWhere: who may invite, reset and sign for some users does so for no others.
func TestWhere(t *testing.T) {
	e := newEnv(t)
	helper := types.New(types.KindRole, "helper").(*typesv1.Role)
	helper.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{Rules: []*typesv1.Rule{
		{Resources: []string{"user"}, Verbs: []string{"create", "update"}, Where: `all_equal(resource.spec.roles, "access")`},
	}}}
	must(t, e.store.Tx().Create(helper).Commit(t.Context()))
	e.invite(t, newUser("boss", []string{"access", "editor"}, "root"))
	ctx := asUser(t.Context(), "eve", "helper")
	for _, tt := range []struct {
		name string
		call func(user string, roles ...string) error
	}{
		{"create", func(user string, roles ...string) error {
			return second(e.CreateUser(ctx, &userv1.CreateUserRequest{User: newUser(user, roles)}))
		}},
		{"reset", func(user string, _ ...string) error {
			return second(e.ResetUser(ctx, &userv1.ResetUserRequest{User: user}))
		}},
		{"sign", func(user string, _ ...string) error {
			return second(e.SignUser(ctx, &userv1.SignUserRequest{User: user, Keys: e.keys()}))
		}},
	} {
		if err := tt.call("new", "access"); err != nil {
			t.Errorf("%s of a user with the role access: %v", tt.name, err)
		}
		name := "boss"
		if tt.name == "create" {
			name = "new-boss"
		}
		if err := tt.call(name, "access", "editor"); !errors.Is(err, fault.ErrDenied) {
			t.Errorf("%s of a user with the role editor: %v, want a refusal", tt.name, err)
		}
	}
}
