package db

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
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
	if r == nil {
		return m, nil
	}
	var err error
	for _, c := range []**prometheus.CounterVec{&m.started, &m.rejected, &m.events} {
		if *c, err = register(r, *c); err != nil {
			return nil, err
		}
	}
	for _, g := range []**prometheus.GaugeVec{&m.active, &m.healthy} {
		if *g, err = register(r, *g); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func register[C prometheus.Collector](r prometheus.Registerer, c C) (C, error) {
	err := r.Register(c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if old, ok := already.ExistingCollector.(C); ok {
			return old, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("register metrics of the database service: %w", err)
	}
	return c, nil
}
