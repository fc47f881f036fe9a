package gcp_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/gcp"
	"teleport/internal/join/jointest"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/test/oidcfake"
)

const (
	issuer  = "https://accounts.google.com"
	project = "my-project-1"
	account = "agent@my-project-1.iam.gserviceaccount.com"
)

// world is Google with one virtual machine.
type world struct {
	google   *oidcfake.Issuer
	metadata *oidcfake.GCP
	now      time.Time
	// dialled is the address that the machine's half asked last.
	dialled atomic.Value
}

var machines atomic.Uint64

func newWorld(t *testing.T) (*world, *jointest.Setup) {
	t.Helper()
	w := &world{google: oidcfake.New(t, issuer, "RS256"), now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}
	w.google.Document = func(doc map[string]any) { doc["jwks_uri"] = "https://www.googleapis.com/jwks" }
	server := oidcfake.Serve(t, map[string]http.Handler{"accounts.google.com": w.google, "www.googleapis.com": w.google})
	w.metadata = &oidcfake.GCP{
		Issuer: w.google, Now: func() time.Time { return w.now }, Email: account,
		Instance: oidcfake.GCPInstance(project, "europe-west4-a", "web-1", 1e15+machines.Add(1)),
	}
	plain := httptest.NewServer(w.metadata)
	t.Cleanup(plain.Close)
	return w, &jointest.Setup{
		Spec: &typesv1.TokenSpec{Gcp: &typesv1.GCPJoin{Allow: []*typesv1.GCPRule{{
			ProjectIds: []string{project}, ServiceAccounts: []string{account}, Locations: []string{"europe-west4"}, Vm: "required",
		}}}},
		Machine: method.Machine{
			Getenv: func(string) string { return "" },
			Metadata: egress.Metadata(egress.Config{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				w.dialled.Store(addr)
				return (&net.Dialer{}).DialContext(ctx, network, plain.Listener.Addr().String())
			}}),
		},
		Auth: egress.Config{Roots: server.Roots, Dial: server.Dial},
		Now:  w.now,
	}
}

// fresh is the method with an empty cache at each attempt: what the issuer does must
// not depend on what it did in the case before.
func fresh() method.Method {
	m := gcp.Method(jwt.NewIssuers())
	m.Verify = func(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
		return gcp.Method(jwt.NewIssuers()).Verify(ctx, a, ask)
	}
	return m
}

