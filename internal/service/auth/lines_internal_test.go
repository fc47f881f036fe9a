package auth

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"teleport/internal/store"
)

// A lone event is not kept waiting; what follows it is written together.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		events := make(chan store.StoredEvent)
		send := func(n int, every time.Duration) {
			go func() {
				for range n {
					time.Sleep(every)
					events <- store.StoredEvent{}
				}
			}()
		}
		pause := time.NewTimer(0)
		began := time.Now()
		want := func(what string, n int, took time.Duration) {
			t.Helper()
			began = time.Now()
			if got := len(gather(ctx, store.StoredEvent{}, events, pause.C)); got != n || time.Since(began) != took {
				t.Errorf("%s: %d events after %s, want %d after %s", what, got, time.Since(began), n, took)
			}
			pause.Reset(linePause)
		}
		synctest.Wait()
		want("alone", 1, 0)
		send(5, time.Millisecond)
		want("in a crowd", 6, linePause)
		send(lineBatch+1, 0)
		want("too many", lineBatch, 0)
		want("the rest", 3, linePause)
		send(1, time.Hour)
		time.AfterFunc(time.Millisecond, cancel)
		want("at the end", 1, time.Millisecond)
		<-events
	})
}
