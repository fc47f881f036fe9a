package login_test

import (
	"context"
	"encoding/base32"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pquerna/otp/totp"
	"pgregory.net/rapid"

	"teleport/internal/fault"
	"teleport/internal/login"
	"teleport/internal/rpc"
)

// TestTOTPVectors are those of RFC 6238 appendix B, the last six digits.
func TestTOTPVectors(t *testing.T) {
	secret := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte("12345678901234567890"))
	for at, want := range map[int64]string{
		59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130",
	} {
		if got := login.Code(secret, time.Unix(at, 0)); got != want {
			t.Errorf("code at %d = %s, want %s", at, got, want)
		}
	}
}

// TestTOTPAgainstLibrary lets another implementation judge.
func TestTOTPAgainstLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(t, "key")
		at := time.Unix(rapid.Int64Range(0, 1<<34).Draw(t, "at"), 0)
		secret := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(key)
		want, err := totp.GenerateCode(secret, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := login.Code(secret, at); got != want {
			t.Fatalf("code = %s, want %s", got, want)
		}
	})
}

func TestTOTPStep(t *testing.T) {
	secret := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte("12345678901234567890"))
	now := time.Unix(1_800_000_000, 0)
	step := now.Unix() / 30
	for _, tt := range []struct {
		name   string
		secret string
		code   string
		last   int64
		want   bool
	}{
		{"now", secret, login.Code(secret, now), 0, true},
		{"one_behind", secret, login.Code(secret, now.Add(-30*time.Second)), 0, true},
		{"one_ahead", secret, login.Code(secret, now.Add(30*time.Second)), 0, true},
		{"two_behind", secret, login.Code(secret, now.Add(-60*time.Second)), 0, false},
		{"two_ahead", secret, login.Code(secret, now.Add(60*time.Second)), 0, false},
		{"used", secret, login.Code(secret, now), step, false},
		{"older_than_used", secret, login.Code(secret, now.Add(-30*time.Second)), step, false},
		{"newer_than_used", secret, login.Code(secret, now.Add(30*time.Second)), step, true},
		{"no_secret", "", login.Code(secret, now), 0, false},
		{"bad_secret", "1!", login.Code(secret, now), 0, false},
		{"short_secret", "GEZDGNBV", login.Code("GEZDGNBV", now), 0, false},
		{"empty_code", secret, "", 0, false},
		{"long_code", secret, login.Code(secret, now) + "0", 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, ok := login.TOTPStep(tt.secret, tt.code, tt.last, now); ok != tt.want {
				t.Errorf("accepted %v, want %v", ok, tt.want)
			}
		})
	}
}

func TestTOTPURLEscapes(t *testing.T) {
	got := login.TOTPURL("a b", "x+y/z?", "SECRET")
	if want := "otpauth://totp/a%20b:x+y%2Fz%3F?algorithm=SHA1&digits=6&issuer=a%20b&period=30&secret=SECRET"; got != want {
		t.Errorf("url = %q, want %q", got, want)
	}
}

func TestPasswordHash(t *testing.T) {
	h, err := login.NewHasher(1)
	must(t, err)
	encoded, err := h.Hash(t.Context(), password)
	must(t, err)
	if !strings.HasPrefix(encoded, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("hash = %q", encoded)
	}
	other, err := h.Hash(t.Context(), password)
	must(t, err)
	if other == encoded {
		t.Error("two hashes of one password are equal")
	}
	for _, tt := range []struct {
		name, encoded, password string
		want                    bool
	}{
		{"right", encoded, password, true},
		{"wrong", encoded, password + "x", false},
		{"empty", encoded, "", false},
		{"no_hash", "", password, false},
		{"rubbish", "$argon2id$", password, false},
	} {
		if got, err := h.Verify(t.Context(), tt.encoded, tt.password); err != nil || got != tt.want {
			t.Errorf("%s: %v, %v, want %v", tt.name, got, err, tt.want)
		}
	}
}

