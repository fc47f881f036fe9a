package types_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func TestKindsTable(t *testing.T) {
	spellings := make(map[string]string)
	for _, k := range types.Kinds() {
		if k.New == nil || k.Validate == nil || k.Plural == "" || len(k.Columns) == 0 || k.Version() == "" {
			t.Errorf("kind %s: the row is not complete", k.Name)
		}
		for _, s := range append([]string{k.Name}, k.Aliases...) {
			if other, twice := spellings[s]; twice {
				t.Errorf("kind %s: %q is also a spelling of %s", k.Name, s, other)
			}
			spellings[s] = k.Name
		}
		for _, s := range append([]string{k.Name, k.Plural, strings.ToUpper(k.Plural)}, k.Aliases...) {
			if got, ok := types.Kind(s); !ok || got.Name != k.Name {
				t.Errorf("Kind(%q) = %q, %v, want %q", s, got.Name, ok, k.Name)
			}
		}
		r := types.New(k.Name, "some-name")
		want := "some-name"
		if k.Singleton {
			want = k.Name
		}
		if r.GetKind() != k.Name || r.GetVersion() != k.Version() || r.GetMetadata().GetName() != want {
			t.Errorf("New(%q) = %v", k.Name, r)
		}
		for _, c := range k.Columns {
			if c.Title == "" || c.Value == nil {
				t.Errorf("kind %s: a column is not complete", k.Name)
				continue
			}
			c.Value(r)
			c.Value(k.New())
		}
	}
	if k, ok := types.Kind("nothing"); ok {
		t.Errorf("Kind(nothing) = %v", k.Name)
	}
	if r := types.New("nothing", "x"); r != nil {
		t.Errorf("New(nothing) = %v", r)
	}
}

func TestSecret(t *testing.T) {
	pair := func() *typesv1.CertAuthorityKeys {
		return &typesv1.CertAuthorityKeys{
			Ssh: []*typesv1.SshKeyPair{{PublicKey: "ssh", PrivateKey: []byte("private")}},
			Tls: []*typesv1.TlsKeyPair{{Cert: "tls", PrivateKey: []byte("private")}},
			Jwt: []*typesv1.JwtKeyPair{{PublicKey: "jwt", PrivateKey: []byte("private")}},
		}
	}
	for _, r := range []types.Resource{
		&typesv1.CertAuthority{Kind: types.KindCertAuthority, Spec: &typesv1.CertAuthoritySpec{ActiveKeys: pair(), AdditionalTrustedKeys: pair()}},
		&typesv1.Token{Kind: types.KindToken, Status: &typesv1.TokenStatus{Verifier: []byte("private")}},
		&typesv1.Credential{Kind: types.KindCredential, Spec: &typesv1.CredentialSpec{PasswordHash: "private", TotpSecret: "private"}},
		&typesv1.UserToken{Kind: types.KindUserToken, Spec: &typesv1.UserTokenSpec{User: "u", TokenHash: []byte("private"), TotpSecret: "private"}},
		&typesv1.WebSession{Kind: types.KindWebSession, Spec: &typesv1.WebSessionSpec{User: "u", TokenHash: []byte("private")}},
	} {
		k, _ := types.Kind(r.GetKind())
		before := proto.Clone(r)
		b, err := types.Encode(k.Secret(r))
		if err != nil || strings.Contains(string(b), "private") {
			t.Errorf("%s: a secret is left: %q, %v", k.Name, b, err)
		}
		if !proto.Equal(before, r) {
			t.Errorf("%s: Secret changed its argument", k.Name)
		}
	}
}

