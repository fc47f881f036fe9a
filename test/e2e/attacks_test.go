package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/join"
	"teleport/internal/join/all"
	"teleport/internal/join/boundkeypair"
	"teleport/internal/join/method"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/state"
	"teleport/internal/types"
	"teleport/test/swtpm"
)

// way is a way to join, with a token of its own and a machine that it admits.
type way struct {
	method.Method
	// token is the name or the secret that the machine has, spec the method's part of the
	// token. An empty spec is a token that is there already.
	token, spec string
	settings    map[string]string
	dir         string
	// fresh gives the machine a proof that was not used yet.
	fresh func(t *testing.T)
}

// ways returns every join method that the process offers.
func ways(t *testing.T, c *clouds, h *hub) []*way {
	t.Helper()
	invitation, err := h.Token(t.Context(), "node,proxy", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pod := filepath.Join(dir, "pod.token")
	key, _, err := boundkeypair.CreateKey(filepath.Join(dir, boundkeypair.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	device := swtpm.Start(t).Device
	tpmOut, err := h.Run(t.Context(), "teleport", "tpm", "identify", "--device="+device)
	if err != nil {
		t.Fatal(err)
	}
	variable := func(platform, name string) func(t *testing.T) {
		return func(t *testing.T) { t.Setenv(name, c.Mint(platform, nil)) }
	}
	specs := map[string]way{
		"token": {token: invitation.Token},
		"iam":   {spec: "  allow: [{aws_account: '333333333333'}]"},
		"ec2":   {spec: "  allow: [{aws_account: '" + ec2Account + "'}]", fresh: func(*testing.T) { c.NewEC2() }},
		"azure": {spec: "  azure: {allow: [{subscription: " + azureSubscription + "}]}"},
		"gcp":   {spec: "  gcp: {allow: [{project_ids: [my-project]}]}"},
		"kubernetes": {
			spec: "  kubernetes: {type: static_jwks, static_jwks: {jwks: '" + c.issuers["kubernetes"].JWKS() + "'}, allow: [{service_account: 'teleport-agents:teleport-agent'}]}",
			fresh: func(t *testing.T) {
				t.Setenv("KUBERNETES_TOKEN_PATH", pod)
				if err := os.WriteFile(pod, []byte(c.Mint("kubernetes", nil)), 0o600); err != nil {
					t.Fatal(err)
				}
			},
		},
		"oracle": {spec: "  oracle: {allow: [{tenancy: " + oracleTenancy + "}]}"},
		"github": {spec: "  github: {allow: [{repository_id: '74'}]}", fresh: func(t *testing.T) {
			t.Setenv("ACTIONS_ID_TOKEN_REQUEST_URL", githubRequest)
			t.Setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", jobSecret)
		}},
		"gitlab":   {spec: "  gitlab: {domain: gitlab.example.com, allow: [{project_path: acme/web}]}", fresh: variable("gitlab", "TBOT_GITLAB_JWT")},
		"circleci": {spec: "  circleci: {organization_id: " + uuid1 + ", allow: [{project_id: " + uuid2 + "}]}", fresh: variable("circleci", "CIRCLE_OIDC_TOKEN_V2")},
		"spacelift": {
			spec: "  spacelift: {hostname: demo.app.spacelift.io, allow: [{space_id: root}]}", fresh: variable("spacelift", "SPACELIFT_OIDC_TOKEN"),
		},
		"terraform_cloud": {
			spec:  "  terraform_cloud: {hostname: tfe.example.com, allow: [{organization_name: acme, workspace_name: web}]}",
			fresh: variable("terraform_cloud", "TFC_WORKLOAD_IDENTITY_TOKEN"),
		},
		"bitbucket": {
			spec:  "  bitbucket: {identity_provider_url: '" + issuers()["bitbucket"] + "', audience: 'ari:cloud:bitbucket::workspace/" + uuid1 + "', allow: [{repository_uuid: '{" + uuid2 + "}'}]}",
			fresh: variable("bitbucket", "BITBUCKET_STEP_OIDC_TOKEN"),
		},
		"azure_devops": {spec: "  azure_devops: {organization_id: " + uuid1 + ", allow: [{project_name: web}]}", fresh: func(t *testing.T) {
			t.Setenv("SYSTEM_OIDCREQUESTURI", azureDevopsRequest)
			t.Setenv("SYSTEM_ACCESSTOKEN", jobSecret)
		}},
		"env0": {spec: "  env0: {allow: [{organization_id: " + uuid1 + ", project_id: " + uuid2 + "}]}", fresh: variable("env0", "ENV0_OIDC_TOKEN")},
		"oidc": {
			spec:     "  oidc: {issuer: '" + issuers()["oidc"] + "', allow: [{must_match_fields: {org: [acme]}}]}",
			settings: map[string]string{"oidc.env": "CI_JWT"}, fresh: variable("oidc", "CI_JWT"),
		},
		"tpm":           {spec: "  tpm: {allow: [{ek_public_hash: " + strings.Fields(strings.TrimPrefix(tpmOut, "EK public hash:"))[0] + "}]}", settings: map[string]string{"tpm.device": device}},
		"bound_keypair": {spec: "  bound_keypair: {recovery: {mode: relaxed}, onboarding: {initial_public_key: '" + key + "'}}"},
	}
	var out []*way
	for _, m := range all.Methods() {
		w, ok := specs[m.Name]
		if !ok {
			t.Errorf("there is no way to try join method %s here", m.Name)
			continue
		}
		w.Method, w.dir = m, dir
		if w.spec != "" {
			// Its id is derived at once from a name that looks random.
			w.token = fmt.Sprintf("%x", sha256.Sum256([]byte(m.Name)))[:32]
			w.create(t, h)
		}
		out = append(out, &w)
	}
	return out
}

// create makes the token of the way.
func (w *way) create(t *testing.T, h *hub) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token.yaml")
	text := fmt.Sprintf("kind: token\nversion: v2\nmetadata: {name: '%s'}\nspec:\n  roles: [Node, Proxy]\n  join_method: %s\n%s\n", w.token, w.Name, w.spec)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Tctl(t.Context(), "create", "-f", file); err != nil {
		t.Fatal(err)
	}
}

// attacker is somebody between the machine and the cluster.
type attacker struct {
	c *clouds
	h *hub
	// genuine is the certificate of a Proxy of the cluster, which is in bad hands; stranger
	// is anybody's.
	genuine, stranger *tls.Certificate
	trust             func() *ca.Trust
	// keys are the attacker's own.
	keys join.KeyPair
	// sources counts the attacks: each comes from an address of its own, as Auth does not
	// listen for long to one that is refused all the time.
	sources atomic.Uint32
}

// sourceNet has the addresses that attacks come from.
const sourceNet = "203.0.113."

func newAttacker(t *testing.T, c *clouds, h *hub) *attacker {
	t.Helper()
	a := &attacker{c: c, h: h}
	invitation, err := h.Token(t.Context(), "proxy", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	st, err := join.Join(t.Context(), join.Params{
		Addr: proxyAddr, Token: invitation.Token, Methods: all.Methods(), Roles: []types.SystemRole{types.RoleProxy}, Hostname: "hostile-proxy", Pins: []string{h.pin},
		Principals: []string{"localhost", "127.0.0.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	holder, err := state.NewHolder(st)
	if err != nil {
		t.Fatal(err)
	}
	a.genuine, a.trust = holder.Certificate(types.RoleProxy), holder.Trust
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "somebody"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a.stranger = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	if a.keys, err = join.NewKeyPair(); err != nil {
		t.Fatal(err)
	}
	return a
}

// dial connects to the Auth Service by a Proxy that is not hostile.
func (a *attacker) dial(t *testing.T) joinv1.JoinServiceClient {
	t.Helper()
	config := ca.PinnedTLS([]string{a.h.pin}, types.RoleProxy)
	config.NextProtos = []string{mux.ALPNProxyGRPC, "h2"}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(sourceNet + strconv.Itoa(int(a.sources.Add(1)%250)+1))}}
	conn, err := rpc.Dial(rpc.DialConfig{Addr: proxyAddr, TLS: config, Dial: dialer.DialContext})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return joinv1.NewJoinServiceClient(conn)
}

// between is one attack: what is changed on the way, and what came of it.
type between struct {
	joinv1.UnimplementedJoinServiceServer
	up joinv1.JoinServiceClient
	// What is done with each message, nothing if nil. Steal keeps the answers for itself and
	// does with them what it likes, before they go on.
	onInit     func(*joinv1.Init)
	onQuestion func(*joinv1.Question)
	onAnswer   func(*joinv1.Answer)
	onResult   func(*joinv1.Result)
	steal      func(ctx context.Context, init *joinv1.Init, answer *joinv1.Answer)

	init    *joinv1.Init
	answers []*joinv1.Answer
	results int
}

// Join passes the messages on, changed.
func (b *between) Join(down grpc.BidiStreamingServer[joinv1.JoinRequest, joinv1.JoinResponse]) error {
	up, err := b.up.Join(down.Context())
	if err != nil {
		return err
	}
	for {
		req, err := down.Recv()
		if err != nil {
			return err
		}
		b.request(down.Context(), req)
		if err := up.Send(req); err != nil {
			_, err = up.Recv()
			return err
		}
		resp, err := up.Recv()
		if err != nil {
			return err
		}
		b.response(resp)
		if err := down.Send(resp); err != nil {
			return err
		}
		if resp.GetQuestion() == nil {
			return nil
		}
	}
}

func (b *between) request(ctx context.Context, req *joinv1.JoinRequest) {
	if init := req.GetInit(); init != nil {
		b.init = proto.CloneOf(init)
		if b.onInit != nil {
			b.onInit(init)
		}
	}
	if answer := req.GetAnswer(); answer != nil {
		b.answers = append(b.answers, proto.CloneOf(answer))
		if b.steal != nil && len(b.answers) == 1 {
			b.steal(ctx, b.init, b.answers[0])
		}
		if b.onAnswer != nil {
			b.onAnswer(answer)
		}
	}
}

func (b *between) response(resp *joinv1.JoinResponse) {
	if q := resp.GetQuestion(); q != nil && len(q.GetNonce()) > 0 && b.onQuestion != nil {
		b.onQuestion(q)
	}
	if r := resp.GetResult(); r != nil {
		b.results++
		if b.onResult != nil {
			b.onResult(r)
		}
	}
}

// serve serves the attack with a certificate, and returns its address.
func (b *between) serve(t *testing.T, a *attacker, cert *tls.Certificate) string {
	t.Helper()
	b.up = a.dial(t)
	srv := rpc.NewServer(rpc.ServerConfig{
		TLS:       ca.ServerTLS(func() *tls.Certificate { return cert }, a.trust, tls.NoClientCert, mux.ALPNProxyGRPC, "h2"),
		Identify:  func(tls.ConnectionState) (*identity.Identity, error) { return nil, nil },
		Authorize: func(context.Context, rpc.Caller, string) error { return nil },
	})
	joinv1.RegisterJoinServiceServer(srv.Registrar(), b)
	l := listenOn(t, "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ctx, l) // ends with cancel
	}()
	t.Cleanup(func() {
		cancel()
		<-served
	})
	return l.Addr().String()
}

// params are those of the machine, which has a fresh proof.
func (w *way) params(t *testing.T, a *attacker, addr string) join.Params {
	t.Helper()
	if w.fresh != nil {
		w.fresh(t)
	}
	return join.Params{
		Addr: addr, Token: w.token, Methods: all.Methods(), Settings: w.settings, Dir: w.dir, Roles: []types.SystemRole{types.RoleNode},
		Hostname: "victim-" + strings.ReplaceAll(w.Name, "_", "-"), Pins: []string{a.h.pin},
	}
}

// replay opens streams at the same time, each with keys of its own, and answers each
// with an answer of the machine. It returns how many were admitted.
func (a *attacker) replay(t *testing.T, streams int, init *joinv1.Init, answers []*joinv1.Answer) int {
	t.Helper()
	var admitted atomic.Int32
	var wg sync.WaitGroup
	for range streams {
		client := a.dial(t)
		keys, err := join.NewKeyPair()
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := replayOne(t.Context(), client, keys, init, answers); err == nil {
				admitted.Add(1)
			} else if code := fault.Code(err); code == "internal" || code == "" && !errors.Is(err, fault.ErrStale) {
				t.Errorf("a replayed answer was refused with %v, want a reason code", err)
			}
		})
	}
	wg.Wait()
	return int(admitted.Load())
}

func replayOne(ctx context.Context, client joinv1.JoinServiceClient, keys join.KeyPair, init *joinv1.Init, answers []*joinv1.Answer) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	stream, err := client.Join(ctx)
	if err != nil {
		return err
	}
	own := proto.CloneOf(init)
	own.TlsPublicKey, own.SshPublicKey, own.Hostname, own.Current = keys.TLSPublic, keys.SSHPublic, "thief", nil
	if err := stream.Send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Init{Init: own}}); err != nil {
		return err
	}
	for i := 0; ; i++ {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if resp.GetResult() != nil {
			return nil
		}
		answer := answers[min(i, len(answers)-1)]
		if err := stream.Send(&joinv1.JoinRequest{Payload: &joinv1.JoinRequest_Answer{Answer: answer}}); err != nil {
			_, err = stream.Recv()
			return err
		}
	}
}

