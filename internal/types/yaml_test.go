package types_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/types"
)

var update = flag.Bool("update", false, "write the golden files anew")

const roleYAML = `kind: role
version: v8
metadata:
  name: dev
  description: 'it''s for developers'
  labels:
    team: a b
spec:
  options:
    max_session_ttl: 8h0m0s
  allow:
    logins:
    - '{{internal.logins}}'
    - ubuntu
    node_labels:
      '*': '*'
      env:
      - prod
      - ^dev-.*$
    rules:
    - resources:
      - event
      verbs:
      - list
      - read
  deny: {}
`

func roleValue() *typesv1.Role {
	return &typesv1.Role{
		Kind: "role", Version: "v8",
		Metadata: &typesv1.Metadata{Name: "dev", Description: "it's for developers", Labels: map[string]string{"team": "a b"}},
		Spec: &typesv1.RoleSpec{
			Options: &typesv1.RoleOptions{MaxSessionTtl: "8h0m0s"},
			Allow: &typesv1.RoleConditions{
				Logins:     []string{"{{internal.logins}}", "ubuntu"},
				NodeLabels: map[string]*typesv1.Strings{"*": {Values: []string{"*"}}, "env": {Values: []string{"prod", "^dev-.*$"}}},
				Rules:      []*typesv1.Rule{{Resources: []string{"event"}, Verbs: []string{"list", "read"}}},
			},
			Deny: &typesv1.RoleConditions{},
		},
	}
}

func TestMarshalYAML(t *testing.T) {
	// The regular expression has characters that YAML may take for something else.
	want := strings.ReplaceAll(roleYAML, "- ^dev-.*$", "- '^dev-.*$'")
	got, err := types.MarshalYAML(roleValue())
	if err != nil || string(got) != want {
		t.Errorf("MarshalYAML: %v (-want +got):\n%s", err, cmp.Diff(want, string(got)))
	}
	token := &typesv1.Token{
		Kind: "token", SubKind: "x", Version: "v2",
		Metadata: &typesv1.Metadata{Name: "0x10", Expires: timestamppb.New(time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC))},
		Spec:     &typesv1.TokenSpec{Roles: []string{"Node"}, MaxUses: 3, Labels: map[string]string{"on": "yes", "n": "1e3", "esc": "a\nb\t\"\\\x1b\u2028"}},
		Status:   &typesv1.TokenStatus{Verifier: []byte{0xff, 0}, Static: true},
	}
	got, err = types.MarshalYAML(roleValue(), token)
	wantToken := want + `---
kind: token
sub_kind: x
version: v2
metadata:
  name: '0x10'
  expires: '2030-01-02T03:04:05.000006Z'
spec:
  roles:
  - Node
  max_uses: 3
  labels:
    esc: "a\nb\t\"\\\u001b\u2028"
    'n': '1e3'
    'on': 'yes'
status:
  verifier: /wA=
  static: true
`
	wantToken = strings.Replace(wantToken, "verifier: /wA=", "verifier: '/wA='", 1)
	if err != nil || string(got) != wantToken {
		t.Errorf("MarshalYAML: %v (-want +got):\n%s", err, cmp.Diff(wantToken, string(got)))
	}
}

func TestMarshalJSON(t *testing.T) {
	got, err := types.MarshalJSON(roleValue(), roleValue())
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]any
	if err := json.Unmarshal(got, &list); err != nil || len(list) != 2 {
		t.Fatalf("MarshalJSON wrote %s: %v", got, err)
	}
	for _, want := range []string{`"max_session_ttl": "8h0m0s"`, "\"*\": [\n                        \"*\"\n                    ]", `"deny": {}`} {
		if !strings.Contains(string(got), want) {
			t.Errorf("MarshalJSON: %q is not in\n%s", want, got)
		}
	}
	if got, err := types.MarshalJSON(); err != nil || string(got) != "[]\n" {
		t.Errorf("MarshalJSON of nothing = %q, %v", got, err)
	}
	back, err := types.ParseYAML("x.json", got)
	if err != nil || len(back) != 2 || !cmp.Equal(back[1], types.Resource(roleValue()), protocmp.Transform()) {
		t.Errorf("ParseYAML of JSON = %v, %v", back, err)
	}
}

