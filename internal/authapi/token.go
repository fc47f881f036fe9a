package authapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// Life of a join token.
const (
	defaultTokenTTL = 30 * time.Minute
	maxTokenTTL     = 168 * time.Hour
)

// TokenServer makes, lists and revokes tokens. Secrets are shown once, to the one
// who makes the token, and are not kept.
type TokenServer struct {
	tokenv1.UnimplementedTokenServiceServer
	cfg Config
}

// NewToken returns the handler of TokenService.
func NewToken(cfg Config) (*TokenServer, error) {
	cfg, err := cfg.checked()
	return &TokenServer{cfg: cfg}, err
}

// CreateToken makes a join token.
func (s *TokenServer) CreateToken(ctx context.Context, req *tokenv1.CreateTokenRequest) (*tokenv1.CreateTokenResponse, error) {
	ttl := defaultTokenTTL
	if d := req.GetTtl(); d != nil {
		if ttl = d.AsDuration(); d.CheckValid() != nil || ttl < time.Second || ttl > maxTokenTTL {
			return nil, fault.Invalid("ttl %s: a join token lives from 1s to %s", ttl, maxTokenTTL)
		}
	}
	secret := req.GetValue()
	if secret == "" {
		var b [16]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, err
		}
		secret = hex.EncodeToString(b[:])
	}
	key, err := deriveToken(secret)
	if err != nil {
		return nil, fault.Invalid("value: %w", err)
	}
	now := s.cfg.Now()
	token, err := newToken(key, req.GetRoles(), rpc.CallerFrom(ctx).Name(), now)
	if err != nil {
		return nil, err
	}
	token.Metadata.Expires = timestamppb.New(now.Add(ttl))
	token.Spec.Labels = req.GetLabels()
	if bot := slices.Contains(token.Spec.Roles, string(types.RoleBot)); bot && req.GetMaxUses() > 1 {
		return nil, fault.Invalid("max_uses %d: a token with the role Bot is good for one use", req.GetMaxUses())
	}
	token.Spec.MaxUses = max(token.Spec.MaxUses, req.GetMaxUses())
	if err := types.Check(token); err != nil {
		return nil, err
	}
	if err := s.cfg.verb(ctx, types.KindToken, types.VerbCreate, token); err != nil {
		return nil, err
	}
	err = s.cfg.Store.Tx().Create(token).Emit(event(ctx, audit.JoinTokenCreate, tokenFields(token))).Commit(ctx)
	if errors.Is(err, fault.ErrExists) {
		return nil, fault.Exists("there is a token with this secret already: its id is %s", key.ID)
	}
	if err != nil {
		return nil, err
	}
	shown, ok := public(token).(*typesv1.Token)
	if !ok {
		return nil, fault.Invalid("kind token with another kind's message")
	}
	return &tokenv1.CreateTokenResponse{Token: shown, Secret: secret}, nil
}

// newToken makes the resource of a token with the key, which never expires.
func newToken(key keys.TokenKey, roles []string, by string, now time.Time) (*typesv1.Token, error) {
	token, ok := types.New(types.KindToken, key.ID).(*typesv1.Token)
	if !ok {
		return nil, fault.Invalid("kind token with another kind's message")
	}
	token.Spec = &typesv1.TokenSpec{JoinMethod: types.JoinMethodToken}
	for _, name := range roles {
		r, err := types.ParseSystemRole(name)
		if err != nil {
			return nil, err
		}
		token.Spec.Roles = append(token.Spec.Roles, string(r))
	}
	slices.Sort(token.Spec.Roles)
	token.Spec.Roles = slices.Compact(token.Spec.Roles)
	if slices.Contains(token.Spec.Roles, string(types.RoleBot)) {
		token.Spec.MaxUses = 1
	}
	token.Status = &typesv1.TokenStatus{Verifier: verifier(key), Created: timestamppb.New(now), CreatedBy: by}
	return token, nil
}

