package join_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/join/all"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/state"
	"teleport/internal/store"
	"teleport/internal/types"
)

// proof is what the platform of these tests says about a machine: whatever the
// machine was set to, for the transcript that it was asked with.
type proof struct {
	T       [32]byte
	Project string
	Machine string
	Once    string
}

// platform is a join method in the place of gcp, whose machines say of themselves
// what their settings say. It asks so many questions.
func platform(rounds int, hostID string) method.Method {
	return method.Method{
		Name: types.JoinMethodGCP, Attests: true,
		Parameters: func(cluster string, _ *typesv1.TokenSpec) []byte { return []byte("for " + cluster) },
		Prove: func(m method.Machine) method.Exchange {
			return func(_ context.Context, q []byte) ([]byte, error) {
				if m.Settings["fail"] != "" {
					return nil, fault.New(fault.ErrInvalid, "no credentials here").WithCode(method.CodeCredentials)
				}
				if len(q) > 0 {
					return q, nil
				}
				return json.Marshal(proof{m.T, m.Settings["project"], m.Settings["machine"], m.Settings["once"]})
			}
		},
		Verify: func(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
			var c method.Claims
			answer, err := ask(ctx, nil)
			if err != nil {
				return c, err
			}
			var p proof
			if json.Unmarshal(answer, &p) != nil {
				return c, fault.New(fault.ErrInvalid, "no proof").WithCode(method.CodeProofMalformed)
			}
			if p.T != a.T {
				return c, fault.New(fault.ErrDenied, "another attempt").WithCode(method.CodeProofAttempt)
			}
			for i := range rounds - 1 {
				q := []byte(strings.Repeat("x", i+1))
				if answer, err = ask(ctx, q); err != nil || string(answer) != string(q) {
					return c, err
				}
			}
			c.Attributes = map[string][]string{"project_id": {p.Project}, "vm": {"true"}}
			c.Machine, c.HostID = p.Machine, hostID
			if p.Once != "" {
				c.Once = []method.Proof{{ID: p.Once, Until: a.Now.Add(time.Hour)}}
			}
			return c, nil
		},
	}
}

const delegated = "gcp-token"

// delegatedToken stores a token of the platform's method.
func (f *fixture) delegatedToken(edits ...func(*typesv1.Token)) {
	f.t.Helper()
	tok := types.New(types.KindToken, delegated).(*typesv1.Token)
	tok.Spec = &typesv1.TokenSpec{
		Roles: []string{"Node"}, JoinMethod: types.JoinMethodGCP,
		Gcp: &typesv1.GCPJoin{Allow: []*typesv1.GCPRule{{ProjectIds: []string{"project-1"}}}},
	}
	tok.Status = &typesv1.TokenStatus{DerivedId: keys.TokenID(delegated)}
	for _, edit := range edits {
		edit(tok)
	}
	check(f.t, types.Check(tok))
	check(f.t, f.store.Tx().Create(tok).Commit(context.Background()))
}

// machine are the parameters of a machine on the platform.
func (f *fixture) machine(settings map[string]string, edits ...func(*join.Params)) join.Params {
	if settings["project"] == "" {
		settings["project"] = "project-1"
	}
	return f.params(slices.Concat([]func(*join.Params){func(p *join.Params) {
		p.Token, p.Method, p.Settings, p.Now = delegated, types.JoinMethodGCP, settings, f.clock
		p.Methods = []method.Method{platform(1, "")}
	}}, edits)...)
}

func newPlatform(t *testing.T, m method.Method) *fixture {
	t.Helper()
	f := newFixtureWith(t, append(all.Methods()[:1:1], m))
	return f
}

func (f *fixture) instance(id string) (*typesv1.Instance, error) {
	return store.Get[*typesv1.Instance](context.Background(), f.store, types.KindInstance, id)
}

func holderOf(t *testing.T, st *state.State) *state.Holder {
	t.Helper()
	h, err := state.NewHolder(st)
	check(t, err)
	return h
}

