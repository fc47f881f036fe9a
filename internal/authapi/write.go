package authapi

import (
	"context"
	"crypto/ed25519"
	"errors"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// minSecret is the least length of a token secret that a person chose.
const minSecret = 16

// rules is what is special about writing resources of one kind.
type rules struct {
	created, updated audit.Kind
	// name settles under which name a resource is stored; replace says that there
	// may be one already.
	name func(ctx context.Context, s *ResourceServer, r types.Resource, replace bool) error
	// complete fills in what Auth decides and adds checks to the transaction; old is
	// nil for a new resource.
	complete func(ctx context.Context, s *ResourceServer, tx *store.Tx, r, old types.Resource) error
	// fields are those of the audit event.
	fields func(r types.Resource) map[string]any
}

func rulesOf(kind string) (rules, bool) {
	switch kind {
	case types.KindUser:
		return rules{audit.UserCreate, audit.UserUpdate, sameName, completeUser, userFields}, true
	case types.KindRole:
		return rules{audit.RoleCreate, audit.RoleUpdate, sameName, completeNothing, nameField}, true
	case types.KindToken:
		// There is no event of its own for a changed token.
		return rules{audit.JoinTokenCreate, audit.JoinTokenCreate, nameToken, completeToken, tokenFields}, true
	case types.KindLock:
		// There is no event of its own for a changed lock.
		return rules{audit.LockCreate, audit.LockCreate, sameName, completeLock, lockFields}, true
	case types.KindNode:
		return rules{audit.NodeCreate, audit.NodeUpdate, nameNode, completeNode, nodeFields}, true
	case types.KindClusterAlert:
		return rules{audit.AlertCreate, audit.AlertUpdate, sameName, completeAlert, alertFields}, true
	case types.KindApp:
		return rules{audit.AppCreate, audit.AppUpdate, sameName, completeApp, appFields}, true
	case types.KindDatabase:
		return rules{audit.DatabaseCreate, audit.DatabaseUpdate, sameName, completeNothing, databaseFields}, true
	}
	return rules{}, false
}

func sameName(context.Context, *ResourceServer, types.Resource, bool) error { return nil }

func nameField(r types.Resource) map[string]any {
	return map[string]any{"name": r.GetMetadata().GetName()}
}

func completeNothing(context.Context, *ResourceServer, *store.Tx, types.Resource, types.Resource) error {
	return nil
}

// completeUser keeps who made the user, and makes the transaction fail if one of
// its roles goes away meanwhile.
func completeUser(ctx context.Context, s *ResourceServer, tx *store.Tx, r, old types.Resource) error {
	user, ok := r.(*typesv1.User)
	if !ok {
		return fault.Invalid("kind user with another kind's message")
	}
	user.Status = &typesv1.UserStatus{CreatedBy: rpc.CallerFrom(ctx).Name(), Created: timestamppb.New(s.cfg.Now())}
	if before, ok := old.(*typesv1.User); ok {
		user.Status = before.GetStatus()
	}
	for _, name := range user.GetSpec().GetRoles() {
		role, err := s.cfg.Store.Get(ctx, types.KindRole, name)
		if errors.Is(err, fault.ErrNotFound) {
			return fault.Invalid("spec.roles: role %q does not exist: create it first, or see `tctl get roles`", name)
		}
		if err != nil {
			return err
		}
		tx.Check(types.KindRole, name, role.GetMetadata().GetRevision())
	}
	return nil
}

func userFields(r types.Resource) map[string]any {
	fields := nameField(r)
	fields["connector"] = "local"
	if user, ok := r.(*typesv1.User); ok {
		fields["roles"] = user.GetSpec().GetRoles()
	}
	if e := r.GetMetadata().GetExpires(); e != nil {
		fields["expires"] = e.AsTime()
	}
	return fields
}

// nameToken puts the id in the place of the secret: people write a new token with
// its secret as the name, and edit one under its id.
func nameToken(ctx context.Context, s *ResourceServer, r types.Resource, replace bool) error {
	token, ok := r.(*typesv1.Token)
	if !ok {
		return fault.Invalid("kind token with another kind's message")
	}
	secret := token.GetMetadata().GetName()
	if method := token.GetSpec().GetJoinMethod(); method != types.JoinMethodToken {
		// The name is no secret. A machine that cannot know that sends an id derived from it.
		token.Status = &typesv1.TokenStatus{DerivedId: keys.TokenID(secret)}
		return types.ValidName(secret)
	}
	if replace {
		_, err := s.cfg.Store.Get(ctx, types.KindToken, secret)
		if !errors.Is(err, fault.ErrNotFound) {
			return err
		}
	}
	key, err := deriveToken(secret)
	if err != nil {
		return fault.Invalid("metadata.name: %w", err)
	}
	token.Metadata.Name = key.ID
	token.Status = &typesv1.TokenStatus{Verifier: verifier(key)}
	return nil
}

// deriveToken derives id and key of a secret that a person chose.
func deriveToken(secret string) (keys.TokenKey, error) {
	if len(secret) < minSecret || len(secret) > 256 {
		return keys.TokenKey{}, fault.Invalid("the secret of a token has 16 to 256 characters, this one has %d: leave it out to get a random one from `tctl tokens add`", len(secret))
	}
	for _, r := range secret {
		if r <= ' ' || r > '~' {
			return keys.TokenKey{}, fault.Invalid("the secret of a token is printable ASCII without spaces, this one has the character %q", r)
		}
	}
	return keys.DeriveToken(secret), nil
}

func verifier(key keys.TokenKey) []byte {
	return slices.Clone([]byte(key.Private.Public().(ed25519.PublicKey)))
}

func completeToken(ctx context.Context, s *ResourceServer, _ *store.Tx, r, old types.Resource) error {
	token, ok := r.(*typesv1.Token)
	if !ok {
		return fault.Invalid("kind token with another kind's message")
	}
	if before, ok := old.(*typesv1.Token); ok {
		if before.GetStatus().GetStatic() {
			return errStatic(token.GetMetadata().GetName())
		}
		if was, is := before.GetSpec().GetJoinMethod(), token.GetSpec().GetJoinMethod(); was != is {
			return fault.Invalid("spec.join_method: this token is of method %q and cannot become %q: remove it with `tctl tokens rm` and make another one", was, is)
		}
		token.Status = before.GetStatus()
		return nil
	}
	if token.GetSpec().GetJoinMethod() == types.JoinMethodToken && len(token.GetStatus().GetVerifier()) != ed25519.PublicKeySize {
		return fault.NotFound("token %q does not exist", clip(token.GetMetadata().GetName()))
	}
	token.Status = &typesv1.TokenStatus{
		Verifier: token.GetStatus().GetVerifier(), DerivedId: token.GetStatus().GetDerivedId(), Created: timestamppb.New(s.cfg.Now()), CreatedBy: rpc.CallerFrom(ctx).Name(),
	}
	return nil
}

func errStatic(id string) error {
	return fault.Invalid("token %s is static: it comes from auth_service.tokens in the configuration file of the Auth Service; remove it there and restart", id)
}

func tokenFields(r types.Resource) map[string]any {
	fields := nameField(r)
	if token, ok := r.(*typesv1.Token); ok {
		fields["roles"] = token.GetSpec().GetRoles()
		fields["join_method"] = token.GetSpec().GetJoinMethod()
		fields["max_uses"] = token.GetSpec().GetMaxUses()
	}
	if e := r.GetMetadata().GetExpires(); e != nil {
		fields["expires"] = e.AsTime()
	}
	return fields
}