// TestParseYAMLGolden reads testdata/*.yaml: the golden file beside each has the
// error, or the resources as we write them.
func TestParseYAMLGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files in testdata, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			rs, err := types.ParseYAML(filepath.Base(file), data)
			var got []byte
			if err != nil {
				if !errors.Is(err, fault.ErrInvalid) || len(rs) > 0 {
					t.Errorf("ParseYAML = %v, %v, want ErrInvalid and nothing else", rs, err)
				}
				got = []byte(err.Error() + "\n")
			} else if got, err = types.MarshalYAML(rs...); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("ParseYAML (-want +got):\n%s", d)
			}
		})
	}
}

// TestParseYAMLHostile gives what must be refused quickly and without a crash.
func TestParseYAMLHostile(t *testing.T) {
	const n = 100000
	bomb := "kind: user\nversion: v2\nmetadata: {name: a}\nspec:\n  roles: &r0 [a]\n  traits:\n    t0: &t0 [x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 40; i++ {
		bomb += "    t" + strings.Repeat("x", i) + ": *t0\n"
	}
	var nested strings.Builder
	for i := range 1000 {
		nested.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	deepBomb := "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
		"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nkind: *e\nversion: v2\n"
	rows := map[string]string{
		"huge":           strings.Repeat("# comment\n", 200000),
		"flow":           strings.Repeat("[", n),
		"flow_closed":    strings.Repeat("[", n) + strings.Repeat("]", n),
		"flow_maps":      strings.Repeat("{a: ", n),
		"dashes":         strings.Repeat("- ", n),
		"questions":      strings.Repeat("? ", n),
		"colons":         strings.Repeat(": ", n),
		"anchors":        strings.Repeat("&a ", n),
		"tags":           strings.Repeat("!a ", n),
		"quotes":         strings.Repeat("'' ", n),
		"long_flow":      "{" + strings.Repeat("a: b, ", n) + "}",
		"nested":         nested.String(),
		"documents":      strings.Repeat("---\na: b\n", 2000),
		"tokens":         strings.Repeat("a: b\n", 60000),
		"zero":           "kind: user\x00",
		"escape":         "kind: \x1b[2J",
		"not_utf8":       "kind: \xff",
		"alias_itself":   "kind: user\nversion: v2\nmetadata: {name: a}\nspec: &s {traits: {a: *s}}\n",
		"alias_loop":     "a: &a *b\nb: &b *a\nkind: *a\n",
		"alias_unknown":  "kind: *nobody\n",
		"deep_bomb":      deepBomb,
		"anchor_twice":   "kind: &a user\nversion: &a v2\n",
		"directive":      "%YAML 1.2\n---\nkind: user\n",
		"empty":          "",
		"only_comment":   "# nothing\n---\n# here\n",
		"only_scalar":    "hello\n",
		"unclosed":       "kind: 'user\n",
		"tab":            "kind: user\n\tversion: v2\n",
		"private_kind":   "kind: credential\nversion: v1\nmetadata: {name: a}\n",
		"binary_garbage": "\x7fELF",
	}
	for name, text := range rows {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			rs, err := types.ParseYAML("f.yaml", []byte(text))
			if !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("ParseYAML = %d resources, %v, want ErrInvalid", len(rs), err)
			} else if !strings.HasPrefix(err.Error(), "f.yaml:") || len(err.Error()) > 20000 {
				t.Errorf("error without place or too long: %.300s", err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	if rs, err := types.ParseYAML("f.yaml", []byte(bomb)); err != nil || len(rs) != 1 {
		t.Errorf("aliases that repeat little: %v, %v", rs, err)
	}
}

// drawText yields texts that YAML could mistake for something else.
func drawText(r *rapid.T, name string) string {
	return rapid.OneOf(
		rapid.SampledFrom([]string{
			"", " ", "yes", "No", "null", "~", "true", "1", "0x1f", "1e3", ".inf", "-", "- a", "a: b", "a #b", "#", "*", "&a", "!x", "'", "\"", "''", "|", ">",
			"%", "@", "`", "{", "}", "[", "]", ",", "?", ":", "a\nb", "\n", "\t", " lead", "trail ", "2030-01-02", "2030-01-02T03:04:05Z", "1_000", "0o7", "---", "...",
			"{{internal.logins}}", "^a(b|c)$", "a\\b", "é", "日本", "\u2028", "\u00a0", "\U0001f600", "=", "<<", "a:b", "a:", "012", "+1", "1.5", "8h0m0s", "7d",
		}),
		rapid.StringN(0, 20, 60),
		rapid.StringMatching(`[ -~]{0,20}`),
	).Draw(r, name)
}

func drawResource(r *rapid.T) types.Resource {
	md := &typesv1.Metadata{
		Name: rapid.StringMatching(`[a-z0-9_.@=:+]{1,10}x`).Draw(r, "name"), Description: printable(drawText(r, "description")),
		Labels: map[string]string{},
	}
	for _, k := range rapid.SliceOfN(rapid.StringMatching(`[A-Za-z0-9._/:@+-]{1,6}`), 0, 4).Draw(r, "keys") {
		md.Labels[k] = printable(drawText(r, "value"))
	}
	if rapid.Bool().Draw(r, "expires") {
		md.Expires = timestamppb.New(time.Unix(rapid.Int64Range(0, 4e9).Draw(r, "s"), rapid.Int64Range(0, 999999999).Draw(r, "ns")))
	}
	traits := map[string]*typesv1.Strings{}
	for _, k := range rapid.SliceOfN(rapid.StringMatching(`[a-z ':#-]{0,5}x`), 0, 3).Draw(r, "traits") {
		s := &typesv1.Strings{}
		for range rapid.IntRange(0, 3).Draw(r, "n") {
			s.Values = append(s.Values, printable(drawText(r, "trait")))
		}
		traits[k] = s
	}
	return rapid.SampledFrom([]types.Resource{
		&typesv1.User{Kind: "user", Version: "v2", Metadata: md, Spec: &typesv1.UserSpec{Traits: traits}, Status: &typesv1.UserStatus{CreatedBy: printable(drawText(r, "by"))}},
		&typesv1.Token{
			Kind: "token", Version: "v2", Metadata: md, Spec: &typesv1.TokenSpec{Roles: []string{"Node"}, JoinMethod: "token", MaxUses: rapid.Uint32().Draw(r, "uses")},
			Status: &typesv1.TokenStatus{Verifier: rapid.SliceOf(rapid.Byte()).Draw(r, "verifier"), Static: rapid.Bool().Draw(r, "static")},
		},
		&typesv1.Server{
			Kind: "node", SubKind: "teleport", Version: "v2", Metadata: md,
			Spec: &typesv1.ServerSpec{Hostname: "h", CmdLabels: map[string]*typesv1.CommandLabel{"x": {Command: []string{printable(drawText(r, "command"))}, Result: "r"}, "y": {}}},
		},
		&typesv1.Instance{
			Kind: "instance", Version: "v1", Metadata: md, Spec: &typesv1.InstanceSpec{Hostname: "h"},
			Status: &typesv1.InstanceStatus{Generation: rapid.Uint64().Draw(r, "generation")},
		},
		&typesv1.Role{Kind: "role", Version: "v8", Metadata: md, Spec: &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{NodeLabels: map[string]*typesv1.Strings{
			"k": {Values: []string{"lit " + strings.NewReplacer("{", "", "}", "", "\n", "", "\t", "").Replace(printable(drawText(r, "label")))}},
		}}}},
	}).Draw(r, "resource")
}

// printable drops what Check refuses in a text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if checkText(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, ""))
}

