package login

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	auditv1 "teleport/api/audit/v1"
	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

const (
	// secretSize is the size of an invitation's secret, which is written in
	// lower-case hexadecimal: so its id derives like that of a join token.
	secretSize = 32
	// maxInvitationFailures is how many wrong codes end an invitation.
	maxInvitationFailures = 10
)

// invitation finds a live invitation by its secret.
func (s *Server) invitation(ctx context.Context, secret string) (*typesv1.UserToken, error) {
	if len(secret) != 2*secretSize || strings.Trim(secret, "0123456789abcdef") != "" {
		return nil, errInvitation()
	}
	token, err := store.Get[*typesv1.UserToken](ctx, s.cfg.Store, types.KindUserToken, keys.TokenID(secret))
	if errors.Is(err, fault.ErrNotFound) {
		return nil, errInvitation()
	}
	if err != nil {
		return nil, fmt.Errorf("read invitation: %w", err)
	}
	hash := sha256.Sum256([]byte(secret))
	expires := token.GetMetadata().GetExpires()
	if subtle.ConstantTimeCompare(hash[:], token.GetSpec().GetTokenHash()) != 1 ||
		expires == nil || !s.cfg.Now().Before(expires.AsTime()) || token.GetSpec().GetFailures() >= maxInvitationFailures {
		return nil, errInvitation()
	}
	return token, nil
}

// GetInvitation says whom a link is for and offers the second factor's secret,
// the same each time.
func (s *Server) GetInvitation(ctx context.Context, req *loginv1.GetInvitationRequest) (*loginv1.GetInvitationResponse, error) {
	a := attempt{caller: rpc.CallerFrom(ctx), method: methodInvite}
	if err := s.admit(ctx, a); err != nil {
		return nil, err
	}
	token, err := s.invitation(ctx, req.GetToken())
	if err != nil {
		return nil, s.refuseInvitation(ctx, a, err)
	}
	user, cluster, secret := token.GetSpec().GetUser(), s.cfg.Cluster(), token.GetSpec().GetTotpSecret()
	return &loginv1.GetInvitationResponse{
		User: user, TotpSecret: secret, TotpUrl: totpURL(cluster, user, secret),
		Expires: token.GetMetadata().GetExpires(), ClusterName: cluster,
	}, nil
}

// refuseInvitation notes an invitation that does not work.
func (s *Server) refuseInvitation(ctx context.Context, a attempt, err error) error {
	if !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	return s.refuse(ctx, a, "unknown, used or expired invitation", err)
}

// RedeemInvitation sets password and second factor and uses the invitation up, in
// one transaction: of any number of redeemers one succeeds.
func (s *Server) RedeemInvitation(ctx context.Context, req *loginv1.RedeemInvitationRequest) (*loginv1.RedeemInvitationResponse, error) {
	a := attempt{caller: rpc.CallerFrom(ctx), method: methodInvite}
	if err := s.admit(ctx, a); err != nil {
		return nil, err
	}
	token, err := s.invitation(ctx, req.GetToken())
	if err != nil {
		return nil, s.refuseInvitation(ctx, a, err)
	}
	a.user = token.GetSpec().GetUser()
	if err := checkPassword(req.GetPassword()); err != nil {
		return nil, err
	}
	if !validCode(req.GetTotpCode()) {
		return nil, fault.Invalid("the code is not six digits: type what the authenticator app shows")
	}
	r := redemption{attempt: a}
	if req.GetKeys() != nil {
		if r.ttl, err = checkTTL(req.GetTtl(), 0, 0); err != nil {
			return nil, err
		}
		if r.keys, err = checkKeys(req.GetKeys()); err != nil {
			return nil, err
		}
	}
	for range maxRetries {
		step, ok := totpStep(token.GetSpec().GetTotpSecret(), req.GetTotpCode(), 0, s.cfg.Now())
		var certificates *loginv1.UserCertificates
		if ok && r.hash == "" {
			// A code is needed to get here, so that guessing costs no hashing.
			if r.hash, err = s.hasher.hash(ctx, req.GetPassword()); err != nil {
				return nil, err
			}
		}
		if ok {
			certificates, err = s.redeem(ctx, r, token, step)
		} else {
			err = s.countWrongCode(ctx, a, token)
		}
		if err == nil {
			return &loginv1.RedeemInvitationResponse{User: a.user, Certificates: certificates}, nil
		}
		if !errors.Is(err, errRaced) {
			return nil, err
		}
		if token, err = s.invitation(ctx, req.GetToken()); err != nil {
			return nil, s.refuseInvitation(ctx, a, err)
		}
	}
	return nil, errInvitation()
}

