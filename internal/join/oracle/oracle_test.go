package oracle

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/jointest"
	"teleport/internal/join/method"
	"teleport/test/ocifake"
)

const (
	tenancy      = "ocid1.tenancy.oc1..aaaatenancy"
	compartment  = "ocid1.compartment.oc1..aaaacompartment"
	otherTenancy = "ocid1.tenancy.oc1..aaaaother"
)

func instanceID(n int) string { return fmt.Sprintf("ocid1.instance.oc1.phx.aaaainstance%d", n) }

type world struct {
	cloud *ocifake.Cloud
	n     int
}

// machine returns an attempt of an instance with the units.
func (w *world) machine(t *testing.T, units []string, keyFile, usage string) *jointest.Setup {
	t.Helper()
	return w.setup(t, w.cloud.Issue(t, units, keyFile, usage))
}

func (w *world) setup(t *testing.T, m ocifake.Instance) *jointest.Setup {
	t.Helper()
	return &jointest.Setup{
		Spec: &typesv1.TokenSpec{Oracle: &typesv1.OracleJoin{Allow: []*typesv1.OracleRule{{
			Tenancy: tenancy, ParentCompartments: []string{compartment}, Regions: []string{"phx"},
		}}}},
		Machine: method.Machine{Metadata: egress.Metadata(ocifake.Metadata(t, m)), Egress: egress.New(w.cloud.Egress())},
		Auth:    w.cloud.Egress(),
	}
}

func (w *world) good(t *testing.T) *jointest.Setup {
	t.Helper()
	w.n++
	return w.machine(t, ocifake.Units(instanceID(w.n), compartment, tenancy), "", "")
}

// change bends the answer.
func change(t *testing.T, f func(*answer)) func([]byte) []byte {
	return func(raw []byte) []byte {
		var a answer
		if err := json.Unmarshal(raw, &a); err != nil {
			t.Error(err)
		}
		f(&a)
		out, err := json.Marshal(a)
		if err != nil {
			t.Error(err)
		}
		return out
	}
}

