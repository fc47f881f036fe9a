package login

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	auditv1 "teleport/api/audit/v1"
	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// Ways of getting in, as they are named in the audit log.
const (
	methodLocal  = "local"
	methodInvite = "invitation"
	methodWeb    = "web"
)

// attempt is one try to get in.
type attempt struct {
	caller rpc.Caller
	// user is the name that was given, or empty when it cannot be a name: people
	// type passwords into the wrong field.
	user   string
	method string
}

// fields returns what every event about the attempt has.
func (a attempt) fields(success bool) map[string]any {
	f := map[string]any{"user": a.user, "method": a.method, "success": success, "addr.remote": a.caller.Addr}
	if a.caller.Via != "" {
		f["proxy_id"] = a.caller.Via
	}
	return f
}

func (a attempt) failure(reason string) *auditv1.Event {
	f := a.fields(false)
	f["error"] = reason
	return audit.New(audit.UserLoginFailure, f)
}

// admit refuses a source that tries too often.
func (s *Server) admit(ctx context.Context, a attempt) error {
	if s.sources.Allow(sourceOf(a.caller), s.cfg.Now()) {
		return nil
	}
	err := fault.New(fault.ErrLimit, "too many attempts from your address: try again in a minute").WithCode("rate_limited")
	return s.refuse(ctx, a, "too many attempts from this address", err)
}

// refuse writes an event about an attempt that cost its maker nothing, unless
// there are too many of them: those are counted in the next one. It returns the
// answer, or what went wrong in writing the event.
func (s *Server) refuse(ctx context.Context, a attempt, reason string, answer error) error {
	s.cfg.Log.InfoContext(ctx, "login attempt refused", "user", a.user, "method", a.method, "addr", a.caller.Addr, "reason", reason)
	skipped, ok := s.noise.Admit(s.cfg.Now())
	if !ok {
		return answer
	}
	fields := a.fields(false)
	fields["error"] = reason
	if skipped > 0 {
		fields["skipped_events"] = skipped
	}
	if err := s.emit(ctx, audit.New(audit.UserLoginFailure, fields)); err != nil {
		return fmt.Errorf("store the event of a refused login: %w", err)
	}
	return answer
}

func (s *Server) emit(ctx context.Context, events ...*auditv1.Event) error {
	ctx, cancel := lasting(ctx)
	defer cancel()
	return s.cfg.Store.Tx().Emit(events...).Commit(ctx)
}

