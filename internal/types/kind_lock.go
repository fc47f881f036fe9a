package types

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
)

// Values of a role's spec.options.lock.
const (
	// LockStrict refuses new sessions while a service may have missed locks.
	LockStrict = "strict"
	// LockBestEffort goes by the locks that the service knows.
	LockBestEffort = "best_effort"
)

func lockKind() KindInfo {
	return KindInfo{
		Name: KindLock, Plural: "locks",
		New:      func() Resource { return &typesv1.Lock{} },
		Defaults: defaults(defaultLock),
		Validate: validate(validateLock),
		Columns: []Column{
			nameColumn("Name"),
			column("Target", func(l *typesv1.Lock) string { return LockTargetText(l.GetSpec().GetTarget()) }),
			column("Message", func(l *typesv1.Lock) string { return l.GetSpec().GetMessage() }),
			column("Expires", func(l *typesv1.Lock) string {
				if e := l.GetMetadata().GetExpires(); e != nil {
					return e.AsTime().UTC().Format("02 Jan 06 15:04 UTC")
				}
				return "never"
			}),
			column("Confirmed", func(l *typesv1.Lock) string {
				return fmt.Sprintf("%d of %d", l.GetStatus().GetConfirmed(), l.GetStatus().GetExpected())
			}),
			column("Waiting For", func(l *typesv1.Lock) string { return lockPendingText(l.GetStatus()) }),
		},
		Writable: true, Served: true,
		versions: []string{"v2"},
		name:     ValidName,
	}
}

// LockTargetText writes a target as in `user=alice,login=root`.
func LockTargetText(t *typesv1.LockTarget) string {
	var parts []string
	for _, f := range LockTargetFields(t) {
		if f.Value != "" {
			parts = append(parts, f.Name+"="+f.Value)
		}
	}
	return strings.Join(parts, ",")
}

// LockTargetField is one condition of a lock.
type LockTargetField struct {
	// Name is that of the field in the resource, Title that in messages.
	Name, Title, Value string
}

// LockTargetFields returns every field that a target can have, set or not, in the
// order in which messages name them.
func LockTargetFields(t *typesv1.LockTarget) []LockTargetField {
	return []LockTargetField{
		{"user", "User", t.GetUser()},
		{"role", "Role", t.GetRole()},
		{"login", "Login", t.GetLogin()},
		{"server_id", "ServerID", t.GetServerId()},
		{"join_token", "JoinToken", t.GetJoinToken()},
		{"mfa_device", "MFADevice", t.GetMfaDevice()},
	}
}

func lockPendingText(s *typesv1.LockStatus) string {
	const most = 3
	var names []string
	for _, p := range s.GetPending() {
		name := p.GetHostname()
		if name == "" {
			name = p.GetHostId()
		}
		if !p.GetConnected() {
			name += " (not connected)"
		}
		names = append(names, name)
	}
	left := int(s.GetExpected()) - int(s.GetConfirmed()) - most
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), left)
	}
	return strings.Join(names, ", ")
}

// defaultLock makes the two places that say when a lock ends one: the store drops
// it by metadata.expires. A fraction of a second is rounded up.
func defaultLock(l *typesv1.Lock) {
	if l.Spec == nil {
		l.Spec = &typesv1.LockSpec{}
	}
	l.Spec.Expires = wholeSecond(l.Spec.Expires)
	l.Metadata.Expires = wholeSecond(l.Metadata.Expires)
	switch {
	case l.Spec.Expires == nil && l.Metadata.Expires != nil:
		l.Spec.Expires = proto.CloneOf(l.Metadata.Expires)
	case l.Metadata.Expires == nil && l.Spec.Expires != nil:
		l.Metadata.Expires = proto.CloneOf(l.Spec.Expires)
	}
}

func wholeSecond(t *timestamppb.Timestamp) *timestamppb.Timestamp {
	if !t.IsValid() || t.GetNanos() == 0 {
		return t
	}
	return &timestamppb.Timestamp{Seconds: t.GetSeconds() + 1}
}

func validateLock(l *typesv1.Lock, c *checker) {
	s := l.GetSpec()
	t := s.GetTarget()
	if LockTargetText(t) == "" {
		c.add("spec.target", "missing: name at least one of user, role, login, server_id, join_token, mfa_device; of several all must hold")
	}
	for _, f := range []struct {
		name, value string
		valid       func(string) error
	}{
		{"user", t.GetUser(), ValidName},
		{"role", t.GetRole(), ValidName},
		{"login", t.GetLogin(), ValidLogin},
		{"server_id", t.GetServerId(), ValidName},
		{"join_token", t.GetJoinToken(), validTokenName},
		{"mfa_device", t.GetMfaDevice(), ValidName},
	} {
		if f.value != "" {
			c.check("spec.target."+f.name, f.valid(f.value))
		}
	}
	c.text("spec.message", s.GetMessage(), maxLockMessage)
	if strings.ContainsAny(s.GetMessage(), "\n\t") {
		c.add("spec.message", "must be one line without tabs: people see it where they are refused")
	}
	c.time("spec.expires", s.GetExpires())
	c.time("spec.created_at", s.GetCreatedAt())
	if !proto.Equal(s.GetExpires(), l.GetMetadata().GetExpires()) {
		c.add("spec.expires", "differs from metadata.expires: write the same time into both, or leave one of them out")
	}
}

// maxLockMessage bounds what everybody is told who is refused.
const maxLockMessage = 1024

// NewLock returns a lock of a new name that is ready to be stored. A zero expires
// is never. By says who, or what, made it.
func NewLock(target *typesv1.LockTarget, message, by string, now, expires time.Time) *typesv1.Lock {
	l := &typesv1.Lock{
		Kind: KindLock, Version: lockKind().Version(), Metadata: &typesv1.Metadata{Name: uuid.NewString()},
		Spec: &typesv1.LockSpec{Target: proto.CloneOf(target), Message: message, CreatedAt: timestamppb.New(now), CreatedBy: by},
	}
	if !expires.IsZero() {
		l.Spec.Expires = timestamppb.New(expires)
	}
	defaultLock(l)
	return l
}
