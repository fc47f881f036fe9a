// Package jointest is the suite that every join method passes: both halves of the
// method joined in memory, with a good proof and with every bad one of a fixed table.
package jointest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// cases is the table: a method answers every name of it, by a Case or by saying in
// Rig.NotApplicable why there is nothing to try.
var cases = []string{"expired", "future", "wrong_account", "wrong_audience", "cloud_down", "cloud_lies"}

// Setup is one attempt, before it is made.
type Setup struct {
	// Spec is that of the token; a Case may change its copy.
	Spec *typesv1.TokenSpec
	// Status is that of the token, for methods that keep something there.
	Status *typesv1.TokenStatus
	// Machine is what the machine's half gets; T and Cluster are filled in.
	Machine method.Machine
	// Auth is the way out that Auth's half gets.
	Auth egress.Config
	// AuthEnv is the environment of Auth's half; nil is an empty one.
	AuthEnv func(string) string
	// Now is Auth's clock; the machine's is Machine.Now.
	Now time.Time
	// Tamper, if set, changes each answer on its way, as a hostile Proxy could.
	Tamper func(answer []byte) []byte
}

// Rig is a method with a world in which it works.
type Rig struct {
	Method method.Method
	// Good returns an attempt that is admitted. It is called for every case, and must
	// give a machine of its own each time if the method tells machines apart.
	Good func(t *testing.T) *Setup
	// Claims are attributes that the good attempt must prove, exactly.
	Claims map[string]string
	// Bad are the attempts that must be refused.
	Bad []Case
	// NotApplicable has the reason for each name of the table that the method cannot
	// be tried with.
	NotApplicable map[string]string
}

// Case is a Setup that is bent until it must be refused.
type Case struct {
	Name string
	Bend func(t *testing.T, s *Setup)
	// Code is the reason code of the refusal.
	Code string
}

const cluster = "suite.example.com"

// Run runs the suite.
func Run(t *testing.T, rig Rig) {
	t.Helper()
	t.Run("good", func(t *testing.T) { good(t, rig) })
	t.Run("proof of another attempt", func(t *testing.T) { otherAttempt(t, rig) })
	t.Run("hostile answers", func(t *testing.T) { hostile(t, rig) })
	t.Run("other rules", func(t *testing.T) { otherRules(t, rig) })
	for _, c := range rig.Bad {
		t.Run(c.Name, func(t *testing.T) {
			s := rig.Good(t)
			c.Bend(t, s)
			claims, err := Attempt(t.Context(), rig.Method, s, newT())
			if err == nil {
				t.Fatalf("was admitted, with %v; want reason code %q", claims.Attributes, c.Code)
			}
			if got := fault.Code(err); got != c.Code {
				t.Fatalf("refused with code %q, want %q: %v", got, c.Code, err)
			}
			if fault.Kind(err) == nil {
				t.Fatalf("the refusal has no kind, so its text would not reach the machine: %v", err)
			}
		})
	}
	for _, name := range cases {
		tried := slices.ContainsFunc(rig.Bad, func(c Case) bool { return c.Name == name })
		if reason := rig.NotApplicable[name]; !tried && reason == "" {
			t.Errorf("the rig has no case %q and does not say why", name)
		}
	}
}

func good(t *testing.T, rig Rig) {
	s := rig.Good(t)
	claims, err := Attempt(t.Context(), rig.Method, s, newT())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range rig.Claims {
		if got := claims.Get(name); got != want {
			t.Errorf("proved %s %q, want %q", name, claims.Attributes[name], want)
		}
	}
}

// otherAttempt carries a good answer into an attempt with other keys: that is what a
// relay that swaps keys does, and what a thief of an answer does. The method refuses
// it, or the proof is one that admits once.
func otherAttempt(t *testing.T, rig Rig) {
	s := rig.Good(t)
	var answers [][]byte
	s.Tamper = func(answer []byte) []byte {
		answers = append(answers, bytes.Clone(answer))
		return answer
	}
	first, err := Attempt(t.Context(), rig.Method, s, newT())
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	s.Tamper = func([]byte) []byte {
		if i++; i > len(answers) {
			return nil
		}
		return answers[i-1]
	}
	again, err := Attempt(t.Context(), rig.Method, s, newT())
	if err != nil {
		return
	}
	if !rig.Method.Bearer {
		t.Error("whoever sees an answer can use it in the machine's place: Method.Bearer must say so")
	}
	for _, p := range first.Once {
		if slices.ContainsFunc(again.Once, func(q method.Proof) bool { return q.ID == p.ID && p.ID != "" }) {
			return
		}
	}
	t.Fatal("an answer that was made for another attempt was accepted, and nothing in it admits only once")
}