// attacks tries everything that somebody between the machine and Auth could, with
// every join method, against the built Auth Service.
func attacks(t *testing.T, c *clouds, h *hub) {
	a := newAttacker(t, c, h)
	for _, w := range ways(t, c, h) {
		t.Run(w.Name, func(t *testing.T) {
			t.Run("passed on", func(t *testing.T) { a.passedOn(t, w) })
			t.Run("changed", func(t *testing.T) { a.changed(t, w) })
			t.Run("stolen", func(t *testing.T) { a.stolen(t, w) })
			t.Run("by a stranger", func(t *testing.T) { a.byStranger(t, w) })
			t.Run("too long", func(t *testing.T) { a.tooLong(t, w) })
			t.Run("rehearsal", func(t *testing.T) { a.rehearsal(t, w) })
		})
	}
}

// passedOn: the way works. What was answered then is of no use afterwards.
func (a *attacker) passedOn(t *testing.T, w *way) {
	b := &between{}
	st, err := join.Join(t.Context(), w.params(t, a, b.serve(t, a, a.genuine)))
	if err != nil {
		t.Fatal(err)
	}
	if n := a.replay(t, 4, b.init, b.answers); n != 0 {
		t.Errorf("an answer that admitted the machine admitted %d others", n)
	}
	holder, err := state.NewHolder(st)
	if err != nil {
		t.Fatal(err)
	}
	b = &between{}
	p := w.params(t, a, b.serve(t, a, a.genuine))
	p.Current = holder
	again, err := join.Join(t.Context(), p)
	if err != nil {
		t.Fatalf("join with the identity of before: %v", err)
	}
	if again.HostID != st.HostID {
		t.Errorf("the host became %s, was %s", again.HostID, st.HostID)
	}
	// A Proxy that hides the identity makes no second machine of it.
	if holder, err = state.NewHolder(again); err != nil {
		t.Fatal(err)
	}
	for name, hide := range map[string]func(*joinv1.Init){
		"hides it":             func(i *joinv1.Init) { i.Current = nil },
		"puts another's there": func(i *joinv1.Init) { i.Current.Certificate = a.genuine.Certificate[0] },
	} {
		b = &between{onInit: hide}
		p := w.params(t, a, b.serve(t, a, a.genuine))
		p.Current = holder
		if _, err := join.Join(t.Context(), p); err == nil {
			t.Errorf("the machine joined through a Proxy that %s", name)
		}
	}
}

