package app

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the numbers an operator watches.
type metrics struct {
	active   prometheus.Gauge
	requests *prometheus.CounterVec
	rejected prometheus.Counter
	healthy  *prometheus.GaugeVec
}

// newMetrics registers the metrics; r may be nil. A service that is started again in the
// same process goes on with those that are there.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "teleport_app_connections_active", Help: "Connections of users to applications that are open now.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "teleport_app_requests_total", Help: "Requests and TCP connections passed on to applications, by result: ok, or failed where the application could not be reached.",
		}, []string{"result"}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "teleport_app_rejected_total", Help: "Connections to applications refused after the user proved who they are.",
		}),
		healthy: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "teleport_app_healthy", Help: "Whether this host reaches the application: 1 or 0.",
		}, []string{"app"}),
	}
	if r == nil {
		return m, nil
	}
	var err error
	if m.active, err = register(r, m.active); err != nil {
		return nil, err
	}
	if m.requests, err = register(r, m.requests); err != nil {
		return nil, err
	}
	if m.rejected, err = register(r, m.rejected); err != nil {
		return nil, err
	}
	m.healthy, err = register(r, m.healthy)
	return m, err
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
		return c, fmt.Errorf("register metrics of the application service: %w", err)
	}
	return c, nil
}