// ListTokens returns join tokens and the signup and reset tokens of users, soonest
// expiry first and those that never expire last.
func (s *TokenServer) ListTokens(ctx context.Context, _ *tokenv1.ListTokensRequest) (*tokenv1.ListTokensResponse, error) {
	tokens, err := store.All[*typesv1.Token](ctx, s.cfg.Store, types.KindToken)
	if err != nil {
		return nil, err
	}
	links, err := store.All[*typesv1.UserToken](ctx, s.cfg.Store, types.KindUserToken)
	if err != nil {
		return nil, err
	}
	may, err := s.cfg.some(ctx, types.KindToken, types.VerbList)
	if err != nil {
		return nil, err
	}
	tokens = slices.DeleteFunc(tokens, func(t *typesv1.Token) bool { return !may(t) })
	links = slices.DeleteFunc(links, func(t *typesv1.UserToken) bool { return !may(t) })
	out := make([]*tokenv1.ListedToken, 0, len(tokens)+len(links))
	for _, t := range tokens {
		out = append(out, &tokenv1.ListedToken{
			Id: t.GetMetadata().GetName(), Roles: t.GetSpec().GetRoles(), JoinMethod: t.GetSpec().GetJoinMethod(),
			Labels: t.GetSpec().GetLabels(), Expires: t.GetMetadata().GetExpires(), Static: t.GetStatus().GetStatic(),
			Uses: t.GetStatus().GetUses(), MaxUses: t.GetSpec().GetMaxUses(),
		})
	}
	for _, t := range links {
		out = append(out, &tokenv1.ListedToken{
			Id: t.GetMetadata().GetName(), Expires: t.GetMetadata().GetExpires(), User: t.GetSpec().GetUser(), Usage: t.GetSpec().GetUsage(), MaxUses: 1,
		})
	}
	now := s.cfg.Now()
	out = slices.DeleteFunc(out, func(t *tokenv1.ListedToken) bool {
		return t.GetExpires() != nil && !t.GetExpires().AsTime().After(now)
	})
	slices.SortFunc(out, func(a, b *tokenv1.ListedToken) int {
		return cmp.Or(compareExpiry(a.GetExpires(), b.GetExpires()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return &tokenv1.ListTokensResponse{Tokens: out}, nil
}

// compareExpiry puts what never expires last.
func compareExpiry(a, b *timestamppb.Timestamp) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return a.AsTime().Compare(b.AsTime())
}

// DeleteToken revokes a join token, or a signup or reset token, by its id.
func (s *TokenServer) DeleteToken(ctx context.Context, req *tokenv1.DeleteTokenRequest) (*tokenv1.DeleteTokenResponse, error) {
	id := req.GetId()
	if id == "" {
		return nil, fault.Invalid("id: missing: `tctl tokens ls` shows the ids")
	}
	var err error
	for range upsertTries {
		tx := s.cfg.Store.Tx()
		if err = s.remove(ctx, tx, id); err != nil {
			return nil, err
		}
		// A token that joiners use just now changes under us.
		if err = tx.Commit(ctx); !errors.Is(err, fault.ErrStale) {
			break
		}
	}
	return &tokenv1.DeleteTokenResponse{}, err
}

func (s *TokenServer) remove(ctx context.Context, tx *store.Tx, id string) error {
	r, err := s.cfg.Store.Get(ctx, types.KindToken, id)
	if err == nil {
		if err := s.cfg.verb(ctx, types.KindToken, types.VerbDelete, r); err != nil {
			return err
		}
		return removeToken(ctx, s.cfg, tx, r)
	}
	if !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	link, err := store.Get[*typesv1.UserToken](ctx, s.cfg.Store, types.KindUserToken, id)
	if errors.Is(err, fault.ErrNotFound) {
		return fault.NotFound("there is no token with this id: `tctl tokens ls` shows those that there are")
	}
	if err != nil {
		return err
	}
	// A role that may delete only some tokens says so by the fields of join tokens, which
	// a link does not have: it is refused.
	if err := s.cfg.verb(ctx, types.KindToken, types.VerbDelete, link); err != nil {
		return err
	}
	deleteAt(tx, link)
	tx.Emit(event(ctx, audit.JoinTokenDelete, map[string]any{
		"name": id, "for_user": link.GetSpec().GetUser(), "usage": link.GetSpec().GetUsage(),
	}))
	return nil
}

// MirrorStatic makes the static tokens in the store those of the configuration
// file: it adds new ones, marks them, and removes those that are not there any more.
func MirrorStatic(ctx context.Context, s *store.Store, tokens map[keys.Secret][]types.SystemRole, now time.Time) error {
	keep := map[string]bool{}
	for secret, roles := range tokens {
		if secret.Reveal() == "" {
			return fault.Invalid("auth_service.tokens: a token without a value")
		}
		key := keys.DeriveToken(secret.Reveal())
		names := make([]string, len(roles))
		for i, r := range roles {
			names[i] = string(r)
		}
		token, err := newToken(key, names, "configuration file", now)
		if err != nil {
			return err
		}
		token.Status.Static = true
		if err := types.Check(token); err != nil {
			return err
		}
		keep[key.ID] = true
		if err := mirror(ctx, s, token); err != nil {
			return err
		}
	}
	old, err := store.All[*typesv1.Token](ctx, s, types.KindToken)
	if err != nil {
		return err
	}
	for _, t := range old {
		if !t.GetStatus().GetStatic() || keep[t.GetMetadata().GetName()] {
			continue
		}
		fields := tokenFields(t)
		fields["user"] = "configuration file"
		err := s.Tx().Delete(types.KindToken, t.GetMetadata().GetName(), "").Emit(audit.New(audit.JoinTokenDelete, fields)).Commit(ctx)
		if err != nil && !errors.Is(err, fault.ErrNotFound) {
			return err
		}
	}
	return nil
}

// mirror writes one static token unless it is there with the same roles.
func mirror(ctx context.Context, s *store.Store, token *typesv1.Token) error {
	id := token.GetMetadata().GetName()
	old, err := store.Get[*typesv1.Token](ctx, s, types.KindToken, id)
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	if err == nil {
		if old.GetStatus().GetStatic() && slices.Equal(old.GetSpec().GetRoles(), token.GetSpec().GetRoles()) {
			return nil
		}
		token.Status.Uses = old.GetStatus().GetUses()
	}
	fields := tokenFields(token)
	fields["user"], fields["static"] = "configuration file", true
	return s.Tx().Upsert(token).Emit(audit.New(audit.JoinTokenCreate, fields)).Commit(ctx)
}