// Login trades password and second factor for certificates.
func (s *Server) Login(ctx context.Context, req *loginv1.LoginRequest) (*loginv1.LoginResponse, error) {
	a := attempt{caller: rpc.CallerFrom(ctx), method: methodLocal}
	if validUserName(req.GetUser()) == nil {
		a.user = req.GetUser()
	}
	if err := s.admit(ctx, a); err != nil {
		return nil, err
	}
	public, err := checkKeys(req.GetKeys())
	if err != nil {
		return nil, err
	}
	ttl, err := checkTTL(req.GetTtl(), 0, 0)
	if err != nil {
		return nil, err
	}
	if !wellFormed(a, req.GetPassword(), req.GetTotpCode()) {
		return nil, s.refuse(ctx, a, "malformed user name, password or code", errLogin())
	}
	var certificates *loginv1.UserCertificates
	err = s.prove(ctx, a, req.GetPassword(), req.GetTotpCode(), func(ctx context.Context, tx *store.Tx, user *typesv1.User, device string) error {
		signed, issued, err := s.certify(ctx, a.caller, user, device, public, ttl)
		if err != nil {
			return err
		}
		certificates = signed
		success := a.fields(true)
		success["roles"] = signed.GetRoles()
		tx.Emit(audit.New(audit.UserLogin, success), issued)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &loginv1.LoginResponse{Certificates: certificates}, nil
}

// grant adds to tx what a login that succeeded gives the user, with its events. If it
// fails nothing was added. It may be called again.
type grant func(ctx context.Context, tx *store.Tx, user *typesv1.User, device string) error

// prove holds password and second factor against what is stored. What was typed is well
// formed. It returns nil only once the outcome and what was granted are stored.
func (s *Server) prove(ctx context.Context, a attempt, password, code string, give grant) error {
	credential, err := s.credential(ctx, a.user)
	if err != nil {
		return err
	}
	hash := credential.GetSpec().GetPasswordHash()
	passwordOK, err := s.hasher.verify(ctx, hash, password)
	if err != nil {
		return err
	}
	ctx, cancel := lasting(ctx)
	defer cancel()
	for range maxRetries {
		// Only the very hash that the password was compared with counts.
		same := passwordOK && credential.GetSpec().GetPasswordHash() == hash
		err := s.conclude(ctx, a, judge(credential, same, code, s.cfg.Now()), give)
		if !errors.Is(err, errRaced) {
			return err
		}
		if credential, err = s.credential(ctx, a.user); err != nil {
			return err
		}
	}
	return s.refuse(ctx, a, "too many attempts at the same time", errLogin())
}

// wellFormed reports whether what was typed can be somebody's.
func wellFormed(a attempt, password, code string) bool {
	return a.user != "" && password != "" && len(password) <= maxPassword && validCode(code)
}

// errRaced says that an outcome has to be decided anew.
var errRaced = errors.New("what the outcome rests on changed")

// conclude stores the outcome of an attempt and its event in one transaction, and
// only then lets what was granted or the refusal out.
func (s *Server) conclude(ctx context.Context, a attempt, v verdict, give grant) error {
	tx := s.cfg.Store.Tx()
	if v.next != nil {
		tx.Update(v.next)
	}
	answer := errLogin()
	if v.reason == "" {
		user, err := store.Get[*typesv1.User](ctx, s.cfg.Store, types.KindUser, a.user)
		switch {
		case errors.Is(err, fault.ErrNotFound):
			v.reason = "user was deleted"
		case err != nil:
			return err
		default:
			tx.Check(types.KindUser, a.user, user.GetMetadata().GetRevision())
			if err := give(ctx, tx, user, v.next.GetSpec().GetTotpDeviceId()); err != nil {
				v.reason, answer = fmt.Sprintf("not let in: %v", err), err
			}
		}
	}
	if v.reason != "" {
		tx.Emit(a.failure(v.reason))
	}
	if err := tx.Commit(ctx); err != nil {
		if raced(err) {
			return errRaced
		}
		return fmt.Errorf("store the outcome of a login: %w", err)
	}
	if v.reason != "" {
		s.cfg.Log.InfoContext(ctx, "login failed", "user", a.user, "addr", a.caller.Addr, "reason", v.reason)
		return answer
	}
	s.cfg.Log.InfoContext(ctx, "user logged in", "user", a.user, "addr", a.caller.Addr)
	return nil
}

// credential returns the credential of a user, or nil when there is none.
func (s *Server) credential(ctx context.Context, user string) (*typesv1.Credential, error) {
	c, err := store.Get[*typesv1.Credential](ctx, s.cfg.Store, types.KindCredential, user)
	if errors.Is(err, fault.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read credential: %w", err)
	}
	return c, nil
}

// checkTTL reads a duration of a request; unset is the given default, and the
// most is high, unless that is 0.
func checkTTL(d *durationpb.Duration, unset, high time.Duration) (time.Duration, error) {
	if d == nil {
		return unset, nil
	}
	ttl := d.AsDuration()
	if !d.IsValid() || ttl < time.Second {
		return 0, fault.Invalid("ttl %s is too short: ask for at least 1s", ttl)
	}
	if high > 0 && ttl > high {
		return 0, fault.Invalid("ttl %s is too long: ask for at most %s", ttl, high)
	}
	return ttl, nil
}
