package sqlite_test

import (
	"context"
	"path/filepath"
	"testing"

	"teleport/internal/backend"
	"teleport/internal/backend/backendtest"
	"teleport/internal/backend/sqlite"
)

func open(t testing.TB, path string) *sqlite.Backend {
	t.Helper()
	b, err := sqlite.Open(context.WithoutCancel(t.Context()), sqlite.Config{Path: path})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { closeIt(t, b) })
	return b
}

func closeIt(t testing.TB, b *sqlite.Backend) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestBackend(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		return open(t, filepath.Join(t.TempDir(), "store.db"))
	})
}
