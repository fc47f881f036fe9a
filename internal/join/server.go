package join

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
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
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// ServerConfig is what a Server needs; Store, Signer, Trust, Cluster and Methods are
// required.
type ServerConfig struct {
	Store *store.Store
	// Signer and Trust return the present authorities: they change with rotation.
	Signer  func() *ca.Signer
	Trust   func() *ca.Trust
	Cluster func() string
	// Methods are the join methods that tokens may have.
	Methods []method.Method
	// Egress is how the methods reach those who vouch for machines; nil is the network.
	Egress *egress.Client
	// Getenv reads the environment; nil is that of the process.
	Getenv func(string) string
	Now    func() time.Time
	Log    *slog.Logger
}

const (
	// refusalRate and refusalBurst are the refusals a second of one source with any
	// tokens, staleRate and staleBurst those with one token: many machines with a stale
	// token may share an address, and many with good ones.
	refusalRate, refusalBurst = 20, 500
	staleRate, staleBurst     = 5, 100
	// maxSources is how many sources are remembered.
	maxSources = 10_000
	// noiseRate and noiseBurst bound the records of unproven refusals, of all sources.
	noiseRate, noiseBurst = 20, 200
)

// Server is Auth's end: it answers JoinService.
type Server struct {
	joinv1.UnimplementedJoinServiceServer
	cfg     ServerConfig
	methods map[string]method.Method

	// refusals bounds what a source may be refused before it is not heard any more,
	// noise what is recorded of refusals that cost their maker nothing.
	refusals *budget.Sources
	stale    *budget.Sources
	noise    *budget.Noise
	queue    *queue
	names    names

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
	if cfg.Egress == nil {
		cfg.Egress = egress.New(egress.Config{})
	}
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	s := &Server{
		cfg: cfg, methods: byName(cfg.Methods), counting: map[string]*turn{}, clones: map[string]uint64{},
		refusals: budget.NewSources(refusalRate, refusalBurst, maxSources),
		stale:    budget.NewSources(staleRate, staleBurst, maxSources),
		noise:    budget.NewNoise(noiseRate, noiseBurst),
		queue:    newQueue(cfg.Now),
	}
	return s
}

func byName(methods []method.Method) map[string]method.Method {
	out := make(map[string]method.Method, len(methods))
	for _, m := range methods {
		out[m.Name] = m
	}
	return out
}

// attempt is one join on its way through the checks: what is known so far.
type attempt struct {
	*request
	stream   grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse]
	place    place
	token    *typesv1.Token
	question *joinv1.Question
	t        [32]byte
	// currentProof came with the first answer.
	currentProof []byte
	// proven is true once the method accepted the proof; claims are what it says.
	proven bool
	claims method.Claims
	rules  []method.RuleResult
	// checks are the steps that were passed, for a rehearsal.
	checks []*joinv1.Explanation_Check
}

// passed notes a step that was passed.
func (a *attempt) passed(name, detail string) {
	a.checks = append(a.checks, &joinv1.Explanation_Check{Name: name, Passed: true, Detail: detail})
}

// Join runs one exchange. The machine gets a message that says what to do; the
// audit log gets everything that was verified.
func (s *Server) Join(stream grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse]) error {
	ctx, cancel := context.WithTimeout(stream.Context(), exchangeTimeout)
	defer cancel()
	caller := rpc.CallerFrom(ctx)
	if s.refusals.Spent(budget.Source(caller.Addr), s.cfg.Now()) {
		return tooMany()
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	req, err := checkInit(first.GetInit(), s.cfg.Now())
	if err != nil {
		return s.refuse(ctx, &attempt{request: &request{init: first.GetInit(), addr: caller.Addr, via: caller.Via}}, err)
	}
	req.addr, req.via = caller.Addr, caller.Via
	// One machine with a stale token does not spend what its neighbours behind the same
	// address have for theirs.
	if s.stale.Spent(budget.Source(caller.Addr)+" "+req.init.GetTokenId(), s.cfg.Now()) {
		return tooMany()
	}
	a := &attempt{request: req, stream: stream, place: place{queue: s.queue, source: budget.Source(caller.Addr)}}
	if err := a.place.take(ctx); err != nil {
		return err
	}
	defer a.place.release()
	result, err := s.run(ctx, a)
	switch {
	case errors.Is(err, errGone):
		if a.token == nil {
			// Finding out that there is no such token is what costs, and it was paid.
			s.refused(a)
		}
		return nil
	case req.init.GetDryRun():
		return s.explain(ctx, a, err)
	case err != nil:
		return s.refuse(ctx, a, err)
	}
	s.queue.joined()
	return stream.Send(&joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Result{Result: result}})
}

