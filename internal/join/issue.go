package join

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/join/method"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// issueJoin makes the identity, counts the use of the token, and records all of it
// in one transaction.
func (s *Server) issueJoin(ctx context.Context, a *attempt, b *before, m method.Method) (*joinv1.Grant, error) {
	now := s.cfg.Now()
	instance := s.newInstance(a, b)
	instance.Spec = &typesv1.InstanceSpec{
		Hostname:   a.init.GetHostname(),
		Roles:      roleNames(a.roles),
		Token:      a.token.GetMetadata().GetName(),
		JoinMethod: m.Name,
		Labels:     maps.Clone(a.token.GetSpec().GetLabels()),
		Principals: a.init.GetPrincipals(),
		Machine:    a.claims.Machine,
		Attributes: attributesOf(a.claims),
	}
	instance.Status.Renewed = timestamppb.New(now)
	instance.Status.RemoteAddr, instance.Status.Process = a.addr, a.init.GetProcess()
	grant, err := s.grant(instance, a.init.GetTlsPublicKey(), a.init.GetSshPublicKey())
	if err != nil {
		return nil, err
	}
	grant.Attests, grant.MethodState = m.Attests, a.claims.State
	tx := s.cfg.Store.Tx()
	s.useToken(tx, a, grant.GetHostId())
	if b.current != nil && !b.current.restored {
		tx.Update(instance)
	} else {
		tx.Create(instance)
	}
	for _, e := range b.created {
		e.Spec.HostId, e.Spec.TlsKey = grant.GetHostId(), keyDigest(a.init)
		tx.Create(e)
	}
	for _, e := range b.written {
		e.Spec.HostId, e.Spec.TlsKey = grant.GetHostId(), keyDigest(a.init)
		tx.Update(e)
	}
	replaced, err := s.removeReplaced(ctx, tx, b, grant.GetHostId())
	if err != nil {
		return nil, err
	}
	fields := map[string]any{
		"success":     true,
		"host_id":     grant.GetHostId(),
		"node_name":   a.init.GetHostname(),
		"method":      m.Name,
		"token_name":  a.token.GetMetadata().GetName(),
		"role":        "Instance",
		"roles":       roleNames(a.roles),
		"rejoin":      b.current != nil || len(replaced) > 0,
		"version":     a.init.GetSoftwareVersion(),
		"addr.remote": a.addr,
		"proxy_id":    a.via,
	}
	addClaims(fields, a.claims)
	if len(a.rules) > 0 {
		fields["rule"] = matched(a.rules)
	}
	if len(replaced) > 0 {
		fields["replaced"] = replaced
	}
	tx.Emit(audit.New(audit.InstanceJoin, fields), certEvent(grant))
	if err := tx.Commit(ctx); err != nil {
		return nil, s.lost(ctx, a, b, err)
	}
	s.cfg.Log.InfoContext(ctx, "machine joined", "host_id", grant.GetHostId(), "hostname", a.init.GetHostname(), "method", m.Name, "roles", roleNames(a.roles), "addr", a.addr)
	return grant, nil
}

// newInstance returns the record of the host that the machine becomes. An id that
// the method chooses is used once: a host that was removed never comes back by it.
func (s *Server) newInstance(a *attempt, b *before) *typesv1.Instance {
	if b.current != nil {
		return b.current.instance
	}
	id := uuid.NewString()
	if a.claims.HostID != "" && !b.seen {
		id = a.claims.HostID
	}
	instance := types.New(types.KindInstance, id).(*typesv1.Instance)
	instance.Status = &typesv1.InstanceStatus{Joined: timestamppb.New(s.cfg.Now())}
	return instance
}

func attributesOf(c method.Claims) map[string]*typesv1.Strings {
	if len(c.Attributes) == 0 {
		return nil
	}
	out := make(map[string]*typesv1.Strings, len(c.Attributes))
	for name, values := range c.Attributes {
		out[name] = &typesv1.Strings{Values: clipAll(values, maxClaim)}
	}
	return out
}

// useToken counts the use of a token. One revoked since it was read admits nobody.
func (s *Server) useToken(tx *store.Tx, a *attempt, hostID string) {
	if a.token.GetSpec().GetMaxUses() == 0 && a.claims.Update == nil {
		tx.Check(types.KindToken, a.token.GetMetadata().GetName(), a.token.GetMetadata().GetRevision())
		return
	}
	token := proto.CloneOf(a.token)
	if token.Status == nil {
		token.Status = &typesv1.TokenStatus{}
	}
	token.Status.Uses++
	if a.claims.Update != nil {
		a.claims.Update(token, hostID)
	}
	tx.Update(token)
}

