package join

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/join/method"
	"teleport/internal/store"
	"teleport/internal/types"
)

// checkDelegated checks, before anything is asked, a token whose name is no secret.
func (s *Server) checkDelegated(a *attempt, known bool) error {
	name := a.token.GetSpec().GetJoinMethod()
	if m := a.init.GetMethod(); m != "" && m != name {
		return fault.New(fault.ErrDenied, "teleport.join_params.method is %q, token %q is for method %q: correct it, or leave it out", clip(m, 32), a.token.GetMetadata().GetName(), name).
			WithCode(CodeMethodMismatch)
	}
	if err := s.checkToken(a); err != nil {
		return err
	}
	if !known {
		return revoked(a)
	}
	return nil
}

// unknown is for a token that nobody remembers.
func (s *Server) unknown(a *attempt) error {
	return fault.New(fault.ErrDenied, "cluster %q has no such join token: it was mistyped, or expired or was revoked long ago; make a new one with `tctl tokens add --type=%s`",
		s.cfg.Cluster(), flags(a.roles)).WithCode(CodeTokenUnknown)
}

func revoked(a *attempt) error {
	return fault.New(fault.ErrDenied, "the join token was revoked: make a new one with `tctl tokens add --type=%s`", flags(a.roles)).WithCode(CodeTokenRevoked)
}

// checkToken checks whether the token still admits anybody.
func (s *Server) checkToken(a *attempt) error {
	name := a.token.GetSpec().GetJoinMethod()
	if m := a.init.GetMethod(); m != "" && m != name {
		return fault.New(fault.ErrDenied, "teleport.join_params.method is %q, this token is for method %q: correct it, or leave it out", clip(m, 32), name).WithCode(CodeMethodMismatch)
	}
	now := s.cfg.Now()
	if exp := a.token.GetMetadata().GetExpires(); exp != nil && !exp.AsTime().After(now) {
		return fault.New(fault.ErrDenied, "the join token expired %s ago, at %s: make a new one with `tctl tokens add --type=%s`",
			now.Sub(exp.AsTime()).Round(time.Second), exp.AsTime().UTC().Format(time.RFC3339), flags(a.roles)).WithCode(CodeTokenExpired)
	}
	if m := a.token.GetSpec().GetMaxUses(); m > 0 && a.token.GetStatus().GetUses() >= m {
		return fault.New(fault.ErrDenied, "every join that the token was good for (%d) is used: make a new one with `tctl tokens add --type=%s`",
			m, flags(a.roles)).WithCode(CodeTokenUsedUp)
	}
	a.passed("token", a.token.GetMetadata().GetName())
	return nil
}

// before is what the cluster knows of a machine from earlier.
type before struct {
	// current is the identity that it keeps, or nil for a new one.
	current *current
	// replaced are hosts whose identity ends with this join.
	replaced []string
	// seen is true if the ledger has the machine already.
	seen bool
	// created entries must be new when the identity is issued, written ones as they were read.
	created, written []*typesv1.LedgerEntry
}

// current is an identity that the machine already has and proved.
type current struct {
	host     *identity.Host
	instance *typesv1.Instance
	// restored is true for a host that was removed and may come back, expired for one
	// whose certificate ended: it says who the machine was, and allows nothing by itself.
	restored, expired bool
}

// has reports whether the identity allows the role without a token.
func (c *current) has(role types.SystemRole) bool {
	return c != nil && !c.restored && !c.expired && c.host.Has(role)
}

