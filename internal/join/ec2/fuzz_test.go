package ec2

import (
	"testing"

	"teleport/internal/fault"
	"teleport/internal/join/method"
)

// FuzzDocument: whatever stands in a document, what comes out of it can stand in a host
// id and in the ledger.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"accountId":"123456789012","instanceId":"i-0123456789abcdef0","region":"us-east-1","pendingTime":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"accountId":"123456789012","accountId":"210987654321"}`))
	f.Add([]byte(`{"instanceId":["i-1"]}`))
	f.Add([]byte(`[[[[`))
	f.Fuzz(func(t *testing.T, content []byte) {
		d, err := parseDocument(content)
		if err != nil {
			if fault.Code(err) != method.CodeProofMalformed || fault.Kind(err) == nil {
				t.Fatalf("an error without kind or code: %v", err)
			}
			return
		}
		c := d.claims()
		if len(c.HostID) > 12+1+2+32 || !only(c.HostID, "0123456789abcdefi-") || d.pending.IsZero() && len(c.Once) != 1 {
			t.Fatalf("host id %q", c.HostID)
		}
	})
}