func TestDelegatedJoin(t *testing.T) {
	f := newPlatform(t, platform(1, ""))
	f.delegatedToken(func(tok *typesv1.Token) { tok.Spec.Labels = map[string]string{"team": "db"} })
	for name, edit := range map[string]func(*join.Params){
		"named":             func(*join.Params) {},
		"the token says it": func(p *join.Params) { p.Method = "" },
	} {
		t.Run(name, func(t *testing.T) {
			st, err := join.Join(t.Context(), f.machine(map[string]string{"machine": "m/" + name}, edit))
			check(t, err)
			i, err := f.instance(st.HostID)
			check(t, err)
			if i.GetSpec().GetJoinMethod() != types.JoinMethodGCP || i.GetSpec().GetToken() != delegated || i.GetSpec().GetMachine() != "m/"+name ||
				i.GetSpec().GetAttributes()["project_id"].GetValues()[0] != "project-1" {
				t.Errorf("instance = %v", i)
			}
			if h := holderOf(t, st); !h.Attests() || h.Labels()["team"] != "db" {
				t.Errorf("attests %v, labels %v; want true and the token's", h.Attests(), h.Labels())
			}
		})
	}
	joins := f.events(audit.InstanceJoin)
	for _, e := range joins {
		fields := e.GetFields().GetFields()
		if fields["method"].GetStringValue() != types.JoinMethodGCP || fields["token_name"].GetStringValue() != delegated || fields["rule"].GetStringValue() != "spec.gcp.allow[0]" ||
			fields["attributes"].GetStructValue().GetFields()["project_id"].GetListValue().GetValues()[0].GetStringValue() != "project-1" {
			t.Errorf("event = %v", e)
		}
	}
	if len(joins) != 2 {
		t.Errorf("%d joins recorded, want 2", len(joins))
	}
}

func TestDelegatedRefusals(t *testing.T) {
	tests := map[string]struct {
		settings map[string]string
		token    func(*typesv1.Token)
		edit     func(*fixture, *join.Params)
		code     string
		// attributes: the event has what was verified.
		attributes bool
	}{
		"no rule":      {settings: map[string]string{"project": "project-2"}, code: method.CodeRuleMismatch, attributes: true},
		"no proof":     {settings: map[string]string{"fail": "x"}, code: method.CodeCredentials},
		"other method": {edit: func(_ *fixture, p *join.Params) { p.Method = types.JoinMethodIAM }, code: join.CodeMethodMismatch},
		"a secret's method": {edit: func(_ *fixture, p *join.Params) {
			p.Method = types.JoinMethodToken
		}, code: join.CodeMethodMismatch},
		"unknown name": {edit: func(_ *fixture, p *join.Params) { p.Token = "another" }, code: join.CodeTokenUnknown},
		"expired token": {token: func(tok *typesv1.Token) { tok.Metadata.Expires = timestamppb.New(time.Now().Add(time.Minute)) }, edit: func(f *fixture, p *join.Params) {
			f.setClock(f.clock().Add(2 * time.Minute))
		}, code: join.CodeTokenExpired},
		"revoked token": {token: func(tok *typesv1.Token) { tok.Metadata.Expires = timestamppb.New(time.Now().Add(time.Hour)) }, edit: func(f *fixture, p *join.Params) {
			_, err := join.Rehearse(f.t.Context(), *p)
			check(f.t, err)
			check(f.t, f.store.Tx().Delete(types.KindToken, delegated, "").Commit(context.Background()))
		}, code: join.CodeTokenRevoked},
		"other role": {edit: func(_ *fixture, p *join.Params) { p.Roles = []types.SystemRole{types.RoleProxy} }, code: join.CodeRoleNotAllowed, attributes: true},
		"used up":    {token: func(tok *typesv1.Token) { tok.Spec.MaxUses, tok.Status.Uses = 3, 3 }, code: join.CodeTokenUsedUp},
		"locked token": {edit: func(f *fixture, _ *join.Params) {
			l := types.NewLock(&typesv1.LockTarget{JoinToken: delegated}, "stop", "admin", f.clock(), time.Time{})
			check(f.t, f.store.Tx().Create(l).Commit(context.Background()))
		}, code: join.CodeLocked, attributes: true},
		"a name that the token does not list": {
			token: func(tok *typesv1.Token) {
				tok.Spec.Roles, tok.Spec.Principals = []string{"Proxy"}, []string{"*.proxy.example.com"}
			},
			edit: func(_ *fixture, p *join.Params) {
				p.Roles, p.Principals = []types.SystemRole{types.RoleProxy}, []string{"localhost", "a.proxy.example.com", "bank.example.com"}
			}, code: join.CodePrincipalDenied, attributes: true,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newPlatform(t, platform(1, ""))
			f.delegatedToken(func(tok *typesv1.Token) {
				if tt.token != nil {
					tt.token(tok)
				}
			})
			settings := map[string]string{}
			for k, v := range tt.settings {
				settings[k] = v
			}
			p := f.machine(settings)
			if tt.edit != nil {
				tt.edit(f, &p)
			}
			_, err := join.Join(t.Context(), p)
			if fault.Code(err) != tt.code {
				t.Fatalf("Join = %v, want %s", err, tt.code)
			}
			failures := f.events(audit.InstanceJoinFailure)
			if len(failures) != 1 || failures[0].GetFields().GetFields()["reason"].GetStringValue() != tt.code {
				t.Fatalf("failures = %v, want one of %s", failures, tt.code)
			}
			if _, has := failures[0].GetFields().GetFields()["attributes"]; has != tt.attributes {
				t.Errorf("event has attributes: %v, want %v", has, tt.attributes)
			}
			if instances, err := store.All[*typesv1.Instance](t.Context(), f.store, types.KindInstance); err != nil || len(instances) != 1 {
				t.Errorf("%d hosts, %v; want only Auth's", len(instances), err)
			}
		})
	}
}

