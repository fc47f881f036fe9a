package sshd

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"
)

// preferWait is how long the key exchange waits to see what the client offers. On
// a path with a longer delay the window bounds bulk transfers, not the cipher.
const preferWait = 5 * time.Millisecond

// maxGreeting bounds what is read of a client before its key exchange is under way.
const maxGreeting = 8 << 10

// fastAES reports whether this machine has instructions for AES-GCM.
func fastAES() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL || cpu.S390X.HasAESGCM
}

// preferGCM lets AES-GCM win. The protocol takes the client's first choice, and
// OpenSSH's is ChaCha20, which costs more than twice the time here; a server that
// wants something else must not offer it. So the identification is sent, and if the
// client's offer comes back at once and has AES-GCM, nothing else is offered.
func preferGCM(b *buffered, version string, cfg *ssh.Config) error {
	if !fastAES() {
		return nil
	}
	seen, err := b.greet(version, preferWait)
	if err != nil {
		return err
	}
	for _, offered := range offeredCiphers(seen) {
		if !slices.ContainsFunc(gcm, func(c string) bool { return slices.Contains(offered, c) }) {
			return nil
		}
		cfg.Ciphers = gcm
	}
	return nil
}

// greet sends the identification, which Write will then pass over, and returns what
// the client sends within the time; Read returns it again.
func (b *buffered) greet(version string, wait time.Duration) ([]byte, error) {
	line := []byte(version + "\r\n")
	if err := b.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, nil
	}
	defer func() { _ = b.SetReadDeadline(time.Time{}) }()
	if _, err := b.Conn.Write(line); err != nil {
		return nil, err
	}
	b.greeted = line
	seen := make([]byte, 0, maxGreeting)
	for len(seen) < cap(seen) && len(offeredCiphers(seen)) == 0 {
		n, err := b.Conn.Read(seen[len(seen):cap(seen)])
		seen = seen[:len(seen)+n]
		if err != nil {
			// Too late, or over: whoever reads next will see.
			break
		}
	}
	b.ahead = bytes.Clone(seen)
	return seen, nil
}

// offeredCiphers returns the lists of ciphers, from client to server and back, of
// a client's greeting: its identification line and its first packet, which must be
// whole. Anything else gives none.
func offeredCiphers(greeting []byte) [][]string {
	lists, _ := offeredLists(greeting)
	if lists == nil {
		return nil
	}
	return lists[2:]
}

// offeredLists returns the first lists of a client's offer: key exchanges, host keys,
// ciphers one way and the other way. whole says that the first packet is there; it has
// none if it is no offer. Lines before the identification are passed over: a client may
// have hoped that its connection can be resumed.
func offeredLists(greeting []byte) (lists [][]string, whole bool) {
	packet := greeting
	for identified := false; !identified; {
		line, rest, ok := bytes.Cut(packet, []byte("\n"))
		if !ok {
			return nil, false
		}
		identified, packet = bytes.HasPrefix(line, []byte("SSH-")), rest
	}
	if len(packet) < 6 {
		return nil, false
	}
	length := binary.BigEndian.Uint32(packet)
	if length < 2 {
		return nil, true
	}
	if int64(length) > int64(len(packet)-4) {
		return nil, false
	}
	padding := uint32(packet[4])
	if padding+1 > length {
		return nil, true
	}
	payload := packet[5 : 4+length-padding]
	const msgKexInit, cookie = 20, 16
	if len(payload) < 1+cookie || payload[0] != msgKexInit {
		return nil, true
	}
	rest := payload[1+cookie:]
	for range 4 {
		if len(rest) < 4 {
			return nil, true
		}
		n := binary.BigEndian.Uint32(rest)
		if int64(n) > int64(len(rest)-4) {
			return nil, true
		}
		lists = append(lists, strings.Split(string(rest[4:4+n]), ","))
		rest = rest[4+n:]
	}
	return lists, true
}

// passGreeted takes the identification that was sent already off p.
func (b *buffered) passGreeted(p []byte) ([]byte, error) {
	if b.greeted == nil {
		return p, nil
	}
	rest, ok := bytes.CutPrefix(p, b.greeted)
	if !ok {
		return nil, net.ErrClosed
	}
	b.greeted = nil
	return rest, nil
}
