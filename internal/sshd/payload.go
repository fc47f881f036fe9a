package sshd

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

// Limits on what a client may send in a request.
const (
	maxCommand    = 256 << 10
	maxName       = 64
	maxEnvValue   = 4 << 10
	maxEnvs       = 64
	maxTermModes  = 4 << 10
	maxTermDimens = 1 << 15
)

// Size is the size of a terminal.
type Size struct {
	Columns, Rows, Width, Height uint32
}

// ptyRequest is the payload of pty-req (RFC 4254 section 6.2).
type ptyRequest struct {
	Term  string
	Size  Size
	Modes []mode
}

// mode is one encoded terminal mode (RFC 4254 section 8).
type mode struct {
	op  byte
	arg uint32
}

func parsePty(payload []byte) (ptyRequest, error) {
	var m struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return ptyRequest{}, fmt.Errorf("parse pty-req: %w", err)
	}
	if len(m.Modes) > maxTermModes {
		return ptyRequest{}, fault.Limit("pty-req: %d bytes of terminal modes", len(m.Modes))
	}
	if !validTerm(m.Term) {
		return ptyRequest{}, fault.Invalid("pty-req: terminal type %q", m.Term)
	}
	modes, err := parseModes([]byte(m.Modes))
	if err != nil {
		return ptyRequest{}, err
	}
	size := Size{m.Columns, m.Rows, m.Width, m.Height}
	return ptyRequest{Term: m.Term, Size: size.clamp(), Modes: modes}, nil
}

// validTerm accepts what terminfo names look like; empty means none.
func validTerm(s string) bool {
	return len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || r == '/'
	}) && s != "." && s != ".."
}

func parseModes(b []byte) ([]mode, error) {
	var out []mode
	for len(b) > 0 {
		op := b[0]
		// 0 ends the list; from 160 on arguments have no defined form.
		if op == 0 || op >= 160 {
			return out, nil
		}
		if len(b) < 5 {
			return nil, fault.Invalid("pty-req: terminal modes are cut off")
		}
		out = append(out, mode{op, binary.BigEndian.Uint32(b[1:])})
		b = b[5:]
	}
	return out, nil
}

func parseSize(payload []byte) (Size, error) {
	var m Size
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return Size{}, fmt.Errorf("parse window-change: %w", err)
	}
	return m.clamp(), nil
}

// clamp keeps a size inside what a terminal can have.
func (s Size) clamp() Size {
	lim := func(v uint32) uint32 { return min(v, maxTermDimens) }
	return Size{lim(s.Columns), lim(s.Rows), lim(s.Width), lim(s.Height)}
}

// parseText reads the one string of exec and subsystem.
func parseText(payload []byte, limit int) (string, error) {
	var m struct{ Text string }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return "", fmt.Errorf("parse request: %w", err)
	}
	if len(m.Text) > limit {
		return "", fault.Limit("request of %d bytes, no more than %d may be sent", len(m.Text), limit)
	}
	if strings.IndexByte(m.Text, 0) >= 0 {
		return "", fault.Invalid("request contains a zero byte")
	}
	return m.Text, nil
}

func parseEnv(payload []byte) (name, value string, err error) {
	var m struct{ Name, Value string }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return "", "", fmt.Errorf("parse env: %w", err)
	}
	if len(m.Name) == 0 || len(m.Name) > maxName || len(m.Value) > maxEnvValue {
		return "", "", fault.Limit("env: name of %d bytes, value of %d bytes", len(m.Name), len(m.Value))
	}
	if strings.ContainsAny(m.Name, "=\x00") || strings.IndexByte(m.Value, 0) >= 0 {
		return "", "", fault.Invalid("env: malformed variable %q", m.Name)
	}
	return m.Name, m.Value, nil
}

// signals are those of RFC 4254 section 6.10.
var signals = map[string]unix.Signal{
	"ABRT": unix.SIGABRT, "ALRM": unix.SIGALRM, "FPE": unix.SIGFPE, "HUP": unix.SIGHUP, "ILL": unix.SIGILL,
	"INT": unix.SIGINT, "KILL": unix.SIGKILL, "PIPE": unix.SIGPIPE, "QUIT": unix.SIGQUIT, "SEGV": unix.SIGSEGV,
	"TERM": unix.SIGTERM, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2,
}

func parseSignal(payload []byte) (unix.Signal, error) {
	name, err := parseText(payload, maxName)
	if err != nil {
		return 0, err
	}
	sig, ok := signals[strings.TrimPrefix(name, "SIG")]
	if !ok {
		return 0, fault.Unsupported("signal %q", name)
	}
	return sig, nil
}

// signalName is the name without SIG. Signals that the protocol has no name for
// get a local one, as RFC 4254 section 6.10 says.
func signalName(sig unix.Signal) string {
	for name, s := range signals {
		if s == sig {
			return name
		}
	}
	if name := strings.TrimPrefix(unix.SignalName(sig), "SIG"); name != "" {
		return name + "@teleport"
	}
	return fmt.Sprintf("%d@teleport", int(sig))
}
