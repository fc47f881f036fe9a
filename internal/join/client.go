package join

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/state"
	"teleport/internal/types"
	"teleport/internal/version"
)

// Params says whom to join and as what.
type Params struct {
	// Addr is the host:port of a Proxy Service, or of the Auth Service when Direct.
	Addr   string
	Direct bool
	// Token is teleport.join_params.token_name: the secret of a token of method token,
	// the name of any other.
	Token string
	// Method is teleport.join_params.method; empty leaves it to the token.
	Method string
	// Methods are the join methods that this machine can prove itself by, Settings the
	// other keys of teleport.join_params, Dir the data directory.
	Methods  []method.Method
	Settings map[string]string
	Dir      string
	Roles    []types.SystemRole
	Hostname string
	// Principals are names that the certificates of Proxy and Auth should carry.
	Principals []string
	// Pins are CA pins ("sha256:..."); at least one must match.
	Pins []string
	// Insecure gives up the check of the server's certificate.
	Insecure bool
	// Current is the identity to keep, or nil.
	Current *state.Holder
	// Pair are the keys to join with, nil for new ones. Who tries again after an answer was
	// lost keeps them: Auth gives the same machine what it was to get.
	Pair *KeyPair
	// Process is the run of this process, see rpc.WithProcess.
	Process string
	Now     func() time.Time
	Log     *slog.Logger
	// Dial replaces the network in tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Join runs the exchange and returns the new state of the process.
func Join(ctx context.Context, p Params) (*state.State, error) {
	x, resp, err := p.run(ctx, false)
	if err != nil {
		return nil, err
	}
	return x.accept(resp.GetResult())
}

// Rehearse runs the whole exchange and changes nothing: it returns what Auth checked
// and what it found. An error means that there was nobody to rehearse with, or that
// this machine cannot make its proof.
func Rehearse(ctx context.Context, p Params) (*joinv1.Explanation, error) {
	_, resp, err := p.run(ctx, true)
	if err != nil {
		return nil, err
	}
	if resp.GetExplanation() == nil {
		return nil, fault.Invalid("%s ended a rehearsal without an explanation: is it a Teleport of the same version?", p.Addr)
	}
	return resp.GetExplanation(), nil
}

// run goes through the exchange up to Auth's last word.
func (p Params) run(ctx context.Context, dryRun bool) (*exchange, *joinv1.JoinResponse, error) {
	if p.Now == nil {
		p.Now = time.Now
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	var doubts doubts
	tlsConfig, err := p.tlsConfig(&doubts)
	if err != nil {
		return nil, nil, err
	}
	conn, err := rpc.Dial(rpc.DialConfig{Addr: p.Addr, TLS: tlsConfig, Dial: p.Dial, Brief: true})
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	stream, err := joinv1.NewJoinServiceClient(conn).Join(ctx)
	if err != nil {
		return nil, nil, p.explain(err)
	}
	x, err := p.prepare()
	if err != nil {
		return nil, nil, err
	}
	x.init.DryRun = dryRun
	x.stream, x.doubts = stream, &doubts
	if err := x.send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Init{Init: x.init}}); err != nil {
		return nil, nil, err
	}
	for range method.MaxRounds + 1 {
		resp, err := stream.Recv()
		if err != nil {
			return nil, nil, p.explain(err)
		}
		if resp.GetQuestion() == nil {
			if x.prove == nil && resp.GetExplanation() == nil {
				return nil, nil, fault.Invalid("%s answered a join with something else than a question: is it a Teleport of the same version?", p.Addr)
			}
			return x, resp, nil
		}
		answer, err := x.answer(ctx, resp.GetQuestion())
		if err != nil {
			x.giveUp(err)
			return nil, nil, err
		}
		if err := x.send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Answer{Answer: answer}}); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, fault.Invalid("%s asks more than %d questions: is it a Teleport of the same version?", p.Addr, method.MaxRounds)
}

// send sends a message; the reason of a refusal comes with Recv, not with Send.
func (x *exchange) send(m *joinv1.JoinRequest) error {
	if err := x.stream.Send(m); err != nil {
		_, err = x.stream.Recv()
		return x.params.explain(err)
	}
	return nil
}

// giveUp tells Auth why the machine stops, for its log.
func (x *exchange) giveUp(err error) {
	giveUp := &joinv1.GivingUp{Reason: err.Error(), Code: fault.Code(err)}
	if x.stream.Send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_GivingUp{GivingUp: giveUp}}) == nil {
		_, _ = x.stream.Recv() // it has arrived
	}
}

