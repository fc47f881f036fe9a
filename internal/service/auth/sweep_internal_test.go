package auth

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/backend/memory"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
)

func TestSweepInstances(t *testing.T) {
	s := &Service{store: store.New(store.Config{Backend: memory.New()}), cfg: Config{Now: time.Now}}
	ago := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }
	const day = 24 * time.Hour
	tests := []struct {
		name   string
		status *typesv1.InstanceStatus
		gone   bool
	}{
		{"renewed", &typesv1.InstanceStatus{Joined: ago(90 * day), Renewed: ago(day)}, false},
		{"new", &typesv1.InstanceStatus{Joined: ago(day)}, false},
		{"never_renewed", &typesv1.InstanceStatus{Joined: ago(31 * day)}, true},
		{"lost", &typesv1.InstanceStatus{Joined: ago(90 * day), Renewed: ago(31 * day)}, true},
		{"unknown", &typesv1.InstanceStatus{}, false},
	}
	for _, tt := range tests {
		i := types.New(types.KindInstance, tt.name).(*typesv1.Instance)
		i.Status = tt.status
		if err := s.store.Tx().Create(i).Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.sweepInstances(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.store.Get(t.Context(), types.KindInstance, tt.name)
			if gone := errors.Is(err, fault.ErrNotFound); gone != tt.gone {
				t.Errorf("gone = %t (%v), want %t", gone, err, tt.gone)
			}
		})
	}
	events, _, err := s.store.SearchEvents(t.Context(), store.EventQuery{})
	if err != nil || len(events) != 2 || events[0].GetCode() != "TIN00I" {
		t.Errorf("events = %v, %v, want two of the deleted", events, err)
	}
}