// TestUnknownUsersTakeAsLong compares the work for a hash and for none.
func TestUnknownUsersTakeAsLong(t *testing.T) {
	h, err := login.NewHasher(1)
	must(t, err)
	encoded, err := h.Hash(t.Context(), password)
	must(t, err)
	// The time of the processor: a busy machine makes either take any time by the clock.
	spent := func() time.Duration {
		var u syscall.Rusage
		must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	took := func(encoded string) time.Duration {
		best := time.Hour
		for range 10 {
			start := spent()
			if _, err := h.Verify(t.Context(), encoded, "wrong password"); err != nil {
				t.Fatal(err)
			}
			best = min(best, spent()-start)
		}
		return best
	}
	known, unknown := took(encoded), took("")
	if known > 3*unknown || unknown > 3*known {
		t.Errorf("a wrong password costs %v with a hash and %v without", known, unknown)
	}
}

func TestHasherIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, err := login.NewHasher(2)
		must(t, err)
		h.Fill(false)
		start := time.Now()
		if _, err := h.Verify(t.Context(), "", "x"); !errors.Is(err, fault.ErrLimit) {
			t.Errorf("no slot: %v, want a limit", err)
		}
		if waited := time.Since(start); waited != 10*time.Second {
			t.Errorf("waited %v, want 10s", waited)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.Hash(ctx, "x"); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		h.Fill(true)
		start = time.Now()
		if _, err := h.Hash(t.Context(), "x"); !errors.Is(err, fault.ErrLimit) || time.Since(start) != 0 {
			t.Errorf("no place in the queue: %v after %v, want a limit at once", err, time.Since(start))
		}
	})
}

func FuzzParsePHC(f *testing.F) {
	f.Add("$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$c29tZWhhc2hzb21laGFzaHNvbWVoYXNoc29tZWhhc2g")
	f.Add("$argon2id$v=19$m=4294967295,t=2,p=1$$")
	f.Add("$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$c29tZWhhc2hzb21laGFzaA")
	f.Fuzz(func(t *testing.T, s string) {
		if again, err := login.ParsePHC(s); err == nil && again != s {
			t.Fatalf("%q became %q", s, again)
		}
	})
}

func TestParsePHCRefuses(t *testing.T) {
	good := "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$c29tZWhhc2hzb21laGFzaA"
	if _, err := login.ParsePHC(good); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{
		"empty":         "",
		"argon2i":       strings.Replace(good, "argon2id", "argon2i", 1),
		"version":       strings.Replace(good, "v=19", "v=16", 1),
		"memory_bomb":   strings.Replace(good, "m=19456", "m=4194304", 1),
		"time_bomb":     strings.Replace(good, "t=2", "t=1000", 1),
		"no_time":       strings.Replace(good, "t=2", "t=0", 1),
		"order":         strings.Replace(good, "m=19456,t=2", "t=2,m=19456", 1),
		"short_salt":    strings.Replace(good, "c29tZXNhbHQ", "c28", 1),
		"short_key":     strings.Replace(good, "c29tZWhhc2hzb21laGFzaA", "c28", 1),
		"padding":       good + "==",
		"line":          good + "\n",
		"leading_zero":  strings.Replace(good, "t=2", "t=02", 1),
		"more":          good + "$x",
		"text_in_front": "x" + good,
		"long":          good + strings.Repeat("A", 1000),
	} {
		if _, err := login.ParsePHC(s); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

func TestSourceOf(t *testing.T) {
	for _, tt := range []struct {
		caller rpc.Caller
		want   string
	}{
		{rpc.Caller{Addr: "192.0.2.1:1"}, "192.0.2.1"},
		{rpc.Caller{Addr: "192.0.2.1:2"}, "192.0.2.1"},
		{rpc.Caller{Addr: "[::ffff:192.0.2.1]:2"}, "192.0.2.1"},
		{rpc.Caller{Addr: "[2001:db8:1:2:3::4]:2"}, "2001:db8:1:2::/64"},
		{rpc.Caller{Addr: "[2001:db8:1:2:ffff::9]:7"}, "2001:db8:1:2::/64"},
		{rpc.Caller{Addr: "[fe80::1%eth0]:7"}, "fe80::/64"},
		{rpc.Caller{Addr: ""}, "unknown"},
		{rpc.Caller{Addr: "host:1"}, "unknown"},
		{rpc.Caller{Local: true, Addr: "@"}, "local"},
	} {
		if got := login.SourceOf(tt.caller); got != tt.want {
			t.Errorf("source of %q = %q, want %q", tt.caller.Addr, got, tt.want)
		}
	}
}

func BenchmarkHash(b *testing.B) {
	h, err := login.NewHasher(2)
	must(b, err)
	for b.Loop() {
		if _, err := h.Hash(b.Context(), password); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLogin is a login with next to no hashing: PERF.md asks for 500 a second.
func BenchmarkLogin(b *testing.B) {
	e := newEnv(b)
	secret := e.person(b, "bob", []string{"access"}, "root")
	for b.Loop() {
		e.advance(30 * time.Second)
		if _, err := e.login(b.Context(), "bob", password, login.Code(secret, e.now())); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "logins/s")
}
