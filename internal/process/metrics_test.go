package process

import (
	"log/slog"
	"testing"

	"teleport/internal/config"
)

// TestStateIsAMetric looks for process_state, which monitoring alerts on.
func TestStateIsAMetric(t *testing.T) {
	p := newProcess(Options{Config: config.Default(), Log: slog.New(slog.DiscardHandler)})
	p.steps()
	families, err := p.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		if family.GetName() == "process_state" {
			for _, m := range family.GetMetric() {
				got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	// Nothing has started: every service that the configuration enables says so.
	for _, name := range []string{"auth", "proxy", "ssh"} {
		if state, ok := got[name]; !ok || state != 3 {
			t.Errorf("process_state of %s = %v (%v), want 3: starting", name, state, ok)
		}
	}
}
