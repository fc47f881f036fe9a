package types_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func TestParseLabels(t *testing.T) {
	rows := map[string]struct {
		in   string
		want map[string]string
	}{
		"empty":       {"", map[string]string{}},
		"spaces":      {"  ", map[string]string{}},
		"one":         {"a=b", map[string]string{"a": "b"}},
		"several":     {" env = prod , teleport.dev/x=1,empty= ", map[string]string{"env": "prod", "teleport.dev/x": "1", "empty": ""}},
		"quoted":      {`a="x, y = z",b=" "`, map[string]string{"a": "x, y = z", "b": " "}},
		"quoted_key":  {`"a"=b`, map[string]string{"a": "b"}},
		"no_equals":   {"a", nil},
		"two_equals":  {"a=b=c", nil},
		"trailing":    {"a=b,", nil},
		"no_key":      {"=b", nil},
		"twice":       {"a=1,a=2", nil},
		"open_quote":  {`a="b`, nil},
		"space_key":   {"a b=c", nil},
		"control":     {"a=\x1b[0m", nil},
		"bad_utf8":    {"a=\xff", nil},
		"long_value":  {"a=" + strings.Repeat("x", 1025), nil},
		"not_a_label": {"a=b,*=c", nil},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			got, err := types.ParseLabels(row.in)
			if row.want == nil {
				if !errors.Is(err, fault.ErrInvalid) {
					t.Fatalf("ParseLabels(%q) = %v, %v, want ErrInvalid", row.in, got, err)
				}
				return
			}
			if err != nil || !cmp.Equal(got, row.want) {
				t.Fatalf("ParseLabels(%q) = %v, %v, want %v", row.in, got, err, row.want)
			}
		})
	}
}

func FuzzParseLabels(f *testing.F) {
	f.Add(`a=b,c="d,e"`)
	f.Fuzz(func(t *testing.T, s string) {
		labels, err := types.ParseLabels(s)
		for k := range labels {
			if types.ValidLabelKey(k) != nil {
				t.Fatalf("ParseLabels(%q) let key %q through", s, k)
			}
		}
		if err != nil && !errors.Is(err, fault.ErrInvalid) {
			t.Fatalf("ParseLabels(%q): %v is not ErrInvalid", s, err)
		}
	})
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"8h0m0s": 8 * time.Hour, "30m": 30 * time.Minute, "7d": 7 * 24 * time.Hour, "1d12h": 36 * time.Hour, "1.5h": 90 * time.Minute,
		"": 0, "0": 0, "0d": 0, "-1h": 0, "1d-1h": 0, "d": 0, "x": 0, "8": 0, "1d2d": 0, "99999d": 99999 * 24 * time.Hour, "999999d": 0,
		"99999d2562047h": 0, "+1d": 0,
	} {
		got, err := types.ParseDuration(in)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("ParseDuration(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
}

func TestValid(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, row := range []struct {
		what     string
		valid    func(string) error
		yes, not []string
	}{
		{
			"login", types.ValidLogin,
			[]string{"root", "ubuntu", "a.b", "svc$", "me@host", "x+y", "_x-"},
			[]string{"", "-x", ".", "..", "a b", "a,b", "a\nb", "a/b", "é", "a:b", "\x00", "*", long},
		},
		{
			"hostname", types.ValidHostname,
			[]string{"a", "a-b.example.com", "10.0.0.1", "a_b", "example.com."},
			[]string{"", "-a", "a-", "a..b", ".a", "a b", "a:1", "é", "a/b", strings.Repeat("a", 64), long, "."},
		},
		{
			"name", types.ValidName,
			[]string{"a", "alice@example.com", "host.name", "a:b", "a=b"},
			[]string{"", "-a", ".", "..", "a/b", "a%b", "a b", "a\x00", "é", long},
		},
		{
			"label key", types.ValidLabelKey,
			[]string{"env", "teleport.dev/origin", "aws:x"},
			[]string{"", "a b", "a=b", "a,b", "*", "\x1b", long},
		},
	} {
		for _, s := range row.yes {
			if err := row.valid(s); err != nil {
				t.Errorf("%s %q: %v", row.what, s, err)
			}
		}
		for _, s := range row.not {
			if err := row.valid(s); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%s %q: got error %v, want ErrInvalid", row.what, s, err)
			}
		}
	}
}

func TestServerLabels(t *testing.T) {
	s := &typesv1.Server{
		Metadata: &typesv1.Metadata{Labels: map[string]string{"env": "prod", "team": "db"}},
		Spec: &typesv1.ServerSpec{CmdLabels: map[string]*typesv1.CommandLabel{
			"hostname": {Result: "web1"}, "env": {Result: "dev"}, "none": nil,
		}},
	}
	want := map[string]string{"env": "prod", "team": "db", "hostname": "web1", "none": ""}
	if d := cmp.Diff(want, types.ServerLabels(s)); d != "" {
		t.Errorf("ServerLabels (-want +got):\n%s", d)
	}
	if got := types.ServerLabels(nil); len(got) != 0 {
		t.Errorf("ServerLabels(nil) = %v", got)
	}
}
