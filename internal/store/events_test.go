package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/backend"
	"teleport/internal/backend/memory"
	"teleport/internal/fault"
	"teleport/internal/store"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func TestEmitFills(t *testing.T) {
	b := memory.New()
	t.Cleanup(func() { _ = b.Close() })
	s := store.New(store.Config{Backend: b, Now: func() time.Time { return noon }})
	before := event("before.name")
	commit(t, s.Tx().Emit(before))
	s.SetCluster("example.com")
	e := event("x")
	own := &auditv1.Event{Event: "y", Uid: "own", ClusterName: "leaf", Time: timestamppb.New(noon.Add(-time.Hour))}
	commit(t, s.Tx().Emit(e, own))
	if before.ClusterName != "" || e.ClusterName != "example.com" || len(e.Uid) != 36 || !e.Time.AsTime().Equal(noon) {
		t.Errorf("event = %v", e)
	}
	if own.Uid != "own" || own.ClusterName != "leaf" || !own.Time.AsTime().Equal(noon.Add(-time.Hour)) {
		t.Errorf("what was set was changed: %v", own)
	}
	got, _, err := s.SearchEvents(t.Context(), store.EventQuery{Ascending: true})
	if err != nil || len(got) != 3 || !proto.Equal(got[0], own) || !proto.Equal(got[2], e) {
		t.Errorf("SearchEvents = %v, %v", got, err)
	}
	// The same of an event that is encoded.
	var enc audit.Encoded
	for name, ev := range map[string]*auditv1.Event{"bare": {Event: "z"}, "whole": {Event: "z", Uid: "whole", ClusterName: "leaf", Time: timestamppb.New(noon.Add(time.Hour))}} {
		raw, err := proto.Marshal(ev)
		if err != nil || enc.Take(raw) != nil {
			t.Fatal(err)
		}
		commit(t, s.Tx().EmitEncoded(&enc))
		if name == "whole" {
			continue
		}
		if got := enc.Time(); len(enc.UID) != 36 || enc.Cluster != "example.com" || !got.AsTime().Equal(noon) {
			t.Errorf("%s: %+v at %v", name, enc, got)
		}
	}
	last, _, err := s.SearchEvents(t.Context(), store.EventQuery{Limit: 1})
	if err != nil || len(last) != 1 || last[0].GetUid() != "whole" || last[0].GetClusterName() != "leaf" {
		t.Errorf("SearchEvents = %v, %v, want the one that is whole", last, err)
	}
	for _, ev := range []*auditv1.Event{{}, {Event: "z", Uid: strings.Repeat("u", 129)}, {Event: "z", Time: &timestamppb.Timestamp{Nanos: -1}}} {
		raw, err := proto.Marshal(ev)
		if err != nil || enc.Take(raw) != nil {
			t.Fatal(err)
		}
		wants(t, s.Tx().EmitEncoded(&enc).Commit(t.Context()), fault.ErrInvalid, "event")
	}
	// Nothing that was logged can be written over.
	forged := &auditv1.Event{Event: "forged", Uid: "own", Time: own.Time}
	wants(t, s.Emit(t.Context(), forged), fault.ErrExists, `event "own"`)
	if err := s.Emit(t.Context()); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("Emit of nothing: got error %v, want ErrInvalid", err)
	}
	items, _, err := b.Range(t.Context(), "audit/", "audit0", 0)
	if err != nil || len(items) != 5 {
		t.Fatalf("%d items, %v", len(items), err)
	}
	for _, it := range items {
		if left := time.Until(it.Expires); left < store.EventLife-time.Minute || it.Expires.Before(noon.Add(store.EventLife)) {
			t.Errorf("event expires at %v", it.Expires)
		}
	}
}

// fillEvents stores 100 events a minute apart, of three types in turn.
func fillEvents(t *testing.T, s *store.Store) {
	t.Helper()
	for i := range 100 {
		e := event([]string{"a", "b", "c"}[i%3])
		e.Uid = fmt.Sprintf("%02d", i)
		e.Time = timestamppb.New(noon.Add(time.Duration(i) * time.Minute))
		commit(t, s.Tx().Emit(e))
	}
}