// checkBefore finds what the machine was before, and whether it may be that again.
func (s *Server) checkBefore(ctx context.Context, a *attempt) (*before, error) {
	b := &before{}
	var err error
	b.current, err = s.checkCurrent(ctx, a)
	if code := fault.Code(err); err != nil && a.token.GetSpec().GetRejoin() == types.RejoinReplace && (code == CodeHostRemoved || code == CodeIdentityInvalid) {
		b.current, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	if b.current != nil {
		a.passed("identity", b.current.host.ID)
	}
	for _, p := range a.claims.Once {
		if err := s.checkOnce(ctx, a, b, p); err != nil {
			return nil, err
		}
	}
	return b, s.checkMachine(ctx, a, b)
}

// checkOnce looks for a proof in the ledger.
func (s *Server) checkOnce(ctx context.Context, a *attempt, b *before, p method.Proof) error {
	name, subject := a.token.GetSpec().GetJoinMethod(), "proof/"+p.ID
	old, err := store.Get[*typesv1.LedgerEntry](ctx, s.cfg.Store, types.KindLedgerEntry, types.LedgerName(name, subject))
	entry := types.NewLedgerEntry(name, subject, "", s.cfg.Now(), p.Until)
	switch {
	case errors.Is(err, fault.ErrNotFound):
		b.created = append(b.created, entry)
		return nil
	case err != nil:
		return err
	case b.current != nil && old.GetSpec().GetHostId() == b.current.host.ID:
	case s.unanswered(ctx, a, b, old):
	case a.token.GetSpec().GetRejoin() == types.RejoinReplace:
		b.replaced = append(b.replaced, old.GetSpec().GetHostId())
	default:
		return replayed(name, old)
	}
	entry.Metadata.Revision = old.GetMetadata().GetRevision()
	b.written = append(b.written, entry)
	return nil
}

// unanswered reports whether the entry is of a join of this very machine whose answer
// was lost: it asks for the same key, and only who has the private half can use what is
// issued. It then becomes the host that it was to be.
func (s *Server) unanswered(ctx context.Context, a *attempt, b *before, old *typesv1.LedgerEntry) bool {
	key := keyDigest(a.init)
	if b.current != nil || len(old.GetSpec().GetTlsKey()) == 0 || !bytes.Equal(old.GetSpec().GetTlsKey(), key) {
		return false
	}
	instance, err := store.Get[*typesv1.Instance](ctx, s.cfg.Store, types.KindInstance, old.GetSpec().GetHostId())
	if err != nil {
		return false
	}
	// It has no service but those that the token allows.
	b.current = &current{host: &identity.Host{ID: old.GetSpec().GetHostId()}, instance: instance}
	return true
}

func keyDigest(init *joinv1.Init) []byte {
	sum := sha256.Sum256(init.GetTlsPublicKey())
	return sum[:]
}

func replayed(name string, old *typesv1.LedgerEntry) error {
	return fault.New(fault.ErrDenied, "this proof of method %q was used already, at %s, by host %s: a proof admits once. Keep the data directory of a machine that joined, get a new proof, or set spec.rejoin: replace on the token",
		name, old.GetSpec().GetTime().AsTime().UTC().Format(time.RFC3339), old.GetSpec().GetHostId()).WithCode(method.CodeProofReplayed)
}

// checkMachine looks for the machine in the ledger and applies the token's policy to
// one that joined before.
func (s *Server) checkMachine(ctx context.Context, a *attempt, b *before) error {
	if a.claims.Machine == "" {
		return nil
	}
	name, subject := a.token.GetSpec().GetJoinMethod(), "machine/"+a.claims.Machine
	entry := types.NewLedgerEntry(name, subject, "", s.cfg.Now(), time.Time{})
	old, err := store.Get[*typesv1.LedgerEntry](ctx, s.cfg.Store, types.KindLedgerEntry, entry.GetMetadata().GetName())
	if errors.Is(err, fault.ErrNotFound) {
		b.created = append(b.created, entry)
		return nil
	}
	if err != nil {
		return err
	}
	b.seen = true
	entry.Metadata.Revision = old.GetMetadata().GetRevision()
	b.written = append(b.written, entry)
	host := old.GetSpec().GetHostId()
	policy := a.token.GetSpec().GetRejoin()
	switch {
	case b.current != nil && b.current.host.ID == host:
	case s.unanswered(ctx, a, b, old):
	case policy == types.RejoinDeny || policy == types.RejoinSameKey:
		return fault.New(fault.ErrDenied, "this machine (%s) joined before, as host %s, and the token says rejoin: %s: bring back its data directory, or set spec.rejoin: replace on the token",
			a.claims.Machine, host, policy).WithCode(CodeRejoinDenied)
	default:
		b.replaced = append(b.replaced, host)
	}
	return nil
}

// checkCurrent verifies the identity that a re-joining machine keeps. One that ended
// while the machine was off still says which machine it is: the proof of the join
// method is what admits it.
func (s *Server) checkCurrent(ctx context.Context, a *attempt) (*current, error) {
	proof := a.init.GetCurrent()
	if proof == nil {
		return nil, nil
	}
	invalid := func(format string, args ...any) error {
		return fault.New(fault.ErrDenied, format, args...).WithCode(CodeIdentityInvalid)
	}
	cert, err := x509.ParseCertificate(proof.GetCertificate())
	if err != nil {
		return nil, invalid("the identity in the data directory is not a certificate: delete the data directory and join afresh")
	}
	at := s.cfg.Now()
	expired := at.After(cert.NotAfter)
	if expired {
		at = cert.NotAfter
	}
	id, err := s.cfg.Trust().VerifyTLS([]*x509.Certificate{cert}, at)
	if err != nil {
		return nil, invalid("the identity in the data directory is not good any more (%w): delete the data directory and join afresh", err)
	}
	if id.Host == nil || id.Host.Service != "" {
		return nil, invalid("the identity in the data directory is not that of a process")
	}
	digest := currentDigest(a.t)
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, digest[:], a.currentProof) {
		return nil, invalid("the machine did not prove the key of its current identity")
	}
	instance, err := s.instance(ctx, id.Host, a.addr, a.init.GetProcess(), a.init.GetDryRun())
	if fault.Code(err) == CodeHostRemoved && a.token.GetSpec().GetRejoin() == types.RejoinSameKey {
		instance = types.New(types.KindInstance, id.Host.ID).(*typesv1.Instance)
		instance.Status = &typesv1.InstanceStatus{Generation: id.Host.Generation}
		return &current{host: id.Host, instance: instance, restored: true, expired: expired}, nil
	}
	if err != nil {
		return nil, err
	}
	return &current{host: id.Host, instance: instance, expired: expired}, nil
}

