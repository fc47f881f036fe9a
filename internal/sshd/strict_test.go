package sshd

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// firstPacket is an identification and an offer of the key exchanges and ciphers.
func firstPacket(kex, there, back string) []byte {
	payload := append([]byte{20}, make([]byte, 16)...)
	for _, list := range []string{kex, "ssh-ed25519", there, back, "", "", "none", "none", "", ""} {
		payload = append(payload, ssh.Marshal(struct{ S string }{list})...)
	}
	payload = append(payload, 0, 0, 0, 0, 0)
	packet := binary.BigEndian.AppendUint32([]byte("SSH-2.0-x\r\n"), uint32(1+len(payload)+4))
	packet = append(append(packet, 4), payload...)
	return append(packet, 0, 0, 0, 0)
}

func TestFirstOffer(t *testing.T) {
	const curve, chacha, gcm = "curve25519-sha256", "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com", "aes128-cbc,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
	strict := firstPacket(curve+","+strictKex, chacha, chacha)
	hoped := append([]byte("teleport-resume/1 new key\r\n"), strict...)
	other := bytes.Clone(strict)
	other[bytes.IndexByte(other, '\n')+6] = 2 // not an offer
	for name, tt := range map[string]struct {
		sent   []byte
		strict bool
	}{
		"strict":            {strict, true},
		"line_before":       {hoped, true},
		"more_behind":       {append(bytes.Clone(strict), 1, 2, 3), true},
		"not_strict":        {firstPacket(curve, chacha, chacha), false},
		"gcm":               {firstPacket(curve, gcm, gcm), true},
		"gcm_one_way":       {firstPacket(curve, gcm, chacha), false},
		"gcm_the_other_way": {firstPacket(curve, chacha, gcm), false},
		"counter_mode":      {firstPacket(curve, "aes128-ctr", "aes128-ctr"), false},
		"of_a_server":       {firstPacket(curve+",kex-strict-s-v00@openssh.com", chacha, chacha), false},
		"almost":            {firstPacket(curve+",x"+strictKex, chacha, chacha), false},
		"another_message":   {other, false},
		"no_end_of_line":    {[]byte("SSH-" + strings.Repeat("x", maxGreeting)), false},
		"no_end_of_packet":  {append([]byte("SSH-2.0-x\r\n\x00\x00\xff\xff\x04\x14"), make([]byte, maxGreeting)...), false},
		"lines_without_end": {[]byte(strings.Repeat("x\n", maxGreeting)), false},
		"packet_of_nothing": {[]byte("SSH-2.0-x\r\n\x00\x00\x00\x01\x04\x14"), false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, step := range []int{1, 7, len(tt.sent)} {
				f, over, err := &firstOffer{ciphers: algorithms().Ciphers}, false, error(nil)
				for rest := tt.sent; len(rest) > 0 && !over && err == nil; {
					n := min(step, len(rest))
					over, err = f.see(rest[:n])
					rest = rest[n:]
				}
				if over != tt.strict || (err == nil) != tt.strict {
					t.Errorf("in steps of %d: over %t, %v, want strict %t", step, over, err, tt.strict)
				}
				if !tt.strict {
					if _, err := f.see(strict); err == nil {
						t.Error("a later offer makes it good")
					}
				}
			}
		})
	}
}
