package process

import (
	"context"
	"errors"
	"testing"
)

func TestEnforcers(t *testing.T) {
	var e enforcers
	if err := e.enforce(t.Context()); err != nil {
		t.Errorf("without services = %v", err)
	}
	calls := make(chan string, 10)
	broken := errors.New("a session does not end")
	e.set("ssh", func(context.Context) error { calls <- "ssh"; return nil })
	if err := e.enforce(t.Context()); err != nil || len(calls) != 1 {
		t.Errorf("with one = %v after %d calls", err, len(calls))
	}
	e.set("proxy", func(context.Context) error { calls <- "proxy"; return broken })
	if err := e.enforce(t.Context()); !errors.Is(err, broken) || len(calls) != 3 {
		t.Errorf("with one that fails = %v after %d calls, want its error after all were asked", err, len(calls))
	}
	e.set("proxy", func(context.Context) error { return nil })
	if err := e.enforce(t.Context()); err != nil {
		t.Errorf("after the one that fails was replaced = %v", err)
	}
}
