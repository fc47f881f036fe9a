package postgres

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"teleport/internal/audit"
	"teleport/internal/service/db/engine"
)

// log is an audit log of text.
type log struct{ lines []string }

// Query notes a query.
func (l *log) Query(q engine.Query) {
	l.lines = append(l.lines, fmt.Sprintf("query %s %v %v", q.Text, q.Parameters, q.Err))
}

// Event notes an event.
func (l *log) Event(k audit.Kind, fields map[string]any) {
	l.lines = append(l.lines, fmt.Sprint(k.Code, " ", fields))
}

// Malformed notes a message.
func (l *log) Malformed(m []byte) { l.lines = append(l.lines, fmt.Sprintf("malformed %q", m)) }

// read feeds a stream of the client, in pieces, and returns what was recorded.
func read(stream []byte, piece int) (*log, *asked, error) {
	l := &log{}
	a := newAsked(l, engine.Limits{Message: 1024, Query: 256}, &requests{idle: func(bool) {}})
	f := &frames{want: a.want, got: a.got}
	for len(stream) > 0 {
		n := min(piece, len(stream))
		if err := f.feed(stream[:n]); err != nil {
			return l, a, err
		}
		stream = stream[n:]
	}
	return l, a, nil
}

func encode(t testing.TB, messages ...pgproto3.FrontendMessage) []byte {
	t.Helper()
	var out []byte
	for _, m := range messages {
		var err error
		if out, err = m.Encode(out); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func sample(t testing.TB) []byte {
	return encode(t,
		&pgproto3.Query{String: "select 1"},
		&pgproto3.Parse{Name: "s", Query: "select $1, $2", ParameterOIDs: []uint32{23, 0}},
		&pgproto3.Describe{ObjectType: 'S', Name: "s"},
		&pgproto3.Bind{PreparedStatement: "s", ParameterFormatCodes: []int16{1, 0}, Parameters: [][]byte{{0, 0, 0, 42}, nil}},
		&pgproto3.Execute{},
		&pgproto3.Bind{PreparedStatement: "s", DestinationPortal: "c", Parameters: [][]byte{[]byte("7"), []byte("x")}},
		&pgproto3.Execute{Portal: "c", MaxRows: 10},
		&pgproto3.Close{ObjectType: 'S', Name: "s"},
		&pgproto3.Sync{}, &pgproto3.Flush{},
		&pgproto3.CopyData{Data: bytes.Repeat([]byte("z"), 5000)}, &pgproto3.CopyDone{},
		&pgproto3.Query{String: strings.Repeat("long ", 1000)},
		&pgproto3.FunctionCall{Function: 9, Arguments: [][]byte{[]byte("arg")}},
		&pgproto3.Bind{PreparedStatement: "nowhere"}, &pgproto3.Execute{},
		&pgproto3.Terminate{},
	)
}

func TestWhatIsAsked(t *testing.T) {
	want := []string{
		"query select 1 [] <nil>",
		"TPG00I map[query:select $1, $2 statement_name:s]",
		"TPG01I map[parameters:[42 NULL] portal_name: statement_name:s]",
		"query select $1, $2 [42 NULL] <nil>",
		"TPG01I map[parameters:[7 x] portal_name:c statement_name:s]",
		"TPG02I map[portal_name:c]",
		"query select $1, $2 [7 x] <nil>",
		"TPG03I map[statement_name:s]",
		"TDB02I map[copy:in copy_bytes:5000 db_query:select 1 success:true]",
		"query " + strings.Repeat("long ", 1000)[:256] + "...[truncated: 256 of 5001 bytes] [] <nil>",
		"TPG04I map[function_args:[arg] function_oid:9]",
		"TPG01I map[parameters:[] portal_name: statement_name:nowhere]",
		`query [statement "nowhere" was not kept] [] <nil>`,
	}
	for _, piece := range []int{1, 2, 3, 7, 100, 1 << 20} {
		got, _, err := read(sample(t), piece)
		if err != nil || strings.Join(got.lines, "\n") != strings.Join(want, "\n") {
			t.Errorf("in pieces of %d: %v\n%s\nwant\n%s", piece, err, strings.Join(got.lines, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestMemoryOfAnEndlessSession(t *testing.T) {
	l := &log{}
	a := newAsked(l, engine.Limits{Message: 1 << 20, Query: 256}, &requests{idle: func(bool) {}})
	f := &frames{want: a.want, got: a.got}
	for i := range 20_000 {
		text := strings.Repeat("x", 1000)
		if err := f.feed(encode(t, &pgproto3.Parse{Name: fmt.Sprint(i), Query: text}, &pgproto3.Bind{PreparedStatement: fmt.Sprint(i), DestinationPortal: fmt.Sprint(i), Parameters: [][]byte{[]byte(text)}})); err != nil {
			t.Fatal(err)
		}
		l.lines = nil
	}
	if a.held > maxHeld || len(a.statements) > maxNames || len(a.portals) > maxNames || len(a.requests.list) > maxRequests {
		t.Errorf("held are %d bytes, %d statements, %d portals, %d requests", a.held, len(a.statements), len(a.portals), len(a.requests.list))
	}
	for i := range 20_000 {
		_ = f.feed(encode(t, &pgproto3.Close{ObjectType: 'S', Name: fmt.Sprint(i)}, &pgproto3.Close{ObjectType: 'P', Name: fmt.Sprint(i)}))
	}
	if a.held != 0 {
		t.Errorf("after all were closed %d bytes are held", a.held)
	}
}

func TestMemoryOfWhatWaits(t *testing.T) {
	r := &requests{idle: func(bool) {}}
	for range 1000 {
		r.add(request{kind: 'B', params: []string{strings.Repeat("x", 100<<10)}})
		r.add(request{kind: 'Q', text: strings.Repeat("x", 100<<10)})
		held := 0
		for _, q := range r.list {
			held += q.weight()
		}
		if held != r.pending || held > maxPending {
			t.Fatalf("%d bytes wait, %d are counted", held, r.pending)
		}
	}
}

func TestRequests(t *testing.T) {
	var idle []bool
	r := &requests{idle: func(is bool) { idle = append(idle, is) }}
	r.add(request{kind: 'P', text: "a"})
	r.add(request{kind: 'B', text: "a"})
	r.add(request{kind: 'E', text: "a"})
	r.add(request{kind: 'E', text: "b"})
	r.add(request{kind: 'S'})
	r.add(request{kind: 'Q', text: "c"})
	r.answered('P')
	r.answered('B')
	r.answered('E')
	if q, ok := r.failed(); !ok || q.text != "b" {
		t.Errorf("failed = %v, %t, want b", q, ok)
	}
	r.ready('T')
	if q, ok := r.failed(); !ok || q.text != "c" {
		t.Errorf("failed = %v, %t, want c", q, ok)
	}
	r.ready('I')
	if n := len(idle); !idle[n-1] || idle[n-2] {
		t.Errorf("idle = %v, want true at the end only", idle)
	}
	// The server says by itself that it stops.
	if _, ok := r.failed(); ok {
		t.Error("nothing was asked, and it failed")
	}
	for range maxRequests + 10 {
		r.add(request{kind: 'Q'})
	}
	for range maxRequests + 9 {
		r.ready('I')
	}
	if idle[len(idle)-1] {
		t.Error("idle though one request waits")
	}
	r.ready('I')
	r.add(request{kind: 'Q', text: "again"})
	if r.current() != "again" {
		t.Error("after too many requests none is known any more")
	}
}

func TestStartup(t *testing.T) {
	text := func(parts ...string) []byte { return []byte(strings.Join(parts, "\x00") + "\x00\x00") }
	for name, tt := range map[string]struct {
		body []byte
		ok   bool
	}{
		"plain":          {text("user", "alice", "application_name", "psql"), true},
		"no_user":        {text("database", "x"), false},
		"twice":          {text("user", "alice", "user", "bob"), false},
		"replication":    {text("user", "alice", "replication", "true"), false},
		"replication_db": {text("user", "alice", "replication", "database"), false},
		"replication_no": {text("user", "alice", "replication", "off"), false},
		"no_end":         {[]byte("user\x00alice\x00"), false},
		"half":           {[]byte("user\x00alice\x00database\x00"), false},
		"empty":          {nil, false},
	} {
		s, err := parseStartup(preliminary{code: pgproto3.ProtocolVersion30, body: tt.body})
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	s, err := parseStartup(preliminary{code: pgproto3.ProtocolVersion32, body: text("application_name", "psql", "user", "alice")})
	if err != nil || s.database != "alice" || string(s.encode()) != string(text("user", "alice", "database", "alice", "application_name", "psql")) {
		t.Errorf("%+v, %v, %q", s, err, s.encode())
	}
	if _, err := parseStartup(preliminary{code: 2 << 16, body: text("user", "x")}); err == nil {
		t.Error("version 2 was taken")
	}
}

// FuzzAsked holds that nothing a client sends makes the engine fail, that frames do not
// depend on how the stream is cut, and that what is kept has a bound.
func FuzzAsked(f *testing.F) {
	f.Add(sample(f), 7)
	f.Add([]byte{'Q', 0, 0, 0, 4}, 1)
	f.Add([]byte{'B', 0, 0, 0, 12, 0, 0, 255, 255, 255, 255, 1, 1}, 3)
	f.Fuzz(func(t *testing.T, stream []byte, piece int) {
		whole, a, err := read(stream, len(stream)+1)
		if a.held > maxHeld || a.held < 0 {
			t.Errorf("%d bytes are held", a.held)
		}
		parts, _, err2 := read(stream, 1+max(0, piece)%64)
		if (err == nil) != (err2 == nil) || strings.Join(whole.lines, "\n") != strings.Join(parts.lines, "\n") {
			t.Errorf("whole: %v %q, in parts: %v %q", err, whole.lines, err2, parts.lines)
		}
	})
}

// FuzzAnswers holds the same of what a server sends.
func FuzzAnswers(f *testing.F) {
	ready, _ := (&pgproto3.ReadyForQuery{TxStatus: 'I'}).Encode(nil)
	refused, _ := (&pgproto3.ErrorResponse{Severity: "ERROR", Code: "42P01", Message: "no"}).Encode(nil)
	f.Add(append(refused, ready...), []byte("QPBDES"))
	f.Fuzz(func(_ *testing.T, stream, asked []byte) {
		r := &requests{idle: func(bool) {}}
		for _, kind := range asked {
			r.add(request{kind: kind, stmt: &statement{}})
		}
		p := &pipe{s: &engine.Session{Host: quietHost{}}, requests: r, forget: func() {}, cancel: func([]byte) func() { return func() {} }}
		_ = (&frames{want: wantAnswer, got: p.answer}).feed(stream)
	})
}

// FuzzStartup reads first messages.
func FuzzStartup(f *testing.F) {
	f.Add(startupMessage(pgproto3.ProtocolVersion30, []byte("user\x00alice\x00\x00")))
	f.Add(startupMessage(codeCancel, make([]byte, 8)))
	f.Fuzz(func(t *testing.T, stream []byte) {
		p, err := readStartup(bytes.NewReader(stream))
		if err != nil {
			return
		}
		if s, err := parseStartup(p); err == nil {
			again, err := parseStartup(preliminary{code: p.code, body: s.encode()})
			if err != nil || again.user != s.user || again.database != s.database {
				t.Errorf("%+v is read back as %+v, %v", s, again, err)
			}
		}
	})
}

type quietHost struct{ engine.Host }

// Audit returns one that drops all.
func (quietHost) Audit() engine.Audit { return &log{} }

func BenchmarkFrames(b *testing.B) {
	row, _ := (&pgproto3.DataRow{Values: [][]byte{bytes.Repeat([]byte("x"), 90)}}).Encode(nil)
	piece := bytes.Repeat(row, bufferSize/len(row))
	f := &frames{want: wantAnswer, got: func(byte, []byte, int) {}}
	b.SetBytes(int64(len(piece)))
	for b.Loop() {
		if err := f.feed(piece); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkQuery(b *testing.B) {
	query := encode(b, &pgproto3.Query{String: "SELECT abalance FROM pgbench_accounts WHERE aid = 79432;"})
	a := newAsked(&nothing{}, engine.Limits{Message: 128 << 10, Query: 16 << 10}, &requests{idle: func(bool) {}})
	f := &frames{want: a.want, got: a.got}
	b.ReportAllocs()
	for b.Loop() {
		_ = f.feed(query)
		a.requests.ready('I')
	}
}

type nothing struct{ log }

// Query drops a query.
func (*nothing) Query(engine.Query) {}
