package diag_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/diag"
)

func counter(help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: "x_total", Help: help})
}

func TestRegister(t *testing.T) {
	r := prometheus.NewRegistry()
	one, err := diag.Register(r, "x", counter("of x"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := diag.Register(r, "x", counter("of x"))
	if err != nil || two != one {
		t.Errorf("the second time = %v, %v, want the metric of the first", two, err)
	}
	if _, err := diag.Register(r, "x", counter("of y")); err == nil || !strings.Contains(err.Error(), "metrics of the x service") {
		t.Errorf("another metric of the name = %v, want an error", err)
	}
	if c, err := diag.Register(nil, "x", counter("of y")); c == nil || err != nil {
		t.Errorf("without a registry = %v, %v, want the metric", c, err)
	}
}
