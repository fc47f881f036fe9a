package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/backend"
	"teleport/internal/backend/memory"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
)

func newStore(t *testing.T) (*store.Store, *memory.Backend) {
	t.Helper()
	b := memory.New()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	s := store.New(store.Config{Backend: b})
	s.SetCluster("example.com")
	return s, b
}

func user(name string, roles ...string) *typesv1.User {
	return &typesv1.User{Kind: types.KindUser, Version: "v2", Metadata: &typesv1.Metadata{Name: name}, Spec: &typesv1.UserSpec{Roles: roles}}
}

func role(name string) *typesv1.Role {
	return &typesv1.Role{Kind: types.KindRole, Version: "v8", Metadata: &typesv1.Metadata{Name: name}}
}

func event(name string) *auditv1.Event { return &auditv1.Event{Event: name, Code: "T0"} }

func commit(t *testing.T, tx *store.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

// wants checks kind and wording of an error.
func wants(t *testing.T, err, kind error, says string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), says) {
		t.Errorf("got error %v, want kind %v that says %q", err, kind, says)
	}
}

func TestLifecycle(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	_, err := s.Get(ctx, types.KindUser, "alice")
	wants(t, err, fault.ErrNotFound, `user "alice" does not exist`)

	alice := user("alice", "access")
	commit(t, s.Tx().Create(alice))
	first := alice.Metadata.Revision
	if first == "" {
		t.Fatal("no revision after Create")
	}
	got, err := store.Get[*typesv1.User](ctx, s, types.KindUser, "alice")
	if err != nil || !proto.Equal(got, alice) {
		t.Fatalf("Get = %v, %v, want %v", got, err, alice)
	}
	wants(t, s.Tx().Create(user("alice")).Commit(ctx), fault.ErrExists, `user "alice" already exists`)

	got.Spec.Roles = []string{"editor"}
	commit(t, s.Tx().Update(got))
	if got.Metadata.Revision == first {
		t.Error("the revision stayed the same after Update")
	}
	alice.Spec.Roles = nil
	wants(t, s.Tx().Update(alice).Commit(ctx), fault.ErrStale, `user "alice" was changed by somebody else`)
	if alice.Metadata.Revision != first {
		t.Error("a failed Update changed the revision")
	}
	wants(t, s.Tx().Delete(types.KindUser, "alice", first).Commit(ctx), fault.ErrStale, "alice")
	wants(t, s.Tx().Check(types.KindUser, "alice", first).Upsert(role("r")).Commit(ctx), fault.ErrStale, "alice")
	wants(t, s.Tx().Check(types.KindUser, "alice", "").Upsert(role("r")).Commit(ctx), fault.ErrStale, "alice")
	commit(t, s.Tx().Check(types.KindUser, "alice", got.Metadata.Revision).Upsert(role("r")))
	commit(t, s.Tx().Delete(types.KindUser, "alice", got.Metadata.Revision))
	wants(t, s.Tx().Delete(types.KindUser, "alice", "").Commit(ctx), fault.ErrNotFound, `user "alice" does not exist`)
	wants(t, s.Tx().Update(got).Commit(ctx), fault.ErrNotFound, "alice")
	commit(t, s.Tx().Check(types.KindUser, "alice", "").Create(role("r2")))
	commit(t, s.Tx().Create(user("alice")))

	if _, err := store.Get[*typesv1.Role](ctx, s, types.KindUser, "alice"); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("Get as another type: got error %v, want ErrInvalid", err)
	}
}