// changed: one message is changed, and the machine does not join. Nobody gets an
// identity over other keys than the machine's, unless the method is one whose proof is
// good in any hands: then the machine notices.
func (a *attacker) changed(t *testing.T, w *way) {
	flip := func(b []byte) { b[len(b)/2] ^= 1 }
	tests := map[string]struct {
		between
		code string
		// late: the Result is changed, so there is one.
		late bool
	}{
		"swaps the TLS key":    {between: between{onInit: func(i *joinv1.Init) { i.TlsPublicKey = a.keys.TLSPublic }}},
		"swaps the SSH key":    {between: between{onInit: func(i *joinv1.Init) { i.SshPublicKey = a.keys.SSHPublic }}},
		"adds a role":          {between: between{onInit: func(i *joinv1.Init) { i.Roles = append(i.Roles, "Proxy") }}},
		"another role":         {between: between{onInit: func(i *joinv1.Init) { i.Roles = []string{"Proxy"} }}},
		"changes the name":     {between: between{onInit: func(i *joinv1.Init) { i.Hostname = "db-1" }}},
		"swaps the nonce":      {between: between{onQuestion: func(q *joinv1.Question) { flip(q.Nonce) }}},
		"adds to the question": {between: between{onQuestion: func(q *joinv1.Question) { q.Challenge = append(q.Challenge, ' ') }}},
		"another cluster":      {between: between{onQuestion: func(q *joinv1.Question) { q.ClusterName = "another.example.com" }}},
		"another method":       {between: between{onQuestion: func(q *joinv1.Question) { q.Method = anotherMethod(w.Name) }}},
		"another pin":          {between: between{onQuestion: func(q *joinv1.Question) { q.CaPins = []string{"sha256:" + strings.Repeat("ab", 32)} }}, code: join.CodeWrongPin},
		"flips a bit of it":    {between: between{onAnswer: func(x *joinv1.Answer) { flip(x.Proof) }}},
		"nothing in it":        {between: between{onAnswer: func(x *joinv1.Answer) { x.Proof = nil }}},
		"changes the grant":    {between: between{onResult: func(r *joinv1.Result) { changeGrant(t, r) }}, code: join.CodeServerUntrusted, late: true},
		"changes the signature": {between: between{onResult: func(r *joinv1.Result) {
			for _, s := range r.GetSignatures() {
				s[len(s)-1] ^= 1
			}
		}}, code: join.CodeServerUntrusted, late: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := &between{onInit: tt.onInit, onQuestion: tt.onQuestion, onAnswer: tt.onAnswer, onResult: tt.onResult}
			_, err := join.Join(t.Context(), w.params(t, a, b.serve(t, a, a.genuine)))
			if err == nil {
				t.Fatal("the machine joined")
			}
			if got := fault.Code(err); tt.code != "" && got != tt.code || fault.Kind(err) == nil {
				t.Errorf("the machine was told %v [%s], want code %q and a kind", err, got, tt.code)
			}
			if b.results > 0 && !tt.late && !w.Bearer {
				t.Errorf("Auth issued an identity: the proof is not bound to what was changed (%v)", err)
			}
		})
	}
}

