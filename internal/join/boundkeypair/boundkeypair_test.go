package boundkeypair

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/jointest"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// box is a machine and the token it belongs to.
type box struct {
	dir      string
	settings map[string]string
	token    *typesv1.Token
	// rehearses: its joins are rehearsals.
	rehearses bool
}

// newBox returns a machine that has the registration secret of a token.
func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{dir: t.TempDir(), settings: map[string]string{}, token: &typesv1.Token{
		Metadata: &typesv1.Metadata{Name: "suite"},
		Spec:     &typesv1.TokenSpec{JoinMethod: types.JoinMethodBoundKeypair, BoundKeypair: &typesv1.BoundKeypairJoin{}},
	}}
	secret, err := Prepare(b.token)
	if err != nil || len(secret) != 32 {
		t.Fatalf("Prepare: %q, %v", secret, err)
	}
	b.settings[SettingSecret] = secret
	return b
}

func (b *box) machine(transcript [32]byte) method.Machine {
	return method.Machine{
		T: transcript, Cluster: "suite.example.com", Token: "suite", Settings: b.settings, Dir: b.dir, Rehearsal: b.rehearses,
		Getenv: func(string) string { return "" }, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}
}

// attempt is one join, up to the claims.
func (b *box) attempt(current string) (method.Claims, error) {
	m := b.machine([32]byte{1})
	prove := prove(m)
	return verify(context.Background(), method.Attempt{
		T: m.T, Cluster: m.Cluster, Token: proto.CloneOf(b.token), Now: time.Now(),
		Allowed: func(method.Claims) error { return nil }, Current: func() string { return current },
	}, prove)
}

// admit is what package join does with good claims; saved says whether the machine
// lives long enough to keep what it gets.
func (b *box) admit(claims method.Claims, host string, saved bool) error {
	token := proto.CloneOf(b.token)
	claims.Update(token, host)
	b.token = token
	if !saved {
		return nil
	}
	return accepted(b.machine([32]byte{1}), claims.State)
}

