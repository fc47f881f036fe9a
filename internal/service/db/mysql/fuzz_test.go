package mysql

import (
	"bytes"
	"testing"

	"teleport/internal/audit"
	"teleport/internal/service/db/engine"
)

// silent is an audit log that forgets.
type silent struct{ engine.Host }

func (silent) Audit() engine.Audit              { return silent{} }
func (silent) Idle(bool)                        {}
func (silent) Query(engine.Query)               {}
func (silent) Event(audit.Kind, map[string]any) {}
func (silent) Malformed([]byte)                 {}

// FuzzTalk: whatever both sides say is followed, or given up.
func FuzzTalk(f *testing.F) {
	f.Add([]byte("\x08\x00\x00\x00\x03select1"), []byte("\x01\x00\x00\x01\x01\x02\x00\x00\x02xx\x05\x00\x00\x03\xfe\x00\x00\x02\x00\x05\x00\x00\x04\xfe\x00\x00\x02\x00"), uint8(3))
	f.Add([]byte("\x02\x00\x00\x00\x16?"), []byte("\x0c\x00\x00\x01\x00\x01\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00"), uint8(200))
	f.Fuzz(func(t *testing.T, up, down []byte, step uint8) {
		k := newTalk(silent{})
		limits := engine.Limits{Message: 1 << 12, Query: 1 << 8}
		for r := bytes.NewReader(up); ; {
			h, err := readHeader(r)
			if err != nil {
				break
			}
			head := make([]byte, min(h.size, limits.Message, r.Len()))
			_, _ = r.Read(head)
			if k.asked(h, head, limits) != nil {
				break
			}
		}
		ends := 0
		cut := &cutter{packet: func(head []byte, size int, goesOn bool) {
			ends++
			k.answered(head, size, goesOn)
		}}
		for p := down; len(p) > 0; {
			n := min(int(step)+1, len(p))
			cut.feed(p[:n])
			p = p[n:]
		}
		if len(k.waiting) > maxWaiting || k.held > maxHeld || k.held < 0 {
			t.Fatalf("%d commands wait, %d bytes are held", len(k.waiting), k.held)
		}
	})
}

// FuzzLogin: a login is read as a whole or not at all.
func FuzzLogin(f *testing.F) {
	f.Add(append([]byte{0x05, 0xa2, 0x1a, 0, 0, 0, 0, 1, 45}, append(make([]byte, 23), "alice\x00\x01xapp\x00mysql_native_password\x00"...)...))
	f.Fuzz(func(_ *testing.T, p []byte) {
		_, _ = parseLogin(p)
		_, _, _, _ = parseGreeting(p)
		_ = isSSLRequest(p)
		_ = errorText(p)
	})
}

// FuzzValues: parameters are read within what is there.
func FuzzValues(f *testing.F) {
	f.Add([]byte("\x00\x01\x03\x00\xfd\x00\x0c\x00\x01\x00\x00\x00\x02hi\x04\xcf\x07\x0c\x1f"), uint8(3))
	f.Fuzz(func(t *testing.T, p []byte, n uint8) {
		st := &statement{params: int(n) + 1}
		out, ok := st.values(p)
		if ok && len(out) != min(st.params, maxParameters) && st.params <= maxParameters {
			t.Fatalf("%d values of %d", len(out), st.params)
		}
	})
}
