package sshd

import (
	"bytes"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

func pty(term string, cols, rows uint32, modes string) []byte {
	return ssh.Marshal(struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}{term, cols, rows, 0, 0, modes})
}

func TestParsePty(t *testing.T) {
	tests := []struct {
		name    string
		payload []byte
		ok      bool
	}{
		{"plain", pty("xterm-256color", 80, 24, "\x00"), true},
		{"no_term", pty("", 80, 24, ""), true},
		{"modes", pty("vt100", 80, 24, "\x35\x00\x00\x00\x01\x00"), true},
		{"huge_size", pty("vt100", 1<<31, 1<<31, ""), true},
		{"modes_cut_off", pty("vt100", 80, 24, "\x35\x00\x00"), false},
		{"path_in_term", pty("../../etc/passwd", 80, 24, ""), false},
		{"escape_in_term", pty("a\x1b[2J", 80, 24, ""), false},
		{"long_term", pty(string(bytes.Repeat([]byte("a"), 65)), 80, 24, ""), false},
		{"empty", nil, false},
		{"trailing", append(pty("a", 1, 1, ""), 0), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := parsePty(tt.payload)
			if (err == nil) != tt.ok {
				t.Errorf("parsePty = %+v, %v, want success %t", req, err, tt.ok)
			}
			if req.Size.Columns > maxTermDimens || req.Size.Rows > maxTermDimens {
				t.Errorf("size %+v is not clamped", req.Size)
			}
		})
	}
}

func TestParseEnv(t *testing.T) {
	env := func(name, value string) []byte { return ssh.Marshal(struct{ Name, Value string }{name, value}) }
	for _, tt := range []struct {
		name    string
		payload []byte
		ok      bool
	}{
		{"plain", env("LANG", "C"), true},
		{"empty_value", env("LANG", ""), true},
		{"no_name", env("", "C"), false},
		{"equals_in_name", env("A=B", "C"), false},
		{"zero_in_value", env("A", "C\x00D=E"), false},
		{"long_value", env("A", string(make([]byte, maxEnvValue+1))), false},
		{"cut_off", env("A", "B")[:5], false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if name, value, err := parseEnv(tt.payload); (err == nil) != tt.ok {
				t.Errorf("parseEnv = %q, %q, %v, want success %t", name, value, err, tt.ok)
			}
		})
	}
}

func TestSignalNames(t *testing.T) {
	for name, sig := range signals {
		if got := signalName(sig); got != name {
			t.Errorf("signalName(%v) = %q, want %q", sig, got, name)
		}
		for _, text := range []string{name, "SIG" + name} {
			if got, err := parseSignal(ssh.Marshal(struct{ S string }{text})); err != nil || got != sig {
				t.Errorf("parseSignal(%q) = %v, %v", text, got, err)
			}
		}
	}
	if got := signalName(unix.SIGXCPU); got != "XCPU@teleport" {
		t.Errorf("signalName(SIGXCPU) = %q", got)
	}
	if _, err := parseSignal(ssh.Marshal(struct{ S string }{"STOP"})); err == nil {
		t.Error("a signal that the protocol does not have was accepted")
	}
}

func TestApplyMode(t *testing.T) {
	term := unix.Termios{Lflag: unix.ECHO, Cflag: unix.CS8}
	for _, m := range []mode{{53, 0}, {42, 1}, {72, 1}, {3, 0x7f}, {1, disabledChar}, {90, 1}, {77, 5}, {128, 9600}} {
		applyMode(&term, m)
	}
	if term.Lflag&unix.ECHO != 0 || term.Iflag&unix.IUTF8 == 0 || term.Oflag&unix.ONLCR == 0 || term.Cc[unix.VERASE] != 0x7f || term.Cc[unix.VINTR] != 0 || term.Cflag&unix.CSIZE != unix.CS7 {
		t.Errorf("termios = %+v", term)
	}
}

