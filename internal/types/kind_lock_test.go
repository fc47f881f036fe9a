package types_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func TestLockForm(t *testing.T) {
	at := timestamppb.New(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
	later := timestamppb.New(at.AsTime().Add(time.Hour))
	target := &typesv1.LockTarget{User: "alice"}
	for _, tt := range []struct {
		name  string
		spec  *typesv1.LockSpec
		until *timestamppb.Timestamp
		path  string // "" is accepted
	}{
		{"user", &typesv1.LockSpec{Target: target}, nil, ""},
		{"everything", &typesv1.LockSpec{Message: "left the company", Expires: at, Target: &typesv1.LockTarget{
			User: "alice", Role: "access", Login: "root", ServerId: "6f1c0e7d-4b0a", JoinToken: "my-token", MfaDevice: "6f1c0e7d",
		}}, at, ""},
		{"no spec", nil, nil, "spec.target"},
		{"no target", &typesv1.LockSpec{Message: "m"}, nil, "spec.target"},
		{"empty target", &typesv1.LockSpec{Target: &typesv1.LockTarget{}}, nil, "spec.target"},
		{"user with spaces", &typesv1.LockSpec{Target: &typesv1.LockTarget{User: "a b"}}, nil, "spec.target.user"},
		{"role with a slash", &typesv1.LockSpec{Target: &typesv1.LockTarget{Role: "a/b"}}, nil, "spec.target.role"},
		{"every login", &typesv1.LockSpec{Target: &typesv1.LockTarget{Login: "*"}}, nil, "spec.target.login"},
		{"server with a star", &typesv1.LockSpec{Target: &typesv1.LockTarget{ServerId: "*"}}, nil, "spec.target.server_id"},
		{"token with a space", &typesv1.LockSpec{Target: &typesv1.LockTarget{JoinToken: "a b"}}, nil, "spec.target.join_token"},
		{"device with a slash", &typesv1.LockSpec{Target: &typesv1.LockTarget{MfaDevice: "a/b"}}, nil, "spec.target.mfa_device"},
		{"escape in the message", &typesv1.LockSpec{Target: target, Message: "\x1b[2J"}, nil, "spec.message"},
		{"two lines", &typesv1.LockSpec{Target: target, Message: "a\nb"}, nil, "spec.message"},
		{"long message", &typesv1.LockSpec{Target: target, Message: strings.Repeat("x", 2000)}, nil, "spec.message"},
		{"two ends", &typesv1.LockSpec{Target: target, Expires: at}, later, "spec.expires"},
		{"bad time", &typesv1.LockSpec{Target: target, Expires: &timestamppb.Timestamp{Nanos: -1}}, nil, "metadata.expires"},
	} {
		l := types.New(types.KindLock, "l").(*typesv1.Lock)
		l.Spec, l.Metadata.Expires = tt.spec, tt.until
		err := types.Check(l)
		var problems types.Problems
		switch {
		case tt.path == "" && err != nil:
			t.Errorf("%s: %v, want accepted", tt.name, err)
		case tt.path != "" && (!errors.As(err, &problems) || problems[0].Path != tt.path):
			t.Errorf("%s: %v, want a problem at %s", tt.name, err, tt.path)
		}
	}
}

// TestLockExpiry: the store drops a lock by its metadata, people write it into spec.
func TestLockExpiry(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 500, time.UTC)
	want := timestamppb.New(time.Date(2030, 1, 1, 0, 0, 1, 0, time.UTC))
	for _, name := range []string{"spec", "metadata"} {
		l := types.New(types.KindLock, "l").(*typesv1.Lock)
		l.Spec = &typesv1.LockSpec{Target: &typesv1.LockTarget{User: "alice"}}
		if name == "spec" {
			l.Spec.Expires = timestamppb.New(at)
		} else {
			l.Metadata.Expires = timestamppb.New(at)
		}
		if err := types.Check(l); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(l.Spec.Expires, want) || !proto.Equal(l.Metadata.Expires, want) {
			t.Errorf("expiry in %s became %v and %v, want %v", name, l.Spec.Expires, l.Metadata.Expires, want)
		}
	}
}

