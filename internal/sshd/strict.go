package sshd

import (
	"encoding/binary"
	"slices"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
)

// strictKex is what a client says in its first offer if messages that do not belong
// into the key exchange end it (OpenSSH's PROTOCOL, section 1.10). Without that,
// somebody on the way can cut off the first messages behind it (CVE-2023-48795), unless
// the cipher is AES-GCM, which counts its packets by itself.
const strictKex = "kex-strict-c-v00@openssh.com"

var errNotStrict = fault.Unsupported("the client does not know strict key exchange (%s), and the cipher would not be AES-GCM", strictKex)

// gcm are the ciphers that need no strict key exchange.
var gcm = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM}

// firstOffer looks at what a client sends until its first packet is there, and refuses
// one that is neither an offer of strict key exchange nor leads to AES-GCM. The library
// would go on.
type firstOffer struct {
	// ciphers are those that we offer.
	ciphers []string
	seen    []byte
	refused bool
}

// safe reports whether the offer may be taken.
func (f *firstOffer) safe(lists [][]string) bool {
	if len(lists) < 4 {
		return false
	}
	return slices.Contains(lists[0], strictKex) || f.choosesGCM(lists[2]) && f.choosesGCM(lists[3])
}

// choosesGCM reports whether the client's first choice among ours is AES-GCM: that is
// what both sides then take.
func (f *firstOffer) choosesGCM(theirs []string) bool {
	i := slices.IndexFunc(theirs, func(c string) bool { return slices.Contains(f.ciphers, c) })
	return i >= 0 && slices.Contains(gcm, theirs[i])
}

// see takes what was read next and reports whether nothing more is to be looked at.
func (f *firstOffer) see(p []byte) (over bool, err error) {
	if f.refused {
		return false, errNotStrict
	}
	f.seen = append(f.seen, p...)
	lists, whole := offeredLists(f.seen)
	switch {
	case !whole && len(f.seen) <= maxGreeting:
		return false, nil
	case f.safe(lists):
		f.seen = nil
		return true, nil
	}
	f.refused, f.seen = true, nil
	return false, errNotStrict
}

// refuseWeak tells the client why it is refused, in a packet of before the key exchange.
// Our own offer goes first: who only looks at that gets it.
func (b *buffered) refuseWeak() {
	b.mu.Lock()
	for !b.offered && !b.closed && b.err == nil {
		b.changed.Wait()
	}
	b.mu.Unlock()
	const keyExchangeFailed = 3
	payload := append([]byte{1}, ssh.Marshal(struct {
		Reason         uint32
		Text, Language string
	}{keyExchangeFailed, "strict key exchange (" + strictKex + ") or AES-GCM (-c " + ssh.CipherAES128GCM + ") is needed: update your SSH client", ""})...)
	padding := 8 - (5+len(payload))%8
	if padding < 4 {
		padding += 8
	}
	packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+padding))
	packet = append(append(packet, byte(padding)), payload...)
	_, _ = b.Write(append(packet, make([]byte, padding)...))
}