// anotherMethod is one that needs nothing of the machine, or two for that one.
func anotherMethod(name string) string {
	if name == types.JoinMethodToken {
		return types.JoinMethodIAM
	}
	return types.JoinMethodToken
}

func changeGrant(t *testing.T, r *joinv1.Result) {
	grant := &joinv1.Grant{}
	if err := proto.Unmarshal(r.GetGrant(), grant); err != nil {
		t.Error(err)
	}
	grant.HostId = "somebody-else"
	var err error
	if r.Grant, err = proto.Marshal(grant); err != nil {
		t.Error(err)
	}
}

// stolen: the Proxy keeps the answer back and uses it itself, in many streams at once.
// Where the proof is bound to the attempt it is of no use, and the machine joins when it
// goes on. Otherwise one gets in, and the machine learns who.
func (a *attacker) stolen(t *testing.T, w *way) {
	admitted := 0
	b := &between{}
	b.steal = func(_ context.Context, init *joinv1.Init, answer *joinv1.Answer) {
		admitted = a.replay(t, 6, init, []*joinv1.Answer{answer})
	}
	_, err := join.Join(t.Context(), w.params(t, a, b.serve(t, a, a.genuine)))
	bound := !w.Bearer || w.Name == types.JoinMethodAzure
	switch {
	case bound && (admitted != 0 || err != nil):
		t.Errorf("%d thieves were admitted, and the machine was told %v; want none, and that it joins", admitted, err)
	case !bound && (admitted != 1 || fault.Code(err) != method.CodeProofReplayed):
		t.Errorf("%d thieves were admitted, and the machine was told %v; want one, and %s", admitted, err, method.CodeProofReplayed)
	}
}

