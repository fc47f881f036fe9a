package budget_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"teleport/internal/budget"
)

// enter lets somebody wait; its name goes to order when it is in.
func enter(t *testing.T, turns *budget.Turns, e budget.Entry, name string, order chan<- string) {
	t.Helper()
	go func() {
		if err := turns.Enter(t.Context(), e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		order <- name
	}()
	synctest.Wait()
}

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := budget.NewTurns(2)
		order := make(chan string, 16)
		for range 2 {
			enter(t, turns, budget.Entry{Source: "crowd"}, "in", order)
			<-order
		}
		var seen []budget.Queue
		look := func(q budget.Queue) error { seen = append(seen, q); return nil }
		for i := range 3 {
			enter(t, turns, budget.Entry{Source: "crowd", Admit: look}, fmt.Sprint("crowd", i), order)
		}
		enter(t, turns, budget.Entry{Source: "alone", Admit: look}, "alone", order)
		enter(t, turns, budget.Entry{Source: "crowd", First: true}, "back", order)
		if got, want := fmt.Sprint(seen), "[{0 0 0} {1 1 1} {2 2 1} {3 0 1}]"; got != want {
			t.Errorf("newcomers found %s, want %s", got, want)
		}
		if got := seen[3].Ahead(); got != 1 {
			t.Errorf("%d ahead of the one of another source, want 1", got)
		}
		full := errors.New("full")
		if err := turns.Enter(t.Context(), budget.Entry{Source: "x", Admit: func(budget.Queue) error { return full }}); !errors.Is(err, full) {
			t.Errorf("Enter that was not admitted = %v", err)
		}
		var got []string
		for range 5 {
			turns.Leave()
			synctest.Wait()
			got = append(got, <-order)
		}
		if fmt.Sprint(got) != "[back alone crowd0 crowd1 crowd2]" {
			t.Errorf("order %v", got)
		}
		turns.Leave()
		turns.Leave()
		if inside, waiting := turns.Count(); inside != 0 || waiting != 0 {
			t.Errorf("left behind: %d inside, %d waiting", inside, waiting)
		}
	})
}

// Who gives up takes no place along, also when it is given one at the same moment.
func TestTurnsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := budget.NewTurns(1)
		for range 100 {
			if err := turns.Enter(t.Context(), budget.Entry{Source: "a"}); err != nil {
				t.Fatal(err)
			}
			why := errors.New("no more time")
			ctx, cancel := context.WithCancelCause(t.Context())
			done := make(chan error, 1)
			go func() { done <- turns.Enter(ctx, budget.Entry{Source: "b"}) }()
			synctest.Wait()
			go cancel(why)
			turns.Leave()
			switch err := <-done; {
			case err == nil:
				turns.Leave()
			case !errors.Is(err, why):
				t.Fatalf("Enter = %v, want its cause", err)
			}
			if inside, waiting := turns.Count(); inside != 0 || waiting != 0 {
				t.Fatalf("left behind: %d inside, %d waiting", inside, waiting)
			}
		}
	})
}