func TestSuite(t *testing.T) {
	w := &world{cloud: ocifake.New(t)}
	hostile := ocifake.New(t)
	// other replaces the machine, in a world that is good but for it.
	other := func(f func(t *testing.T) *jointest.Setup) func(*testing.T, *jointest.Setup) {
		return func(t *testing.T, s *jointest.Setup) {
			o := f(t)
			s.Machine, s.Auth = o.Machine, o.Auth
		}
	}
	units := func(u ...string) func(*testing.T, *jointest.Setup) {
		return other(func(t *testing.T) *jointest.Setup { return w.machine(t, u, "", "") })
	}
	// signed is for machines whose own half would stop: the answer of a good machine,
	// with another certificate of the same key.
	signed := func(u []string, keyFile, usage string) func(*testing.T, *jointest.Setup) {
		return func(t *testing.T, s *jointest.Setup) {
			block, _ := pem.Decode(w.cloud.Issue(t, u, keyFile, usage).Certificate)
			s.Tamper = change(t, func(a *answer) { a.Certificate = block.Bytes })
		}
	}
	good := ocifake.Units(instanceID(0), compartment, tenancy)
	jointest.Run(t, jointest.Rig{
		// A cache of its own for each, or the roots would be asked for only once.
		Method: fresh(),
		Good:   w.good,
		Claims: map[string]string{"tenancy": tenancy, "parent_compartments": compartment, "regions": "us-phoenix-1"},
		Bad: []jointest.Case{
			{Name: "expired", Code: method.CodeProofExpired, Bend: func(_ *testing.T, s *jointest.Setup) { s.Now = time.Now().AddDate(0, 0, 2) }},
			{Name: "future", Code: method.CodeProofNotYetValid, Bend: func(_ *testing.T, s *jointest.Setup) { s.Now = time.Now().AddDate(0, 0, -2) }},
			{Name: "old request", Code: method.CodeProofExpired, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Request.Date = httpDate(time.Now().Add(-6 * time.Minute)) })
			}},
			{Name: "request of tomorrow", Code: method.CodeProofNotYetValid, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Request.Date = httpDate(time.Now().Add(time.Hour)) })
			}},
			{Name: "wrong_account", Code: method.CodeRuleMismatch, Bend: units(ocifake.Units(instanceID(0), compartment, otherTenancy)...)},
			{Name: "wrong compartment", Code: method.CodeRuleMismatch, Bend: units(ocifake.Units(instanceID(0), compartment+"x", tenancy)...)},
			{Name: "wrong region", Code: method.CodeRuleMismatch, Bend: units(ocifake.Units("ocid1.instance.oc1.eu-frankfurt-1.a", compartment, tenancy)...)},
			{Name: "wrong_audience", Code: method.CodeCloudRefused, Bend: func(t *testing.T, s *jointest.Setup) {
				// The request was signed for another region's host.
				o := w.machine(t, ocifake.Units("ocid1.instance.oc1.eu-frankfurt-1.a", compartment, tenancy), "", "")
				var elsewhere signedRequest
				o.Tamper = change(t, func(a *answer) { elsewhere = a.Request })
				o.Spec.Oracle.Allow[0].Regions = nil
				if _, err := jointest.Attempt(t.Context(), fresh(), o, [32]byte{}); err != nil {
					t.Fatal(err)
				}
				s.Tamper = change(t, func(a *answer) { a.Request = elsewhere })
			}},
			{Name: "cloud_down", Code: method.CodeCloudUnreachable, Bend: func(_ *testing.T, s *jointest.Setup) {
				s.Auth.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") }
			}},
			{Name: "cloud_lies", Code: method.CodeProofSignature, Bend: func(t *testing.T, s *jointest.Setup) {
				// The whole cloud of the machine is another one, and Auth's is the real one: the
				// request is not known there, so the roots come with a good one.
				m := hostile.Issue(t, good, "", "")
				h := &world{cloud: hostile}
				o := h.setup(t, m)
				real := w.machine(t, good, "", "")
				var request signedRequest
				real.Tamper = change(t, func(a *answer) { request = a.Request })
				if _, err := jointest.Attempt(t.Context(), fresh(), real, [32]byte{}); err != nil {
					t.Fatal(err)
				}
				s.Machine = o.Machine
				s.Tamper = change(t, func(a *answer) { a.Request = request })
			}},
			{Name: "no certificate type", Code: method.CodeProofMachine, Bend: signed(good[1:], "", "")},
			{Name: "user's certificate", Code: method.CodeProofMachine, Bend: signed(append([]string{"opc-certtype:user"}, good[1:]...), "", "")},
			{Name: "two instances", Code: method.CodeProofMachine, Bend: signed(append([]string{"opc-instance:" + instanceID(9)}, good...), "", "")},
			{Name: "two tenants", Code: method.CodeProofMachine, Bend: signed(append([]string{"opc-tenant:" + otherTenancy}, good...), "", "")},
			{Name: "two types", Code: method.CodeProofMachine, Bend: signed(append([]string{"opc-certtype:instance"}, good...), "", "")},
			{Name: "no tenant", Code: method.CodeProofMachine, Bend: signed(good[:3], "", "")},
			{Name: "invented region", Code: method.CodeProofMachine, Bend: signed(ocifake.Units("ocid1.instance.oc1.evil.a", compartment, tenancy), "", "")},
			{Name: "host in the region", Code: method.CodeProofMachine, Bend: signed(ocifake.Units("ocid1.instance.oc1.evil@example-1.a", compartment, tenancy), "", "")},
			{Name: "no region", Code: method.CodeProofMachine, Bend: signed(ocifake.Units("ocid1.instance.oc1..a", compartment, tenancy), "", "")},
			{Name: "other realm", Code: method.CodeProofMachine, Bend: signed(ocifake.Units("ocid1.instance.oc3.phx.a", compartment, tenancy), "", "")},
			{Name: "volume as instance", Code: method.CodeProofMachine, Bend: signed(ocifake.Units("ocid1.volume.oc1.phx.a", compartment, tenancy), "", "")},
			{Name: "not for clients", Code: method.CodeProofSignature, Bend: signed(good, "", "serverAuth")},
			{Name: "elliptic key", Code: method.CodeProofMalformed, Bend: signed(good, w.cloud.Key(t, "ec.key", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"), "")},
			{Name: "small key", Code: method.CodeProofMalformed, Bend: signed(good, w.cloud.Key(t, "small.key", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"), "")},
			{Name: "another's key", Code: method.CodeProofSignature, Bend: signed(good, w.cloud.Key(t, "another.key", "-algorithm", "RSA"), "")},
			{Name: "certificate that is not one", Code: method.CodeProofMalformed, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Certificate = []byte{0x30, 3, 2, 1, 1} })
			}},
			{Name: "too many intermediates", Code: method.CodeProofMalformed, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) {
					for range maxIntermediate {
						a.Intermediates = append(a.Intermediates, a.Intermediates[0])
					}
				})
			}},
			{Name: "no intermediates", Code: method.CodeProofSignature, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Intermediates = nil })
			}},
			{Name: "header in the key id", Code: method.CodeProofMalformed, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Request.KeyID += "\r\nX: y" })
			}},
			{Name: "quote in the key id", Code: method.CodeProofMalformed, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Request.KeyID += `",headers="date` })
			}},
			{Name: "key id of a user", Code: method.CodeProofMalformed, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Request.KeyID = "ocid1.tenancy.oc1..a/ocid1.user.oc1..b/aa:bb" })
			}},
			{Name: "header in the date", Code: method.CodeProofMalformed, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Request.Date += "\r\nX: y" })
			}},
			{Name: "unknown session", Code: method.CodeCloudRefused, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Request.KeyID = "ST$a.b.c" })
			}},
			{Name: "request of another session", Code: method.CodeCloudRefused, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Request.Signature[5] ^= 1 })
			}},
			{Name: "no metadata service", Code: method.CodeMetadata, Bend: func(_ *testing.T, s *jointest.Setup) {
				s.Machine.Metadata = egress.Metadata(egress.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") }})
			}},
			{Name: "no way to the cloud", Code: method.CodeCredentials, Bend: func(_ *testing.T, s *jointest.Setup) {
				s.Machine.Egress = egress.New(egress.Config{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") }})
			}},
		},
	})
}