// removeReplaced ends the identities that this one replaces, and returns their ids.
func (s *Server) removeReplaced(ctx context.Context, tx *store.Tx, b *before, hostID string) ([]string, error) {
	slices.Sort(b.replaced)
	var out []string
	for _, id := range slices.Compact(b.replaced) {
		if id == hostID {
			continue
		}
		for _, kind := range []string{types.KindInstance, types.KindNode, types.KindProxy, types.KindAuthServer} {
			r, err := s.cfg.Store.Get(ctx, kind, id)
			if errors.Is(err, fault.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			tx.Delete(kind, id, r.GetMetadata().GetRevision())
			if kind == types.KindInstance {
				out = append(out, id)
			}
		}
	}
	return out, nil
}

// lost explains a transaction that lost against another one.
func (s *Server) lost(ctx context.Context, a *attempt, b *before, err error) error {
	if errors.Is(err, fault.ErrExists) {
		for _, e := range b.created {
			if old, gerr := store.Get[*typesv1.LedgerEntry](ctx, s.cfg.Store, types.KindLedgerEntry, e.GetMetadata().GetName()); gerr == nil {
				return replayed(e.GetSpec().GetMethod(), old)
			}
		}
	}
	if !errors.Is(err, fault.ErrStale) && !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	now, _, gerr := s.findToken(ctx, a.init.GetTokenId())
	switch {
	case gerr != nil:
		return fault.New(fault.ErrDenied, "the join token was revoked during the join: make a new one").WithCode(CodeTokenRevoked)
	case now.GetMetadata().GetRevision() != a.token.GetMetadata().GetRevision():
		return fault.Stale("the join token was changed or used during the join: try again")
	}
	return fault.Stale("what is known of this machine changed during the join: try again")
}

// grant signs certificates for the instance over the two keys and advances its
// generation; the caller stores the instance.
func (s *Server) grant(instance *typesv1.Instance, tlsKey, sshKey []byte) (*joinv1.Grant, error) {
	cluster := s.cfg.Cluster()
	instance.Status.IssuedGeneration = max(instance.Status.GetIssuedGeneration(), instance.Status.GetGeneration()) + 1
	roles := make([]types.SystemRole, 0, len(instance.GetSpec().GetRoles()))
	for _, name := range instance.GetSpec().GetRoles() {
		role, err := types.ParseSystemRole(name)
		if err != nil {
			return nil, err
		}
		roles = append(roles, role)
	}
	host := identity.Host{
		ID:         instance.GetMetadata().GetName(),
		Name:       instance.GetSpec().GetHostname(),
		Roles:      roles,
		Generation: instance.GetStatus().GetIssuedGeneration(),
	}
	signer := s.cfg.Signer()
	sign := func(service types.SystemRole, ssh []byte) (tlsDER, sshWire []byte, err error) {
		h := host
		h.Service = service
		var principals []string
		if service == types.RoleProxy || service == types.RoleAuth {
			principals = instance.GetSpec().GetPrincipals()
		}
		return signer.Host(ca.HostRequest{
			Identity:   identity.Identity{Cluster: cluster, Host: &h},
			TLSKey:     tlsKey,
			SSHKey:     ssh,
			Principals: principals,
			TTL:        CertificateTTL,
		})
	}
	out := &joinv1.HostCertificates{
		Services: map[string]*joinv1.ServiceCertificates{},
		Expires:  timestamppb.New(s.cfg.Now().Add(CertificateTTL)),
	}
	var err error
	if out.Tls, out.Ssh, err = sign("", sshKey); err != nil {
		return nil, err
	}
	for _, role := range roles {
		// Only these services are SSH servers themselves.
		var ssh []byte
		if role == types.RoleNode || role == types.RoleProxy {
			ssh = sshKey
		}
		certs := &joinv1.ServiceCertificates{}
		if certs.Tls, certs.Ssh, err = sign(role, ssh); err != nil {
			return nil, err
		}
		out.Services[string(role)] = certs
	}
	return &joinv1.Grant{
		HostId:       host.ID,
		ClusterName:  cluster,
		Roles:        instance.GetSpec().GetRoles(),
		Certificates: out,
		Authorities:  s.cfg.Trust().Authorities(),
		Generation:   host.Generation,
		Labels:       instance.GetSpec().GetLabels(),
	}, nil
}

// sign binds the grant to the exchange.
func (s *Server) sign(t [32]byte, grant *joinv1.Grant) (*joinv1.Result, error) {
	raw, err := proto.Marshal(grant)
	if err != nil {
		return nil, err
	}
	sigs, err := s.cfg.Signer().SignAsHostCA(resultDigest(t, raw))
	if err != nil {
		return nil, err
	}
	return &joinv1.Result{Grant: raw, Signatures: sigs}, nil
}

// LocalRequest asks for an identity of the process that the Auth Service itself
// runs in: no token, since it holds the keys of the authorities anyway.
type LocalRequest struct {
	// HostID is the id that the process had before; empty for a new one.
	HostID     string
	Hostname   string
	Roles      []types.SystemRole
	Principals []string
	// Public keys: SubjectPublicKeyInfo DER and SSH wire format.
	TLSKey, SSHKey []byte
	// Process is the run of the process: connections of it that were under way with what it
	// had before are no copy of it.
	Process string
}

// IssueLocal makes or renews the identity of Auth's own process.
func (s *Server) IssueLocal(ctx context.Context, req LocalRequest) (*joinv1.Grant, error) {
	now := timestamppb.New(s.cfg.Now())
	instance := types.New(types.KindInstance, uuid.NewString()).(*typesv1.Instance)
	instance.Status = &typesv1.InstanceStatus{Joined: now}
	if req.HostID != "" {
		known, err := store.Get[*typesv1.Instance](ctx, s.cfg.Store, types.KindInstance, req.HostID)
		switch {
		case err == nil:
			instance = known
		case errors.Is(err, fault.ErrNotFound):
			instance.Metadata.Name = req.HostID
		default:
			return nil, err
		}
	}
	instance.Spec = &typesv1.InstanceSpec{
		Hostname: req.Hostname, Roles: roleNames(req.Roles), JoinMethod: "local", Principals: req.Principals,
	}
	instance.Status.Renewed, instance.Status.Process = now, req.Process
	grant, err := s.grant(instance, req.TLSKey, req.SSHKey)
	if err != nil {
		return nil, err
	}
	// The keys are in this very process: the new generation counts as seen.
	instance.Status.Generation = instance.Status.IssuedGeneration
	err = s.cfg.Store.Tx().Upsert(instance).Emit(certEvent(grant)).Commit(ctx)
	return grant, err
}

// Renew gives the calling process new certificates over new keys. The generation
// that it calls with stays good until the new one is seen, so a crash between
// answer and save loses nothing.
func (s *Server) Renew(ctx context.Context, req *joinv1.RenewRequest) (*joinv1.RenewResponse, error) {
	caller := rpc.CallerFrom(ctx)
	if caller.Identity == nil || caller.Identity.Host == nil || caller.Identity.Host.Service != "" {
		return nil, fault.Denied("only a joined process may renew its identity, with its process-level certificate")
	}
	host := caller.Identity.Host
	instance, err := s.instance(ctx, host, caller.Addr, caller.Process, false)
	if err == nil {
		err = s.renewable(ctx, instance)
	}
	if err != nil {
		return nil, s.refuseRenewal(ctx, host, caller.Addr, err)
	}
	roles := instance.GetSpec().GetRoles()
	if len(req.GetRoles()) > 0 {
		for _, r := range req.GetRoles() {
			if !slices.Contains(roles, r) {
				return nil, s.refuseRenewal(ctx, host, caller.Addr, fault.New(fault.ErrDenied,
					"this process holds %v and cannot add %q by renewing: join again with a token for it", roles, clip(r, 32)).WithCode(CodeRoleNotAllowed))
			}
		}
		// Each once: every one of them costs two signatures.
		instance.Spec.Roles = slices.Compact(slices.Sorted(slices.Values(req.GetRoles())))
	}
	instance.Status.Generation = max(instance.Status.GetGeneration(), host.Generation)
	instance.Status.Renewed = timestamppb.New(s.cfg.Now())
	instance.Status.RemoteAddr, instance.Status.Process = caller.Addr, caller.Process
	grant, err := s.grant(instance, req.GetTlsPublicKey(), req.GetSshPublicKey())
	if err != nil {
		return nil, err
	}
	err = s.cfg.Store.Tx().Update(instance).Emit(certEvent(grant), audit.New(audit.InstanceRenew, map[string]any{
		"success": true, "host_id": host.ID, "node_name": host.Name, "roles": grant.GetRoles(), "generation": grant.GetGeneration(), "addr.remote": caller.Addr,
	})).Commit(ctx)
	if err != nil {
		return nil, err
	}
	return &joinv1.RenewResponse{Grant: grant}, nil
}

// renewable refuses hosts that prove themselves anew instead, and locked ones.
func (s *Server) renewable(ctx context.Context, instance *typesv1.Instance) error {
	name := instance.GetSpec().GetJoinMethod()
	if m := s.methods[name]; m.Attests {
		return fault.New(fault.ErrDenied, "a host of join method %q does not renew its identity, it joins again with a new proof: keep token %q, and give the process its join parameters",
			name, instance.GetSpec().GetToken()).WithCode(CodeMustAttest)
	}
	return s.locked(ctx, instance.GetMetadata().GetName(), instance.GetSpec().GetToken())
}

// SeenGeneration notes that a process uses its certificate of this generation. An
// error means that the certificate must not be served any longer.
func (s *Server) SeenGeneration(ctx context.Context, host identity.Host) error {
	for range 3 {
		caller := rpc.CallerFrom(ctx)
		instance, err := s.instance(ctx, &host, caller.Addr, caller.Process, false)
		if err != nil {
			return err
		}
		if host.Generation <= instance.GetStatus().GetGeneration() {
			return nil
		}
		instance.Status.Generation = host.Generation
		if err = s.cfg.Store.Tx().Update(instance).Commit(ctx); !errors.Is(err, fault.ErrStale) {
			return err
		}
	}
	return fault.Stale("host %s changes too often just now: try again", host.ID)
}

// instance loads the record of a host and checks that the certificate presented
// is not one that a newer one has replaced. If it is, somebody has a copy, and nobody
// can tell which of the two is the machine: both are locked, unless it is a rehearsal.
func (s *Server) instance(ctx context.Context, host *identity.Host, addr, process string, rehearsal bool) (*typesv1.Instance, error) {
	instance, err := store.Get[*typesv1.Instance](ctx, s.cfg.Store, types.KindInstance, host.ID)
	if errors.Is(err, fault.ErrNotFound) {
		return nil, fault.New(fault.ErrDenied, "host %s was removed from the cluster: delete its data directory and join afresh", host.ID).WithCode(CodeHostRemoved)
	}
	if err != nil {
		return nil, err
	}
	if host.Generation < instance.GetStatus().GetGeneration() {
		if process != "" && process == instance.GetStatus().GetProcess() {
			// The machine itself, on a connection that was under way while it renewed.
			return nil, fault.New(fault.ErrUnauthenticated, "this process has a newer certificate of host %s: connect with that one", host.ID).WithCode(CodeReplaced)
		}
		if !rehearsal {
			if err := s.lockClone(ctx, host, instance, addr); err != nil {
				return nil, err
			}
		}
		return nil, fault.New(fault.ErrDenied, "the identity of host %s is used twice: this copy has generation %d, another one generation %d; its data directory was copied or restored. Delete the data directory of the copy and join afresh",
			host.ID, host.Generation, instance.GetStatus().GetGeneration()).WithCode(CodeIdentityCloned)
	}
	if instance.Status == nil {
		instance.Status = &typesv1.InstanceStatus{}
	}
	return instance, nil
}

func (s *Server) renewalDenied(host *identity.Host, addr, code, text string) *auditv1.Event {
	return audit.New(audit.InstanceRenewDenied, map[string]any{
		"success": false, "host_id": host.ID, "node_name": host.Name, "generation": host.Generation,
		"error": text, "reason": code, "addr.remote": addr,
	})
}

func (s *Server) refuseRenewal(ctx context.Context, host *identity.Host, addr string, cause error) error {
	if fault.Code(cause) == CodeIdentityCloned {
		return cause // the lock was recorded with it
	}
	event := s.renewalDenied(host, addr, fault.Code(cause), cause.Error())
	emitCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := s.cfg.Store.Tx().Emit(event).Commit(emitCtx); err != nil {
		s.cfg.Log.ErrorContext(ctx, "a refused renewal could not be recorded", "error", err)
	}
	return cause
}

func certEvent(grant *joinv1.Grant) *auditv1.Event {
	return audit.New(audit.CertCreate, map[string]any{
		"cert_type": "host",
		"identity": map[string]any{
			"user":    grant.GetHostId(),
			"roles":   grant.GetRoles(),
			"expires": grant.GetCertificates().GetExpires().AsTime().UTC().Format(time.RFC3339),
		},
		"generation": grant.GetGeneration(),
	})
}

func roleNames(roles []types.SystemRole) []string {
	out := make([]string, len(roles))
	for i, r := range roles {
		out[i] = string(r)
	}
	return out
}
