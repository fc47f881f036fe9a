package all_test

import (
	"slices"
	"testing"

	"teleport/internal/join/all"
	"teleport/internal/types"
)

// Every method that a token may name is there, once, and nothing else.
func TestMethods(t *testing.T) {
	var names []string
	for _, m := range all.Methods() {
		names = append(names, m.Name)
		if m.Prove == nil || m.Verify == nil {
			t.Errorf("method %s has only one half", m.Name)
		}
	}
	want := types.JoinMethodNames()
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("methods %v, want %v", names, want)
	}
}
