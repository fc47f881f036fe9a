package join

import (
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
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
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
	// Secret is the join token.
	Secret string
	// Method is teleport.join_params.method; empty leaves it to the token.
	Method   string
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
	Now     func() time.Time
	Log     *slog.Logger
	// Dial replaces the network in tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Join runs the exchange and returns the new state of the process.
func Join(ctx context.Context, p Params) (*state.State, error) {
	if p.Now == nil {
		p.Now = time.Now
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	tlsConfig, err := p.tlsConfig()
	if err != nil {
		return nil, err
	}
	conn, err := rpc.Dial(rpc.DialConfig{Addr: p.Addr, TLS: tlsConfig, Dial: p.Dial})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, err := joinv1.NewJoinServiceClient(conn).Join(ctx)
	if err != nil {
		return nil, p.explain(err)
	}
	x, err := p.prepare()
	if err != nil {
		return nil, err
	}
	send := func(m *joinv1.JoinRequest) error {
		// The reason of a refusal comes with Recv, not with Send.
		if err := stream.Send(m); err != nil {
			_, err = stream.Recv()
			return p.explain(err)
		}
		return nil
	}
	if err := send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Init{Init: x.init}}); err != nil {
		return nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, p.explain(err)
	}
	answer, err := x.answer(resp.GetQuestion())
	if err != nil {
		giveUp := &joinv1.GivingUp{Reason: err.Error(), Code: fault.Code(err)}
		if stream.Send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_GivingUp{GivingUp: giveUp}}) == nil {
			_, _ = stream.Recv() // it has arrived
		}
		return nil, err
	}
	if err := send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Answer{Answer: answer}}); err != nil {
		return nil, err
	}
	if resp, err = stream.Recv(); err != nil {
		return nil, p.explain(err)
	}
	return x.accept(resp.GetResult())
}

// tlsConfig returns how the server is checked. With a pin the signed Result
// carries the trust, and no secret is sent before it, so the certificate of the
// connection needs none; without one, a certificate that this machine trusts
// already is all there is.
func (p Params) tlsConfig() (*tls.Config, error) {
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
		config = unverified()
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

// unverified is for the two cases above and no other: trust comes from the signed
// Result and the pin, or the operator said --insecure.
func unverified() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // the Result is checked against the pins; see tlsConfig
	}
}

// exchange is the machine's half of one join.
type exchange struct {
	params  Params
	token   keys.TokenKey
	pair    KeyPair
	current *tls.Certificate
	init    *joinv1.Init
	t       [32]byte
	cluster string
}

func (p Params) prepare() (*exchange, error) {
	x := &exchange{params: p}
	x.token = keys.DeriveToken(p.Secret)
	var err error
	if x.pair, err = NewKeyPair(); err != nil {
		return nil, err
	}
	x.init = &joinv1.Init{
		Protocol:        Protocol,
		TokenId:         x.token.ID,
		Method:          p.Method,
		Roles:           roleNames(slices.Sorted(slices.Values(p.Roles))),
		Hostname:        p.Hostname,
		TlsPublicKey:    x.pair.TLSPublic,
		SshPublicKey:    x.pair.SSHPublic,
		Principals:      p.Principals,
		Clock:           timestamppb.New(p.Now()),
		SoftwareVersion: version.Version,
	}
	if p.Current != nil {
		x.current = p.Current.Certificate("")
		x.init.Current = &joinv1.HostProof{Certificate: x.current.Certificate[0]}
	}
	return x, nil
}

// answer proves the token, and the current identity if there is one.
func (x *exchange) answer(q *joinv1.Question) (*joinv1.Answer, error) {
	switch {
	case q == nil:
		return nil, fault.Invalid("%s answered a join with something else than a question: is it a Teleport of the same version?", x.params.Addr)
	case len(q.GetNonce()) != 32 || q.GetClusterName() == "":
		return nil, fault.Invalid("%s sent a malformed question", x.params.Addr)
	case q.GetMethod() != MethodToken:
		return nil, fault.Unsupported("the token is for join method %q, which this version does not know", q.GetMethod())
	}
	if cur := x.params.Current; cur != nil && cur.State().Cluster != q.GetClusterName() {
		return nil, fault.New(fault.ErrDenied, "the data directory holds an identity of cluster %q, and %s belongs to cluster %q: correct the address, or delete the data directory to move this machine",
			cur.State().Cluster, x.params.Addr, q.GetClusterName()).WithCode(CodeWrongCluster)
	}
	if pins, err := ca.ParsePins(q.GetCaPins()); err == nil && len(pins) > 0 && len(x.params.Pins) > 0 &&
		!slices.ContainsFunc(pins, func(pin string) bool { return slices.Contains(x.params.Pins, pin) }) {
		return nil, wrongPin(x.params.Addr, x.params.Pins, pins)
	}
	x.cluster = q.GetClusterName()
	x.t = transcript(x.init, q)
	a := &joinv1.Answer{}
	var err error
	if a.Proof, err = x.token.Private.Sign(rand.Reader, x.t[:], crypto.Hash(0)); err != nil {
		return nil, err
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
	if err := signers.VerifyHostSignature(resultDigest(x.t, result.GetGrant()), result.GetSignature()); err != nil {
		return nil, fault.New(fault.ErrDenied, "the answer of %s is not signed by the cluster's host CA: something between this machine and the Auth Service changed it", x.params.Addr).WithCode(CodeServerUntrusted)
	}
	if grant.GetClusterName() != x.cluster || !slices.Equal(grant.GetRoles(), x.init.GetRoles()) {
		return nil, fault.Invalid("%s issued an identity that was not asked for (cluster %q, roles %v)", x.params.Addr, grant.GetClusterName(), grant.GetRoles())
	}
	return NewState(grant, x.pair, x.params.Hostname, x.params.Pins, x.token.ID)
}

// pinned narrows the trust to the host authorities that the pins name; without pins
// the certificate of the connection vouched for all of them.
func (x *exchange) pinned(trust *ca.Trust) (*ca.Trust, error) {
	if len(x.params.Pins) == 0 {
		return trust, nil
	}
	known := false
	var narrowed []*typesv1.CertAuthority
	for _, authority := range trust.Authorities() {
		if authority.GetSpec().GetType() == ca.TypeHost {
			authority = proto.CloneOf(authority)
			for _, set := range []*typesv1.CertAuthorityKeys{authority.GetSpec().GetActiveKeys(), authority.GetSpec().GetAdditionalTrustedKeys()} {
				if set != nil {
					set.Tls = slices.DeleteFunc(set.Tls, func(k *typesv1.TlsKeyPair) bool { return !slices.Contains(x.params.Pins, pinOf(k.GetCert())) })
					known = known || len(set.Tls) > 0
				}
			}
		}
		narrowed = append(narrowed, authority)
	}
	if !known {
		return nil, wrongPin(x.params.Addr, x.params.Pins, trust.Pins())
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
