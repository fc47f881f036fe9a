package login

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	loginv1 "teleport/api/login/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// checkKeys reads the public keys of a request. The SSH key may be missing.
func checkKeys(k *loginv1.PublicKeys) (*loginv1.PublicKeys, error) {
	if _, err := keys.ParsePublicTLS(k.GetTls()); err != nil {
		return nil, fault.Invalid("keys.tls: %w", err)
	}
	out := &loginv1.PublicKeys{Tls: k.GetTls()}
	if len(k.GetSsh()) == 0 {
		return out, nil
	}
	if _, err := keys.ParsePublicSSH(k.GetSsh()); err != nil {
		return nil, fault.Invalid("keys.ssh: %w", err)
	}
	out.Ssh = k.GetSsh()
	return out, nil
}

// profile is a user as its roles are now, and what they give it at a login.
type profile struct {
	subject access.Subject
	// roles are the names of those that exist.
	roles, logins []string
	options       access.Options
	ttl           time.Duration
	// source is the only address that the login is good for; empty for any.
	source string
}

// profile refuses a user that may not log in: one that is locked, has expired, or whose
// roles cannot be understood.
func (s *Server) profile(ctx context.Context, caller rpc.Caller, user *typesv1.User, device string, ttl time.Duration) (*profile, error) {
	subject, names, err := s.subject(ctx, user)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Store.CheckLocks(ctx, access.Facts{User: subject.User, Roles: names, MFADevice: device}); err != nil {
		return nil, err
	}
	checker := access.NewChecker(subject)
	logins := checker.Logins()
	if len(logins) == 0 && checker.JoinsSome(types.KindSSH).Allowed {
		logins = []string{types.LoginJoin}
	}
	limit := time.Duration(0)
	if expires := user.GetMetadata().GetExpires(); expires != nil {
		if limit = expires.AsTime().Sub(s.cfg.Now()); limit <= 0 {
			return nil, fault.Denied("user %q expired at %s", subject.User, expires.AsTime().Format(time.RFC3339))
		}
	}
	ttl = checker.SessionTTL(ttl, limit)
	if ttl <= 0 {
		return nil, fault.Denied("a role of user %q has a max_session_ttl that is no duration: ask an administrator to mend it", subject.User)
	}
	options := access.OptionsOf(subject)
	if options.Broken != nil {
		return nil, fault.Denied("an option of the roles of user %q cannot be understood: ask an administrator to mend it: %v", subject.User, options.Broken)
	}
	source, err := pinnedSource(subject.User, options, caller)
	if err != nil {
		return nil, err
	}
	return &profile{subject: subject, roles: names, logins: logins, options: options, ttl: ttl, source: source}, nil
}

