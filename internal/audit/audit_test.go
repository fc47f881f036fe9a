package audit_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/types"
)

func TestKindsAreUnique(t *testing.T) {
	seen := map[audit.Kind]bool{}
	for _, k := range audit.Kinds() {
		if k.Type == "" || k.Code == "" || seen[k] {
			t.Errorf("kind %+v is empty or there twice", k)
		}
		seen[k] = true
		if got, ok := audit.KindOf(&auditv1.Event{Event: k.Type, Code: k.Code}); !ok || got != k {
			t.Errorf("KindOf(%+v) = %+v, %v", k, got, ok)
		}
	}
	if _, ok := audit.KindOf(&auditv1.Event{Event: "user.login", Code: "T2000I"}); ok {
		t.Error("KindOf took the code of another type")
	}
}

func TestNewValues(t *testing.T) {
	var nobody *fault.Error
	at := time.Date(2026, 11, 20, 12, 30, 0, 5e6, time.FixedZone("x", 3600))
	tests := []struct {
		name  string
		value any
		want  any
	}{
		{"string", "a", "a"},
		{"named_string", types.RoleNode, "Node"},
		{"invalid_utf8", "a\xffb", "a\uFFFDb"},
		{"int", 22, 22.0},
		{"uint32", uint32(7), 7.0},
		{"bool", true, true},
		{"float", 0.5, 0.5},
		{"nan", math.NaN(), "NaN"},
		{"infinity", math.Inf(1), "+Inf"},
		{"nil", nil, nil},
		{"time", at, "2026-11-20T11:30:00.005Z"},
		{"duration", 90 * time.Second, "1m30s"},
		{"error", errors.New("no"), "no"},
		{"nil_error_pointer", nobody, "<nil>"},
		{"secret", keys.Secret("hunter2"), "redacted"},
		{"secrets", []keys.Secret{"hunter2"}, []any{"redacted"}},
		{"strings", []string{"a", "b"}, []any{"a", "b"}},
		{"roles", []types.SystemRole{types.RoleNode}, []any{"Node"}},
		{"map", map[string]string{"k": "v"}, map[string]any{"k": "v"}},
		{"nested", map[string]any{"k": []int{1}}, map[string]any{"k": []any{1.0}}},
		{"struct", struct{ A int }{1}, "{1}"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := audit.New(audit.SessionStart, map[string]any{"f": tt.value})
			if e.GetEvent() != "session.start" || e.GetCode() != "T2000I" {
				t.Errorf("kind = %q %q", e.GetEvent(), e.GetCode())
			}
			if diff := cmp.Diff(tt.want, e.GetFields().AsMap()["f"]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOversize(t *testing.T) {
	deep := any("bottom")
	for range 50 {
		deep = []any{deep}
	}
	many := map[string]any{}
	for i := range 5000 {
		many[fmt.Sprintf("field-%04d", i)] = strings.Repeat("x", 3000)
	}
	tests := []struct {
		name   string
		fields map[string]any
		want   []string
	}{
		{"long_string", map[string]any{"command": strings.Repeat("ä", 1<<20)}, []string{"[truncated: ", " of 2097152 bytes, sha256 "}},
		{"many_strings", map[string]any{"a": strings.Repeat("a", 60000), "b": strings.Repeat("b", 60000), "c": "short"}, []string{"[truncated: 16384 of 60000 bytes", "short"}},
		{"long_list", map[string]any{"list": make([]int, 100000)}, []string{"[truncated: 1024 of 100000 items]"}},
		{"long_list_of_long", map[string]any{"list": strings.Split(strings.Repeat(strings.Repeat("x", 999)+",", 2000), ",")}, []string{"[truncated: "}},
		{"many_fields", many, []string{"[truncated: 128 of 5000 items]", "field-0000"}},
		{"deep", map[string]any{"deep": deep}, []string{"bottom"}},
		{"long_name", map[string]any{strings.Repeat("n", 5000): 1}, []string{" of 5000 bytes"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := audit.New(audit.Exec, tt.fields)
			check := func(e *auditv1.Event) {
				t.Helper()
				e.Time = timestamppb.Now()
				line, err := audit.JSON(e)
				if err != nil {
					t.Fatal(err)
				}
				if size := proto.Size(e); size > 70<<10 {
					t.Errorf("event has %d bytes", size)
				}
				if !utf8.Valid(line) {
					t.Error("line is not UTF-8")
				}
				for _, want := range tt.want {
					if !strings.Contains(string(line), want) {
						t.Errorf("line of %d bytes has no %q: %.300s", len(line), want, line)
					}
				}
			}
			check(e)
			audit.Clamp(e)
			check(e)
		})
	}
}

// TestClamp shows that an event of another process is cut like one of our own.
func TestClamp(t *testing.T) {
	long := strings.Repeat("x", 100000)
	own := audit.New(audit.Exec, map[string]any{"command": long, "n": 1, "list": []string{long}, "map": map[string]any{"k": long}})
	s, err := structpb.NewStruct(map[string]any{"command": long, "n": 1, "list": []any{long}, "map": map[string]any{"k": long}})
	if err != nil {
		t.Fatal(err)
	}
	foreign := &auditv1.Event{Event: audit.Exec.Type, Code: audit.Exec.Code, Fields: s}
	audit.Clamp(foreign)
	if diff := cmp.Diff(own, foreign, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	odd := &auditv1.Event{Fields: &structpb.Struct{Fields: map[string]*structpb.Value{
		"nil": nil, "empty": {}, "nan": structpb.NewNumberValue(math.NaN()), "null": structpb.NewNullValue(),
	}}}
	audit.Clamp(odd)
	want := map[string]any{"nil": nil, "empty": nil, "nan": "NaN", "null": nil}
	if diff := cmp.Diff(want, odd.GetFields().AsMap()); diff != "" {
		t.Error(diff)
	}
	audit.Clamp(&auditv1.Event{})
}

func event(uid string, at time.Time) *auditv1.Event {
	e := audit.New(audit.SessionStart, map[string]any{
		"user": "bob", "login": "root", "sid": "s-1", "server_id": "h-1", "addr.remote": "1.2.3.4:5", "size": 80, "cmd": "<a&b>\n\x1b[31m",
	})
	e.Uid, e.Time, e.ClusterName, e.Ei = uid, timestamppb.New(at), "example", 3
	return e
}

func TestJSON(t *testing.T) {
	line, err := audit.JSON(event("u-1", time.Date(2026, 11, 20, 1, 2, 3, 456789000, time.UTC)))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"event":"session.start","code":"T2000I","time":"2026-11-20T01:02:03.456Z","uid":"u-1","ei":3,"cluster_name":"example",` +
		`"addr.remote":"1.2.3.4:5","cmd":"<a&b>\n\u001b[31m","login":"root","server_id":"h-1","sid":"s-1","size":80,"user":"bob"}`
	if diff := cmp.Diff(want, string(line)); diff != "" {
		t.Error(diff)
	}
	parsed, err := audit.ParseJSON(line)
	if err != nil {
		t.Fatal(err)
	}
	again, err := audit.JSON(parsed)
	if err != nil || string(again) != want {
		t.Errorf("JSON(ParseJSON(line)) = %s, %v", again, err)
	}
}

func TestJSONReservedNames(t *testing.T) {
	e := audit.New(audit.Exec, map[string]any{"event": "forged", "uid": "forged", "fields.uid": "other", "time": "forged"})
	e.Uid, e.Time = "true", timestamppb.New(time.Unix(0, 0))
	line, err := audit.JSON(e)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"event":"exec","code":"T3002I","time":"1970-01-01T00:00:00.000Z","uid":"true","ei":0,"cluster_name":"",` +
		`"fields.event":"forged","fields.uid":"other","fields.time":"forged","fields.fields.uid":"forged"}`
	parsed, err := audit.ParseJSON(line)
	if err != nil {
		t.Fatal(err)
	}
	wanted, err := audit.ParseJSON([]byte(want))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wanted, parsed, protocmp.Transform()); diff != "" {
		t.Errorf("%s\n%s", line, diff)
	}
}

func TestJSONRefuses(t *testing.T) {
	for name, e := range map[string]*auditv1.Event{
		"no_time":  audit.New(audit.Exec, nil),
		"bad_time": {Event: "exec", Time: &timestamppb.Timestamp{Seconds: math.MaxInt64}},
	} {
		if line, err := audit.JSON(e); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: JSON = %s, %v, want an invalid event", name, line, err)
		}
	}
}

func TestParseJSONRefuses(t *testing.T) {
	for name, line := range map[string]string{
		"empty":     ``,
		"array":     `[]`,
		"torn":      `{"event":"exec","code":"T3002I","ti`,
		"two":       `{}{}`,
		"no_uid":    `{"event":"exec","code":"T3002I","time":"2026-01-01T00:00:00Z","ei":0,"cluster_name":""}`,
		"number":    `{"event":1,"code":"T3002I","time":"2026-01-01T00:00:00Z","uid":"u","ei":0,"cluster_name":""}`,
		"no_time":   `{"event":"exec","code":"T3002I","uid":"u","ei":0,"cluster_name":""}`,
		"bad_time":  `{"event":"exec","code":"T3002I","time":"today","uid":"u","ei":0,"cluster_name":""}`,
		"half_ei":   `{"event":"exec","code":"T3002I","time":"2026-01-01T00:00:00Z","uid":"u","ei":0.5,"cluster_name":""}`,
		"huge_ei":   `{"event":"exec","code":"T3002I","time":"2026-01-01T00:00:00Z","uid":"u","ei":1e300,"cluster_name":""}`,
		"too_long":  `{"event":"` + strings.Repeat("x", 2<<20) + `"}`,
		"too_deep":  strings.Repeat(`{"a":`, 20000) + strings.Repeat("}", 20000),
		"trailing":  `{"event":"exec","code":"T3002I","time":"2026-01-01T00:00:00Z","uid":"u","ei":0,"cluster_name":""} x`,
		"nul_bytes": "\x00\x00",
	} {
		if e, err := audit.ParseJSON([]byte(line)); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: ParseJSON = %v, %v, want an error", name, e, err)
		}
	}
}

func FuzzParseJSON(f *testing.F) {
	line, err := audit.JSON(event("u-1", time.Unix(1, 0)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte(`{"event":"exec","code":"T3002I","time":"2026-01-01T00:00:00+01:00","uid":"u","ei":-0,"cluster_name":"","fields.uid":[{"a":1e9}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := audit.ParseJSON(line)
		if err != nil {
			return
		}
		once, err := audit.JSON(e)
		if err != nil {
			t.Fatalf("JSON of a parsed line: %v", err)
		}
		again, err := audit.ParseJSON(once)
		if err != nil {
			t.Fatalf("ParseJSON of %s: %v", once, err)
		}
		twice, err := audit.JSON(again)
		if err != nil || string(twice) != string(once) {
			t.Fatalf("not stable: %s, then %s, %v", once, twice, err)
		}
		if strings.ContainsAny(string(once), "\n\r") {
			t.Fatalf("a line with a line end: %q", once)
		}
		audit.Clamp(e)
	})
}
