package audit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
)

// queryEvent is an event as an agent for databases sends them.
func queryEvent(n int) *auditv1.Event {
	e := audit.New(audit.DatabaseQuery, map[string]any{
		"user": "alice", "sid": "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f", "server_id": "1f0a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f", "success": true,
		"db_service": "pg", "db_protocol": "postgres", "db_uri": "localhost:5432", "db_user": "alice", "db_name": "postgres",
		"db_query": fmt.Sprintf("SELECT abalance FROM pgbench_accounts WHERE aid = %d;", n), "db_query_parameters": []string{"a", "b"},
	})
	e.Uid, e.Ei, e.Time = fmt.Sprintf("5b1c2d7e-58a6-4e0e-8f6b-%012d", n), int64(n), timestamppb.New(time.Date(2026, 11, 20, 12, 30, 0, n, time.UTC))
	return e
}

// eventsOfAllSorts have what is rare.
func eventsOfAllSorts() []*auditv1.Event {
	odd := audit.New(audit.Exec, map[string]any{
		"event": "a", "uid": "b", "fields.uid": "c", "": "no name", "text": "\"quoted\" \\ \n\r\t\x01\u2028 <ä>", "long": strings.Repeat("ä", 1<<20),
		"numbers": []float64{0, math.Copysign(0, -1), 1, -1, 0.1, 1e15, 1e20, 1e21, 1e-7, math.MaxFloat64},
		"nested":  map[string]any{"b": []any{nil, true, map[string]string{"z": "1", "a": "2"}}, "a": 1.5}, "none": nil, "empty": []string{},
	})
	odd.Time = timestamppb.New(time.Unix(0, 0))
	early := &auditv1.Event{Event: "exec", Time: timestamppb.New(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)), Ei: -1, ClusterName: "c"}
	raw := &auditv1.Event{Event: "x", Fields: &structpb.Struct{Fields: map[string]*structpb.Value{
		"nothing": {}, "infinite": structpb.NewNumberValue(math.Inf(-1)), "list": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{{}}}),
	}}}
	return []*auditv1.Event{queryEvent(1), odd, early, raw, {}}
}

func encode(t testing.TB, e *auditv1.Event) []byte {
	t.Helper()
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// wantLine is the line of an event, made the simple way.
func wantLine(t testing.TB, e *auditv1.Event) string {
	t.Helper()
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	add := func(start, name string, v any) {
		line.WriteString(start)
		for i, part := range []any{name, v} {
			if err := enc.Encode(part); err != nil {
				t.Fatal(err)
			}
			line.Truncate(line.Len() - 1)
			if i == 0 {
				line.WriteByte(':')
			}
		}
	}
	add("{", "event", e.GetEvent())
	add(",", "code", e.GetCode())
	add(",", "time", e.GetTime().AsTime().Format("2006-01-02T15:04:05.000Z"))
	add(",", "uid", e.GetUid())
	add(",", "ei", e.GetEi())
	add(",", "cluster_name", e.GetClusterName())
	fields := e.GetFields().GetFields()
	var names []string
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	envelope := []string{"event", "code", "time", "uid", "ei", "cluster_name"}
	for _, name := range names {
		key := name
		for slices.Contains(envelope, key) || (key != name && fields[key] != nil) {
			key = "fields." + key
		}
		add(",", key, fields[name].AsInterface())
	}
	return line.String() + "}"
}

// FuzzEncoded holds what is done with encoded events against what is done with decoded ones.
func FuzzEncoded(f *testing.F) {
	for _, e := range eventsOfAllSorts() {
		f.Add(encode(f, e))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		ev := &auditv1.Event{}
		failed := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, ev)
		var read, taken audit.Encoded
		for range 2 { // the second time with what the first left behind
			if err := taken.Take(raw); (err != nil) != (failed != nil) {
				t.Fatalf("Take: got error %v, the decoder has %v", err, failed)
			}
		}
		if failed != nil {
			return
		}
		if err := read.Read(raw); err != nil {
			t.Fatalf("Read: %v", err)
		}
		if ev.GetTime().CheckValid() == nil {
			line, err := read.AppendJSON([]byte("x"))
			if want := wantLine(t, ev); err != nil || string(line[1:]) != want {
				t.Fatalf("AppendJSON: got %s, %v; want %s", line, err, want)
			}
		}
		audit.Clamp(ev)
		again := &auditv1.Event{}
		if err := proto.Unmarshal(taken.Append(nil), again); err != nil {
			t.Fatalf("Append: %v", err)
		}
		if len(ev.GetFields().GetFields()) == 0 {
			ev.Fields, again.Fields = nil, nil
		}
		if !proto.Equal(ev, again) {
			t.Fatalf("Append: got %v, want %v", again, ev)
		}
	})
}