// hostile sends what no machine would.
func hostile(t *testing.T, rig Rig) {
	noise := make([]byte, 512)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string][]byte{
		"nothing": nil, "one byte": {0}, "noise": noise, "empty object": []byte("{}"), "null": []byte("null"),
		"deep": bytes.Repeat([]byte("["), method.MaxAnswer), "as long as may be": bytes.Repeat([]byte{'a'}, method.MaxAnswer),
	} {
		t.Run(name, func(t *testing.T) {
			s := rig.Good(t)
			s.Tamper = func([]byte) []byte { return answer }
			if _, err := Attempt(t.Context(), rig.Method, s, newT()); err == nil {
				t.Fatal("was admitted")
			} else if fault.Kind(err) == nil {
				t.Fatalf("the refusal has no kind: %v", err)
			}
		})
	}
	t.Run("cut and bent", func(t *testing.T) {
		for _, at := range []int{2, 3, 5, 9} {
			s := rig.Good(t)
			s.Tamper = func(a []byte) []byte { return a[:len(a)-len(a)/at] }
			if _, err := Attempt(t.Context(), rig.Method, s, newT()); err == nil {
				t.Fatalf("was admitted with 1/%d of the answer missing", at)
			}
		}
	})
}

// otherRules takes from each rule field what the machine has: the rule must not match.
func otherRules(t *testing.T, rig Rig) {
	row, ok := types.JoinMethodRow(rig.Method.Name)
	if !ok {
		t.Fatalf("types has no row for method %q", rig.Method.Name)
	}
	if row.Rules == nil {
		t.Skip("the method has no rules")
	}
	s := rig.Good(t)
	claims, err := Attempt(t.Context(), rig.Method, s, newT())
	if err != nil {
		t.Fatal(err)
	}
	results, allowed := method.Match(s.Spec, claims)
	if !allowed || len(results) == 0 {
		t.Fatalf("the good attempt matches no rule: %+v", results)
	}
	for name := range claims.Attributes {
		bent := method.Claims{Attributes: map[string][]string{}}
		for k, v := range claims.Attributes {
			bent.Attributes[k] = v
		}
		bent.Attributes[name] = []string{"another"}
		again, allowed := method.Match(s.Spec, bent)
		differs := slices.ContainsFunc(again, func(r method.RuleResult) bool {
			return slices.ContainsFunc(r.Fields, func(f method.FieldResult) bool { return !f.Matched && slices.Equal(f.Got, []string{"another"}) })
		})
		if differs && allowed && len(again) == 1 {
			t.Errorf("the rule matches a machine whose %s is another", name)
		}
	}
	if _, allowed := method.Match(s.Spec, method.Claims{}); allowed {
		t.Error("the rules match a machine that proved nothing")
	}
}

func newT() [32]byte {
	var t [32]byte
	_, _ = rand.Read(t[:]) // it never fails
	return t
}

// Attempt joins both halves and applies the rules, as package join does.
func Attempt(ctx context.Context, m method.Method, s *Setup, transcript [32]byte) (method.Claims, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	spec := s.Spec
	token := &typesv1.Token{
		Kind: types.KindToken, Version: "v2", Metadata: &typesv1.Metadata{Name: "suite"},
		Spec: spec, Status: s.Status,
	}
	if spec.JoinMethod == "" {
		spec.JoinMethod = m.Name
	}
	if len(spec.Roles) == 0 {
		spec.Roles = []string{string(types.RoleNode)}
	}
	if err := types.Check(token); err != nil {
		return method.Claims{}, fmt.Errorf("the token of the rig: %w", err)
	}
	machine := s.Machine
	machine.T, machine.Cluster = transcript, cluster
	if machine.Token == "" {
		machine.Token = "suite"
	}
	if m.Parameters != nil {
		machine.Parameters = m.Parameters(cluster, spec)
	}
	if machine.Getenv == nil {
		machine.Getenv = os.Getenv
	}
	if machine.Now == nil {
		machine.Now = time.Now
	}
	if machine.Log == nil {
		machine.Log = slog.New(slog.DiscardHandler)
	}
	if machine.Metadata == nil {
		machine.Metadata = egress.Metadata(egress.Config{})
	}
	if machine.Egress == nil {
		machine.Egress = egress.New(egress.Config{})
	}
	now := s.Now
	if now.IsZero() {
		now = time.Now()
	}
	allowed := func(c method.Claims) error {
		if _, ok := method.Match(spec, c); !ok {
			return method.Refusal(c)
		}
		return nil
	}
	prove := m.Prove(machine)
	getenv := s.AuthEnv
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	rounds := 0
	ask := func(ctx context.Context, question []byte) ([]byte, error) {
		if rounds++; rounds == 1 && len(question) > 0 || rounds > method.MaxRounds || len(question) > method.MaxQuestion {
			return nil, errors.New("the method asks too much")
		}
		answer, err := prove(ctx, question)
		if err != nil {
			return nil, err
		}
		if s.Tamper != nil {
			answer = s.Tamper(answer)
		}
		if len(answer) > method.MaxAnswer {
			return nil, fault.New(fault.ErrInvalid, "an answer of %d bytes", len(answer)).WithCode(method.CodeProofMalformed)
		}
		return answer, nil
	}
	claims, err := m.Verify(ctx, method.Attempt{
		T: transcript, Cluster: cluster, Token: token, Now: now, Egress: egress.New(s.Auth), Getenv: getenv, Allowed: allowed, Log: machine.Log,
	}, ask)
	if err != nil {
		return claims, err
	}
	if err := allowed(claims); err != nil {
		return claims, err
	}
	if m.Accepted != nil {
		if err := m.Accepted(machine, claims.State); err != nil {
			return claims, err
		}
	}
	return claims, nil
}