func TestBelow(t *testing.T) {
	s, _ := newStore(t)
	for _, name := range []string{"web@a", "web@b", "web-2@a", "we@c", "web", "web@"} {
		commit(t, s.Tx().Create(user(name)))
	}
	for _, tt := range []struct {
		prefix string
		most   int
		want   string
	}{{"web@", 10, "web@ web@a web@b"}, {"web@", 2, "web@ web@a"}, {"web-2@", 10, "web-2@a"}, {"x", 10, ""}, {"we%", 10, ""}} {
		got, err := store.Below[*typesv1.User](t.Context(), s, types.KindUser, tt.prefix, tt.most)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, u := range got {
			names = append(names, u.GetMetadata().GetName())
		}
		if strings.Join(names, " ") != tt.want {
			t.Errorf("Below(%q, %d) = %v, want %s", tt.prefix, tt.most, names, tt.want)
		}
	}
	_, err := store.Below[*typesv1.User](t.Context(), s, types.KindUser, "", 0)
	wants(t, err, fault.ErrInvalid, "most")
	_, err = store.Below[*typesv1.Role](t.Context(), s, types.KindUser, "", 1)
	wants(t, err, fault.ErrInvalid, "not of the type")
	_, err = store.Below[*typesv1.Role](t.Context(), s, "nothing", "", 1)
	wants(t, err, fault.ErrInvalid, "nothing")
}

func TestSingleton(t *testing.T) {
	s, _ := newStore(t)
	c, _ := types.New(types.KindClusterName, "whatever").(*typesv1.ClusterName)
	commit(t, s.Tx().Create(c))
	for _, name := range []string{"", types.KindClusterName} {
		if got, err := store.Get[*typesv1.ClusterName](t.Context(), s, types.KindClusterName, name); err != nil || !proto.Equal(got, c) {
			t.Errorf("Get(%q) = %v, %v, want %v", name, got, err, c)
		}
	}
}

func TestTxAtomic(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	commit(t, s.Tx().Create(role("taken")))
	err := s.Tx().Create(user("bob")).Emit(event("user.create")).Create(role("taken")).Commit(ctx)
	wants(t, err, fault.ErrExists, `role "taken" already exists`)
	if _, err := s.Get(ctx, types.KindUser, "bob"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("Get(bob) = %v, want ErrNotFound", err)
	}
	if es, _, err := s.SearchEvents(ctx, store.EventQuery{}); err != nil || len(es) != 0 {
		t.Errorf("events = %v, %v, want none", es, err)
	}
	bob, free := user("bob"), role("free")
	commit(t, s.Tx().Create(bob).Emit(event("user.create")).Create(free))
	if bob.Metadata.Revision == "" || bob.Metadata.Revision != free.Metadata.Revision {
		t.Errorf("revisions %q and %q of one transaction", bob.Metadata.Revision, free.Metadata.Revision)
	}
	es, _, err := s.SearchEvents(ctx, store.EventQuery{})
	if err != nil || len(es) != 1 || es[0].GetEvent() != "user.create" {
		t.Errorf("events = %v, %v", es, err)
	}
}

func TestTxRefuses(t *testing.T) {
	s, _ := newStore(t)
	past := user("late")
	past.Metadata.Expires = timestamppb.New(time.Now().Add(-time.Second))
	odd := user("odd")
	odd.Metadata.Expires = &timestamppb.Timestamp{Nanos: -5}
	noRevision, badRevision := user("a"), user("a")
	badRevision.Metadata.Revision = "latest"
	rows := map[string]*store.Tx{
		"nothing":        s.Tx(),
		"nil":            s.Tx().Create(nil),
		"nil_update":     s.Tx().Update(nil),
		"no_kind":        s.Tx().Create(&typesv1.User{Metadata: &typesv1.Metadata{Name: "x"}}),
		"unknown_kind":   s.Tx().Create(&typesv1.User{Kind: "moon", Metadata: &typesv1.Metadata{Name: "x"}}),
		"no_name":        s.Tx().Create(user("")),
		"no_metadata":    s.Tx().Create(&typesv1.User{Kind: types.KindUser}),
		"past":           s.Tx().Create(past),
		"odd_expiry":     s.Tx().Create(odd),
		"no_revision":    s.Tx().Update(noRevision),
		"bad_revision":   s.Tx().Update(badRevision),
		"delete_what":    s.Tx().Delete(types.KindUser, "", ""),
		"delete_kind":    s.Tx().Delete("users", "x", ""),
		"delete_rev":     s.Tx().Delete(types.KindUser, "x", "x"),
		"twice":          s.Tx().Create(user("x")).Upsert(user("x")),
		"event_no_type":  s.Tx().Emit(&auditv1.Event{}),
		"event_nil":      s.Tx().Emit(nil),
		"event_time":     s.Tx().Emit(&auditv1.Event{Event: "x", Time: &timestamppb.Timestamp{Nanos: -1}}),
		"event_long_uid": s.Tx().Emit(&auditv1.Event{Event: "x", Uid: strings.Repeat("x", 1000)}),
		"later_is_fine":  s.Tx().Create(nil).Create(user("x")),
	}
	for name, tx := range rows {
		if err := tx.Commit(t.Context()); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: Commit = %v, want ErrInvalid", name, err)
		}
	}
	if all, err := store.All[*typesv1.User](t.Context(), s, types.KindUser); err != nil || len(all) != 0 {
		t.Errorf("users = %v, %v, want none", all, err)
	}
}