func TestNewLockAndAlert(t *testing.T) {
	now := time.Now()
	target := &typesv1.LockTarget{ServerId: "h-1"}
	forever := types.NewLock(target, "cloned", "auth", now, time.Time{})
	ending := types.NewLock(target, "cloned", "auth", now, now.Add(time.Hour))
	alert := types.NewAlert(types.SeverityHigh, "h-1 was cloned", now, now.Add(time.Hour))
	for _, r := range []types.Resource{forever, ending, alert} {
		before := proto.Clone(r)
		if err := types.Check(r); err != nil || !proto.Equal(before, r) {
			t.Errorf("Check(%v) = %v, changed: %v", r, err, !proto.Equal(before, r))
		}
	}
	if forever.GetMetadata().GetName() == ending.GetMetadata().GetName() {
		t.Error("two locks have one name")
	}
	if forever.GetMetadata().GetExpires() != nil || ending.GetMetadata().GetExpires() == nil || alert.GetMetadata().GetExpires() == nil {
		t.Error("expiry is not as asked for")
	}
	target.ServerId = "other"
	if got := types.LockTargetText(forever.GetSpec().GetTarget()); got != "server_id=h-1" {
		t.Errorf("target = %q", got)
	}
}

func TestLockColumns(t *testing.T) {
	l := types.NewLock(&typesv1.LockTarget{User: "alice", Login: "root"}, "m", "by", time.Now(), time.Time{})
	l.Status = &typesv1.LockStatus{Confirmed: 2, Expected: 7, Pending: []*typesv1.LockPending{
		{HostId: "1", Hostname: "web-1", Connected: true}, {HostId: "2"}, {Hostname: "c", Connected: true}, {Hostname: "d", Connected: true}, {Hostname: "e"},
	}}
	k, _ := types.Kind("locks")
	var got []string
	for _, c := range k.Columns[1:] {
		got = append(got, c.Value(l))
	}
	want := "user=alice,login=root|m|never|2 of 7|web-1, 2 (not connected), c and 2 more"
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("columns = %q, want %q", s, want)
	}
}

func TestAlertForm(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec *typesv1.ClusterAlertSpec
		path string
	}{
		{"message alone", &typesv1.ClusterAlertSpec{Message: "m"}, ""},
		{"high", &typesv1.ClusterAlertSpec{Message: "m", Severity: types.SeverityHigh}, ""},
		{"nothing", nil, "spec.message"},
		{"unknown severity", &typesv1.ClusterAlertSpec{Message: "m", Severity: "critical"}, "spec.severity"},
		{"escape", &typesv1.ClusterAlertSpec{Message: "\x1b]0;x"}, "spec.message"},
		{"bad reason", &typesv1.ClusterAlertSpec{Message: "m", Acknowledged: &typesv1.AlertAcknowledgement{Reason: "\a"}}, "spec.acknowledged.reason"},
	} {
		a := types.New("alert", "")
		if a != nil {
			t.Fatal("an alias made a resource")
		}
		r := types.New(types.KindClusterAlert, "a").(*typesv1.ClusterAlert)
		r.Spec = tt.spec
		err := types.Check(r)
		var problems types.Problems
		switch {
		case tt.path == "" && err != nil:
			t.Errorf("%s: %v, want accepted", tt.name, err)
		case tt.path != "" && (!errors.As(err, &problems) || !errors.Is(err, fault.ErrInvalid) || problems[0].Path != tt.path):
			t.Errorf("%s: %v, want a problem at %s", tt.name, err, tt.path)
		}
		if r.GetSpec().GetSeverity() == "" {
			t.Errorf("%s: no severity was filled in", tt.name)
		}
	}
}

func TestAlertAcknowledged(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name string
		ack  *typesv1.AlertAcknowledgement
		want bool
	}{
		{"nobody", nil, false},
		{"for good", &typesv1.AlertAcknowledgement{}, true},
		{"until later", &typesv1.AlertAcknowledgement{Until: timestamppb.New(now.Add(time.Minute))}, true},
		{"until before", &typesv1.AlertAcknowledgement{Until: timestamppb.New(now.Add(-time.Minute))}, false},
	} {
		a := types.NewAlert(types.SeverityLow, "m", now, time.Time{})
		a.Spec.Acknowledged = tt.ack
		if got := types.AlertAcknowledged(a, now); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestLockOption(t *testing.T) {
	for mode, ok := range map[string]bool{"": true, types.LockStrict: true, types.LockBestEffort: true, "Strict": false, "off": false} {
		r := types.New(types.KindRole, "r").(*typesv1.Role)
		r.Spec = &typesv1.RoleSpec{Options: &typesv1.RoleOptions{Lock: mode}}
		err := types.Check(r)
		if (err == nil) != ok || err != nil && !strings.HasPrefix(err.Error(), "spec.options.lock: unknown mode") {
			t.Errorf("options.lock %q: %v, accepted: want %v", mode, err, ok)
		}
	}
}
