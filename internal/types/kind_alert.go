package types

import (
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
)

// Severities of a ClusterAlert.
const (
	SeverityLow    = "low"
	SeverityMedium = "medium"
	SeverityHigh   = "high"
)

// Severities lists them, the least first.
func Severities() []string { return []string{SeverityLow, SeverityMedium, SeverityHigh} }

func alertKind() KindInfo {
	return KindInfo{
		Name: KindClusterAlert, Plural: "cluster_alerts", Aliases: []string{"alert", "alerts"},
		New:      func() Resource { return &typesv1.ClusterAlert{} },
		Defaults: defaults(defaultAlert),
		Validate: validate(validateAlert),
		Columns: []Column{
			nameColumn("ID"),
			column("Severity", func(a *typesv1.ClusterAlert) string { return a.GetSpec().GetSeverity() }),
			column("Message", func(a *typesv1.ClusterAlert) string { return a.GetSpec().GetMessage() }),
			column("Acknowledged By", func(a *typesv1.ClusterAlert) string { return a.GetSpec().GetAcknowledged().GetUser() }),
		},
		Writable: true, Served: true,
		versions: []string{"v1"},
		name:     ValidName,
	}
}

func defaultAlert(a *typesv1.ClusterAlert) {
	if a.Spec == nil {
		a.Spec = &typesv1.ClusterAlertSpec{}
	}
	if a.Spec.Severity == "" {
		a.Spec.Severity = SeverityLow
	}
}

func validateAlert(a *typesv1.ClusterAlert, c *checker) {
	s := a.GetSpec()
	if !slices.Contains(Severities(), s.GetSeverity()) {
		c.add("spec.severity", "%q is no severity: use %s", s.GetSeverity(), strings.Join(Severities(), ", "))
	}
	if s.GetMessage() == "" {
		c.add("spec.message", "missing: say what administrators should know")
	}
	c.text("spec.message", s.GetMessage(), maxDescription)
	c.time("spec.created", s.GetCreated())
	if ack := s.GetAcknowledged(); ack != nil {
		c.time("spec.acknowledged.until", ack.GetUntil())
		c.text("spec.acknowledged.user", ack.GetUser(), maxName)
		c.text("spec.acknowledged.reason", ack.GetReason(), maxDescription)
	}
}

// AlertAcknowledged reports whether somebody acknowledged the alert, and that still
// counts at the time.
func AlertAcknowledged(a *typesv1.ClusterAlert, now time.Time) bool {
	ack := a.GetSpec().GetAcknowledged()
	return ack != nil && (ack.GetUntil() == nil || ack.GetUntil().AsTime().After(now))
}

// NewAlert returns an alert of a new name that is ready to be stored. A zero expires
// is never.
func NewAlert(severity, message string, now, expires time.Time) *typesv1.ClusterAlert {
	a := &typesv1.ClusterAlert{
		Kind: KindClusterAlert, Version: alertKind().Version(), Metadata: &typesv1.Metadata{Name: uuid.NewString()},
		Spec: &typesv1.ClusterAlertSpec{Severity: severity, Message: message, Created: timestamppb.New(now)},
	}
	if !expires.IsZero() {
		a.Metadata.Expires = timestamppb.New(expires)
	}
	return a
}
