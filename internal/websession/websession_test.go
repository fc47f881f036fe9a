package websession_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/backend/memory"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/store"
	"teleport/internal/types"
	"teleport/internal/websession"
)

type env struct {
	*testing.T
	store *store.Store
	now   time.Time
}

func newEnv(t *testing.T) *env {
	t.Helper()
	b := memory.New()
	t.Cleanup(func() { _ = b.Close() })
	return &env{T: t, store: store.New(store.Config{Backend: b}), now: time.Now()}
}

func (e *env) login(user string) (string, *typesv1.WebSession) {
	e.Helper()
	token, s, err := websession.New(user, "device-1", "192.0.2.1:7", e.now, e.now.Add(time.Hour))
	if err != nil {
		e.Fatal(err)
	}
	e.commit(e.store.Tx().Create(s))
	return token, s
}

func (e *env) open(parent *typesv1.WebSession, app string) (string, *typesv1.WebSession) {
	e.Helper()
	tx := e.store.Tx()
	if err := websession.MakeRoom(e.Context(), e.store, tx, parent, app); err != nil {
		e.Fatal(err)
	}
	token, s, err := websession.NewApp(parent, app, e.now)
	if err != nil {
		e.Fatal(err)
	}
	e.commit(tx.Create(s))
	return token, s
}

func (e *env) commit(tx *store.Tx) {
	e.Helper()
	if err := tx.Commit(e.Context()); err != nil {
		e.Fatal(err)
	}
}

func (e *env) found(token string) bool {
	e.Helper()
	s, err := websession.Find(e.Context(), e.store, token, e.now)
	if err != nil && (!errors.Is(err, fault.ErrUnauthenticated) || fault.Code(err) != websession.CodeGone) {
		e.Errorf("Find = %v", err)
	}
	return s != nil
}

func TestSession(t *testing.T) {
	e := newEnv(t)
	token, s := e.login("alice")
	got, err := websession.Find(t.Context(), e.store, token, e.now)
	if err != nil || got.GetSpec().GetUser() != "alice" || got.GetSpec().GetMfaDevice() != "device-1" || got.GetSpec().GetRemoteAddr() != "192.0.2.1:7" {
		t.Fatalf("Find = %v, %v", got, err)
	}
	value, err := types.Encode(got)
	if err != nil {
		t.Fatal(err)
	}
	id, secret, _ := strings.Cut(token, ".")
	if id != s.GetMetadata().GetName() || bytes.Contains(value, []byte(secret)) {
		t.Error("what is stored has the secret, or another id")
	}
	appToken, child := e.open(got, "grafana")
	if spec := child.GetSpec(); spec.GetApp() != "grafana" || spec.GetParent() != id || spec.GetUser() != "alice" || spec.GetMfaDevice() != "device-1" ||
		!child.GetMetadata().GetExpires().AsTime().Equal(got.GetMetadata().GetExpires().AsTime()) {
		t.Errorf("session at the application = %v", child)
	}
	if identity.CheckHostID(child.GetMetadata().GetName()) != nil {
		t.Errorf("id %q does not fit a certificate", child.GetMetadata().GetName())
	}
	other, _ := e.login("bob")
	for name, bad := range map[string]string{
		"empty": "", "id": id, "no_secret": id + ".", "other_secret": id + "." + strings.Repeat("0", 64), "swapped": id + strings.TrimPrefix(other, strings.SplitN(other, ".", 2)[0]),
		"more": token + "0", "long": id + "." + strings.Repeat("0", 1<<20), "slash": "a/b.c", "newline": id + "\n.x",
	} {
		if e.found(bad) {
			t.Errorf("%s: a session was found", name)
		}
	}
	if !e.found(token) || !e.found(appToken) || !e.found(other) {
		t.Error("a session is gone")
	}
	e.now = e.now.Add(time.Hour)
	if e.found(token) || e.found(appToken) {
		t.Error("a session outlives its end")
	}
}

func TestEnd(t *testing.T) {
	e := newEnv(t)
	token, s := e.login("alice")
	one, first := e.open(s, "one")
	two, _ := e.open(s, "two")
	other, _ := e.login("bob")
	tx := e.store.Tx()
	if err := websession.End(t.Context(), e.store, tx, first); err != nil {
		t.Fatal(err)
	}
	e.commit(tx)
	if e.found(one) || !e.found(two) || !e.found(token) {
		t.Error("the end of a session at an application is not that of it alone")
	}
	tx = e.store.Tx()
	if err := websession.End(t.Context(), e.store, tx, s); err != nil {
		t.Fatal(err)
	}
	e.commit(tx)
	if e.found(two) || e.found(token) || !e.found(other) {
		t.Error("the end of a session is not that of it and those that came of it")
	}
	// Whoever opens an application meanwhile comes too late.
	tx = e.store.Tx()
	if err := websession.MakeRoom(t.Context(), e.store, tx, s, "one"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err == nil {
		t.Error("a session at an application came of one that had ended")
	}
}

func TestEndUser(t *testing.T) {
	e := newEnv(t)
	first, s := e.login("alice")
	second, _ := e.login("alice")
	app, _ := e.open(s, "one")
	other, _ := e.login("bob")
	tx := e.store.Tx()
	if err := websession.EndUser(t.Context(), e.store, tx, "alice"); err != nil {
		t.Fatal(err)
	}
	e.commit(tx)
	if e.found(first) || e.found(second) || e.found(app) || !e.found(other) {
		t.Error("the sessions of alice, and only those, are to be over")
	}
}

// TestRoom: a browser that signs in again and again has its oldest sessions ended.
func TestRoom(t *testing.T) {
	e := newEnv(t)
	_, s := e.login("alice")
	kept, _ := e.open(s, "other")
	var tokens []string
	for range 12 {
		e.now = e.now.Add(time.Second)
		token, _ := e.open(s, "one")
		tokens = append(tokens, token)
	}
	for i, token := range tokens {
		if got, want := e.found(token), i >= 4; got != want {
			t.Errorf("session %d of 12 found: %t, want %t", i, got, want)
		}
	}
	if !e.found(kept) {
		t.Error("the session of another application went")
	}
}