func TestSearchEvents(t *testing.T) {
	s, b := newStore(t)
	fillEvents(t, s)
	if _, err := b.Batch(t.Context(), backend.Op{Type: backend.OpPut, Item: backend.Item{Key: "audit/20261120T121230.000000000Z/bad", Value: []byte("\xff")}}); err != nil {
		t.Fatal(err)
	}
	span := func(from, to int, types ...string) []string {
		var out []string
		for i := from; i < to; i++ {
			if len(types) == 0 || slices.Contains(types, []string{"a", "b", "c"}[i%3]) {
				out = append(out, fmt.Sprintf("%02d", i))
			}
		}
		return out
	}
	at := func(i int) time.Time { return noon.Add(time.Duration(i) * time.Minute) }
	rows := map[string]struct {
		q    store.EventQuery
		want []string
	}{
		"all":        {store.EventQuery{}, span(0, 100)},
		"from":       {store.EventQuery{From: at(90)}, span(90, 100)},
		"from_next":  {store.EventQuery{From: at(90).Add(time.Nanosecond)}, span(91, 100)},
		"to":         {store.EventQuery{To: at(10)}, span(0, 10)},
		"to_next":    {store.EventQuery{To: at(10).Add(time.Nanosecond)}, span(0, 11)},
		"span":       {store.EventQuery{From: at(20), To: at(25)}, span(20, 25)},
		"empty_span": {store.EventQuery{From: at(25), To: at(20)}, nil},
		"zone":       {store.EventQuery{From: at(98).In(time.FixedZone("x", 7200))}, span(98, 100)},
		"type":       {store.EventQuery{Types: []string{"b"}}, span(0, 100, "b")},
		"types":      {store.EventQuery{Types: []string{"b", "c"}, From: at(5), To: at(50)}, span(5, 50, "b", "c")},
		"no_type":    {store.EventQuery{Types: []string{"z"}}, nil},
	}
	for name, row := range rows {
		for _, limit := range []int{1, 3, 7, 100, 0, 5000} {
			for _, ascending := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d/%v", name, limit, ascending), func(t *testing.T) {
					q := row.q
					q.Limit, q.Ascending = limit, ascending
					want := slices.Clone(row.want)
					if !ascending {
						slices.Reverse(want)
					}
					var got []string
					for range 200 {
						page, next, err := s.SearchEvents(t.Context(), q)
						if err != nil {
							t.Fatal(err)
						}
						if limit > 0 && len(page) > limit {
							t.Errorf("a page of %d, asked for %d", len(page), limit)
						}
						for _, e := range page {
							got = append(got, e.GetUid())
						}
						if q.PageToken = next; next == "" {
							break
						}
					}
					if d := cmp.Diff(want, got); d != "" {
						t.Errorf("SearchEvents (-want +got):\n%s", d)
					}
				})
			}
		}
	}
	for _, token := range []string{"!!", "aGVsbG8", "cmVzL3VzZXIveA"} {
		if _, _, err := s.SearchEvents(t.Context(), store.EventQuery{PageToken: token}); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("SearchEvents with token %q: got error %v, want ErrInvalid", token, err)
		}
	}
}

// TestSearchEventsBounded looks for a rare type among very many events: a call
// gives up after some work, and its token goes on.
func TestSearchEventsBounded(t *testing.T) {
	s, _ := newStore(t)
	rare := event("rare")
	rare.Time = timestamppb.New(noon)
	commit(t, s.Tx().Emit(rare))
	for i := range 50 {
		tx := s.Tx()
		for j := range 500 {
			e := event("common")
			e.Time = timestamppb.New(noon.Add(time.Duration(i*500+j+1) * time.Second))
			tx.Emit(e)
		}
		commit(t, tx)
	}
	q := store.EventQuery{Types: []string{"rare"}}
	page, next, err := s.SearchEvents(t.Context(), q)
	if err != nil || len(page) != 0 || next == "" {
		t.Fatalf("first page = %v, %q, %v, want none and a token", page, next, err)
	}
	q.PageToken = next
	page, next, err = s.SearchEvents(t.Context(), q)
	if err != nil || len(page) != 1 || next != "" {
		t.Fatalf("second page = %v, %q, %v, want the rare event", page, next, err)
	}
}

func TestWatchEvents(t *testing.T) {
	s, _ := newStore(t)
	commit(t, s.Tx().Emit(event("old")))
	rev, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.WatchEvents(t.Context(), rev)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	late := event("late")
	late.Time = timestamppb.New(noon.Add(-24 * time.Hour))
	commit(t, s.Tx().Create(user("u")))
	commit(t, s.Tx().Emit(event("one"), event("two")).Create(user("v")))
	commit(t, s.Tx().Emit(late))
	for i, want := range []string{"one", "two", "late"} {
		got := <-w.Events()
		var e audit.Encoded
		if err := e.Read(got.Value); err != nil || e.Kind.Type != want || e.UID == "" || got.Revision != rev+[]uint64{2, 2, 3}[i] {
			t.Errorf("event %d = %+v at %d, %v; want %s", i, e.Kind, got.Revision, err, want)
		}
	}
	if w.Err() != nil {
		t.Errorf("Err of a live watcher = %v", w.Err())
	}
	if _, err := s.WatchEvents(t.Context(), 1000); !errors.Is(err, fault.ErrStale) {
		t.Errorf("WatchEvents after a revision to come: got error %v, want ErrStale", err)
	}
}