// doubts are why the server of a connection may be another than it should be. A doubt
// stays, also if a later connection gives none.
type doubts struct {
	mu  sync.Mutex
	err error
}

func (d *doubts) add(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && d.err == nil {
		d.err = err
	}
}

func (d *doubts) first() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// tlsConfig returns how the server is checked. With a pin the signed Result
// carries the trust, so a certificate that does not fit the pin, as in the middle of
// a rotation, is only noted: what the machine shows then is worth nothing to others.
// Without a pin, a certificate that this machine trusts already is all there is.
func (p Params) tlsConfig(doubts *doubts) (*tls.Config, error) {
	protos := []string{mux.ALPNProxyGRPC, "h2"}
	host, _, err := net.SplitHostPort(p.Addr)
	if err != nil {
		return nil, fault.Invalid("address %q: expected host:port", p.Addr)
	}
	var config *tls.Config
	switch {
	case p.Insecure:
		p.Log.Warn("the server is not verified because of --insecure")
		config = unverified()
	case len(p.Pins) > 0:
		config = p.pinnedTLS(doubts)
	case p.Direct && p.Current != nil:
		config = ca.ClientTLS(nil, p.Current.Trust, types.RoleAuth)
	case p.Direct:
		return nil, fault.New(fault.ErrInvalid, "joining the Auth Service %s directly needs teleport.ca_pin (or --ca-pin): copy the pin that `tctl status` shows", p.Addr).WithCode(CodeNoTrust)
	default:
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if p.Current != nil {
			addHostAuthority(roots, p.Current.Trust())
		}
		config = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	}
	if config.ServerName == "" {
		config.ServerName = host
	}
	config.NextProtos = protos
	return config, nil
}

// unverified is for the operator who said --insecure.
func unverified() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // the operator said so
	}
}

// pinnedTLS notes whether the server is one of the cluster that the pins name, or of the
// cluster that this machine is in already.
func (p Params) pinnedTLS(doubts *doubts) *tls.Config {
	role := types.RoleProxy
	if p.Direct {
		role = types.RoleAuth
	}
	config := ca.PinnedTLS(p.Pins, role)
	grounds := []func(tls.ConnectionState) error{config.VerifyConnection}
	if p.Current != nil {
		grounds = append(grounds, ca.ClientTLS(nil, p.Current.Trust, role).VerifyConnection)
	}
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		var first error
		for _, ground := range grounds {
			err := ground(cs)
			if err == nil {
				return nil
			}
			first = cmp.Or(first, err)
		}
		doubts.add(first)
		return nil
	}
	return config
}

// exchange is the machine's half of one join.
type exchange struct {
	params  Params
	pair    KeyPair
	current *tls.Certificate
	init    *joinv1.Init
	stream  grpc.BidiStreamingClient[joinv1.JoinRequest, joinv1.JoinResponse]
	// doubts are those about the server.
	doubts *doubts
	// pins are those of the host authorities that are believed; empty: the certificate
	// of the connection vouches for all.
	pins []string

	// From the first question on:
	t       [32]byte
	cluster string
	method  method.Method
	machine method.Machine
	prove   method.Exchange
}

func (p Params) prepare() (*exchange, error) {
	x := &exchange{params: p}
	var err error
	if p.Pair != nil {
		x.pair = *p.Pair
	} else if x.pair, err = NewKeyPair(); err != nil {
		return nil, err
	}
	x.init = &joinv1.Init{
		Protocol: Protocol,
		// An id that gives nothing away, also when it is a name: what stands in the place of
		// a name may turn out to be a secret.
		TokenId:         keys.TokenID(p.Token),
		Method:          p.Method,
		Roles:           roleNames(slices.Sorted(slices.Values(p.Roles))),
		Hostname:        p.Hostname,
		TlsPublicKey:    x.pair.TLSPublic,
		SshPublicKey:    x.pair.SSHPublic,
		Principals:      p.Principals,
		Clock:           timestamppb.New(p.Now()),
		SoftwareVersion: version.Version,
		Process:         p.Process,
	}
	x.pins = p.Pins
	if p.Current != nil {
		// What the machine believes while its identity is good, no Proxy can talk it out of.
		if p.Now().Before(p.Current.Expires()) {
			x.pins = slices.Concat(p.Pins, p.Current.Trust().Pins())
		}
		x.current = p.Current.Certificate("")
		x.init.Current = &joinv1.HostProof{Certificate: x.current.Certificate[0]}
	}
	return x, nil
}