// byStranger: who is no Proxy of the cluster sees nothing that is of use elsewhere.
func (a *attacker) byStranger(t *testing.T, w *way) {
	b := &between{}
	_, err := join.Join(t.Context(), w.params(t, a, b.serve(t, a, a.stranger)))
	switch {
	case w.Bearer && (fault.Code(err) != join.CodeServerUntrusted || len(b.answers) != 0):
		t.Errorf("a stranger got %d answers, and the machine was told %v; want none, and %s", len(b.answers), err, join.CodeServerUntrusted)
	case !w.Bearer && err != nil:
		t.Errorf("the machine was told %v; want that it joins, as the Result carries the trust", err)
	}
}

// tooLong: an answer as long as no machine sends one.
func (a *attacker) tooLong(t *testing.T, w *way) {
	for _, size := range []int{method.MaxAnswer, method.MaxAnswer + 1, 5 << 20} {
		b := &between{onAnswer: func(x *joinv1.Answer) {
			x.Proof = append(slices.Clone(x.Proof), make([]byte, size-min(size, len(x.Proof)))...)
		}}
		_, err := join.Join(t.Context(), w.params(t, a, b.serve(t, a, a.genuine)))
		if err == nil || fault.Kind(err) == nil || b.results > 0 {
			t.Errorf("with an answer of %d bytes: %v, want a refusal", size, err)
		}
	}
}

// rehearsal: a Proxy does not make a join of it.
func (a *attacker) rehearsal(t *testing.T, w *way) {
	b := &between{onInit: func(i *joinv1.Init) { i.DryRun = false }}
	_, err := join.Rehearse(t.Context(), w.params(t, a, b.serve(t, a, a.genuine)))
	if err == nil || b.results > 0 && !w.Bearer {
		t.Errorf("a rehearsal became %d joins, and the machine was told %v", b.results, err)
	}
	b = &between{onInit: func(i *joinv1.Init) { i.DryRun = true }}
	if _, err := join.Join(t.Context(), w.params(t, a, b.serve(t, a, a.genuine))); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a join became a rehearsal, and the machine was told %v", err)
	}
}
