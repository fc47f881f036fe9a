package redis

import (
	"bufio"
	"bytes"
	"testing"
)

// FuzzCommands: what is written for the server is read as the same commands again, so that
// the server cannot read others than were decided about.
func FuzzCommands(f *testing.F) {
	for _, s := range []string{"*1\r\n$4\r\nPING\r\n", "PING\r\nECHO \"a b\"\r\n", "*2\r\n$4\r\nAUTH\r\n$1\r\nx\r\n", "*0\r\n*-1\r\n\r\nGET 'x'\n", "*3\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		first := commands(t, data)
		var out bytes.Buffer
		w := bufio.NewWriter(&out)
		r := newReader(bytes.NewReader(data))
		for range first {
			c, err := r.next()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.write(w); err != nil {
				t.Fatal(err)
			}
		}
		_ = w.Flush()
		again := commands(t, out.Bytes())
		if len(first) != len(again) {
			t.Fatalf("%d commands became %d", len(first), len(again))
		}
		for i := range first {
			if !bytes.Equal(first[i], again[i]) {
				t.Fatalf("command %d: %q became %q", i, first[i], again[i])
			}
		}
	})
}

// commands returns those that are whole, each as it is written.
func commands(t *testing.T, data []byte) (out [][]byte) {
	t.Helper()
	r := newReader(bytes.NewReader(data))
	for {
		c, err := r.next()
		if err != nil {
			return out
		}
		_, _ = c.user()
		var b bytes.Buffer
		w := bufio.NewWriter(&b)
		if c.write(w) != nil {
			return out
		}
		_ = c.text()
		_ = w.Flush()
		out = append(out, b.Bytes())
	}
}

// FuzzScanner: answers end at the same places however the stream is cut into pieces.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{"+OK\r\n-ERR no\r\n", "*2\r\n$1\r\na\r\n:1\r\n", "%1\r\n+a\r\n*0\r\n>1\r\n+x\r\n", "|1\r\n+a\r\n+b\r\n$-1\r\n!5\r\nERR x\r\n"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		scan := func(step int) (ends []reply, broken bool) {
			s := scanner{done: func(r reply) { ends = append(ends, r) }}
			for p := data; len(p) > 0; {
				n := min(step, len(p))
				s.feed(p[:n])
				p = p[n:]
			}
			return ends, s.broken
		}
		whole, broken := scan(len(data) + 1)
		pieces, alsoBroken := scan(int(cut) + 1)
		if broken != alsoBroken || len(whole) != len(pieces) {
			t.Fatalf("%d answers, broken %v; in pieces %d, %v", len(whole), broken, len(pieces), alsoBroken)
		}
		for i := range whole {
			if whole[i] != pieces[i] {
				t.Fatalf("answer %d: %+v, in pieces %+v", i, whole[i], pieces[i])
			}
		}
	})
}
