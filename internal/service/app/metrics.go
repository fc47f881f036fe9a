package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/diag"
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
	var err error
	if m.active, err = diag.Register(r, "application", m.active); err != nil {
		return nil, err
	}
	if m.requests, err = diag.Register(r, "application", m.requests); err != nil {
		return nil, err
	}
	if m.rejected, err = diag.Register(r, "application", m.rejected); err != nil {
		return nil, err
	}
	m.healthy, err = diag.Register(r, "application", m.healthy)
	return m, err
}