// TestEncodedAsWritten holds that what the deterministic encoder writes stays as it is,
// and that setting fields keeps the order.
func TestEncodedAsWritten(t *testing.T) {
	for _, e := range append(eventsOfAllSorts(), queryEvent(2)) {
		raw := encode(t, e)
		var enc audit.Encoded
		if err := enc.Read(raw); err != nil {
			t.Fatal(err)
		}
		if got := enc.Append([]byte("x")); !bytes.Equal(got[1:], raw) {
			t.Errorf("Append: got %q, want %q", got[1:], raw)
		}
	}
	e := queryEvent(1)
	var enc audit.Encoded
	if err := enc.Take(encode(t, e)); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	enc.SetTime(at)
	e.Time = timestamppb.New(at)
	for _, name := range []string{"zz", "server_id", "aa", "sida"} {
		enc.SetText(name, "new")
		e.Fields.Fields[name] = structpb.NewStringValue("new")
	}
	if got, want := enc.Append(nil), encode(t, e); !bytes.Equal(got, want) {
		t.Errorf("Append: got %q, want %q", got, want)
	}
	for name, want := range map[string]string{"user": "alice true", "success": " true", "nobody": " false"} {
		if text, ok := enc.Text(name); fmt.Sprintf("%s %t", text, ok) != want {
			t.Errorf("Text(%q) = %q, %t; want %q", name, text, ok, want)
		}
	}
}

// BenchmarkEvent is what an event costs on its way, decoded and encoded.
func BenchmarkEvent(b *testing.B) {
	var raw [][]byte
	for i := range 100 {
		raw = append(raw, encode(b, queryEvent(i)))
	}
	var enc audit.Encoded
	var buf []byte
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for name, f := range map[string]func(raw []byte){
		"store/decoded": func(raw []byte) {
			e := &auditv1.Event{}
			must(proto.Unmarshal(raw, e))
			audit.Clamp(e)
			_, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
			must(err)
		},
		"store/encoded": func(raw []byte) {
			must(enc.Take(raw))
			buf = enc.Append(nil)
		},
		"line/decoded": func(raw []byte) {
			e := &auditv1.Event{}
			must(proto.Unmarshal(raw, e))
			_, err := audit.JSON(e)
			must(err)
		},
		"line/encoded": func(raw []byte) {
			must(enc.Read(raw))
			var err error
			buf, err = enc.AppendJSON(buf[:0])
			must(err)
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				f(raw[i%len(raw)])
			}
		})
	}
}

// TestBase holds that fields which are encoded at once are those that New makes.
func TestBase(t *testing.T) {
	base := map[string]any{"b": "base", "d": 1.5, "user": "alice", "yes": []string{"x"}}
	long := strings.Repeat("ä", 4000)
	for name, tt := range map[string]struct {
		more []audit.Field
		want map[string]any
	}{
		"none":      {nil, nil},
		"first":     {[]audit.Field{audit.Text("a", "")}, map[string]any{"a": ""}},
		"last":      {[]audit.Field{audit.Bool("z", true), audit.Bool("zz", false)}, map[string]any{"z": true, "zz": false}},
		"between":   {[]audit.Field{audit.Text("c", long), audit.Texts("e", []string{"", long, "x"})}, map[string]any{"c": long, "e": []string{"", long, "x"}}},
		"instead":   {[]audit.Field{audit.Text("b", "new"), audit.Texts("yes", nil)}, map[string]any{"b": "new", "yes": []string{}}},
		"all_parts": {[]audit.Field{audit.Text("a", "1"), audit.Text("d", "2"), audit.Text("z", "3")}, map[string]any{"a": "1", "d": "2", "z": "3"}},
	} {
		fields := maps.Clone(base)
		maps.Copy(fields, tt.want)
		e := &auditv1.Event{Event: "x", Fields: audit.NewBase(base).Fields(tt.more...)}
		want := audit.New(audit.Kind{Type: "x"}, fields)
		got, err := audit.Decode(e)
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: got %v, %v; want %v", name, got, err, want)
		}
		if raw := encode(t, e); !bytes.Equal(raw, encode(t, want)) || audit.Opaque(e) == 0 {
			t.Errorf("%s: got %q, which is not in order", name, raw)
		}
	}
	if e := audit.New(audit.Exec, base); audit.Opaque(e) != 0 || audit.Opaque(&auditv1.Event{}) != 0 {
		t.Error("fields are encoded that are not")
	}
}