func TestQuestions(t *testing.T) {
	for rounds, ok := range map[int]bool{1: true, method.MaxRounds: true, method.MaxRounds + 1: false} {
		f := newPlatform(t, platform(rounds, ""))
		f.delegatedToken()
		_, err := join.Join(t.Context(), f.machine(map[string]string{}))
		if (err == nil) != ok {
			t.Errorf("Join with %d questions = %v", rounds, err)
		}
	}
}

func TestProofsAdmitOnce(t *testing.T) {
	f := newPlatform(t, platform(1, ""))
	f.delegatedToken()
	var mu sync.Mutex
	var admitted []string
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			st, err := join.Join(t.Context(), f.machine(map[string]string{"once": "jti-1"}))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				admitted = append(admitted, st.HostID)
			} else if fault.Code(err) != method.CodeProofReplayed {
				t.Errorf("Join = %v, want %s", err, method.CodeProofReplayed)
			}
		})
	}
	wg.Wait()
	if len(admitted) != 1 {
		t.Fatalf("one proof admitted %d machines", len(admitted))
	}
	// Removing the host does not make the proof good again.
	check(t, f.store.Tx().Delete(types.KindInstance, admitted[0], "").Commit(t.Context()))
	if _, err := join.Join(t.Context(), f.machine(map[string]string{"once": "jti-1"})); fault.Code(err) != method.CodeProofReplayed {
		t.Errorf("Join after the host was removed = %v, want %s", err, method.CodeProofReplayed)
	}
	if _, err := join.Join(t.Context(), f.machine(map[string]string{"once": "jti-2"})); err != nil {
		t.Errorf("Join with another proof = %v", err)
	}
}

