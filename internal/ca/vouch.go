package ca

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// AuthoritiesDigest is what the host authority signs so that authorities can be handed
// to somebody by way of a Proxy: everything in them that NewTrust reads, and the
// certificate (DER) that they came with, so that the list of another time is not
// taken for it.
func AuthoritiesDigest(cert []byte, cas []*typesv1.CertAuthority) [32]byte {
	h := sha256.New()
	add := func(b []byte) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(b)))
		_, _ = h.Write(size[:])
		_, _ = h.Write(b)
	}
	count := func(n int) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(n))
		add(size[:])
	}
	add([]byte("teleport-authorities"))
	add(cert)
	count(len(cas))
	for _, c := range cas {
		add([]byte(c.GetSpec().GetType()))
		add([]byte(c.GetSpec().GetClusterName()))
		for _, set := range []*typesv1.CertAuthorityKeys{c.GetSpec().GetActiveKeys(), c.GetSpec().GetAdditionalTrustedKeys()} {
			count(len(set.GetTls()))
			for _, k := range set.GetTls() {
				add([]byte(k.GetCert()))
			}
			count(len(set.GetSsh()))
			for _, k := range set.GetSsh() {
				add([]byte(k.GetPublicKey()))
			}
		}
	}
	var out [32]byte
	h.Sum(out[:0])
	return out
}

// VerifyPinned checks signatures of Signer.SignAsHostCA: one of them must be by a key
// that has one of the pins. Without pins any key of the host authority will do.
func (t *Trust) VerifyPinned(pins []string, digest [32]byte, sigs [][]byte) error {
	narrow := *t
	if len(pins) > 0 {
		narrow.host.certs = nil
		for _, c := range t.host.certs {
			if slices.Contains(pins, Pin(c)) {
				narrow.host.certs = append(narrow.host.certs, c)
			}
		}
	}
	if len(narrow.host.certs) == 0 {
		return fault.Unauthenticated("the host certificate authority of cluster %q has none of the pins", t.cluster)
	}
	return narrow.VerifyHostSignature(digest, sigs)
}
