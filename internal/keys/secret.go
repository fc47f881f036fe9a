package keys

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "redacted"

// Secret is a string that must not be seen: however it is printed, logged or
// marshalled, "redacted" comes out. Reveal is the one way to the text.
type Secret string

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// String returns "redacted".
func (s Secret) String() string { return redacted }

// GoString returns "redacted".
func (s Secret) GoString() string { return redacted }

// Format writes "redacted" for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns "redacted".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "redacted", which also holds for JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