func TestRejoin(t *testing.T) {
	join1 := func(f *fixture, edits ...func(*join.Params)) (*state.State, error) {
		return join.Join(f.t.Context(), f.machine(map[string]string{"machine": "vm-1"}, edits...))
	}
	for policy, want := range map[string]struct{ afresh, removed string }{
		"":                  {"", join.CodeHostRemoved},
		types.RejoinDeny:    {join.CodeRejoinDenied, join.CodeHostRemoved},
		types.RejoinSameKey: {join.CodeRejoinDenied, ""},
		types.RejoinReplace: {"", ""},
	} {
		t.Run("policy "+policy, func(t *testing.T) {
			f := newPlatform(t, platform(1, ""))
			f.delegatedToken(func(tok *typesv1.Token) { tok.Spec.Rejoin = policy })
			first, err := join1(f)
			check(t, err)
			// With its identity a machine may always join again, to add a service.
			kept, err := join1(f, func(p *join.Params) { p.Current = holderOf(t, first) })
			check(t, err)
			if kept.HostID != first.HostID {
				t.Errorf("host id changed from %s to %s", first.HostID, kept.HostID)
			}
			// It lost its data directory.
			afresh, err := join1(f)
			if fault.Code(err) != want.afresh {
				t.Fatalf("Join afresh = %v, want code %q", err, want.afresh)
			}
			last := kept
			if err == nil {
				if _, gone := f.instance(first.HostID); !errors.Is(gone, fault.ErrNotFound) {
					t.Errorf("the replaced host is still there: %v", gone)
				}
				last = afresh
			}
			// An administrator removed it, and it still has its identity.
			check(t, f.store.Tx().Delete(types.KindInstance, last.HostID, "").Commit(t.Context()))
			back, err := join1(f, func(p *join.Params) { p.Current = holderOf(t, last) })
			if fault.Code(err) != want.removed {
				t.Fatalf("Join after removal = %v, want code %q", err, want.removed)
			}
			if err != nil {
				return
			}
			if same := back.HostID == last.HostID; same != (policy == types.RejoinSameKey) {
				t.Errorf("came back as the same host: %v", same)
			}
			if back.HostID == last.HostID && back.Generation <= last.Generation {
				t.Errorf("came back with generation %d after %d", back.Generation, last.Generation)
			}
		})
	}
}

func TestHostIDOfTheMethodIsUsedOnce(t *testing.T) {
	m := platform(1, "1234-i-0abc")
	f := newPlatform(t, m)
	f.delegatedToken()
	machine := f.machine(map[string]string{"machine": "vm-1"}, func(p *join.Params) { p.Methods = []method.Method{m} })
	first, err := join.Join(t.Context(), machine)
	check(t, err)
	if first.HostID != "1234-i-0abc" {
		t.Errorf("host id %s, want that of the method", first.HostID)
	}
	again, err := join.Join(t.Context(), machine)
	check(t, err)
	if again.HostID == first.HostID {
		t.Error("the id of a replaced host was given again: certificates of before would be good for it")
	}
}

func TestExpiredIdentityKeepsItsHost(t *testing.T) {
	f := newPlatform(t, platform(1, ""))
	f.delegatedToken()
	first, err := join.Join(t.Context(), f.machine(map[string]string{}))
	check(t, err)
	f.setClock(f.clock().Add(30 * 24 * time.Hour))
	again, err := join.Join(t.Context(), f.machine(map[string]string{}, func(p *join.Params) { p.Current = holderOf(t, first) }))
	check(t, err)
	if again.HostID != first.HostID || again.Generation <= first.Generation {
		t.Errorf("host %s generation %d after host %s generation %d", again.HostID, again.Generation, first.HostID, first.Generation)
	}
}

