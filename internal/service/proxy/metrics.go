package proxy

import (
	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/mux"
)

// metrics are the counters of a Proxy.
type metrics struct {
	registerer prometheus.Registerer
	sessions   prometheus.Counter
	failed     prometheus.Counter
	active     prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, tunnels func() int) *metrics {
	m := &metrics{
		registerer: r,
		sessions:   prometheus.NewCounter(prometheus.CounterOpts{Name: "proxy_ssh_sessions_total", Help: "Connections of users to nodes, since the start."}),
		failed:     prometheus.NewCounter(prometheus.CounterOpts{Name: "proxy_ssh_dials_failed_total", Help: "Connections of users that were refused or did not reach their node."}),
		active:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "proxy_ssh_sessions_active", Help: "Connections of users to nodes that are open."}),
	}
	if r == nil {
		return m
	}
	r.MustRegister(m.sessions, m.failed, m.active, prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: "teleport_reverse_tunnels_connected", Help: "Reverse tunnels of agents that are up."},
		func() float64 { return float64(tunnels()) }))
	return m
}

// watch reports what the port turned away.
func (m *metrics) watch(port *mux.Mux) {
	if m.registerer == nil {
		return
	}
	count := func(name, help string, value func(mux.Stats) uint64) {
		m.registerer.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
			func() float64 { return float64(value(port.Stats())) }))
	}
	count("proxy_connections_total", "Connections to the public port.", func(s mux.Stats) uint64 { return s.Accepted })
	count("proxy_connections_garbage_total", "Connections that did not speak TLS.", func(s mux.Stats) uint64 { return s.Garbage + s.PlainHTTP })
	count("proxy_connections_timed_out_total", "Connections that said nothing in time.", func(s mux.Stats) uint64 { return s.TimedOut + s.Evicted })
}