// redemption is an attempt to redeem: with keys it logs in as well.
type redemption struct {
	attempt
	hash string
	keys *loginv1.PublicKeys
	ttl  time.Duration
}

// redeem trades the invitation for the credential, and for certificates if keys
// came with the request.
func (s *Server) redeem(ctx context.Context, a redemption, token *typesv1.UserToken, step int64) (*loginv1.UserCertificates, error) {
	user, err := store.Get[*typesv1.User](ctx, s.cfg.Store, types.KindUser, a.user)
	if errors.Is(err, fault.ErrNotFound) {
		return nil, s.refuseInvitation(ctx, a.attempt, errInvitation())
	}
	if err != nil {
		return nil, fmt.Errorf("read user %q: %w", a.user, err)
	}
	credential := &typesv1.Credential{Kind: types.KindCredential, Metadata: &typesv1.Metadata{Name: a.user}}
	credential.Spec = &typesv1.CredentialSpec{PasswordHash: a.hash, TotpSecret: token.GetSpec().GetTotpSecret(), TotpLastStep: step, TotpDeviceId: uuid.NewString()}
	if err := types.Check(credential); err != nil {
		return nil, fmt.Errorf("make credential: %w", err)
	}
	fields := a.fields(true)
	fields["usage"], fields["token_id"] = token.GetSpec().GetUsage(), token.GetMetadata().GetName()
	device := a.fields(true)
	device["mfa_device_type"], device["mfa_device_uuid"] = "TOTP", credential.GetSpec().GetTotpDeviceId()
	events := []*auditv1.Event{audit.New(audit.PasswordChange, fields), audit.New(audit.MFAAdd, device)}
	var certificates *loginv1.UserCertificates
	if a.keys != nil {
		var issued *auditv1.Event
		if certificates, issued, err = s.certify(ctx, a.caller, user, credential.GetSpec().GetTotpDeviceId(), a.keys, a.ttl); err != nil {
			return nil, err
		}
		events = append(events, audit.New(audit.UserLogin, a.fields(true)), issued)
	}
	ctx, cancel := lasting(ctx)
	defer cancel()
	err = s.cfg.Store.Tx().
		Check(types.KindUser, a.user, user.GetMetadata().GetRevision()).
		Delete(types.KindUserToken, token.GetMetadata().GetName(), token.GetMetadata().GetRevision()).
		Upsert(credential).
		Emit(events...).
		Commit(ctx)
	if raced(err) {
		return nil, errRaced
	}
	if err != nil {
		return nil, fmt.Errorf("store credential: %w", err)
	}
	s.cfg.Log.InfoContext(ctx, "invitation redeemed", "user", a.user, "addr", a.caller.Addr)
	return certificates, nil
}

// countWrongCode counts a wrong code against the invitation and returns the answer.
func (s *Server) countWrongCode(ctx context.Context, a attempt, token *typesv1.UserToken) error {
	next := proto.CloneOf(token)
	next.Spec.Failures++
	ctx, cancel := lasting(ctx)
	defer cancel()
	reason := fmt.Sprintf("wrong code for an invitation, %d of %d", next.Spec.Failures, maxInvitationFailures)
	err := s.cfg.Store.Tx().Update(next).Emit(a.failure(reason)).Commit(ctx)
	if raced(err) {
		return errRaced
	}
	if err != nil {
		return fmt.Errorf("count wrong code: %w", err)
	}
	s.cfg.Log.InfoContext(ctx, "wrong code for invitation", "user", a.user, "addr", a.caller.Addr)
	if next.Spec.Failures >= maxInvitationFailures {
		return errInvitation()
	}
	return fault.New(fault.ErrUnauthenticated, "wrong code: check the clock of the device that shows it and type a new one").WithCode("wrong_code")
}
