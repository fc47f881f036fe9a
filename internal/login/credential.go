package login

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
)

// Lockout: so many failures within the window close the account for a while.
const (
	maxFailures   = 5
	failureWindow = 30 * time.Minute
	lockout       = 30 * time.Minute
)

// verdict is what became of an attempt.
type verdict struct {
	// reason says why it failed, for the audit log; empty means success.
	reason string
	// next is the credential as it is to be stored; nil leaves it as it is.
	next *typesv1.Credential
}

// judge decides about an attempt by the credential as it is stored now. The
// answer to the caller rests on the verdict only once next was stored over that
// very credential: so of any number of attempts at the same time, only those
// before the lock can ever be told that they succeeded.
func judge(c *typesv1.Credential, passwordOK bool, code string, now time.Time) verdict {
	if c.GetSpec() == nil {
		return verdict{reason: "unknown user or no password set"}
	}
	if until := c.GetSpec().GetLockedUntil(); until != nil && now.Before(until.AsTime()) {
		return verdict{reason: fmt.Sprintf("account is locked until %s", until.AsTime().Format(time.RFC3339))}
	}
	step, codeOK := totpStep(c.GetSpec().GetTotpSecret(), code, c.GetSpec().GetTotpLastStep(), now)
	next := proto.CloneOf(c)
	next.Spec.LockedUntil = nil
	if passwordOK && codeOK {
		next.Spec.TotpLastStep = step
		next.Spec.Failures = nil
		if next.Spec.GetTotpDeviceId() == "" { // of a version before these ids
			next.Spec.TotpDeviceId = uuid.NewString()
		}
		return verdict{next: next}
	}
	v := verdict{reason: "wrong password", next: next}
	if passwordOK {
		v.reason = "wrong or used second factor"
	}
	next.Spec.Failures = append(recent(c.GetSpec().GetFailures(), now), timestamppb.New(now))
	if n := len(next.Spec.Failures); n >= maxFailures {
		until := now.Add(lockout)
		next.Spec.LockedUntil, next.Spec.Failures = timestamppb.New(until), nil
		v.reason += fmt.Sprintf("; %d failures: account is locked until %s", n, until.UTC().Format(time.RFC3339))
	}
	return v
}

// recent returns the failures inside the window.
func recent(failures []*timestamppb.Timestamp, now time.Time) []*timestamppb.Timestamp {
	var out []*timestamppb.Timestamp
	for _, f := range failures {
		if now.Sub(f.AsTime()) < failureWindow {
			out = append(out, f)
		}
	}
	return out
}
