package control

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "teleport/api/agent/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

const (
	// reportPause is how long sessions that begin and end are collected before Auth is
	// told: what is over by then it never hears of.
	reportPause = time.Second
	// maxReported bounds the sessions of one message, maxGone those that ended.
	maxReported = 100
	maxGone     = 1000
)

// report is what Auth was told of the sessions of the process on this stream.
type report struct {
	told map[string]*typesv1.SessionTracker
	// first is set until something was told.
	first bool
	// due fires when there may be something to tell; nil is never.
	due <-chan time.Time
}

func newReport() *report { return &report{told: map[string]*typesv1.SessionTracker{}, first: true} }

// later has changes told soon.
func (r *report) later() {
	if r.due == nil {
		r.due = time.After(reportPause)
	}
}

// send tells Auth the difference to sessions, or the part of it that a message holds;
// the rest is due later.
func (r *report) send(st stream, sessions []*typesv1.SessionTracker) error {
	r.due = nil
	m := &agentv1.Sessions{First: r.first}
	gone := make(map[string]bool, len(r.told))
	for id := range r.told {
		gone[id] = true
	}
	for _, s := range sessions {
		id := s.GetMetadata().GetName()
		delete(gone, id)
		if proto.Equal(r.told[id], s) {
			continue
		}
		if len(m.GetChanged()) == maxReported {
			r.later()
			continue
		}
		packed, err := types.ToAny(s)
		if err != nil {
			return fmt.Errorf("report a session: %w", err)
		}
		m.Changed = append(m.Changed, packed)
		r.told[id] = s
	}
	for id := range gone {
		if len(m.GetGone()) == maxGone {
			r.later()
			break
		}
		m.Gone = append(m.Gone, id)
		delete(r.told, id)
	}
	if len(m.GetChanged())+len(m.GetGone()) == 0 && (!r.first || sessions == nil) {
		return nil
	}
	r.first = false
	return send(st, &agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Sessions{Sessions: m}})
}