func checkText(r rune) bool {
	u := &typesv1.User{Kind: "user", Metadata: &typesv1.Metadata{Name: "u", Description: string(r)}}
	return types.Check(u) == nil
}

func TestYAMLRoundTrip(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		in := []types.Resource{drawResource(r), drawResource(r)}
		for _, x := range in {
			if err := types.Check(x); err != nil {
				r.Fatalf("Check: %v", err)
			}
		}
		for name, marshal := range map[string]func(...types.Resource) ([]byte, error){"yaml": types.MarshalYAML, "json": types.MarshalJSON} {
			text, err := marshal(in...)
			if err != nil {
				r.Fatalf("marshal %s: %v", name, err)
			}
			out, err := types.ParseYAML("f", text)
			if err != nil {
				r.Fatalf("ParseYAML: %v in\n%s", err, text)
			}
			if d := cmp.Diff(in, out, protocmp.Transform()); d != "" {
				r.Fatalf("%s came back different (-want +got):\n%s\n%s", name, d, text)
			}
		}
	})
}

func FuzzParseYAML(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rs, err := types.ParseYAML("f", data)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) {
				t.Fatalf("error %v is not ErrInvalid", err)
			}
			return
		}
		text, err := types.MarshalYAML(rs...)
		if err != nil {
			t.Fatalf("MarshalYAML: %v", err)
		}
		again, err := types.ParseYAML("f", text)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, text)
		}
		if d := cmp.Diff(rs, again, protocmp.Transform()); d != "" {
			t.Fatalf("came back different (-want +got):\n%s", d)
		}
	})
}