func TestParseStat(t *testing.T) {
	for _, tt := range []struct {
		stat           string
		group, session int
		alive          bool
	}{
		{"12 (bash) S 1 12 13 0 -1", 12, 13, true},
		{"12 (evil) S 1 9 9) R 1 5 6 0", 5, 6, true},
		{"12 (bash) Z 1 12 13 0", 0, 0, false},
		{"12 (bash", 0, 0, false},
		{"12 (b) S 1 x 3", 0, 0, false},
		{"", 0, 0, false},
	} {
		group, session, alive := parseStat(tt.stat)
		if alive != tt.alive || (alive && (group != tt.group || session != tt.session)) {
			t.Errorf("parseStat(%q) = %d, %d, %t, want %d, %d, %t", tt.stat, group, session, alive, tt.group, tt.session, tt.alive)
		}
	}
}

// greeting is a client's identification and key exchange offer.
func greeting(ciphers ...string) []byte {
	payload := append([]byte{20}, make([]byte, 16)...)
	for _, list := range append([]string{"kex", "hostkey"}, ciphers...) {
		payload = append(payload, ssh.Marshal(struct{ L string }{list})...)
	}
	packet := append([]byte{0, 0, 0, byte(len(payload) + 5), 4}, payload...)
	return append([]byte("SSH-2.0-Test\r\n"), append(packet, 0, 0, 0, 0)...)
}

func TestOfferedCiphers(t *testing.T) {
	whole := greeting("a,b", "c")
	if got := offeredCiphers(whole); len(got) != 2 || len(got[0]) != 2 || got[0][1] != "b" || got[1][0] != "c" {
		t.Errorf("offeredCiphers = %v, want [[a b] [c]]", got)
	}
	for n := range whole {
		if got := offeredCiphers(whole[:n]); got != nil {
			t.Errorf("offeredCiphers of the first %d bytes = %v, want none", n, got)
		}
	}
}

func FuzzGreeting(f *testing.F) {
	f.Add(greeting("a,b", "c"))
	f.Add([]byte("SSH-2.0-x\n\x00\x00\x00\x02\x01\x14"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := offeredCiphers(b); got != nil && len(got) != 2 {
			t.Errorf("offeredCiphers = %v", got)
		}
	})
}

func FuzzPayloads(f *testing.F) {
	f.Add(pty("xterm", 80, 24, "\x35\x00\x00\x00\x01\x00"))
	f.Add(ssh.Marshal(struct{ Name, Value string }{"LC_ALL", "C"}))
	f.Add(ssh.Marshal(struct{ Text string }{"ls -l"}))
	f.Add(ssh.Marshal(struct{ A, B, C, D uint32 }{1, 2, 3, 4}))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if req, err := parsePty(payload); err == nil {
			if !validTerm(req.Term) || req.Size != req.Size.clamp() {
				t.Errorf("parsePty accepted %+v", req)
			}
			var term unix.Termios
			for _, m := range req.Modes {
				applyMode(&term, m)
			}
		}
		if name, value, err := parseEnv(payload); err == nil && (name == "" || bytes.ContainsAny([]byte(name+value), "\x00")) {
			t.Errorf("parseEnv accepted %q=%q", name, value)
		}
		if text, err := parseText(payload, 100); err == nil && (len(text) > 100 || bytes.IndexByte([]byte(text), 0) >= 0) {
			t.Errorf("parseText accepted %q", text)
		}
		if size, err := parseSize(payload); err == nil && size != size.clamp() {
			t.Errorf("parseSize = %+v", size)
		}
		if sig, err := parseSignal(payload); err == nil && signalName(sig) == "" {
			t.Errorf("parseSignal = %v", sig)
		}
		_, _, _ = parseStat(string(payload))
		for _, r := range printable(string(payload)) {
			if r < ' ' || r == 0x7f {
				t.Errorf("printable let %q through", r)
			}
		}
	})
}
