package memory_test

import (
	"testing"

	"teleport/internal/backend"
	"teleport/internal/backend/backendtest"
	"teleport/internal/backend/memory"
)

func TestBackend(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		b := memory.New()
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		return b
	})
}