// liveHost returns the id of the host that the machine proved to be, if its identity
// is still good; it is for the method, after the first answer.
func (s *Server) liveHost(ctx context.Context, a *attempt) string {
	cur, err := s.checkCurrent(ctx, a)
	if err != nil || cur == nil || cur.restored || cur.expired {
		return ""
	}
	return cur.host.ID
}

// checkRoles: what the token allows, and what the machine already is.
func (s *Server) checkRoles(a *attempt, cur *current) error {
	var refused []string
	for _, r := range a.roles {
		if slices.Contains(a.token.GetSpec().GetRoles(), string(r)) || cur.has(r) {
			continue
		}
		refused = append(refused, string(r))
	}
	if len(refused) > 0 {
		return fault.New(fault.ErrDenied, "the join token allows %s, this process runs %s as well: make a token with `tctl tokens add --type=%s`, or disable that service",
			strings.Join(a.token.GetSpec().GetRoles(), ", "), strings.Join(refused, ", "), flags(a.roles)).WithCode(CodeRoleNotAllowed)
	}
	a.passed("roles", strings.Join(roleNames(a.roles), ", "))
	return nil
}

// checkLocks refuses a token or a host that is locked, and a machine that would leave
// a locked host behind and become another one.
func (s *Server) checkLocks(ctx context.Context, a *attempt, b *before) error {
	hosts := b.replaced
	if b.current != nil {
		hosts = append(slices.Clone(hosts), b.current.host.ID)
	}
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	for _, host := range hosts {
		if err := s.locked(ctx, host, a.token.GetMetadata().GetName()); err != nil {
			return err
		}
	}
	return nil
}

// locked returns the refusal if a lock targets the host, or the token.
func (s *Server) locked(ctx context.Context, host, token string) error {
	return s.cfg.Store.CheckLocks(ctx, access.Facts{ServerID: host, JoinToken: token})
}

// proxyHosts returns the host names that users reach Proxies under.
func (s *Server) proxyHosts(ctx context.Context) ([]string, error) {
	return store.Kept(ctx, s.cfg.Store, types.KindProxy, func(proxies []*typesv1.Server) []string {
		var out []string
		for _, p := range proxies {
			for _, addr := range p.GetSpec().GetPublicAddrs() {
				host, _, err := net.SplitHostPort(addr)
				if err != nil {
					host = addr
				}
				out = append(out, strings.ToLower(host))
			}
		}
		return out
	})
}

func flags(roles []types.SystemRole) string {
	out := make([]string, len(roles))
	for i, r := range roles {
		out[i] = r.Flag()
	}
	return strings.Join(out, ",")
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}

// clipAll shortens a list that a stranger sent.
func clipAll(values []string, n int) []string {
	out := make([]string, 0, min(len(values), maxRoles))
	for _, v := range values[:min(len(values), maxRoles)] {
		out = append(out, clip(v, n))
	}
	return out
}
