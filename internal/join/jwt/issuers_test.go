package jwt

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/test/oidcfake"
)

// world is an issuer, a way to it, and a clock that the test moves.
type world struct {
	issuer  *oidcfake.Issuer
	server  *oidcfake.Server
	out     *egress.Client
	issuers *Issuers
	mu      sync.Mutex
	now     time.Time
}

const fakeIssuer = "https://issuer.example.com/tenant"

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{issuer: oidcfake.New(t, fakeIssuer, "ES256"), issuers: NewIssuers(), now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}
	w.server = oidcfake.Serve(t, map[string]http.Handler{"issuer.example.com": w.issuer, "keys.example.com": w.issuer})
	w.out = egress.New(egress.Config{Roots: w.server.Roots, Dial: w.server.Dial})
	w.issuers.now = w.clock
	return w
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) verify(ctx context.Context, token string) error {
	_, err := Verify(ctx, token, w.issuers.Keys(w.out, Source{Issuer: fakeIssuer}), Expect{
		Issuer: fakeIssuer, Audience: "a", Now: w.clock(), Leeway: Leeway, MaxLifetime: time.Hour,
	})
	return err
}

func (w *world) token() string { return w.issuer.Mint(w.clock(), map[string]any{"aud": "a"}) }

func (w *world) asked(t *testing.T, want int) {
	t.Helper()
	if document, keys := w.issuer.Requests(); document != want || keys != want {
		t.Errorf("the issuer was asked %d times for its document and %d times for its keys, want %d", document, keys, want)
	}
}

func TestIssuersCache(t *testing.T) {
	w := newWorld(t)
	for range 5 {
		if err := w.verify(t.Context(), w.token()); err != nil {
			t.Fatal(err)
		}
	}
	w.asked(t, 1)
	w.pass(ttl - time.Second)
	if err := w.verify(t.Context(), w.token()); err != nil {
		t.Fatal(err)
	}
	w.asked(t, 1)
	w.pass(time.Second)
	if err := w.verify(t.Context(), w.token()); err != nil {
		t.Fatal(err)
	}
	w.asked(t, 2)
}

// TestIssuersUnknownKeys: a flood of tokens with keys that do not exist asks the issuer
// once a minute, and a real rotation is found by it.
func TestIssuersUnknownKeys(t *testing.T) {
	w := newWorld(t)
	if err := w.verify(t.Context(), w.token()); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Second)
	for i := range 50 {
		stranger := oidcfake.NewKey(t, "ES256")
		stranger.ID = fmt.Sprint("unknown", i)
		if err := w.verify(t.Context(), stranger.Sign(nil, []byte(`{}`))); fault.Code(err) != method.CodeProofSignature {
			t.Fatalf("unknown key: %v", err)
		}
	}
	w.asked(t, 1)
	w.issuer.Rotate(t)
	if err := w.verify(t.Context(), w.token()); fault.Code(err) != method.CodeProofSignature {
		t.Fatalf("a new key within the minute: %v", err)
	}
	w.pass(minRefresh)
	if err := w.verify(t.Context(), w.token()); err != nil {
		t.Fatalf("a new key after the minute: %v", err)
	}
	w.asked(t, 2)
}

func TestIssuersStaleIfError(t *testing.T) {
	w := newWorld(t)
	if err := w.verify(t.Context(), w.token()); err != nil {
		t.Fatal(err)
	}
	w.issuer.SetDown(true)
	w.pass(ttl)
	for range 3 {
		if err := w.verify(t.Context(), w.token()); err != nil {
			t.Fatalf("the keys that were there are not used: %v", err)
		}
	}
	if document, _ := w.issuer.Requests(); document != 2 {
		t.Errorf("a dead issuer was asked %d times in the same second, want 1", document-1)
	}
	w.pass(maxStale)
	if err := w.verify(t.Context(), w.token()); fault.Code(err) != method.CodeCloudUnreachable {
		t.Errorf("keys of yesterday: %v", err)
	}
	w.issuer.SetDown(false)
	w.pass(retryAfter)
	if err := w.verify(t.Context(), w.token()); err != nil {
		t.Errorf("the issuer is back: %v", err)
	}
}

// TestIssuersFlight: joins that come at once ask once; one that goes away does not
// break off what the others wait for, and one that has no time left does not wait.
func TestIssuersFlight(t *testing.T) {
	w := newWorld(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	set := w.issuer.JWKS()
	w.issuer.KeySet = func(rw http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		fmt.Fprint(rw, set)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	token := w.token()
	errs := make([]error, 8)
	wg.Go(func() { errs[0] = w.verify(ctx, token) })
	<-arrived
	cancel()
	for i := range 7 {
		wg.Go(func() { errs[i+1] = w.verify(t.Context(), token) })
	}
	gone, stop := context.WithCancel(t.Context())
	stop()
	if err := w.verify(gone, token); fault.Code(err) != method.CodeCloudUnreachable {
		t.Errorf("a join without time: %v", err)
	}
	close(release)
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("join %d: %v", i, err)
		}
	}
	w.asked(t, 1)
}

