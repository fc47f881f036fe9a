package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/budget"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// ServerConfig is what a Server needs; every field but Now and Log is required.
type ServerConfig struct {
	Store *store.Store
	// Signer and Trust return the present authorities: they change with rotation.
	Signer  func() *ca.Signer
	Trust   func() *ca.Trust
	Cluster func() string
	Now     func() time.Time
	Log     *slog.Logger
}

const (
	// refusalRate and refusalBurst are the refusals a second of one source: many
	// machines with a stale token may share an address.
	refusalRate, refusalBurst = 5, 100
	// maxSources is how many sources are remembered.
	maxSources = 10_000
	// noiseRate and noiseBurst bound the records of unproven refusals, of all sources.
	noiseRate, noiseBurst = 20, 200
)

// Server is Auth's end: it answers JoinService.
type Server struct {
	joinv1.UnimplementedJoinServiceServer
	cfg ServerConfig

	// refusals bounds what a source may be refused before it is not heard any more,
	// noise what is recorded of refusals that cost their maker nothing.
	refusals *budget.Sources
	noise    *budget.Noise

	mu sync.Mutex
	// counting holds a lock per token with a limited number of uses, so that
	// joiners of one token take turns instead of colliding in the store.
	counting map[string]*turn
	// clones has the generation of the copy of a host's identity that was refused last.
	clones map[string]uint64
}

type turn struct {
	sync.Mutex
	waiting int
}

// NewServer returns a Server.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg: cfg, counting: map[string]*turn{}, clones: map[string]uint64{},
		refusals: budget.NewSources(refusalRate, refusalBurst, maxSources),
		noise:    budget.NewNoise(noiseRate, noiseBurst),
	}
}

// Join runs one exchange. The machine gets a message that says what to do; the
// audit log gets everything that was verified.
func (s *Server) Join(stream grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse]) error {
	ctx, cancel := context.WithTimeout(stream.Context(), exchangeTimeout)
	defer cancel()
	caller := rpc.CallerFrom(ctx)
	if s.refusals.Spent(budget.Source(caller.Addr), s.cfg.Now()) {
		return fault.New(fault.ErrLimit, "too many joins from your address were refused: wait a minute, then try again with a good token").WithCode(CodeTooMany)
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	req, err := checkInit(first.GetInit(), s.cfg.Now())
	if err != nil {
		return s.refuse(ctx, &request{init: first.GetInit(), addr: caller.Addr, via: caller.Via}, nil, err)
	}
	req.addr, req.via = caller.Addr, caller.Via

	question := &joinv1.Question{
		Method:      MethodToken,
		ClusterName: s.cfg.Cluster(),
		Nonce:       make([]byte, 32),
		Clock:       timestamppb.New(s.cfg.Now()),
		CaPins:      s.cfg.Trust().Pins(),
	}
	if _, err := rand.Read(question.Nonce); err != nil {
		return err
	}
	if err := stream.Send(&joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Question{Question: question}}); err != nil {
		return err
	}
	answer, err := stream.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	case answer.GetGivingUp() != nil:
		return s.refuse(ctx, req, nil, gaveUp(answer.GetGivingUp()))
	}
	result, token, err := s.decide(ctx, req, question, answer.GetAnswer())
	if err != nil {
		return s.refuse(ctx, req, token, err)
	}
	return stream.Send(&joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Result{Result: result}})
}

// gaveUp is why the machine does not want to join here.
func gaveUp(g *joinv1.GivingUp) error {
	err := fault.New(fault.ErrDenied, "the machine gave up: %s", clip(g.GetReason(), 512))
	if code := g.GetCode(); code == CodeWrongPin || code == CodeWrongCluster {
		return err.WithCode(code)
	}
	return err
}