func TestSuite(t *testing.T) {
	var w *world
	good := func(t *testing.T) *jointest.Setup {
		var s *jointest.Setup
		w, s = newWorld(t)
		return s
	}
	// answer replaces the machine's answer.
	answer := func(token func() string) func(*testing.T, *jointest.Setup) {
		return func(_ *testing.T, s *jointest.Setup) { s.Tamper = func([]byte) []byte { return []byte(token()) } }
	}
	rule := func(change func(*typesv1.GCPRule)) func(*testing.T, *jointest.Setup) {
		return func(_ *testing.T, s *jointest.Setup) { change(s.Spec.GetGcp().GetAllow()[0]) }
	}
	// claims changes what Google says.
	claims := func(change map[string]any) func(*testing.T, *jointest.Setup) {
		return func(*testing.T, *jointest.Setup) { w.metadata.Claims = change }
	}
	// forged is a token for the right attempt by a key that is not Google's: that of a
	// service account, which its owner has, with an instance that he made up.
	forged := func(kid func() string, iss string) func(*testing.T, *jointest.Setup) {
		return func(t *testing.T, s *jointest.Setup) {
			own := oidcfake.New(t, iss, "RS256")
			key := own.Key()
			key.ID = kid()
			w.metadata.Issuer = own
			own.Publish(key)
		}
	}
	noVM := func(change func(*typesv1.GCPRule)) func(*testing.T, *jointest.Setup) {
		return func(_ *testing.T, s *jointest.Setup) {
			w.metadata.Instance = nil
			change(s.Spec.GetGcp().GetAllow()[0])
		}
	}
	jointest.Run(t, jointest.Rig{
		Method: fresh(), Good: good,
		Claims: map[string]string{"project_id": project, "service_account": account, "vm": "true", "instance_name": "web-1"},
		Bad: []jointest.Case{
			{Name: "expired", Bend: func(_ *testing.T, s *jointest.Setup) { s.Now = s.Now.Add(time.Hour + jwt.Leeway) }, Code: method.CodeProofExpired},
			{Name: "future", Bend: func(_ *testing.T, s *jointest.Setup) { s.Now = s.Now.Add(-jwt.Leeway - time.Second) }, Code: method.CodeProofNotYetValid},
			{Name: "wrong_account", Bend: rule(func(r *typesv1.GCPRule) { r.ProjectIds = []string{"other-project"} }), Code: method.CodeRuleMismatch},
			{Name: "wrong_service_account", Bend: rule(func(r *typesv1.GCPRule) { r.ServiceAccounts[0] = "b" + account }), Code: method.CodeRuleMismatch},
			{Name: "wrong_location", Bend: rule(func(r *typesv1.GCPRule) { r.Locations = []string{"europe-west1", "europe-west4-b"} }), Code: method.CodeRuleMismatch},
			{Name: "project_lookalike", Bend: rule(func(r *typesv1.GCPRule) { r.ProjectIds = []string{"my-project-11", "my-project"} }), Code: method.CodeRuleMismatch},
			{Name: "wrong_audience", Bend: claims(map[string]any{"aud": "https://other.example.com/join/" + strings.Repeat("A", 43)}), Code: method.CodeProofAudience},
			{Name: "constant_audience", Bend: claims(map[string]any{"aud": "suite.example.com"}), Code: method.CodeProofAudience},
			{Name: "audience_without_attempt", Bend: claims(map[string]any{"aud": []string{"https://suite.example.com/join/"}}), Code: method.CodeProofAudience},
			{Name: "cloud_down", Bend: func(*testing.T, *jointest.Setup) { w.google.SetDown(true) }, Code: method.CodeCloudUnreachable},
			{Name: "cloud_lies", Bend: func(*testing.T, *jointest.Setup) {
				w.google.Document = func(doc map[string]any) { doc["issuer"] = "https://accounts.google.com.evil.example.com" }
			}, Code: method.CodeProofIssuer},
			{Name: "issuer_without_https", Bend: claims(map[string]any{"iss": "accounts.google.com"}), Code: method.CodeProofIssuer},
			{Name: "key_of_a_service_account", Bend: forged(func() string { return "service-account-key" }, account), Code: method.CodeProofIssuer},
			{Name: "key_of_a_service_account_as_googles", Bend: forged(func() string { return w.google.Key().ID }, issuer), Code: method.CodeProofSignature},
			{Name: "email_not_verified", Bend: claims(map[string]any{"email_verified": false}), Code: method.CodeProofMachine},
			{Name: "email_verified_as_text", Bend: claims(map[string]any{"email_verified": "true"}), Code: method.CodeProofMachine},
			{Name: "token_of_a_person", Bend: claims(map[string]any{"email": "eve@my-project-1.iam.gserviceaccount.com.example.com"}), Code: method.CodeProofMachine},
			{Name: "no_email", Bend: claims(map[string]any{"email": ""}), Code: method.CodeProofMachine},
			{Name: "instance_without_id", Bend: claims(map[string]any{"google": map[string]any{"compute_engine": map[string]any{"project_id": project, "zone": "europe-west4-a"}}}), Code: method.CodeProofMachine},
			{Name: "instance_is_text", Bend: claims(map[string]any{"google": map[string]any{"compute_engine": "yes"}}), Code: method.CodeProofMachine},
			{Name: "instance_of_other_project", Bend: func(*testing.T, *jointest.Setup) {
				w.metadata.Instance = oidcfake.GCPInstance("evil-project", "europe-west4-a", "web-1", 7)
			}, Code: method.CodeRuleMismatch},
			{Name: "no_vm_but_required", Bend: noVM(func(r *typesv1.GCPRule) { r.Locations = nil }), Code: method.CodeRuleMismatch},
			{Name: "no_vm_but_location", Bend: noVM(func(r *typesv1.GCPRule) { r.Vm = "" }), Code: method.CodeRuleMismatch},
			{Name: "no_vm_and_default_account", Bend: func(_ *testing.T, s *jointest.Setup) {
				w.metadata.Instance, w.metadata.Email = nil, "739419398126-compute@developer.gserviceaccount.com"
			}, Code: method.CodeProofMachine},
			{Name: "no_vm_and_domain_project", Bend: func(_ *testing.T, s *jointest.Setup) {
				w.metadata.Instance, w.metadata.Email = nil, "a@my-project-1.evil.com.iam.gserviceaccount.com"
			}, Code: method.CodeProofMachine},
			{Name: "old_token", Bend: claims(map[string]any{"iat": 1700000000}), Code: method.CodeProofLifetime},
			{Name: "no_metadata", Bend: func(_ *testing.T, s *jointest.Setup) {
				s.Machine.Metadata = egress.Metadata(egress.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") }})
			}, Code: method.CodeMetadata},
			{Name: "metadata_of_another_cloud", Bend: func(*testing.T, *jointest.Setup) { w.metadata.NoFlavor = true }, Code: method.CodeMetadata},
			{Name: "no_service_account", Bend: func(*testing.T, *jointest.Setup) { w.metadata.Email = "" }, Code: method.CodeCredentials},
			{Name: "not_a_token", Bend: answer(func() string { return "ya29.access-token" }), Code: method.CodeProofMalformed},
		},
	})
}

// TestMachine: two machines are two, and one is the same however often it proves itself.
func TestMachine(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		w, s := newWorld(t)
		for range 2 {
			c, err := jointest.Attempt(t.Context(), fresh(), s, [32]byte{1})
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("gcp/%s/%s", project, w.metadata.Instance["instance_id"]); c.Machine != want || len(c.Once) != 0 {
				t.Errorf("machine %q, once %v; want %q and nothing to remember", c.Machine, c.Once, want)
			}
			seen[c.Machine] = true
		}
	}
	if len(seen) != 2 {
		t.Errorf("%d machines, want 2", len(seen))
	}
}