func TestIssuersAreBounded(t *testing.T) {
	w := newWorld(t)
	for i := range 3 * maxIssuers {
		keys := w.issuers.Keys(w.out, Source{Issuer: fmt.Sprintf("ftp://i%d.example.com", i)})
		if _, err := keys.find(t.Context(), "k"); fault.Code(err) != method.CodeProofIssuer {
			t.Fatalf("ftp: %v", err)
		}
	}
	if n := len(w.issuers.entries); n != maxIssuers {
		t.Errorf("%d entries, want %d", n, maxIssuers)
	}
	// All places are taken by fetches: another issuer has to come again.
	for _, e := range w.issuers.entries {
		e.busy = make(chan struct{})
	}
	if err := w.verify(t.Context(), w.token()); fault.Code(err) != method.CodeCloudUnreachable {
		t.Errorf("no room: %v", err)
	}
}

// TestIssuersLie has what a broken or hostile issuer may answer.
func TestIssuersLie(t *testing.T) {
	tests := map[string]struct {
		bend func(w *world)
		code string
	}{
		"another_issuer":   {func(w *world) { w.issuer.Document = set("issuer", "https://issuer.example.com/other") }, method.CodeProofIssuer},
		"issuer_slash":     {func(w *world) { w.issuer.Document = set("issuer", fakeIssuer+"/") }, method.CodeProofIssuer},
		"no_issuer":        {func(w *world) { w.issuer.Document = set("issuer", nil) }, method.CodeProofIssuer},
		"keys_over_http":   {func(w *world) { w.issuer.Document = set("jwks_uri", "http://issuer.example.com/tenant/jwks") }, method.CodeProofIssuer},
		"keys_in_file":     {func(w *world) { w.issuer.Document = set("jwks_uri", "file:///etc/passwd") }, method.CodeProofIssuer},
		"keys_nowhere":     {func(w *world) { w.issuer.Document = set("jwks_uri", "/jwks") }, method.CodeProofIssuer},
		"keys_missing":     {func(w *world) { w.issuer.Document = set("jwks_uri", nil) }, method.CodeProofIssuer},
		"keys_with_user":   {func(w *world) { w.issuer.Document = set("jwks_uri", "https://u:p@issuer.example.com/tenant/jwks") }, method.CodeProofIssuer},
		"document_long":    {func(w *world) { w.issuer.Document = set("x", strings.Repeat("x", maxDiscovery)) }, method.CodeCloudUnreachable},
		"keys_long":        {answer(strings.Repeat(" ", 10<<20)), method.CodeCloudUnreachable},
		"keys_not_json":    {answer("<html>"), method.CodeCloudUnreachable},
		"keys_empty":       {answer(`{"keys":[]}`), method.CodeCloudUnreachable},
		"keys_twice":       {answer(`{"keys":[],"keys":[]}`), method.CodeCloudUnreachable},
		"keys_for_secrets": {answer(`{"keys":[{"kty":"oct","k":"AAAA","kid":"x"}]}`), method.CodeCloudUnreachable},
		"redirect": {func(w *world) {
			w.issuer.KeySet = func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "https://keys.example.com/tenant/jwks2", http.StatusFound)
			}
		}, method.CodeCloudUnreachable},
		"down":      {func(w *world) { w.issuer.SetDown(true) }, method.CodeCloudUnreachable},
		"untrusted": {func(w *world) { w.out = egress.New(egress.Config{Dial: w.server.Dial}) }, method.CodeCloudUnreachable},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			token := w.token()
			tt.bend(w)
			err := w.verify(t.Context(), token)
			if fault.Code(err) != tt.code || fault.Kind(err) == nil {
				t.Errorf("%v (code %q), want code %q", err, fault.Code(err), tt.code)
			}
		})
	}
}

func set(name string, v any) func(map[string]any) {
	return func(doc map[string]any) {
		if doc[name] = v; v == nil {
			delete(doc, name)
		}
	}
}

func answer(body string) func(*world) {
	return func(w *world) {
		w.issuer.KeySet = func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, body) }
	}
}

// TestIssuersKeysElsewhere: Google and Microsoft have their keys on another host.
func TestIssuersKeysElsewhere(t *testing.T) {
	w := newWorld(t)
	w.issuer.Document = set("jwks_uri", "https://keys.example.com/tenant/jwks")
	if err := w.verify(t.Context(), w.token()); err != nil {
		t.Fatal(err)
	}
}