// refused counts a refusal for its source, and for what it came with.
func (s *Server) refused(a *attempt) {
	now, source := s.cfg.Now(), budget.Source(a.addr)
	s.refusals.Allow(source, now)
	s.stale.Allow(source+" "+clip(a.init.GetTokenId(), maxTokenID), now)
}

func tooMany() error {
	return fault.New(fault.ErrLimit, "too many joins from your address were refused: wait a minute, then try again with a good token").
		WithCode(CodeTooMany).WithRetryAfter(time.Minute)
}

// errGone: the machine left in the middle, and there is nobody to answer.
var errGone = errors.New("the machine is gone")

// run finds the token, lets its method ask, and decides.
func (s *Server) run(ctx context.Context, a *attempt) (*joinv1.Result, error) {
	a.passed("clock", "")
	known := true
	token, stored, err := s.findToken(ctx, a.init.GetTokenId())
	a.token = token
	if errors.Is(err, fault.ErrNotFound) {
		// Who can prove that it held this token learns what became of it.
		known = false
		a.token, err = store.Past[*typesv1.Token](ctx, s.cfg.Store, types.KindToken, stored)
		if errors.Is(err, fault.ErrNotFound) {
			a.token, err = nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	name := types.JoinMethodToken
	if m := a.init.GetMethod(); a.token == nil && m != "" && m != name {
		return nil, s.unknown(a) // its name is no secret: there is nothing to prove
	}
	if a.token != nil {
		name = a.token.GetSpec().GetJoinMethod()
	}
	m, ok := s.methods[name]
	if !ok {
		return nil, fault.New(fault.ErrUnsupported, "the token is for join method %q, which this Auth Service does not offer", name).WithCode(CodeMethodMismatch)
	}
	if name != types.JoinMethodToken {
		if err := s.checkDelegated(a, known); err != nil {
			return nil, err
		}
		a.place.token = a.token.GetMetadata().GetName()
	}
	if err := s.pose(a, m); err != nil {
		return nil, err
	}
	if a.token == nil {
		if _, err := s.asker(ctx, a)(ctx, nil); err != nil {
			return nil, err
		}
		return nil, s.unknown(a)
	}
	if err := s.verify(ctx, a, m); err != nil {
		return nil, err
	}
	if a.token.GetSpec().GetMaxUses() > 0 && known {
		defer s.takeTurn(a.token.GetMetadata().GetName())()
		if a.token, _, err = s.findToken(ctx, a.init.GetTokenId()); errors.Is(err, fault.ErrNotFound) {
			return nil, fault.New(fault.ErrDenied, "the join token was revoked during the join: make a new one").WithCode(CodeTokenRevoked)
		} else if err != nil {
			return nil, err
		}
	}
	if err := s.checkToken(a); err != nil {
		return nil, err
	}
	if !known {
		return nil, revoked(a)
	}
	return s.decide(ctx, a, m)
}

// pose sends the question that opens Auth's half; from here on T is fixed.
func (s *Server) pose(a *attempt, m method.Method) error {
	a.question = &joinv1.Question{
		Method:      m.Name,
		ClusterName: s.cfg.Cluster(),
		Nonce:       make([]byte, 32),
		Clock:       timestamppb.New(s.cfg.Now()),
		CaPins:      s.cfg.Trust().Pins(),
	}
	if _, err := rand.Read(a.question.Nonce); err != nil {
		return err
	}
	if m.Parameters != nil && a.token != nil {
		a.question.Challenge = m.Parameters(a.question.ClusterName, a.token.GetSpec())
	}
	a.t = transcript(a.init, a.question)
	return s.send(a, a.question)
}

func (s *Server) send(a *attempt, q *joinv1.Question) error {
	return a.stream.Send(&joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Question{Question: q}})
}

// asker returns the way to the machine for the method's questions. The first one was
// posed already.
func (s *Server) asker(ctx context.Context, a *attempt) method.Exchange {
	rounds := 0
	return func(_ context.Context, question []byte) ([]byte, error) {
		rounds++
		switch {
		case rounds == 1 && len(question) > 0, rounds > method.MaxRounds, len(question) > method.MaxQuestion:
			return nil, errors.New("the join method asks what it may not: a bug")
		case rounds > 1:
			if err := s.send(a, &joinv1.Question{Challenge: question}); err != nil {
				return nil, err
			}
		}
		a.place.release()
		msg, err := a.stream.Recv()
		if err == nil {
			if err := a.place.take(ctx); err != nil {
				return nil, err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil, errGone
		case err != nil && ctx.Err() != nil:
			return nil, fault.New(fault.ErrLimit, "the machine took longer than %s for its join", exchangeTimeout).WithCode(CodeBadRequest)
		case err != nil:
			return nil, errGone
		case msg.GetGivingUp() != nil:
			return nil, gaveUp(msg.GetGivingUp())
		case msg.GetAnswer() == nil || len(msg.GetAnswer().GetProof()) > method.MaxAnswer || len(msg.GetAnswer().GetCurrentProof()) > maxProof:
			return nil, fault.New(fault.ErrInvalid, "expected an Answer of at most %d bytes", method.MaxAnswer).WithCode(CodeBadRequest)
		}
		if rounds == 1 {
			a.currentProof = msg.GetAnswer().GetCurrentProof()
		}
		return msg.GetAnswer().GetProof(), nil
	}
}

// verify runs the method's half and applies the rules.
func (s *Server) verify(ctx context.Context, a *attempt, m method.Method) error {
	allowed := func(c method.Claims) error {
		rules, ok := method.Match(a.token.GetSpec(), c)
		a.rules = rules
		if !ok {
			return method.Refusal(c)
		}
		return nil
	}
	var err error
	a.claims, err = m.Verify(ctx, method.Attempt{
		T: a.t, Cluster: a.question.GetClusterName(), Token: a.token, Now: s.cfg.Now(),
		Egress: s.cfg.Egress, Getenv: s.cfg.Getenv, Allowed: allowed, Current: func() string { return s.liveHost(ctx, a) }, Log: s.cfg.Log.With("method", m.Name),
	}, s.asker(ctx, a))
	if err != nil {
		return err
	}
	a.proven = true
	a.passed("proof", m.Name)
	if err := allowed(a.claims); err != nil {
		return err
	}
	if len(a.rules) > 0 {
		a.passed("rules", matched(a.rules))
	}
	return nil
}

func matched(rules []method.RuleResult) string {
	for _, r := range rules {
		if r.Matched {
			return r.Path
		}
	}
	return ""
}

// gaveUp is why the machine does not want to join here.
func gaveUp(g *joinv1.GivingUp) error {
	err := fault.New(fault.ErrDenied, "the machine gave up: %s", clip(g.GetReason(), 512))
	if code := g.GetCode(); len(code) <= 64 && givingUpCodes[code] {
		return err.WithCode(code)
	}
	return err
}

// givingUpCodes are the reasons of machines that the audit log repeats.
var givingUpCodes = map[string]bool{
	CodeWrongPin: true, CodeWrongCluster: true, method.CodeCredentials: true, method.CodeMetadata: true, CodeMethodMismatch: true,
}

// decide goes through everything that is not about the proof, and issues.
func (s *Server) decide(ctx context.Context, a *attempt, m method.Method) (*joinv1.Result, error) {
	before, err := s.checkBefore(ctx, a)
	if err != nil {
		return nil, err
	}
	if err := s.checkLocks(ctx, a, before); err != nil {
		return nil, err
	}
	if err := s.checkRoles(a, before.current); err != nil {
		return nil, err
	}
	proxyHosts, err := s.proxyHosts(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkReserved(a.request, a.question.GetClusterName(), proxyHosts); err != nil {
		return nil, err
	}
	if err := checkGrantedPrincipals(a.request, a.token.GetSpec().GetPrincipals()); err != nil {
		return nil, err
	}
	a.passed("names", a.init.GetHostname())
	if a.init.GetDryRun() {
		return nil, nil
	}
	grant, err := s.issueJoin(ctx, a, before, m)
	if err != nil {
		return nil, err
	}
	return s.sign(a.t, grant)
}

// refuse records a failed join and returns what the machine may know. Refusals that
// need no proof are recorded at a bounded rate: they cost their maker nothing.
func (s *Server) refuse(ctx context.Context, a *attempt, cause error) error {
	now := s.cfg.Now()
	s.refused(a)
	skipped, record := 0, true
	if !a.proven {
		skipped, record = s.noise.Admit(now)
	}
	if fault.Code(cause) == method.CodeStateForked && !a.init.GetDryRun() {
		if err := s.lockForked(ctx, a); err != nil {
			s.cfg.Log.ErrorContext(ctx, "a host whose key is used twice could not be locked", "error", err)
		}
	}
	if record {
		s.record(ctx, a, cause, skipped)
	}
	if fault.Kind(cause) == nil {
		return fault.New(fault.ErrUnreachable, "the Auth Service could not decide on this join just now (its log has the cause): try again").WithCode("internal")
	}
	return cause
}

func (s *Server) record(ctx context.Context, a *attempt, cause error, skipped int) {
	fields := map[string]any{
		"success":     false,
		"error":       cause.Error(),
		"reason":      fault.Code(cause),
		"method":      types.JoinMethodToken,
		"token_name":  clip(a.init.GetTokenId(), maxTokenID),
		"hostname":    clip(a.init.GetHostname(), maxPrincipal),
		"roles":       clipAll(a.init.GetRoles(), maxVersion),
		"addr.remote": a.addr,
		"proxy_id":    a.via,
	}
	if a.token != nil {
		fields["token_roles"] = a.token.GetSpec().GetRoles()
		fields["token_name"] = a.token.GetMetadata().GetName()
		fields["method"] = a.token.GetSpec().GetJoinMethod()
	}
	addClaims(fields, a.claims)
	if a.init.GetDryRun() {
		fields["dry_run"] = true
	}
	if skipped > 0 {
		fields["skipped_events"] = skipped
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := s.cfg.Store.Tx().Emit(audit.New(audit.InstanceJoinFailure, fields)).Commit(ctx); err != nil {
		s.cfg.Log.ErrorContext(ctx, "a refused join could not be recorded", "error", err)
	}
	s.cfg.Log.InfoContext(ctx, "join refused", "reason", fault.Code(cause), "token", fields["token_name"], "addr", a.addr, "error", cause)
}

// addClaims adds what was verified about a machine to an event.
func addClaims(fields map[string]any, c method.Claims) {
	if len(c.Attributes) > 0 {
		attributes := make(map[string]any, len(c.Attributes))
		for name, values := range c.Attributes {
			attributes[name] = clipAll(values, maxClaim)
		}
		fields["attributes"] = attributes
	}
	if c.Machine != "" {
		fields["machine"] = clip(c.Machine, maxClaim)
	}
}

// takeTurn serialises joins by one token; the function returned ends the turn.
func (s *Server) takeTurn(token string) func() {
	s.mu.Lock()
	t := s.counting[token]
	if t == nil {
		t = &turn{}
		s.counting[token] = t
	}
	t.waiting++
	s.mu.Unlock()
	t.Lock()
	return func() {
		t.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.waiting--; t.waiting == 0 {
			delete(s.counting, token)
		}
	}
}