// fresh is the method with a new cache at every attempt.
func fresh() method.Method {
	m := Method()
	m.Verify = func(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
		return Method().Verify(ctx, a, ask)
	}
	return m
}

// What the cloud answers, and what is made of it.
func TestAnswersOfTheCloud(t *testing.T) {
	w := &world{cloud: ocifake.New(t)}
	answers := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		code    string
	}{
		"failure":   {answers(http.StatusInternalServerError, ""), method.CodeCloudUnreachable},
		"too many":  {answers(http.StatusTooManyRequests, ""), method.CodeCloudUnreachable},
		"refusal":   {answers(http.StatusForbidden, "{}"), method.CodeCloudRefused},
		"not JSON":  {answers(http.StatusOK, "<html>"), method.CodeCloudRefused},
		"nothing":   {answers(http.StatusOK, `{"certificates":[]}`), method.CodeCloudRefused},
		"no base64": {answers(http.StatusOK, `{"certificates":["!"]}`), method.CodeCloudRefused},
		"no DER":    {answers(http.StatusOK, `{"certificates":["AAAA"]}`), method.CodeCloudRefused},
		"too long":  {answers(http.StatusOK, strings.Repeat(" ", egress.DefaultLimit+1)), method.CodeCloudUnreachable},
		"moved": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://auth.evil.example/", http.StatusTemporaryRedirect)
		}, method.CodeCloudRefused},
	} {
		t.Run(name, func(t *testing.T) {
			w.cloud.Roots = c.handler
			_, err := jointest.Attempt(t.Context(), fresh(), w.good(t), [32]byte{1})
			if got := fault.Code(err); got != c.code {
				t.Fatalf("refused with %q (%v), want %q", got, err, c.code)
			}
		})
	}
	for _, asked := range w.cloud.Asked() {
		if host, _, _ := strings.Cut(asked, " "); host != "auth.us-phoenix-1.oraclecloud.com" {
			t.Errorf("asked %s", asked)
		}
	}
}