// decide checks the proof and the rules, in that order, and issues.
func (s *Server) decide(ctx context.Context, req *request, q *joinv1.Question, a *joinv1.Answer) (*joinv1.Result, *typesv1.Token, error) {
	if a == nil || len(a.GetProof()) > maxProof || len(a.GetCurrentProof()) > maxProof {
		return nil, nil, fault.New(fault.ErrInvalid, "the second message of a join must be an Answer of at most %d bytes", maxProof).WithCode(CodeBadRequest)
	}
	t := transcript(req.init, q)
	token, err := s.token(ctx, req)
	if err == nil && token.GetSpec().GetMaxUses() > 0 {
		defer s.takeTurn(req.init.GetTokenId())()
		token, err = s.token(ctx, req)
	}
	if errors.Is(err, fault.ErrNotFound) {
		return nil, nil, s.explainUnknown(ctx, req, q, a, t)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := s.checkToken(token, req, a, t); err != nil {
		return nil, token, err
	}
	current, err := s.checkCurrent(ctx, req, a, t)
	if err != nil {
		return nil, token, err
	}
	if err := s.checkRoles(token, req, current); err != nil {
		return nil, token, err
	}
	proxyHosts, err := s.proxyHosts(ctx)
	if err != nil {
		return nil, token, err
	}
	if err := checkReserved(req, q.GetClusterName(), proxyHosts); err != nil {
		return nil, token, err
	}
	grant, err := s.issueJoin(ctx, req, token, current)
	if err != nil {
		return nil, token, err
	}
	result, err := s.sign(t, grant)
	return result, token, err
}

func (s *Server) token(ctx context.Context, req *request) (*typesv1.Token, error) {
	return store.Get[*typesv1.Token](ctx, s.cfg.Store, types.KindToken, req.init.GetTokenId())
}

// explainUnknown says why a token is not there: who proves that it once was this
// token's holder learns whether it expired or was revoked.
func (s *Server) explainUnknown(ctx context.Context, req *request, q *joinv1.Question, a *joinv1.Answer, t [32]byte) error {
	past, err := store.Past[*typesv1.Token](ctx, s.cfg.Store, types.KindToken, req.init.GetTokenId())
	if err == nil {
		if err := s.checkToken(past, req, a, t); err != nil {
			return err
		}
		return fault.New(fault.ErrDenied, "the join token was revoked: make a new one with `tctl tokens add --type=%s`", flags(req.roles)).WithCode(CodeTokenRevoked)
	}
	if !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	return fault.New(fault.ErrDenied, "cluster %q has no such join token: it was mistyped, or expired or was revoked long ago; make a new one with `tctl tokens add --type=%s`",
		q.GetClusterName(), flags(req.roles)).WithCode(CodeTokenUnknown)
}

// checkToken verifies the proof first: only who knows the secret learns more.
func (s *Server) checkToken(token *typesv1.Token, req *request, a *joinv1.Answer, t [32]byte) error {
	verifier := token.GetStatus().GetVerifier()
	if len(verifier) != ed25519.PublicKeySize || !ed25519.Verify(verifier, t[:], a.GetProof()) {
		return fault.New(fault.ErrDenied, "the proof of the join token does not fit what was asked: something between this machine and the Auth Service changed the request, or the token is another one").WithCode(CodeTokenProof)
	}
	if token.GetSpec().GetJoinMethod() != MethodToken {
		return fault.New(fault.ErrDenied, "this token is for join method %q: set teleport.join_params.method to it", token.GetSpec().GetJoinMethod()).WithCode(CodeMethodMismatch)
	}
	if m := req.init.GetMethod(); m != "" && m != MethodToken {
		return fault.New(fault.ErrDenied, "teleport.join_params.method is %q, this token is for method %q", clip(m, 32), MethodToken).WithCode(CodeMethodMismatch)
	}
	now := s.cfg.Now()
	if exp := token.GetMetadata().GetExpires(); exp != nil && !exp.AsTime().After(now) {
		return fault.New(fault.ErrDenied, "the join token expired %s ago, at %s: make a new one with `tctl tokens add --type=%s`",
			now.Sub(exp.AsTime()).Round(time.Second), exp.AsTime().UTC().Format(time.RFC3339), flags(req.roles)).WithCode(CodeTokenExpired)
	}
	if m := token.GetSpec().GetMaxUses(); m > 0 && token.GetStatus().GetUses() >= m {
		return fault.New(fault.ErrDenied, "every join that the token was good for (%d) is used: make a new one with `tctl tokens add --type=%s`",
			m, flags(req.roles)).WithCode(CodeTokenUsedUp)
	}
	return nil
}

// current is an identity that the machine already has and proved.
type current struct {
	host     *identity.Host
	instance *typesv1.Instance
}

// checkCurrent verifies the identity that a re-joining machine keeps.
func (s *Server) checkCurrent(ctx context.Context, req *request, a *joinv1.Answer, t [32]byte) (*current, error) {
	proof := req.init.GetCurrent()
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
	id, err := s.cfg.Trust().VerifyTLS([]*x509.Certificate{cert}, s.cfg.Now())
	if err != nil {
		return nil, invalid("the identity in the data directory is not good any more (%w): delete the data directory and join afresh", err)
	}
	if id.Host == nil || id.Host.Service != "" {
		return nil, invalid("the identity in the data directory is not that of a process")
	}
	digest := currentDigest(t)
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, digest[:], a.GetCurrentProof()) {
		return nil, invalid("the machine did not prove the key of its current identity")
	}
	instance, err := s.instance(ctx, id.Host)
	if err != nil {
		return nil, err
	}
	return &current{host: id.Host, instance: instance}, nil
}

