package keys_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"teleport/internal/keys"
)

func TestSecretIsNeverSeen(t *testing.T) {
	const text = "hunter2"
	s := keys.Secret(text)
	if s.Reveal() != text {
		t.Fatalf("Reveal = %q, want %q", s.Reveal(), text)
	}
	type holder struct{ S keys.Secret }
	var out bytes.Buffer
	for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%X", "%d", "%T", "%10s", "% x"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", holder{s})
		fmt.Fprintf(&out, verb+"\n", &holder{s})
	}
	fmt.Fprintln(&out, s, []keys.Secret{s}, map[string]keys.Secret{"k": s}, fmt.Errorf("wrapped %v", s))
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("message", "secret", s, "group", slog.GroupValue(slog.Any("s", s)), "holder", holder{s})
	}
	j, err := json.Marshal(map[string]any{"a": s, "b": holder{s}})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	for _, bad := range []string{text, fmt.Sprintf("%x", text), fmt.Sprintf("%X", text), fmt.Sprintf("% x", text)} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("output contains %q:\n%s", bad, out.String())
		}
	}
	if !strings.Contains(out.String(), "redacted") {
		t.Errorf("output says nothing of a redacted secret:\n%s", out.String())
	}
}