func TestRehearse(t *testing.T) {
	f := newPlatform(t, platform(1, ""))
	f.delegatedToken(func(tok *typesv1.Token) { tok.Spec.MaxUses = 1 })
	e, err := join.Rehearse(t.Context(), f.machine(map[string]string{"once": "jti", "machine": "vm"}))
	check(t, err)
	if e.GetCode() != "" || e.GetMessage() != "" {
		t.Fatalf("the rehearsal was refused: %v", e)
	}
	var names []string
	for _, c := range e.GetChecks() {
		names = append(names, c.GetName())
	}
	for _, want := range []string{"clock", "token", "proof", "rules", "roles", "names"} {
		if !slices.Contains(names, want) {
			t.Errorf("checks %v lack %q", names, want)
		}
	}
	if len(e.GetRules()) != 1 || e.GetRules()[0].GetFields()[0].GetWant() != "project-1" || e.GetRules()[0].GetFields()[0].GetGot() != "project-1" {
		t.Errorf("rules = %v", e.GetRules())
	}
	// It changed nothing: the one use, the proof and the machine are as new.
	if _, err := join.Join(t.Context(), f.machine(map[string]string{"once": "jti", "machine": "vm"})); err != nil {
		t.Fatalf("Join after a rehearsal = %v", err)
	}
	refused, err := join.Rehearse(t.Context(), f.machine(map[string]string{"project": "project-2"}))
	check(t, err)
	if refused.GetCode() != method.CodeRuleMismatch && refused.GetCode() != join.CodeTokenUsedUp {
		t.Errorf("code %q", refused.GetCode())
	}
	if text := refused.String(); strings.Contains(text, "\"project-1\"") {
		t.Errorf("a machine that is not admitted sees what the rule wants: %s", text)
	}
}

func TestAttestingHostsDoNotRenew(t *testing.T) {
	f := newPlatform(t, platform(1, ""))
	f.delegatedToken()
	st, err := join.Join(t.Context(), f.machine(map[string]string{}))
	check(t, err)
	if _, err := f.renew(st); fault.Code(err) != join.CodeMustAttest {
		t.Errorf("Renew = %v, want %s", err, join.CodeMustAttest)
	}
	again, err := join.Join(t.Context(), f.machine(map[string]string{}, func(p *join.Params) { p.Current = holderOf(t, st) }))
	check(t, err)
	if again.HostID != st.HostID || again.Generation != st.Generation+1 {
		t.Errorf("host %s generation %d, want %s and %d", again.HostID, again.Generation, st.HostID, st.Generation+1)
	}
}

// The answer of a join is lost on its way. The proof is used up, and the machine that
// asks for the same key again gets what it was to get; another one does not.
func TestLostAnswer(t *testing.T) {
	for _, policy := range []string{"", types.RejoinDeny, types.RejoinSameKey} {
		f := newPlatform(t, platform(1, "1234-i-0abc"))
		f.delegatedToken(func(tok *typesv1.Token) { tok.Spec.Rejoin = policy })
		pair, err := join.NewKeyPair()
		check(t, err)
		p := f.machine(map[string]string{"once": "document-1", "machine": "vm-1"}, func(p *join.Params) {
			p.Methods, p.Pair = []method.Method{platform(1, "1234-i-0abc")}, &pair
		})
		lost, err := join.Join(t.Context(), p)
		check(t, err)
		again, err := join.Join(t.Context(), p)
		if err != nil {
			t.Fatalf("policy %q: Join with the same key = %v", policy, err)
		}
		if again.HostID != lost.HostID || again.Generation <= lost.Generation {
			t.Errorf("policy %q: host %s generation %d after host %s generation %d", policy, again.HostID, again.Generation, lost.HostID, lost.Generation)
		}
		p.Pair = nil
		if _, err := join.Join(t.Context(), p); fault.Code(err) != method.CodeProofReplayed {
			t.Errorf("policy %q: Join with another key = %v, want %s", policy, err, method.CodeProofReplayed)
		}
	}
}

// A machine with a stale token does not shut out its neighbours behind the address.
func TestOneStaleTokenBehindAnAddress(t *testing.T) {
	f := newFixture(t)
	f.token(secret)
	var limited error
	for range 200 {
		_, limited = join.Join(t.Context(), f.params(func(p *join.Params) { p.Token = "ffffffffffffffffffffffffffffffff" }))
		if fault.Code(limited) == join.CodeTooMany {
			break
		}
	}
	if fault.Code(limited) != join.CodeTooMany || fault.RetryAfter(limited) == 0 {
		t.Fatalf("the stale token = %v, want %s and when to come back", limited, join.CodeTooMany)
	}
	if _, err := join.Join(t.Context(), f.params()); err != nil {
		t.Errorf("a good token from the same address = %v", err)
	}
}