// The roots are kept for the region until it says to ask again, and asked for once by
// those who come at the same time.
func TestRootsAreKept(t *testing.T) {
	cloud := ocifake.New(t)
	w := &world{cloud: cloud}
	m := Method()
	fetched := func() int {
		n := 0
		for _, asked := range cloud.Asked() {
			if strings.Contains(asked, rootsPath) {
				n++
			}
		}
		return n
	}
	s := w.good(t)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			again := *s
			again.Spec = proto.CloneOf(s.Spec)
			_, errs[i] = jointest.Attempt(t.Context(), m, &again, [32]byte{byte(i)})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if n := fetched(); n != 1 {
		t.Errorf("the roots were fetched %d times for joins at the same time, want 1", n)
	}
	later := time.Now().Add(90 * time.Minute)
	cloud.Now = func() time.Time { return later }
	s = w.good(t)
	s.Now, s.Machine.Now = later, cloud.Now
	if _, err := jointest.Attempt(t.Context(), m, s, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	if n := fetched(); n != 2 {
		t.Errorf("the roots were fetched %d times, want 2: their time was over", n)
	}
}

// A machine that Oracle does not know refuses nobody else, and with known roots a
// refusal by the rules says what was proven.
func TestBadRequestIsItsMakersAlone(t *testing.T) {
	w := &world{cloud: ocifake.New(t)}
	m := Method()
	bad := w.good(t)
	bad.Tamper = change(t, func(a *answer) { a.Request.Signature[5] ^= 1 })
	if _, err := jointest.Attempt(t.Context(), m, bad, [32]byte{1}); fault.Code(err) != method.CodeCloudRefused {
		t.Fatalf("got %v", err)
	}
	denied := w.good(t)
	denied.Spec.Oracle.Allow[0].Tenancy = otherTenancy
	claims, err := jointest.Attempt(t.Context(), m, denied, [32]byte{1})
	if fault.Code(err) != method.CodeRuleMismatch || len(claims.Attributes) != 0 {
		t.Fatalf("got %v, %v: nothing is proven without roots", claims, err)
	}
	if _, err := jointest.Attempt(t.Context(), m, w.good(t), [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	claims, err = jointest.Attempt(t.Context(), m, denied, [32]byte{1})
	if fault.Code(err) != method.CodeRuleMismatch || claims.Get("tenancy") != tenancy {
		t.Fatalf("got %v, %v: the refusal should have what was proven", claims, err)
	}
}

func TestParseRoots(t *testing.T) {
	cloud := ocifake.New(t)
	root := cloud.Issue(t, ocifake.Units(instanceID(1), compartment, tenancy), "", "").Intermediate
	block, _ := pem.Decode(root)
	for name, text := range map[string]string{"base64": base64.StdEncoding.EncodeToString(block.Bytes), "pem": string(root)} {
		body, err := json.Marshal(map[string]any{"certificates": []string{text}, "refreshIn": "2030-01-02T03:04:05Z"})
		if err != nil {
			t.Fatal(err)
		}
		_, refresh, err := parseRoots(body)
		if err != nil || refresh.Year() != 2030 {
			t.Errorf("%s: %v, %v", name, refresh, err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"certificate":"AQ==","intermediates":["AQ=="],"signature":"AQ==","request":{"date":"x","key_id":"ST$a","signature":"AQ=="}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = parseProof(data) })
}

func FuzzUnits(f *testing.F) {
	f.Add("opc-certtype:instance", "opc-instance:"+instanceID(1), "opc-compartment:"+compartment, "opc-tenant:"+tenancy)
	f.Add("", ":", "opc-tenant:", "opc-instance:ocid1.instance.oc1.phx.")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		i, err := parseInstance([]string{a, b, c, d})
		if err == nil && !strings.HasSuffix(authHost(i.Region), "."+i.Region.Domain) {
			t.Errorf("host %q", authHost(i.Region))
		}
	})
}

func FuzzRoots(f *testing.F) {
	f.Add([]byte(`{"certificates":["AAAA"],"refreshIn":"2030-01-02T03:04:05Z"}`))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _, _ = parseRoots(data) })
}
