package proxy

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"teleport/internal/mux"
	"teleport/internal/types"
)

// metrics are the counters of a Proxy.
type metrics struct {
	sessions  prometheus.Counter
	failed    prometheus.Counter
	active    prometheus.Gauge
	resources *resourceMetrics
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
		resources: newResourceMetrics(),
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
		r.Register(m.resources.total), r.Register(m.resources.failed), r.Register(m.resources.active),
		r.Register(m.sessions), r.Register(m.failed), r.Register(m.active), r.Register(m.passed), r.Register(m.relayed), r.Register(m.overLimit),
		r.Register(prometheus.NewGaugeFunc(gauge("teleport_reverse_tunnels_connected", "Reverse tunnels of agents that are up."),
			func() float64 { return float64(tunnels()) })),
		watch("proxy_connections_total", "Connections to the public port.", func(s mux.Stats) uint64 { return s.Accepted }),
		watch("proxy_connections_garbage_total", "Connections that did not speak TLS.", func(s mux.Stats) uint64 { return s.Garbage + s.PlainHTTP }),
		watch("proxy_connections_timed_out_total", "Connections that said nothing in time, or had to make room.",
			func(s mux.Stats) uint64 { return s.TimedOut + s.Evicted + s.Unclaimed }),
	)
}

// resourceMetrics count the connections to agents of applications and databases.
type resourceMetrics struct {
	total, failed *prometheus.CounterVec
	active        *prometheus.GaugeVec
}

func newResourceMetrics() *resourceMetrics {
	labels := []string{"service"}
	return &resourceMetrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "proxy_resource_sessions_total", Help: "Connections of users to agents of applications (app) and databases (db), since the start.",
		}, labels),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "proxy_resource_dials_failed_total", Help: "Connections to applications and databases that were refused or reached no agent.",
		}, labels),
		active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "proxy_resource_sessions_active", Help: "Connections of users to agents of applications and databases that are open.",
		}, labels),
	}
}

// opened counts a connection for the service ("" is that of nodes), and returns what
// counts its end.
func (m *metrics) opened(service string) (closed func()) {
	if service == "" {
		m.sessions.Inc()
		m.active.Inc()
		return m.active.Dec
	}
	label := serviceLabel(service)
	m.resources.total.WithLabelValues(label).Inc()
	active := m.resources.active.WithLabelValues(label)
	active.Inc()
	return active.Dec
}

// notOpened counts a connection for the service that was not made.
func (m *metrics) notOpened(service string) {
	if service == "" {
		m.failed.Inc()
		return
	}
	m.resources.failed.WithLabelValues(serviceLabel(service)).Inc()
}

// serviceLabel keeps what a client sends out of the metrics.
func serviceLabel(service string) string {
	if role, err := types.ParseSystemRole(service); err == nil && (role == types.RoleApp || role == types.RoleDB) {
		return role.Flag()
	}
	return "other"
}
