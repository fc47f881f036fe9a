package db

import (
	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/diag"
)

// metrics are the numbers an operator watches.
type metrics struct {
	active   *prometheus.GaugeVec
	started  *prometheus.CounterVec
	rejected *prometheus.CounterVec
	events   *prometheus.CounterVec
	healthy  *prometheus.GaugeVec
}

// newMetrics registers the metrics; r may be nil. A service that is started again in the
// same process goes on with those that are there.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	protocol := []string{"protocol"}
	m := &metrics{
		active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "teleport_db_active_connections", Help: "Database sessions that run now, by protocol.",
		}, protocol),
		started: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "teleport_db_connections_total", Help: "Database sessions started, by protocol.",
		}, protocol),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "teleport_db_rejected_total", Help: "Connections to databases refused after the user proved who they are, by protocol.",
		}, protocol),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "teleport_db_events_total", Help: "Audit events about what sessions asked of databases, by protocol.",
		}, protocol),
		healthy: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "teleport_db_healthy", Help: "Whether the database could be reached when it was last tried: 1 or 0.",
		}, []string{"db"}),
	}
	var err error
	for _, c := range []**prometheus.CounterVec{&m.started, &m.rejected, &m.events} {
		if *c, err = diag.Register(r, "database", *c); err != nil {
			return nil, err
		}
	}
	for _, g := range []**prometheus.GaugeVec{&m.active, &m.healthy} {
		if *g, err = diag.Register(r, "database", *g); err != nil {
			return nil, err
		}
	}
	return m, nil
}
