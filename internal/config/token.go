package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/types"
)

const (
	maxTokenLen  = 512
	maxTokenFile = 4096
	pinPrefix    = "sha256:"
	pinHexLen    = 64
)

// ReadToken returns the join token that v stands for: v itself, or the content
// of the file if v is an absolute path. Space around the token is dropped. The
// error never holds the token.
func ReadToken(v string) (string, error) {
	tok := strings.TrimSpace(v)
	where := ""
	if filepath.IsAbs(tok) {
		where = fmt.Sprintf(" in %s", quote(tok))
		text, err := readSmall(tok)
		if err != nil {
			return "", err
		}
		tok = strings.TrimSpace(text)
	}
	switch {
	case tok == "":
		return "", fault.Invalid("empty join token%s: expected the token or the absolute path of a file with it", where)
	case len(tok) > maxTokenLen:
		return "", fault.Invalid("join token%s is too long: expected at most %d characters", where, maxTokenLen)
	case strings.ContainsFunc(tok, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", fault.Invalid("join token%s has spaces, line breaks or other unprintable characters: expected one word", where)
	}
	return tok, nil
}

// SplitJoinString takes the CA pins off a join token that carries them: a token may be
// followed by one or more pins, each after a dot ("SECRET.sha256:...").
func SplitJoinString(token string) (name string, pins []string) {
	for {
		at := strings.LastIndex(token, "."+pinPrefix)
		if at < 1 {
			return token, pins
		}
		pin, err := parsePin(token[at+1:])
		if err != nil {
			return token, pins
		}
		token, pins = token[:at], append([]string{pin}, pins...)
	}
}

// TokenWarning returns a remark when v is a path to a file that everybody on
// this host may read, and "" otherwise.
func TokenWarning(v string) string {
	path := strings.TrimSpace(v)
	if !filepath.IsAbs(path) {
		return ""
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o004 == 0 {
		return ""
	}
	return fmt.Sprintf("token file %s can be read by every user of this host: restrict it with chmod 600", quote(path))
}

// readSmall reads a regular file that is known to be small.
func readSmall(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fileError(path, err)
	}
	if !info.Mode().IsRegular() {
		return "", fault.Invalid("%s is not a regular file", quote(path))
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fileError(path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return "", fileError(path, err)
	}
	if len(data) > maxTokenFile {
		return "", fault.Invalid("file %s is too large: expected at most %d bytes", quote(path), maxTokenFile)
	}
	return string(data), nil
}

// fileError turns a file system error into one of a fault kind.
func fileError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.NotFound("file %s does not exist", quote(path))
	case errors.Is(err, fs.ErrPermission):
		return fault.Denied("file %s cannot be read: permission denied", quote(path))
	}
	return fmt.Errorf("read %s: %w", quote(path), err)
}

// parseStaticToken reads "role,role:value" or "role:/absolute/path". The error
// never holds the value.
func parseStaticToken(s string) (tok StaticToken, warning string, err error) {
	roles, value, ok := strings.Cut(s, ":")
	if !ok {
		return tok, "", badf("expected \"role,role:token\" or \"role:/path/to/tokenfile\", found no colon")
	}
	if tok.Roles, err = types.ParseSystemRoles(roles); err != nil {
		// The text may be the secret, with the two halves exchanged.
		return tok, "", badf("unknown service type before the colon: expected some of %s", roleFlags())
	}
	if tok.Value, err = ReadToken(value); err != nil {
		return tok, "", badf("%s", err)
	}
	return tok, TokenWarning(value), nil
}

func roleFlags() string {
	var flags []string
	for _, r := range types.SystemRoles() {
		flags = append(flags, r.Flag())
	}
	return strings.Join(flags, ", ")
}

// parsePin returns the pin in its canonical form.
func parsePin(s string) (string, error) {
	h := strings.TrimPrefix(s, pinPrefix)
	if raw, err := hex.DecodeString(h); err != nil || h == s || len(h) != pinHexLen || len(raw)*2 != pinHexLen {
		return "", badf("bad pin %s: expected sha256: and %d hexadecimal digits, as shown by `tctl status`", quote(s), pinHexLen)
	}
	return strings.ToLower(s), nil
}

// readPins returns the pins that one value of ca_pin stands for: the pin itself,
// or those in the file if it is an absolute path (one a line).
func readPins(s string) ([]string, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, nil
	}
	words := []string{s}
	if filepath.IsAbs(s) {
		text, err := readSmall(s)
		if err != nil {
			return nil, badf("%s", err)
		}
		if words = strings.Fields(text); len(words) == 0 {
			return nil, badf("file %s is empty: expected a pin such as sha256:...", quote(s))
		}
	}
	pins := make([]string, 0, len(words))
	for _, w := range words {
		pin, err := parsePin(w)
		if err != nil {
			return nil, err
		}
		pins = append(pins, pin)
	}
	return pins, nil
}

// ParsePins checks CA pins that came from a command line. Each is a pin or the
// absolute path of a file with pins.
func ParsePins(values []string) ([]string, error) {
	var out []string
	for _, v := range values {
		pins, err := readPins(v)
		if err != nil {
			return nil, fault.Invalid("%w", err)
		}
		out = append(out, pins...)
	}
	return out, nil
}
