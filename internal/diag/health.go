// Package diag tells whoever operates a process how it is: liveness, readiness
// of each service, and metrics, over plain HTTP on an address of its own. It is
// never served on a public port, holds nothing secret and decides nothing; the
// services report their state to a Health.
package diag

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// State is how a service or the whole process is.
type State string

// States, from good to bad.
const (
	StateOK       State = "ok"
	StateStarting State = "starting"
	StateDegraded State = "degraded"
)

// maxReason bounds the text that an error contributes to an answer.
const maxReason = 200

// Health knows the state of every service of the process. It is also a
// Prometheus collector of those states. Its methods may be called by many
// goroutines.
type Health struct {
	desc *prometheus.Desc

	mu       sync.Mutex
	services map[string]status
	// impaired has what keeps services that serve from doing all their work.
	impaired map[string]string
}

type status struct {
	state  State
	reason string
}

// NewHealth returns a Health that knows no service yet, so it is starting.
func NewHealth() *Health {
	return &Health{
		desc: prometheus.NewDesc("process_state",
			"State of a service of this process: 0 ok, 2 degraded, 3 starting.", []string{"service"}, nil),
		services: map[string]status{},
		impaired: map[string]string{},
	}
}

// Starting says that the service has begun and is not ready.
func (h *Health) Starting(service string) { h.set(service, status{state: StateStarting}) }

// Ready says that the service does its work.
func (h *Health) Ready(service string) { h.set(service, status{state: StateOK}) }

// Degraded says that the service runs but cannot do its work, and why. The error
// is shown to whoever asks for readiness.
func (h *Health) Degraded(service string, err error) {
	h.set(service, status{state: StateDegraded, reason: reasonOf(err)})
}

// Impaired says that something fails that a service needs, such as its disk, and
// with nil that it works again. Until then the service counts as degraded, whatever
// else is said of it: that it has started, for one.
func (h *Health) Impaired(service string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		delete(h.impaired, service)
		return
	}
	h.impaired[service] = reasonOf(err)
}

func reasonOf(err error) string {
	if err == nil {
		return "unknown"
	}
	return oneLine(err.Error())
}

// Gone forgets a service that has ended in an orderly way.
func (h *Health) Gone(service string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.services, service)
	delete(h.impaired, service)
}

func (h *Health) set(service string, s status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.services[service] = s
}

// Report is what /readyz answers.
type Report struct {
	// Status is the worst state of any service.
	Status State `json:"status"`
	// Message names the services to blame, with the reason; empty if all is well.
	Message  string           `json:"message,omitempty"`
	Services map[string]State `json:"services"`
}

// Report returns the state of the process now.
func (h *Health) Report() Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := Report{Status: StateOK, Services: make(map[string]State, len(h.services))}
	if len(h.services) == 0 {
		r.Status, r.Message = StateStarting, "no service has started yet"
	}
	var blame []string
	for _, name := range slices.Sorted(maps.Keys(h.services)) {
		s := h.services[name]
		if reason, ok := h.impaired[name]; ok && s.state != StateDegraded {
			s = status{state: StateDegraded, reason: reason}
		}
		r.Services[name] = s.state
		switch s.state {
		case StateDegraded:
			r.Status = StateDegraded
			blame = append(blame, name+": "+s.reason)
		case StateStarting:
			if r.Status == StateOK {
				r.Status = StateStarting
			}
			blame = append(blame, name+": starting")
		}
	}
	if len(blame) > 0 {
		r.Message = strings.Join(blame, "; ")
	}
	return r
}

// Describe is part of prometheus.Collector.
func (h *Health) Describe(ch chan<- *prometheus.Desc) { ch <- h.desc }

// Collect is part of prometheus.Collector.
func (h *Health) Collect(ch chan<- prometheus.Metric) {
	values := map[State]float64{StateOK: 0, StateDegraded: 2, StateStarting: 3}
	for name, state := range h.Report().Services {
		ch <- prometheus.MustNewConstMetric(h.desc, prometheus.GaugeValue, values[state], name)
	}
}

// oneLine makes a text fit into one line of an answer.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "..."
	}
	return s
}