// checkRoles: what the token allows, and what the machine already is.
func (s *Server) checkRoles(token *typesv1.Token, req *request, cur *current) error {
	var refused []string
	for _, r := range req.roles {
		if slices.Contains(token.GetSpec().GetRoles(), string(r)) || cur != nil && cur.host.Has(r) {
			continue
		}
		refused = append(refused, string(r))
	}
	if len(refused) == 0 {
		return nil
	}
	return fault.New(fault.ErrDenied, "the join token allows %s, this process runs %s as well: make a token with `tctl tokens add --type=%s`, or disable that service",
		strings.Join(token.GetSpec().GetRoles(), ", "), strings.Join(refused, ", "), flags(req.roles)).WithCode(CodeRoleNotAllowed)
}

// proxyHosts returns the host names that users reach Proxies under.
func (s *Server) proxyHosts(ctx context.Context) ([]string, error) {
	proxies, err := store.All[*typesv1.Server](ctx, s.cfg.Store, types.KindProxy)
	if err != nil {
		return nil, err
	}
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
	return out, nil
}

// refuse records a failed join and returns what the machine may know. Refusals that
// need no proof are recorded at a bounded rate: they cost their maker nothing.
func (s *Server) refuse(ctx context.Context, req *request, token *typesv1.Token, cause error) error {
	now := s.cfg.Now()
	s.refusals.Allow(budget.Source(req.addr), now)
	skipped, record := 0, true
	if token == nil || fault.Code(cause) == CodeTokenProof {
		skipped, record = s.noise.Admit(now)
	}
	if record {
		s.record(ctx, req, token, cause, skipped)
	}
	if fault.Kind(cause) == nil {
		return fault.New(fault.ErrUnreachable, "the Auth Service could not decide on this join just now (its log has the cause): try again").WithCode("internal")
	}
	return cause
}

func (s *Server) record(ctx context.Context, req *request, token *typesv1.Token, cause error, skipped int) {
	fields := map[string]any{
		"success":     false,
		"error":       cause.Error(),
		"reason":      fault.Code(cause),
		"method":      MethodToken,
		"token_name":  clip(req.init.GetTokenId(), maxTokenID),
		"hostname":    clip(req.init.GetHostname(), maxPrincipal),
		"roles":       clipAll(req.init.GetRoles()),
		"addr.remote": req.addr,
		"proxy_id":    req.via,
	}
	if token != nil {
		fields["token_roles"] = token.GetSpec().GetRoles()
	}
	if skipped > 0 {
		fields["skipped_events"] = skipped
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := s.cfg.Store.Tx().Emit(audit.New(audit.InstanceJoinFailure, fields)).Commit(ctx); err != nil {
		s.cfg.Log.ErrorContext(ctx, "a refused join could not be recorded", "error", err)
	}
	s.cfg.Log.InfoContext(ctx, "join refused", "reason", fault.Code(cause), "token", fields["token_name"], "addr", req.addr, "error", cause)
}

// takeTurn serialises joins by one token; the function returned ends the turn.
func (s *Server) takeTurn(tokenID string) func() {
	s.mu.Lock()
	t := s.counting[tokenID]
	if t == nil {
		t = &turn{}
		s.counting[tokenID] = t
	}
	t.waiting++
	s.mu.Unlock()
	t.Lock()
	return func() {
		t.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.waiting--; t.waiting == 0 {
			delete(s.counting, tokenID)
		}
	}
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

func clipAll(values []string) []string {
	out := make([]string, 0, min(len(values), maxRoles))
	for _, v := range values[:min(len(values), maxRoles)] {
		out = append(out, clip(v, 32))
	}
	return out
}
