package proxy

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/mux"
)

// metrics are the counters of a Proxy.
type metrics struct {
	sessions  prometheus.Counter
	failed    prometheus.Counter
	active    prometheus.Gauge
	passed    prometheus.Gauge
	relayed   *prometheus.CounterVec
	overLimit prometheus.Counter
}

func newMetrics(r prometheus.Registerer, port func() mux.Stats, tunnels func() int) (*metrics, error) {
	counter := func(name, help string) prometheus.CounterOpts { return prometheus.CounterOpts{Name: name, Help: help} }
	gauge := func(name, help string) prometheus.GaugeOpts { return prometheus.GaugeOpts{Name: name, Help: help} }
	m := &metrics{
		sessions:  prometheus.NewCounter(counter("proxy_ssh_sessions_total", "Connections of users to nodes, since the start.")),
		failed:    prometheus.NewCounter(counter("proxy_ssh_dials_failed_total", "Connections of users that were refused or did not reach their node.")),
		active:    prometheus.NewGauge(gauge("proxy_ssh_sessions_active", "Connections of users to nodes that are open.")),
		passed:    prometheus.NewGauge(gauge("proxy_auth_connections_active", "Connections passed on to the Auth Service that are open.")),
		relayed:   prometheus.NewCounterVec(counter("proxy_relayed_calls_total", "Joins and logins relayed to the Auth Service."), []string{"method", "result"}),
		overLimit: prometheus.NewCounter(counter("proxy_over_limit_total", "Connections and calls refused because there were too many.")),
	}
	if r == nil {
		return m, nil
	}
	watch := func(name, help string, value func(mux.Stats) uint64) error {
		return r.Register(prometheus.NewCounterFunc(counter(name, help), func() float64 { return float64(value(port())) }))
	}
	return m, errors.Join(
		r.Register(m.sessions), r.Register(m.failed), r.Register(m.active), r.Register(m.passed), r.Register(m.relayed), r.Register(m.overLimit),
		r.Register(prometheus.NewGaugeFunc(gauge("teleport_reverse_tunnels_connected", "Reverse tunnels of agents that are up."),
			func() float64 { return float64(tunnels()) })),
		watch("proxy_connections_total", "Connections to the public port.", func(s mux.Stats) uint64 { return s.Accepted }),
		watch("proxy_connections_garbage_total", "Connections that did not speak TLS.", func(s mux.Stats) uint64 { return s.Garbage + s.PlainHTTP }),
		watch("proxy_connections_timed_out_total", "Connections that said nothing in time, or had to make room.",
			func(s mux.Stats) uint64 { return s.TimedOut + s.Evicted + s.Unclaimed }),
	)
}
