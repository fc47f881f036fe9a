package mongodb

import (
	"bytes"
	"io"
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// FuzzRequest: whatever comes, a message that is passed on is byte for byte what was
// decided about, has one command in one database, and reads the same to the driver.
func FuzzRequest(f *testing.F) {
	find := new(builder).str("find", "x").raw(element{typeDocument, "filter", new(builder).double("a", 1).bin("b", []byte{1}).doc()}).str("$db", "shop").doc()
	f.Add(message(opMsg, 1, 0, find))
	f.Add(message(opMsg, 1, 0, new(builder).str("aggregate", "x").raw(element{typeDocument, "$out", new(builder).str("db", "y").doc()}).str("$db", "shop").doc()))
	f.Add(message(opMsg, 1, 0, new(builder).int("saslStart", 1).str("mechanism", mechanismScram).bin("payload", []byte("n,,n=a,r=b")).str("$db", "admin").doc()))
	f.Add(append([]byte("\x3a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xd4\x07\x00\x00\x00\x00\x00\x00admin.$cmd\x00\x00\x00\x00\x00\xff\xff\xff\xff"), new(builder).int("isMaster", 1).doc()...))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, limit := range []int{1 << 20, 16} {
			in := bytes.NewReader(data)
			r, err := readRequest(in, limit)
			if err != nil {
				continue
			}
			if !bytes.HasPrefix(data, r.raw) || len(r.raw)+r.rest != int(r.head.size) {
				t.Fatalf("%d bytes and %d to come, of a message of %d", len(r.raw), r.rest, r.head.size)
			}
			cmd, err := look(r)
			if err != nil {
				continue
			}
			_ = named(cmd.body)
			_ = fieldsOf(cmd.body)
			_, _, _ = newScram(fieldsOf(cmd.body).payload, false)
			_ = hello(cmd, r.body)
			_ = failure(r.body)
			if text := cmd.text(r.sequences, 4096); len(text) > 4096+len(cut) {
				t.Fatalf("%d bytes of text", len(text))
			}
			var d bson.D
			if cmd.db != "" && bson.Unmarshal(r.body, &d) == nil {
				if d[0].Key != cmd.name {
					t.Fatalf("the command is %q, the driver reads %q", cmd.name, d[0].Key)
				}
				for _, e := range d {
					if e.Key == "$db" && e.Value != cmd.db {
						t.Fatalf("the database is %q, the driver reads %q", cmd.db, e.Value)
					}
				}
			}
			follow := &sections{limit: 100}
			rest, _ := io.ReadAll(io.LimitReader(in, int64(r.rest)))
			if err := follow.feed(rest, r.rest); err == nil && len(follow.kept) > 100 {
				t.Fatalf("%d bytes were kept", len(follow.kept))
			}
		}
	})
}

// FuzzSections: a stream of sections is judged the same however it is cut.
func FuzzSections(f *testing.F) {
	f.Add([]byte{1, 8, 0, 0, 0, 'a', 0, 0, 0, 1, 6, 0, 0, 0, 'b', 0}, uint8(3), false)
	f.Add([]byte{1, 6, 0, 0, 0, 'b', 0, 1, 2, 3, 4}, uint8(1), true)
	f.Fuzz(func(t *testing.T, data []byte, step uint8, checksum bool) {
		judge := func(step int) (string, error) {
			s := &sections{limit: 50}
			if checksum {
				s.checksum = 4
			}
			for p := data; len(p) > 0; {
				n := min(step, len(p))
				if err := s.feed(p[:n], len(p)); err != nil {
					return "", err
				}
				p = p[n:]
			}
			return string(s.kept), nil
		}
		whole, err := judge(len(data) + 1)
		parts, err2 := judge(int(step) + 1)
		if whole != parts || (err == nil) != (err2 == nil) {
			t.Fatalf("%q, %v; in parts %q, %v", whole, err, parts, err2)
		}
	})
}