// answer answers a question: with the first one the method and the transcript are
// known, and the current identity is proved if there is one.
func (x *exchange) answer(ctx context.Context, q *joinv1.Question) (*joinv1.Answer, error) {
	if x.prove != nil {
		proof, err := x.prove(ctx, q.GetChallenge())
		return &joinv1.Answer{Proof: proof}, err
	}
	if err := x.open(q); err != nil {
		return nil, err
	}
	a := &joinv1.Answer{}
	var err error
	if a.Proof, err = x.prove(ctx, nil); err != nil {
		return nil, fmt.Errorf("join method %s: %w", x.method.Name, err)
	}
	if x.current != nil {
		digest := currentDigest(x.t)
		key, ok := x.current.PrivateKey.(crypto.Signer)
		if !ok {
			return nil, fault.Invalid("the key of the current identity cannot sign")
		}
		if a.CurrentProof, err = key.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// open takes the first question: who is there, and what it wants to be proved.
func (x *exchange) open(q *joinv1.Question) error {
	switch {
	case len(q.GetNonce()) != 32 || q.GetClusterName() == "" || len(q.GetChallenge()) > method.MaxQuestion:
		return fault.Invalid("%s sent a malformed question", x.params.Addr)
	case x.params.Method != "" && q.GetMethod() != x.params.Method:
		return fault.New(fault.ErrDenied, "the token is for join method %q, and teleport.join_params.method says %q: correct it, or leave it out", clip(q.GetMethod(), 32), x.params.Method).
			WithCode(CodeMethodMismatch)
	}
	if cur := x.params.Current; cur != nil && cur.State().Cluster != q.GetClusterName() {
		return fault.New(fault.ErrDenied, "the data directory holds an identity of cluster %q, and %s belongs to cluster %q: correct the address, or delete the data directory to move this machine",
			cur.State().Cluster, x.params.Addr, q.GetClusterName()).WithCode(CodeWrongCluster)
	}
	if pins, err := ca.ParsePins(q.GetCaPins()); err == nil && len(pins) > 0 && len(x.pins) > 0 &&
		!slices.ContainsFunc(pins, func(pin string) bool { return slices.Contains(x.pins, pin) }) {
		return wrongPin(x.params.Addr, x.pins, pins)
	}
	m, ok := byName(x.params.Methods)[q.GetMethod()]
	if !ok {
		return fault.New(fault.ErrUnsupported, "the token is for join method %q, which this version does not know", clip(q.GetMethod(), 32)).WithCode(CodeMethodMismatch)
	}
	if doubt := x.doubts.first(); m.Bearer && doubt != nil {
		return fault.New(fault.ErrDenied, "%s does not show that it belongs to the cluster of teleport.ca_pin, and what a machine shows for join method %q is of use to whoever sees it (%w): give every pin that `tctl status` shows, and let nothing on the way end TLS",
			x.params.Addr, m.Name, doubt).WithCode(CodeServerUntrusted)
	}
	x.cluster = q.GetClusterName()
	x.t = transcript(x.init, q)
	x.method = m
	x.machine = method.Machine{
		T: x.t, Cluster: x.cluster, Token: x.params.Token, Parameters: q.GetChallenge(), Settings: x.params.Settings, Dir: x.params.Dir, Rehearsal: x.init.GetDryRun(),
		Getenv: os.Getenv, Metadata: egress.Metadata(egress.Config{}), Egress: egress.New(egress.Config{}), Now: x.params.Now, Log: x.params.Log,
	}
	x.prove = m.Prove(x.machine)
	return nil
}

// accept checks the Result: signed over this exchange by a host CA that the pins
// name, for these keys and these roles.
func (x *exchange) accept(result *joinv1.Result) (*state.State, error) {
	grant := &joinv1.Grant{}
	if result == nil || proto.Unmarshal(result.GetGrant(), grant) != nil {
		return nil, fault.Invalid("%s ended the join without a result", x.params.Addr)
	}
	trust, err := ca.NewTrust(grant.GetAuthorities())
	if err != nil {
		return nil, fmt.Errorf("authorities of cluster %q: %w", x.cluster, err)
	}
	signers, err := x.pinned(trust)
	if err != nil {
		return nil, err
	}
	if err := signers.VerifyHostSignature(resultDigest(x.t, result.GetGrant()), result.GetSignatures()); err != nil {
		return nil, fault.New(fault.ErrDenied, "the answer of %s is not signed by the cluster's host CA: something between this machine and the Auth Service changed it", x.params.Addr).WithCode(CodeServerUntrusted)
	}
	if grant.GetClusterName() != x.cluster || !slices.Equal(grant.GetRoles(), x.init.GetRoles()) {
		return nil, fault.Invalid("%s issued an identity that was not asked for (cluster %q, roles %v)", x.params.Addr, grant.GetClusterName(), grant.GetRoles())
	}
	if x.method.Accepted != nil {
		if err := x.method.Accepted(x.machine, grant.GetMethodState()); err != nil {
			return nil, fmt.Errorf("join method %s: %w", x.method.Name, err)
		}
	}
	return NewState(grant, x.pair, x.params.Hostname, x.params.Pins, x.init.GetTokenId())
}

// pinned narrows the trust to the host authorities that the pins name; without pins
// the certificate of the connection vouched for all of them.
func (x *exchange) pinned(trust *ca.Trust) (*ca.Trust, error) {
	if len(x.pins) == 0 {
		return trust, nil
	}
	known := false
	var narrowed []*typesv1.CertAuthority
	for _, authority := range trust.Authorities() {
		if authority.GetSpec().GetType() == ca.TypeHost {
			authority = proto.CloneOf(authority)
			for _, set := range []*typesv1.CertAuthorityKeys{authority.GetSpec().GetActiveKeys(), authority.GetSpec().GetAdditionalTrustedKeys()} {
				if set != nil {
					set.Tls = slices.DeleteFunc(set.Tls, func(k *typesv1.TlsKeyPair) bool { return !slices.Contains(x.pins, pinOf(k.GetCert())) })
					known = known || len(set.Tls) > 0
				}
			}
		}
		narrowed = append(narrowed, authority)
	}
	if !known {
		return nil, wrongPin(x.params.Addr, x.pins, trust.Pins())
	}
	return ca.NewTrust(narrowed)
}

// pinOf returns the pin of a certificate in PEM, or "".
func pinOf(text string) string {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return ""
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return ""
	}
	return ca.Pin(cert)
}

// addHostAuthority adds the certificates of the cluster's host authority.
func addHostAuthority(pool *x509.CertPool, trust *ca.Trust) {
	for _, authority := range trust.Authorities() {
		if authority.GetSpec().GetType() != ca.TypeHost {
			continue
		}
		for _, set := range []*typesv1.CertAuthorityKeys{authority.GetSpec().GetActiveKeys(), authority.GetSpec().GetAdditionalTrustedKeys()} {
			for _, k := range set.GetTls() {
				pool.AppendCertsFromPEM([]byte(k.GetCert()))
			}
		}
	}
}

func wrongPin(addr string, want, got []string) error {
	return fault.New(fault.ErrDenied, "%s belongs to a cluster with CA pin %s, teleport.ca_pin expects %s: either the pin is old (see `tctl status`) or the address is not your cluster's",
		addr, strings.Join(got, " and "), strings.Join(want, " or ")).WithCode(CodeWrongPin)
}

// explain turns an error of the connection into what to do about it.
func (p Params) explain(err error) error {
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	text := err.Error()
	switch {
	case fault.Code(err) != "":
		return err
	case errors.As(err, &unknown) || strings.Contains(text, "signed by unknown authority"):
		return fault.New(fault.ErrUnreachable, "this machine does not trust the certificate of %s: give the cluster's CA pin in teleport.ca_pin (or --ca-pin; `tctl status` shows it), or give the Proxy Service a trusted certificate", p.Addr).WithCode(CodeNoTrust)
	case errors.As(err, &hostname) || strings.Contains(text, "certificate is valid for") || strings.Contains(text, "doesn't contain any IP SANs"):
		return fault.New(fault.ErrUnreachable, "the certificate of %s is for another name (%s): use an address that it names, or give teleport.ca_pin", p.Addr, text).WithCode(CodeServerUntrusted)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired || strings.Contains(text, "expired or is not yet valid"):
		return fault.New(fault.ErrUnreachable, "the certificate of %s is not valid at this machine's time, %s: check the clock here, then the certificate there", p.Addr, p.Now().UTC().Format(time.RFC3339)).WithCode(CodeClockSkew)
	case fault.Kind(err) == nil || errors.Is(err, fault.ErrUnreachable):
		return fault.New(fault.ErrUnreachable, "%s cannot be reached (%s): check the address and that the port is open from here", p.Addr, text).WithCode(CodeServerUnreachable)
	}
	return err
}