func TestNamesAreSafe(t *testing.T) {
	s, _ := newStore(t)
	// The store does not judge names, and still none may reach into another kind.
	names := []string{"a", "a/b", "a%2Fb", "../role/x", "%", "a%", "é", "a b"}
	for _, name := range names {
		commit(t, s.Tx().Create(user(name)))
	}
	w, err := s.Watch(t.Context(), []string{types.KindUser}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, name := range names {
		if u, err := store.Get[*typesv1.User](t.Context(), s, types.KindUser, name); err != nil || u.Metadata.Name != name {
			t.Errorf("Get(%q) = %v, %v", name, u, err)
		}
		if c := <-w.Changes(); c.Name != name || c.Resource.GetMetadata().GetName() != name {
			t.Errorf("change of %q, want %q", c.Name, name)
		}
	}
	if all, err := store.All[*typesv1.User](t.Context(), s, types.KindUser); err != nil || len(all) != len(names) {
		t.Errorf("%d users, %v, want %d", len(all), err, len(names))
	}
}

func TestList(t *testing.T) {
	s, b := newStore(t)
	ctx := t.Context()
	var want []string
	for i := range 25 {
		name := fmt.Sprintf("u%02d", i)
		want = append(want, name)
		commit(t, s.Tx().Create(user(name)).Create(role(name)))
	}
	// One item that cannot be read never hides the others.
	for _, name := range []string{"u03x", "u24x"} {
		if _, err := b.Batch(ctx, backend.Op{Type: backend.OpPut, Item: backend.Item{Key: "res/user/" + name, Value: []byte("\xff")}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{1, 2, 7, 25, 26, 0, 1 << 30} {
		var got []string
		token := ""
		for pages := 0; ; pages++ {
			page, next, err := s.List(ctx, types.KindUser, size, token)
			if err != nil {
				t.Fatalf("List: %v", err)
			}
			for _, r := range page {
				got = append(got, r.GetMetadata().GetName())
			}
			if size > 0 && len(page) > size {
				t.Errorf("a page of %d, asked for %d", len(page), size)
			}
			if next == "" {
				break
			}
			token = next
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("List with pages of %d (-want +got):\n%s", size, d)
		}
	}
	if all, err := store.All[*typesv1.User](ctx, s, types.KindUser); err != nil || len(all) != 25 {
		t.Errorf("All = %d, %v, want 25", len(all), err)
	}
	_, roleToken, err := s.List(ctx, types.KindRole, 1, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"garbage": "!!", "not_a_key": "aGVsbG8", "other_kind": roleToken, "long": strings.Repeat("a", 10000)} {
		if _, _, err := s.List(ctx, types.KindUser, 1, token); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("List with token %s: got error %v, want ErrInvalid", name, err)
		}
	}
	for _, kind := range []string{"", "users", "moon"} {
		if _, _, err := s.List(ctx, kind, 1, ""); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("List(%q): got error %v, want ErrInvalid", kind, err)
		}
	}
}

// TestListLarge checks that a page of large resources fits into one message.
func TestListLarge(t *testing.T) {
	s, _ := newStore(t)
	for i := range 20 {
		u := user(fmt.Sprintf("u%02d", i))
		u.Metadata.Description = strings.Repeat("x", 400<<10)
		commit(t, s.Tx().Create(u))
	}
	for range 20 {
		commit(t, s.Tx().Emit(&auditv1.Event{Event: "large", Code: strings.Repeat("x", 400<<10)}))
	}
	var names, codes int
	for token := ""; ; {
		page, next, err := s.List(t.Context(), types.KindUser, 0, token)
		if err != nil || len(page) == 0 || len(page) > 6 {
			t.Fatalf("List = %d resources, %v", len(page), err)
		}
		names += len(page)
		if token = next; token == "" {
			break
		}
	}
	for q := (store.EventQuery{}); ; {
		page, next, err := s.SearchEvents(t.Context(), q)
		if err != nil || len(page) == 0 || len(page) > 6 {
			t.Fatalf("SearchEvents = %d events, %v", len(page), err)
		}
		codes += len(page)
		if q.PageToken = next; next == "" {
			break
		}
	}
	if names != 20 || codes != 20 {
		t.Errorf("%d resources and %d events, want 20 of each", names, codes)
	}
}

func TestExpiry(t *testing.T) {
	s, _ := newStore(t)
	u := user("guest")
	u.Metadata.Expires = timestamppb.New(time.Now().Add(time.Hour).Truncate(time.Microsecond))
	commit(t, s.Tx().Create(u))
	got, err := store.Get[*typesv1.User](t.Context(), s, types.KindUser, "guest")
	if err != nil || !proto.Equal(got.Metadata.Expires, u.Metadata.Expires) {
		t.Errorf("expires = %v, %v, want %v", got.GetMetadata().GetExpires(), err, u.Metadata.Expires)
	}
	got.Metadata.Expires = nil
	commit(t, s.Tx().Update(got))
	if got, err = store.Get[*typesv1.User](t.Context(), s, types.KindUser, "guest"); err != nil || got.Metadata.Expires != nil {
		t.Errorf("expires = %v, %v, want never", got.GetMetadata().GetExpires(), err)
	}
	soon := user("soon")
	soon.Metadata.Expires = timestamppb.New(time.Now().Add(time.Millisecond))
	w, err := s.Watch(t.Context(), []string{types.KindUser}, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	commit(t, s.Tx().Create(soon))
	if c := <-w.Changes(); c.Name != "soon" || c.Resource == nil {
		t.Errorf("change = %v", c)
	}
	if c := <-w.Changes(); c.Name != "soon" || c.Resource != nil || c.Kind != types.KindUser {
		t.Errorf("change = %v, want the deletion of soon", c)
	}
}

func TestPast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newStore(t)
		ctx := t.Context()
		token, _ := types.New(types.KindToken, "t").(*typesv1.Token)
		token.Metadata.Expires = timestamppb.New(time.Now().Add(time.Hour))
		kind, _ := types.Kind(types.KindToken)
		commit(t, s.Tx().Create(token).Create(user("u")))
		time.Sleep(time.Hour + kind.Remember - time.Second)
		if _, err := s.Get(ctx, types.KindToken, "t"); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("Get of an expired token: got error %v, want ErrNotFound", err)
		}
		if got, err := store.Past[*typesv1.Token](ctx, s, types.KindToken, "t"); err != nil || got.GetMetadata().GetName() != "t" {
			t.Errorf("Past = %v, %v", got, err)
		}
		if all, _, err := s.List(ctx, types.KindToken, 0, ""); err != nil || len(all) != 0 {
			t.Errorf("List = %v, %v, want none", all, err)
		}
		time.Sleep(time.Second)
		_, err := store.Past[*typesv1.Token](ctx, s, types.KindToken, "t")
		wants(t, err, fault.ErrNotFound, `token "t" does not exist`)
		if _, err := store.Past[*typesv1.User](ctx, s, types.KindUser, "u"); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("Past of a kind that is not remembered: got error %v, want ErrNotFound", err)
		}
	})
}
