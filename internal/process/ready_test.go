package process

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"teleport/internal/config"
	"teleport/internal/types"
)

// TestReadyHasItsProxyListed: who is told that the process is ready makes links with the
// Proxy's address, and Auth must know it by then.
func TestReadyHasItsProxyListed(t *testing.T) {
	cfg, err := config.Parse("teleport.yaml", []byte(hubConfig(t.TempDir(), "127.0.0.1:0", "127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	errNotReady := errors.New("it was never ready")
	listed := errNotReady
	var p *process
	p = newProcess(Options{Config: cfg, Log: slog.New(slog.DiscardHandler), OnReady: func(Addrs) {
		_, listed = p.auth.Store().Get(ctx, types.KindProxy, p.holder.HostID())
		cancel()
	}})
	if err := p.run(ctx); err != nil {
		t.Errorf("run = %v", err)
	}
	if listed != nil {
		t.Errorf("when the process was ready, its Proxy was not listed: %v", listed)
	}
}
