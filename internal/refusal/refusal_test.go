package refusal_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/refusal"
)

func TestTheSameIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := refusal.NewBook(time.Now)
		ctx, cancel := context.WithCancel(t.Context())
		var told []*auditv1.Event
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.Run(ctx, func(_ context.Context, events ...*auditv1.Event) { told = append(told, events...) })
		}()
		first := &auditv1.Event{Code: "T1"}
		if !b.Note(first, "alice") || first.GetUid() == "" {
			t.Error("the first refusal is no event")
		}
		for range 3 {
			again := &auditv1.Event{Code: "T1"}
			if b.Note(again, "alice") || again.GetUid() != first.GetUid() {
				t.Error("the same refusal is an event again")
			}
		}
		if !b.Note(&auditv1.Event{Code: "T1"}, "bob") || !b.Note(&auditv1.Event{Code: "T2"}, "alice") {
			t.Error("another refusal is no event")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(told) != 1 || told[0].GetFields().AsMap()["repeated"] != 3.0 || told[0].GetFields().AsMap()["first_event"] != first.GetUid() {
			t.Errorf("after the window = %v, want one event with repeated 3", told)
		}
		if !b.Note(&auditv1.Event{Code: "T1"}, "alice") {
			t.Error("the same refusal after the window is no event")
		}
		b.Note(&auditv1.Event{Code: "T1"}, "alice")
		cancel()
		<-done
		if len(told) != 2 {
			t.Errorf("at the end %d events, want 2", len(told))
		}
	})
}
