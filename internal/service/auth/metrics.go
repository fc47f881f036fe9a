package auth

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/audit"
)

// metrics counts what the audit log sees, so that nothing is counted that did not
// happen.
type metrics struct {
	events *prometheus.CounterVec
	joins  *prometheus.CounterVec
	logins *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, connected func() float64) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "teleport", Subsystem: "auth", Name: name, Help: help}, labels)
	}
	m := &metrics{
		events: counter("audit_events_total", "Audit events stored.", "event"),
		joins:  counter("joins_total", "Machines that asked to join.", "result"),
		logins: counter("logins_total", "People who tried to log in.", "result"),
	}
	if r == nil {
		return m, nil
	}
	agents := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "teleport", Subsystem: "auth", Name: "connected_agents", Help: "Open control streams.",
	}, connected)
	return m, errors.Join(r.Register(m.events), r.Register(m.joins), r.Register(m.logins), r.Register(agents))
}

// count counts so many events of a kind.
func (m *metrics) count(kind audit.Kind, n int) {
	if !kind.Known() {
		return
	}
	m.events.WithLabelValues(kind.Type).Add(float64(n))
	switch kind {
	case audit.InstanceJoin:
		m.joins.WithLabelValues("admitted").Add(float64(n))
	case audit.InstanceJoinFailure:
		m.joins.WithLabelValues("refused").Add(float64(n))
	case audit.UserLogin:
		m.logins.WithLabelValues("admitted").Add(float64(n))
	case audit.UserLoginFailure:
		m.logins.WithLabelValues("refused").Add(float64(n))
	}
}