// certify signs certificates for a user as its roles are now, and makes the event
// about them. A user that may log in nowhere gets the TLS certificate only, and one
// that is locked none. Device is that of the second factor, or empty.
func (s *Server) certify(ctx context.Context, caller rpc.Caller, user *typesv1.User, device string, public *loginv1.PublicKeys, ttl time.Duration) (*loginv1.UserCertificates, *auditv1.Event, error) {
	p, err := s.profile(ctx, caller, user, device, ttl)
	if err != nil {
		return nil, nil, err
	}
	subject, names, logins, options := p.subject, p.roles, p.logins, p.options
	tlsDER, sshWire, err := s.cfg.Signer().User(ca.UserRequest{
		Identity: identity.Identity{
			Cluster: s.cfg.Cluster(),
			User:    &identity.User{Name: subject.User, Roles: names, Logins: logins, Traits: subject.Traits, MFADevice: device, SourceIP: p.source},
		},
		TLSKey: public.GetTls(), SSHKey: public.GetSsh(), TTL: p.ttl,
		NoLogins: len(logins) == 0, PermitPTY: true, PermitPortForwarding: options.LocalForward || options.RemoteForward,
		PermitAgentForwarding: options.ForwardAgent, PermitX11Forwarding: options.X11, Extensions: options.Extensions,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificates of user %q: %w", subject.User, err)
	}
	cert, err := x509.ParseCertificate(tlsDER)
	if err != nil {
		return nil, nil, fmt.Errorf("read own certificate: %w", err)
	}
	authorities := s.authorities()
	signatures, err := s.cfg.Signer().SignAsHostCA(ca.AuthoritiesDigest(tlsDER, authorities))
	if err != nil {
		return nil, nil, fmt.Errorf("sign the authorities: %w", err)
	}
	certificates := &loginv1.UserCertificates{
		User: subject.User, ClusterName: s.cfg.Cluster(), Tls: tlsDER, Ssh: sshWire,
		Authorities: authorities, AuthoritiesSignatures: signatures, Expires: timestamppb.New(cert.NotAfter), Roles: names, Logins: logins,
	}
	fields := map[string]any{
		"cert_type": "user", "user": subject.User, "roles": names, "logins": logins, "ssh": len(sshWire) > 0,
		"expires": cert.NotAfter, "serial": cert.SerialNumber.Text(16), "issued_to": caller.Name(), "addr.remote": caller.Addr, "success": true,
	}
	if device != "" {
		fields["mfa_device_uuid"] = device
	}
	return certificates, audit.New(audit.CertCreate, fields), nil
}

// pinnedSource returns the only address that the certificates may be used from, if a
// role wants that: the one that the user logs in from. An administrator who signs
// certificates for somebody else does not know it, and certificates without one would be
// refused everywhere.
func pinnedSource(user string, o access.Options, caller rpc.Caller) (string, error) {
	if !o.PinSource {
		return "", nil
	}
	if !caller.Anonymous() {
		return "", fault.Denied("a role of user %q has pin_source_ip: certificates name the address that the user logs in from, and here nobody logs in. "+
			"Sign for a user without such a role, or have the user log in with tsh login", user)
	}
	addr, err := netip.ParseAddrPort(caller.Addr)
	if err != nil {
		return "", fault.Denied("your roles pin certificates to the address of the login, and yours is not known")
	}
	return addr.Addr().Unmap().WithZone("").String(), nil
}

// subject returns the user with the roles that exist, and their names. A role
// that was deleted grants nothing; it is named in the log.
func (s *Server) subject(ctx context.Context, user *typesv1.User) (access.Subject, []string, error) {
	subject := access.Subject{User: user.GetMetadata().GetName(), Traits: make(map[string][]string)}
	for name, values := range user.GetSpec().GetTraits() {
		subject.Traits[name] = values.GetValues()
	}
	var names []string
	for _, name := range user.GetSpec().GetRoles() {
		role, err := store.Get[*typesv1.Role](ctx, s.cfg.Store, types.KindRole, name)
		if errors.Is(err, fault.ErrNotFound) {
			s.cfg.Log.WarnContext(ctx, "role of user does not exist", "user", subject.User, "role", name)
			continue
		}
		if err != nil {
			return subject, nil, fmt.Errorf("read role %q: %w", name, err)
		}
		subject.Roles = append(subject.Roles, role)
		names = append(names, name)
	}
	if len(names) == 0 {
		return subject, nil, fault.Denied("user %q has no role that exists: ask an administrator for one", subject.User)
	}
	return subject, names, nil
}

// authorities returns the public halves of what a user has to know: who signs
// hosts, and who signs users.
func (s *Server) authorities() []*typesv1.CertAuthority {
	var out []*typesv1.CertAuthority
	for _, c := range s.cfg.Trust().Authorities() {
		if t := c.GetSpec().GetType(); t == ca.TypeHost || t == ca.TypeUser {
			out = append(out, ca.Public(c))
		}
	}
	return out
}

// SignUser makes certificates for a named user without the user's password: for
// automations. Whoever may create users may do it (see package authz).
func (s *Server) SignUser(ctx context.Context, req *userv1.SignUserRequest) (*userv1.SignUserResponse, error) {
	caller := rpc.CallerFrom(ctx)
	if err := s.cfg.Authorizer.Authorize(ctx, caller, userv1.UserService_SignUser_FullMethodName); err != nil {
		return nil, err
	}
	public, err := checkKeys(req.GetKeys())
	if err != nil {
		return nil, err
	}
	ttl, err := checkTTL(req.GetTtl(), access.DefaultSessionTTL, 0)
	if err != nil {
		return nil, err
	}
	if err := validUserName(req.GetUser()); err != nil {
		return nil, err
	}
	user, err := store.Get[*typesv1.User](ctx, s.cfg.Store, types.KindUser, req.GetUser())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Authorizer.Verb(ctx, caller, types.KindUser, types.VerbCreate, user); err != nil {
		return nil, err
	}
	certificates, event, err := s.certify(ctx, caller, user, "", public, ttl)
	if err != nil {
		return nil, err
	}
	err = s.cfg.Store.Tx().Check(types.KindUser, req.GetUser(), user.GetMetadata().GetRevision()).Emit(event).Commit(ctx)
	if err != nil {
		return nil, fmt.Errorf("sign certificates of user %q: %w", req.GetUser(), err)
	}
	s.cfg.Log.InfoContext(ctx, "user certificates signed", "user", req.GetUser(), "by", caller.Name())
	return &userv1.SignUserResponse{Certificates: certificates}, nil
}