// TestPod: with workload identity there is no virtual machine; the project is that of
// the service account.
func TestPod(t *testing.T) {
	w, s := newWorld(t)
	w.metadata.Instance = nil
	s.Spec.Gcp.Allow[0] = &typesv1.GCPRule{ProjectIds: []string{project}, ServiceAccounts: []string{account}, Vm: "optional"}
	c, err := jointest.Attempt(t.Context(), fresh(), s, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if c.Get("project_id") != project || c.Get("vm") != "false" || c.Machine != "" {
		t.Errorf("claims = %+v", c)
	}
}

// TestRefusalsCarryWhatWasVerified: the audit log sees which machine it was.
func TestRefusalsCarryWhatWasVerified(t *testing.T) {
	_, s := newWorld(t)
	s.Now = s.Now.Add(3 * time.Hour)
	c, err := jointest.Attempt(t.Context(), fresh(), s, [32]byte{1})
	if fault.Code(err) != method.CodeProofExpired || c.Get("project_id") != project {
		t.Errorf("claims %v, error %v", c.Attributes, err)
	}
}

func TestMetadataHost(t *testing.T) {
	for set, want := range map[string]string{"": "metadata.google.internal:80", "169.254.169.254": "169.254.169.254:80", "localhost:8123": "localhost:8123"} {
		w, s := newWorld(t)
		s.Machine.Getenv = func(name string) string {
			if name == "GCE_METADATA_HOST" {
				return set
			}
			return ""
		}
		if _, err := jointest.Attempt(t.Context(), fresh(), s, [32]byte{1}); err != nil {
			t.Fatal(err)
		}
		if got := w.dialled.Load(); got != want {
			t.Errorf("with GCE_METADATA_HOST=%q %v was asked, want %s", set, got, want)
		}
	}
}

// TestMetadataRedirect: the metadata service is not followed elsewhere.
func TestMetadataRedirect(t *testing.T) {
	_, s := newWorld(t)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("was followed") }))
	t.Cleanup(elsewhere.Close)
	redirect := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		http.Redirect(w, r, elsewhere.URL, http.StatusFound)
	}))
	t.Cleanup(redirect.Close)
	s.Machine.Metadata = egress.Metadata(egress.Config{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, redirect.Listener.Addr().String())
	}})
	if _, err := jointest.Attempt(t.Context(), fresh(), s, [32]byte{1}); fault.Code(err) != method.CodeMetadata {
		t.Errorf("redirect: %v", err)
	}
}
