package login

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
	"teleport/internal/websession"
)

// Life of the links.
const (
	inviteTTL    = time.Hour
	maxInviteTTL = 48 * time.Hour
	resetTTL     = 8 * time.Hour
	maxResetTTL  = 24 * time.Hour
)

var userNameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$`)

// validUserName refuses what cannot be the name of a local user.
func validUserName(name string) error {
	if !userNameForm.MatchString(name) {
		return fault.Invalid("user name: use 1 to 128 letters, digits and . _ @ + -, the first a letter or digit")
	}
	return nil
}

// CreateUser stores a user and an invitation together.
func (s *Server) CreateUser(ctx context.Context, req *userv1.CreateUserRequest) (*userv1.CreateUserResponse, error) {
	caller := rpc.CallerFrom(ctx)
	if err := s.cfg.Authorizer.Authorize(ctx, caller, userv1.UserService_CreateUser_FullMethodName); err != nil {
		return nil, err
	}
	ttl, err := checkTTL(req.GetTtl(), inviteTTL, maxInviteTTL)
	if err != nil {
		return nil, err
	}
	user, err := s.newUser(req.GetUser(), caller)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Authorizer.Verb(ctx, caller, types.KindUser, types.VerbCreate, user); err != nil {
		return nil, err
	}
	name := user.GetMetadata().GetName()
	tx := s.cfg.Store.Tx().Create(user)
	for _, role := range user.GetSpec().GetRoles() {
		r, err := store.Get[*typesv1.Role](ctx, s.cfg.Store, types.KindRole, role)
		if errors.Is(err, fault.ErrNotFound) {
			return nil, fault.Invalid("user.spec.roles: there is no role %q: see tctl get roles", role)
		}
		if err != nil {
			return nil, fmt.Errorf("read role %q: %w", role, err)
		}
		tx.Check(types.KindRole, role, r.GetMetadata().GetRevision())
	}
	fields := map[string]any{
		"user": caller.Name(), "name": name, "roles": user.GetSpec().GetRoles(), "connector": methodLocal,
		"addr.remote": caller.Addr, "success": true,
	}
	tx.Emit(audit.New(audit.UserCreate, fields))
	invitation, err := s.invite(ctx, tx, caller, name, types.UsageInvite, ttl)
	if err != nil {
		return nil, err
	}
	if err := tx.Commit(ctx); err != nil {
		if _, getErr := s.cfg.Store.Get(ctx, types.KindUser, name); errors.Is(err, fault.ErrExists) && getErr == nil {
			return nil, fault.Exists("user %q already exists: use tctl users reset for a new link", name)
		}
		return nil, fmt.Errorf("create user %q: %w", name, err)
	}
	s.cfg.Log.InfoContext(ctx, "user created", "user", name, "by", caller.Name())
	return &userv1.CreateUserResponse{Invitation: invitation}, nil
}

// newUser checks a user of a request and completes it.
func (s *Server) newUser(given *typesv1.User, caller rpc.Caller) (*typesv1.User, error) {
	if err := validUserName(given.GetMetadata().GetName()); err != nil {
		return nil, err
	}
	user := proto.CloneOf(given)
	if user.GetKind() == "" {
		user.Kind = types.KindUser
	}
	user.Status = &typesv1.UserStatus{CreatedBy: caller.Name(), Created: timestamppb.New(s.cfg.Now())}
	if err := types.Check(user); err != nil {
		return nil, err
	}
	if user.GetKind() != types.KindUser {
		return nil, fault.Invalid("user.kind is %q: expected %q", user.GetKind(), types.KindUser)
	}
	if len(user.GetSpec().GetRoles()) == 0 {
		return nil, fault.Invalid("user.spec.roles: a user needs at least one role, such as access")
	}
	traits := make(map[string][]string)
	for name, values := range user.GetSpec().GetTraits() {
		traits[name] = values.GetValues()
	}
	id := identity.Identity{
		Cluster: s.cfg.Cluster(),
		User:    &identity.User{Name: user.GetMetadata().GetName(), Roles: user.GetSpec().GetRoles(), Traits: traits},
	}
	if err := id.Check(); err != nil {
		return nil, fmt.Errorf("the user does not fit into a certificate: %w", err)
	}
	return user, nil
}

// ResetUser ends the user's password and second factor and makes a link that sets
// new ones.
func (s *Server) ResetUser(ctx context.Context, req *userv1.ResetUserRequest) (*userv1.ResetUserResponse, error) {
	caller := rpc.CallerFrom(ctx)
	if err := s.cfg.Authorizer.Authorize(ctx, caller, userv1.UserService_ResetUser_FullMethodName); err != nil {
		return nil, err
	}
	ttl, err := checkTTL(req.GetTtl(), resetTTL, maxResetTTL)
	if err != nil {
		return nil, err
	}
	name := req.GetUser()
	if err := validUserName(name); err != nil {
		return nil, err
	}
	for range maxRetries {
		user, err := s.cfg.Store.Get(ctx, types.KindUser, name)
		if err != nil {
			return nil, err
		}
		if err := s.cfg.Authorizer.Verb(ctx, caller, types.KindUser, types.VerbUpdate, user); err != nil {
			return nil, err
		}
		tx := s.cfg.Store.Tx().Check(types.KindUser, name, user.GetMetadata().GetRevision())
		invitation, err := s.invite(ctx, tx, caller, name, types.UsageReset, ttl)
		if err != nil {
			return nil, err
		}
		err = tx.Commit(ctx)
		if err == nil {
			s.cfg.Log.InfoContext(ctx, "user reset", "user", name, "by", caller.Name())
			return &userv1.ResetUserResponse{Invitation: invitation}, nil
		}
		if !raced(err) {
			return nil, fmt.Errorf("reset user %q: %w", name, err)
		}
	}
	return nil, fault.Stale("user %q is changing all the time: try again", name)
}

// invite adds to a transaction a new link for the user, and the end of whatever
// the user could get in with before: password, second factor, older links, browsers. That
// holds for a new user too, whose name may have been somebody else's.
func (s *Server) invite(ctx context.Context, tx *store.Tx, caller rpc.Caller, user, usage string, ttl time.Duration) (*userv1.Invitation, error) {
	credential, err := s.credential(ctx, user)
	if err != nil {
		return nil, err
	}
	// Without a revision this is a check that there is still none.
	if revision := credential.GetMetadata().GetRevision(); revision != "" {
		tx.Delete(types.KindCredential, user, revision)
	} else {
		tx.Check(types.KindCredential, user, "")
	}
	old, err := store.All[*typesv1.UserToken](ctx, s.cfg.Store, types.KindUserToken)
	if err != nil {
		return nil, fmt.Errorf("read invitations: %w", err)
	}
	for _, t := range old {
		if t.GetSpec().GetUser() == user {
			tx.Delete(types.KindUserToken, t.GetMetadata().GetName(), t.GetMetadata().GetRevision())
		}
	}
	if err := websession.EndUser(ctx, s.cfg.Store, tx, user); err != nil {
		return nil, err
	}
	random := make([]byte, secretSize)
	if _, err := rand.Read(random); err != nil {
		return nil, fmt.Errorf("make invitation: %w", err)
	}
	secret := hex.EncodeToString(random)
	totp, err := newTOTPSecret()
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	expires := timestamppb.New(now.Add(ttl))
	hash := sha256.Sum256([]byte(secret))
	token := &typesv1.UserToken{Spec: &typesv1.UserTokenSpec{
		User: user, Usage: usage, TokenHash: hash[:], TotpSecret: totp, Created: timestamppb.New(now), CreatedBy: caller.Name(),
	}}
	token.Kind, token.Metadata = types.KindUserToken, &typesv1.Metadata{Name: keys.TokenID(secret), Expires: expires}
	if err := types.Check(token); err != nil {
		return nil, fmt.Errorf("make invitation: %w", err)
	}
	tx.Create(token).Emit(audit.New(audit.ResetPasswordToken, map[string]any{
		"user": caller.Name(), "name": user, "usage": usage, "token_id": token.GetMetadata().GetName(), "expires": expires.AsTime(),
		"ttl": ttl, "addr.remote": caller.Addr, "success": true,
	}))
	return &userv1.Invitation{Token: secret, Expires: expires, Url: s.inviteURL(secret)}, nil
}

// inviteURL returns the link, or "" while no Proxy is known. The part after the
// hash sign stays with the person: it lets tsh trust a Proxy whose certificate
// the cluster itself has signed.
func (s *Server) inviteURL(secret string) string {
	proxy := s.cfg.ProxyAddr()
	if proxy == "" {
		return ""
	}
	return "https://" + proxy + "/web/invite/" + secret + "#" + strings.Join(s.cfg.Trust().Pins(), ",")
}