func (b *box) join(t *testing.T, host string) method.Claims {
	t.Helper()
	claims, err := b.attempt("")
	if err == nil {
		err = b.admit(claims, host, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// copyOf is a machine with a copy of the data directory, for the same token.
func (b *box) copyOf(t *testing.T) *box {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(b.dir)); err != nil {
		t.Fatal(err)
	}
	return &box{dir: dir, settings: map[string]string{}, token: b.token}
}

func (b *box) recovery(mode string, limit uint32) {
	b.token.Spec.BoundKeypair.Recovery = &typesv1.BoundKeypairRecovery{Mode: mode, Limit: limit}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if got := fault.Code(err); err == nil || got != code {
		t.Fatalf("got code %q (%v), want %q", got, err, code)
	}
}

func TestSuite(t *testing.T) {
	setup := func(t *testing.T, b *box) *jointest.Setup {
		t.Helper()
		m := b.machine([32]byte{})
		return &jointest.Setup{Spec: b.token.Spec, Status: b.token.Status, Machine: m}
	}
	change := func(t *testing.T, f func(*answer)) func([]byte) []byte {
		return func(raw []byte) []byte {
			var a answer
			if err := decode(raw, &a); err != nil {
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
	jointest.Run(t, jointest.Rig{
		Method: Method(),
		Good: func(t *testing.T) *jointest.Setup {
			b := newBox(t)
			b.join(t, "host-1")
			b.recovery("", 2)
			return setup(t, b)
		},
		Claims: map[string]string{"bound_host_id": "host-1", "recovery_mode": "standard", "recovery_count": "1"},
		Bad: []jointest.Case{
			{Name: "expired", Code: method.CodeRegistrationClosed, Bend: func(t *testing.T, s *jointest.Setup) {
				b := newBox(t)
				b.token.Spec.BoundKeypair.Onboarding.MustRegisterBefore = timestamppb.New(time.Now().Add(-time.Second))
				*s = *setup(t, b)
			}},
			{Name: "wrong_account", Code: method.CodeProofMachine, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Machine.Dir = newBoxWithKey(t)
			}},
			{Name: "wrong secret", Code: method.CodeProofSignature, Bend: func(t *testing.T, s *jointest.Setup) {
				b := newBox(t)
				b.settings[SettingSecret] = strings.Repeat("ab", 16)
				*s = *setup(t, b)
			}},
			{Name: "no secret", Code: method.CodeCredentials, Bend: func(t *testing.T, s *jointest.Setup) {
				b := newBox(t)
				b.settings, b.dir = nil, newBoxWithKey(t)
				*s = *setup(t, b)
			}},
			{Name: "nothing at all", Code: method.CodeCredentials, Bend: func(t *testing.T, s *jointest.Setup) {
				b := newBox(t)
				b.settings = map[string]string{SettingSecretPath: filepath.Join(b.dir, "no-such-file")}
				*s = *setup(t, b)
			}},
			{Name: "another key was registered", Code: method.CodeProofMachine, Bend: func(t *testing.T, s *jointest.Setup) {
				b := newBox(t)
				b.token.Spec.BoundKeypair.Onboarding.InitialPublicKey = createKey(t, t.TempDir())
				*s = *setup(t, b)
			}},
			{Name: "used secret", Code: method.CodeProofMachine, Bend: func(t *testing.T, s *jointest.Setup) {
				b := newBox(t)
				b.join(t, "host-1")
				b.dir = t.TempDir()
				*s = *setup(t, b)
			}},
			{Name: "state that was changed", Code: method.CodeProofSignature, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.State[0] ^= 1 })
			}},
			{Name: "state that was left out", Code: method.CodeProofSignature, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.State = nil })
			}},
			{Name: "keys that were swapped", Code: method.CodeProofSignature, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Keys[0].Public = make([]byte, ed25519.PublicKeySize) })
			}},
			{Name: "short key", Code: method.CodeProofSignature, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Keys[0].Public = a.Keys[0].Public[:31] })
			}},
			{Name: "three keys", Code: method.CodeProofMalformed, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = change(t, func(a *answer) { a.Keys = append(a.Keys, a.Keys[0], a.Keys[0]) })
			}},
			{Name: "lost state", Code: method.CodeStateForked, Bend: func(t *testing.T, s *jointest.Setup) {
				b := newBox(t)
				b.recovery("relaxed", 0)
				b.join(t, "host-1")
				b.join(t, "host-2")
				remove(t, b.dir, StateFile)
				*s = *setup(t, b)
			}},
			{Name: "limit", Code: method.CodeRecoveryLimit, Bend: func(t *testing.T, s *jointest.Setup) {
				b := newBox(t)
				b.join(t, "host-1")
				*s = *setup(t, b)
			}},
		},
		NotApplicable: map[string]string{
			"future":         "a key has no time",
			"wrong_audience": "nothing but the transcript says for whom a signature is, and the suite tries another one",
			"cloud_down":     "Auth asks nobody",
			"cloud_lies":     "Auth asks nobody",
		},
	})
}

func createKey(t *testing.T, dir string) string {
	t.Helper()
	text, created, err := CreateKey(filepath.Join(dir, KeyFile))
	if err != nil || !created {
		t.Fatalf("CreateKey: %v, %v", created, err)
	}
	return text
}

