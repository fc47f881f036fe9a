package types

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
)

func ledgerEntryKind() KindInfo {
	return KindInfo{
		Name: KindLedgerEntry, Plural: "ledger_entries",
		New: func() Resource { return &typesv1.LedgerEntry{} },
		Columns: []Column{
			nameColumn("Entry"),
			column("Method", func(e *typesv1.LedgerEntry) string { return e.GetSpec().GetMethod() }),
			column("Subject", func(e *typesv1.LedgerEntry) string { return e.GetSpec().GetSubject() }),
			column("Host ID", func(e *typesv1.LedgerEntry) string { return e.GetSpec().GetHostId() }),
		},
		Validate: validate(func(*typesv1.LedgerEntry, *checker) {}),
		versions: []string{"v1"},
		name:     ValidName,
	}
}

// LedgerName is the name of the entry about a subject of a join method.
func LedgerName(method, subject string) string {
	h := sha256.New()
	h.Write([]byte(method))
	h.Write([]byte{0})
	h.Write([]byte(subject))
	return hex.EncodeToString(h.Sum(nil))
}

// NewLedgerEntry returns the entry about a subject: the host joined with it. It is
// forgotten at until; zero keeps it for ever.
func NewLedgerEntry(method, subject, hostID string, now, until time.Time) *typesv1.LedgerEntry {
	e := New(KindLedgerEntry, LedgerName(method, subject)).(*typesv1.LedgerEntry)
	e.Spec = &typesv1.LedgerEntrySpec{Method: method, Subject: subject, HostId: hostID, Time: timestamppb.New(now)}
	if !until.IsZero() {
		e.Metadata.Expires = timestamppb.New(until)
	}
	return e
}
