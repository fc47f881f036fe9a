package ssh

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
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
	if r == nil {
		return m, nil
	}
	var err error
	if m.active, err = register(r, m.active); err != nil {
		return nil, err
	}
	if m.started, err = register(r, m.started); err != nil {
		return nil, err
	}
	if m.resumptions, err = register(r, m.resumptions); err != nil {
		return nil, err
	}
	m.rejected, err = register(r, m.rejected)
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
		return c, fmt.Errorf("register metrics of the ssh service: %w", err)
	}
	return c, nil
}