// minimal are resources with the least that Check accepts.
func minimal(kind string) types.Resource {
	r := types.New(kind, "name")
	switch r := r.(type) {
	case *typesv1.ClusterName:
		r.Spec = &typesv1.ClusterNameSpec{ClusterName: "example.com", ClusterId: "id"}
	case *typesv1.CertAuthority:
		r.Metadata.Name = types.CAHost
		r.Spec = &typesv1.CertAuthoritySpec{Type: types.CAHost, ClusterName: "example.com", ActiveKeys: &typesv1.CertAuthorityKeys{Ssh: []*typesv1.SshKeyPair{{PublicKey: "k"}}}}
	case *typesv1.UserToken:
		r.Metadata.Expires = timestamppb.New(time.Unix(1e9, 0))
		r.Spec = &typesv1.UserTokenSpec{User: "alice", Usage: types.UsageInvite, TokenHash: make([]byte, 32)}
	case *typesv1.Token:
		r.Spec = &typesv1.TokenSpec{Roles: []string{"Node"}}
	case *typesv1.Server:
		r.Spec = &typesv1.ServerSpec{Hostname: "host"}
	case *typesv1.Instance:
		r.Spec = &typesv1.InstanceSpec{Hostname: "host"}
	case *typesv1.Lock:
		r.Spec = &typesv1.LockSpec{Target: &typesv1.LockTarget{User: "alice"}}
	case *typesv1.ClusterAlert:
		r.Spec = &typesv1.ClusterAlertSpec{Message: "look here"}
	case *typesv1.App:
		r.Spec = &typesv1.AppSpec{Uri: "http://localhost:8080"}
	case *typesv1.AppServer:
		r.Metadata.Name = types.ServerName("name", "id")
		r.Spec = &typesv1.AppServerSpec{HostId: "id", Hostname: "host", App: minimal(types.KindApp).(*typesv1.App)}
	case *typesv1.Database:
		r.Spec = &typesv1.DatabaseSpec{Protocol: types.ProtocolPostgres, Uri: "localhost:5432"}
	case *typesv1.DatabaseServer:
		r.Metadata.Name = types.ServerName("name", "id")
		r.Spec = &typesv1.DatabaseServerSpec{HostId: "id", Hostname: "host", Database: minimal(types.KindDatabase).(*typesv1.Database)}
	case *typesv1.WebSession:
		r.Spec = &typesv1.WebSessionSpec{User: "alice", TokenHash: make([]byte, 32)}
	case *typesv1.SessionTracker:
		r.Spec = &typesv1.SessionTrackerSpec{SessionKind: types.KindSSH, State: types.SessionRunning, Hostname: "host", ServerId: "id", Login: "root", Owner: "alice"}
	}
	return r
}

func TestCheckMinimal(t *testing.T) {
	for _, k := range types.Kinds() {
		r := minimal(k.Name)
		if err := types.Check(r); err != nil {
			t.Errorf("Check(minimal %s): %v", k.Name, err)
		}
		once := proto.Clone(r)
		if err := types.Check(r); err != nil || !proto.Equal(once, r) {
			t.Errorf("Check(%s) a second time: %v, changed: %v", k.Name, err, !proto.Equal(once, r))
		}
	}
	for _, r := range types.PresetRoles() {
		before := proto.Clone(r)
		if err := types.Check(r); err != nil || !proto.Equal(before, r) {
			t.Errorf("Check(preset %s): %v, changed: %v", r.GetMetadata().GetName(), err, !proto.Equal(before, r))
		}
	}
}

func TestWire(t *testing.T) {
	for _, k := range types.Kinds() {
		r := minimal(k.Name)
		b, err := types.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := types.Decode(k.Name, b)
		if err != nil || !proto.Equal(got, r) {
			t.Errorf("Decode(%s) = %v, %v, want %v", k.Name, got, err, r)
		}
		a, err := types.ToAny(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err = types.FromAny(a)
		if err != nil || !proto.Equal(got, r) {
			t.Errorf("FromAny(%s) = %v, %v, want %v", k.Name, got, err, r)
		}
	}
	user, err := types.Encode(minimal(types.KindUser))
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		kind string
		b    []byte
	}{
		"other_kind":   {types.KindRole, user},
		"unknown_kind": {"moon", user},
		"damaged":      {types.KindUser, []byte("\xff\xff\xff")},
		"empty":        {types.KindUser, nil},
	} {
		if r, err := types.Decode(row.kind, row.b); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("Decode %s = %v, %v, want ErrInvalid", name, r, err)
		}
	}
	wrap := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for name, a := range map[string]*anypb.Any{
		"nil":        nil,
		"empty":      {},
		"event":      wrap(&auditv1.Event{Event: "x"}),
		"wrong_kind": wrap(&typesv1.User{Kind: types.KindRole}),
		"no_kind":    wrap(&typesv1.User{}),
		"damaged":    {TypeUrl: "type.googleapis.com/teleport.types.v1.User", Value: []byte("\xff")},
	} {
		if r, err := types.FromAny(a); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("FromAny %s = %v, %v, want ErrInvalid", name, r, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, k := range types.Kinds() {
		b, err := types.Encode(minimal(k.Name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(k.Name, b)
	}
	f.Fuzz(func(t *testing.T, kind string, b []byte) {
		r, err := types.Decode(kind, b)
		if err != nil {
			return
		}
		_ = types.Check(r)
		if _, err := types.MarshalYAML(r); err != nil {
			t.Fatalf("MarshalYAML: %v", err)
		}
	})
}