func newBoxWithKey(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	createKey(t, dir)
	return dir
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func TestRegisteredKey(t *testing.T) {
	b := newBox(t)
	b.settings = nil
	b.token.Spec.BoundKeypair.Onboarding.InitialPublicKey = createKey(t, b.dir) + " web-1"
	if secret, err := Prepare(b.token); err != nil || secret != "" {
		t.Fatalf("Prepare with a key made the secret %q, %v", secret, err)
	}
	if got := b.token.Status.BoundKeypair.RegistrationVerifier; got != nil {
		t.Errorf("the token still admits by a secret: %x", got)
	}
	claims := b.join(t, "host-1")
	if want := "bound_keypair/suite"; claims.Machine != want {
		t.Errorf("machine %q, want %q", claims.Machine, want)
	}
	s := b.token.Status.BoundKeypair
	if s.BoundHostId != "host-1" || s.RecoveryCount != 1 || s.LastRecoveredAt == nil || s.LastRotatedAt != nil || s.BoundPublicKey == "" {
		t.Errorf("the token remembers %v", s)
	}
	info, err := os.Stat(filepath.Join(b.dir, StateFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("state file: %v, %v", info, err)
	}
}

func TestSecretInAFile(t *testing.T) {
	b := newBox(t)
	path := filepath.Join(b.dir, "secret")
	if err := os.WriteFile(path, []byte(b.settings[SettingSecret]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.settings = map[string]string{SettingSecretPath: path, SettingKeyPath: filepath.Join(b.dir, "own.key")}
	b.recovery("", 2)
	b.join(t, "host-1")
	if _, err := os.Stat(filepath.Join(b.dir, "own.key")); err != nil {
		t.Error(err)
	}
	// Later joins do without.
	remove(t, b.dir, "secret")
	b.join(t, "host-2")
}

// The secret goes nowhere: not to Auth, not into the token.
// A rehearsal leaves nothing behind, also where there is no data directory yet.
func TestRehearsal(t *testing.T) {
	b := newBox(t)
	b.rehearses, b.dir = true, filepath.Join(b.dir, "none")
	if _, err := b.attempt(""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the data directory: %v, want that there is none", err)
	}

	b = newBox(t)
	b.join(t, "host-1")
	before, err := os.ReadFile(filepath.Join(b.dir, KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	b.token.Spec.BoundKeypair.RotateAfter = timestamppb.New(time.Now().Add(-time.Minute))
	b.token.Status.BoundKeypair.LastRotatedAt = timestamppb.New(time.Now().Add(-time.Hour))
	b.rehearses = true
	claims, err := b.attempt("host-1")
	if err != nil || claims.Get("rotated") != "true" {
		t.Fatalf("rotated %q, %v; want a rotation", claims.Get("rotated"), err)
	}
	files, err := os.ReadDir(b.dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%d files, %v; want the key and the state", len(files), err)
	}
	if after, err := os.ReadFile(filepath.Join(b.dir, KeyFile)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key changed: %v", err)
	}
}

func TestSecretIsNotSent(t *testing.T) {
	b := newBox(t)
	secret := b.settings[SettingSecret]
	raw, err := prove(b.machine([32]byte{1}))(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := proto.Marshal(b.token)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := hex.DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"answer": raw, "token": stored} {
		if bytes.Contains(data, []byte(secret)) || bytes.Contains(data, binary) {
			t.Errorf("the %s has the secret", name)
		}
	}
}

// Of two machines with one key, the one that joins second with an old state is found
// out, and so is the other if the copy was first.
func TestCopy(t *testing.T) {
	for _, mode := range []string{"standard", "relaxed"} {
		t.Run(mode, func(t *testing.T) {
			b := newBox(t)
			b.recovery(mode, 10)
			b.join(t, "host-1")
			b.join(t, "host-2")
			c := b.copyOf(t)
			c.join(t, "host-3")
			b.token = c.token
			// The state before the last is good once more, for a machine that crashed...
			b.join(t, "host-4")
			// ...and then the other one has none that is.
			c.token = b.token
			claims, err := c.attempt("")
			wantCode(t, err, method.CodeStateForked)
			if got := claims.Get("bound_host_id"); got != "host-4" {
				t.Errorf("the refusal names host %q: whoever locks the pair needs host-4", got)
			}
		})
	}
	t.Run("insecure", func(t *testing.T) {
		b := newBox(t)
		b.recovery("insecure", 0)
		b.join(t, "host-1")
		c := b.copyOf(t)
		remove(t, c.dir, StateFile)
		c.join(t, "host-2")
		b.token = c.token
		b.join(t, "host-3")
	})
}

// A restored backup is a copy too.
func TestRollback(t *testing.T) {
	b := newBox(t)
	b.recovery("relaxed", 0)
	b.join(t, "host-1")
	backup := b.copyOf(t)
	b.join(t, "host-2")
	b.join(t, "host-3")
	backup.token = b.token
	_, err := backup.attempt("")
	wantCode(t, err, method.CodeStateForked)
}

// A machine that stops between being admitted and saving the state can join again,
// however often that happens, and from the very first join on.
func TestCrashBeforeSaving(t *testing.T) {
	b := newBox(t)
	b.recovery("relaxed", 0)
	for i := range 6 {
		claims, err := b.attempt("")
		if err != nil {
			t.Fatalf("join %d: %v", i, err)
		}
		if err := b.admit(claims, "host", i%3 == 2); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimit(t *testing.T) {
	b := newBox(t)
	b.recovery("standard", 3)
	for range 3 {
		b.join(t, "host")
	}
	_, err := b.attempt("")
	wantCode(t, err, method.CodeRecoveryLimit)
	// A join that keeps a live identity, to add a service, is none that counts.
	claims, err := b.attempt("host")
	if err == nil {
		err = b.admit(claims, "host", true)
	}
	if err != nil || b.token.Status.BoundKeypair.RecoveryCount != 3 {
		t.Fatalf("%v, count %d", err, b.token.Status.BoundKeypair.RecoveryCount)
	}
	_, err = b.attempt("another host")
	wantCode(t, err, method.CodeRecoveryLimit)
	b.recovery("standard", 4)
	b.join(t, "host")
	b.recovery("relaxed", 1)
	b.join(t, "host")
	if got := b.token.Status.BoundKeypair.RecoveryCount; got != 5 {
		t.Errorf("counted %d joins, want 5", got)
	}
}

func TestRotation(t *testing.T) {
	b := newBox(t)
	b.recovery("relaxed", 0)
	b.join(t, "host")
	before := b.token.Status.BoundKeypair.BoundPublicKey
	b.join(t, "host")
	if b.token.Status.BoundKeypair.BoundPublicKey != before {
		t.Fatal("the key changed unasked")
	}
	b.token.Spec.BoundKeypair.RotateAfter = timestamppb.New(time.Now().Add(-time.Second))
	claims := b.join(t, "host")
	after := b.token.Status.BoundKeypair.BoundPublicKey
	if after == before || claims.Get("rotated") != "true" || b.token.Status.BoundKeypair.LastRotatedAt == nil {
		t.Fatalf("not rotated: %v", b.token.Status)
	}
	if _, err := os.Stat(filepath.Join(b.dir, KeyFile+nextSuffix)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the new key is still beside the old one: %v", err)
	}
	// Once is enough, until the next request.
	b.join(t, "host")
	if b.token.Status.BoundKeypair.BoundPublicKey != after {
		t.Error("the key changed twice")
	}
	b.token.Spec.BoundKeypair.RotateAfter = timestamppb.New(time.Now())
	b.join(t, "host")
	if b.token.Status.BoundKeypair.BoundPublicKey == after {
		t.Error("the second request did nothing")
	}
}

// A crash in the middle of a rotation, on either side of Auth's decision.
func TestRotationCrash(t *testing.T) {
	b := newBox(t)
	b.recovery("relaxed", 0)
	b.join(t, "host")
	b.token.Spec.BoundKeypair.RotateAfter = timestamppb.New(time.Now().Add(-time.Second))
	// The machine made a key, and Auth never bound it.
	if _, err := b.attempt(""); err != nil {
		t.Fatal(err)
	}
	claims, err := b.attempt("")
	if err != nil {
		t.Fatal(err)
	}
	// Auth bound it, and the machine never heard of it.
	if err := b.admit(claims, "host", false); err != nil {
		t.Fatal(err)
	}
	bound := b.token.Status.BoundKeypair.BoundPublicKey
	// Another request comes before the machine does.
	b.token.Spec.BoundKeypair.RotateAfter = timestamppb.New(time.Now())
	b.join(t, "host")
	if b.token.Status.BoundKeypair.BoundPublicKey == bound {
		t.Error("the second rotation did not happen")
	}
	b.token.Spec.BoundKeypair.RotateAfter = nil
	b.join(t, "host")
}

// A relay cannot put a key of its own in the place of the new one.
func TestRotationIsSignedByBoth(t *testing.T) {
	for name, bend := range map[string]func(b *box, r *rotated, own ed25519.PrivateKey, msg []byte){
		"only the new key": func(_ *box, r *rotated, own ed25519.PrivateKey, msg []byte) {
			r.Public, r.Signature, r.OldSignature = public(own), ed25519.Sign(own, msg), ed25519.Sign(own, msg)
		},
		"only the old key": func(_ *box, r *rotated, own ed25519.PrivateKey, _ []byte) { r.Public = public(own) },
		"no signature":     func(_ *box, r *rotated, _ ed25519.PrivateKey, _ []byte) { r.OldSignature = nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			b.recovery("relaxed", 0)
			b.join(t, "host")
			b.token.Spec.BoundKeypair.RotateAfter = timestamppb.New(time.Now().Add(-time.Second))
			_, own, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			m := b.machine([32]byte{1})
			ask := prove(m)
			_, err = verify(t.Context(), method.Attempt{T: m.T, Token: b.token, Now: time.Now(), Allowed: func(method.Claims) error { return nil }},
				func(ctx context.Context, q []byte) ([]byte, error) {
					raw, err := ask(ctx, q)
					var r rotated
					if err != nil || len(q) == 0 || decode(raw, &r) != nil {
						return raw, err
					}
					k, err := loadKeys(ctx, m)
					if err != nil {
						return nil, err
					}
					bend(b, &r, own, message(purposeRotate, m.T, public(k.current), public(own)))
					return json.Marshal(r)
				})
			wantCode(t, err, method.CodeProofSignature)
		})
	}
}

func TestCreateKey(t *testing.T) {
	dir := t.TempDir()
	first := createKey(t, dir)
	again, created, err := CreateKey(filepath.Join(dir, KeyFile))
	if err != nil || created || again != first {
		t.Errorf("the second time: %q, %v, %v", again, created, err)
	}
	info, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(dir, KeyFile), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := CreateKey(filepath.Join(dir, KeyFile)); fault.Kind(err) == nil {
		t.Errorf("a damaged key: %v", err)
	}
}

func TestPrepare(t *testing.T) {
	if secret, err := Prepare(&typesv1.Token{Spec: &typesv1.TokenSpec{JoinMethod: types.JoinMethodToken}}); secret != "" || err != nil {
		t.Errorf("another method: %q, %v", secret, err)
	}
	b := newBox(t)
	verifier := b.token.Status.BoundKeypair.RegistrationVerifier
	// Written again, as `tctl edit` does, nothing changes.
	if secret, err := Prepare(b.token); secret != "" || err != nil || !bytes.Equal(verifier, b.token.Status.BoundKeypair.RegistrationVerifier) {
		t.Errorf("the second time: %q, %v", secret, err)
	}
	// A secret of one's own replaces it, and is not kept.
	b.token.Spec.BoundKeypair.Onboarding.RegistrationSecret = "a secret of my own"
	if secret, err := Prepare(b.token); secret != "" || err != nil || bytes.Equal(verifier, b.token.Status.BoundKeypair.RegistrationVerifier) {
		t.Errorf("own secret: %q, %v", secret, err)
	}
	if got := b.token.Spec.BoundKeypair.Onboarding.RegistrationSecret; got != "" {
		t.Errorf("the token keeps the secret %q", got)
	}
	b.settings[SettingSecret] = "a secret of my own"
	b.join(t, "host")
	b.token.Spec.BoundKeypair.Onboarding.RegistrationSecret = "yet another secret"
	if _, err := Prepare(b.token); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("a secret for a bound token: %v", err)
	}
}

// The state belongs to one token of one cluster.
func TestStateOfAnotherToken(t *testing.T) {
	b := newBox(t)
	b.join(t, "host")
	m := b.machine([32]byte{})
	m.Token = "another"
	if state, err := loadState(m); state != nil || err != nil {
		t.Errorf("loadState for another token: %x, %v", state, err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, StateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadState(b.machine([32]byte{})); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("a damaged state: %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"keys":[{"public":"AQ==","signature":"AQ=="}],"state":"AQ==","registration":"AQ=="}`))
	f.Add([]byte(`{}`))
	token := &typesv1.Token{Spec: &typesv1.TokenSpec{}, Status: &typesv1.TokenStatus{BoundKeypair: &typesv1.BoundKeypairStatus{BoundPublicKey: "x"}}}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := verify(t.Context(), method.Attempt{Token: token, Allowed: func(method.Claims) error { return nil }},
			func(context.Context, []byte) ([]byte, error) { return data, nil })
		if err == nil || fault.Kind(err) == nil {
			t.Errorf("got %v", err)
		}
	})
}
