package ssh

import (
	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/diag"
)

// metrics are the numbers an operator watches.
type metrics struct {
	active   prometheus.Gauge
	started  *prometheus.CounterVec
	rejected prometheus.Counter
	// resumptions are by how they went.
	resumptions *prometheus.CounterVec
}

// Results of resumptions.
const (
	resultResumed = "resumed"
	resultRefused = "refused"
)

// newMetrics registers the metrics; r may be nil. A service that is started again
// in the same process goes on with those that are there.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "teleport_ssh_sessions_active", Help: "SSH sessions that run now.",
		}),
		started: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "teleport_ssh_sessions_total", Help: "SSH sessions started, by kind.",
		}, []string{"kind"}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "teleport_ssh_rejected_total", Help: "SSH logins and sessions refused after the user proved who they are.",
		}),
		resumptions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "teleport_ssh_resumptions_total", Help: "SSH connections whose client came back after it was lost, by result.",
		}, []string{"result"}),
	}
	var err error
	if m.active, err = diag.Register(r, "ssh", m.active); err != nil {
		return nil, err
	}
	if m.started, err = diag.Register(r, "ssh", m.started); err != nil {
		return nil, err
	}
	if m.resumptions, err = diag.Register(r, "ssh", m.resumptions); err != nil {
		return nil, err
	}
	m.rejected, err = diag.Register(r, "ssh", m.rejected)
	return m, err
}