// TestIssuersPrivate: an address on a private network is asked only if it is the host
// that an administrator named, and only if the method says that one did.
func TestIssuersPrivate(t *testing.T) {
	issuer := oidcfake.New(t, "", "ES256")
	server := oidcfake.Serve(t, map[string]http.Handler{"127.0.0.1": issuer})
	issuer.URL = "https://" + server.Addr
	out := egress.New(egress.Config{})
	keys := func(from Source) error {
		_, err := NewIssuers().Keys(out, from).find(t.Context(), issuer.Key().ID)
		return err
	}
	if err := keys(Source{Issuer: issuer.URL, CA: server.CA, Private: true}); err != nil {
		t.Errorf("named by an administrator: %v", err)
	}
	if err := keys(Source{Issuer: issuer.URL, CA: server.CA}); fault.Code(err) != method.CodeCloudUnreachable || !strings.Contains(err.Error(), "public network") {
		t.Errorf("not named: %v", err)
	}
	var hits atomic.Int32
	neighbour := oidcfake.Serve(t, map[string]http.Handler{"127.0.0.1": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) })})
	issuer.Document = set("jwks_uri", "https://"+neighbour.Addr+"/latest/meta-data")
	if err := keys(Source{Issuer: issuer.URL, CA: server.CA + neighbour.CA, Private: true}); fault.Code(err) != method.CodeCloudUnreachable || hits.Load() != 0 {
		t.Errorf("a neighbour that the document names: %v, %d requests", err, hits.Load())
	}
}

// TestIssuersInsecure: an issuer without TLS needs the flag, which holds for its own
// host only.
func TestIssuersInsecure(t *testing.T) {
	issuer := oidcfake.New(t, "http://issuer.example.com", "ES256")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: issuer, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-served })
	out := egress.New(egress.Config{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
	}})
	keys := func(from Source) error {
		_, err := NewIssuers().Keys(out, from).find(t.Context(), issuer.Key().ID)
		return err
	}
	if err := keys(Source{Issuer: issuer.URL, Insecure: true, Private: true}); err != nil {
		t.Errorf("with the flag: %v", err)
	}
	if err := keys(Source{Issuer: issuer.URL, Private: true}); fault.Code(err) != method.CodeProofIssuer {
		t.Errorf("without the flag: %v", err)
	}
	issuer.Document = set("jwks_uri", "http://keys.example.com/jwks")
	if err := keys(Source{Issuer: issuer.URL, Insecure: true, Private: true}); fault.Code(err) != method.CodeProofIssuer {
		t.Errorf("keys of another host without TLS: %v", err)
	}
}

// TestIssuersSourcesApart: keys that came under one authority are not those of the same
// name under another.
func TestIssuersSourcesApart(t *testing.T) {
	w := newWorld(t)
	if err := w.verify(t.Context(), w.token()); err != nil {
		t.Fatal(err)
	}
	other := oidcfake.Serve(t, nil)
	keys := w.issuers.Keys(w.out, Source{Issuer: fakeIssuer, CA: other.CA})
	if _, err := keys.find(t.Context(), w.issuer.Key().ID); fault.Code(err) != method.CodeCloudUnreachable {
		t.Errorf("another authority: %v", err)
	}
	bad := w.issuers.Keys(w.out, Source{Issuer: fakeIssuer, CA: "not PEM"})
	if _, err := bad.find(t.Context(), w.issuer.Key().ID); fault.Code(err) != method.CodeProofIssuer {
		t.Errorf("no PEM: %v", err)
	}
}

func FuzzDiscovery(f *testing.F) {
	f.Add([]byte(`{"issuer":"https://issuer.example.com/tenant","jwks_uri":"https://issuer.example.com/jwks"}`), []byte(`{"keys":[]}`))
	f.Add([]byte(`{"issuer":["https://issuer.example.com/tenant"],"jwks_uri":{}}`), []byte(`{}`))
	var answers [][]byte
	server := oidcfake.Serve(f, map[string]http.Handler{"issuer.example.com": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(answers[0])
		answers = answers[1:]
	})})
	out := egress.New(egress.Config{Roots: server.Roots, Dial: server.Dial})
	f.Fuzz(func(t *testing.T, document, keySet []byte) {
		answers = [][]byte{document, keySet}
		keys, err := NewIssuers().keys(t.Context(), out, Source{Issuer: fakeIssuer}, "")
		if err == nil && len(keys) == 0 || err != nil && fault.Code(err) == "" {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
		var doc map[string]any
		if err == nil && (json.Unmarshal(document, &doc) != nil || doc["issuer"] != fakeIssuer) {
			t.Fatalf("accepted %q", document)
		}
	})
}
