package cms_test

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"testing"

	"teleport/test/openssl"
)

// The structure of a message (RFC 5652, section 5.1), for tests that take it apart.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	signedData struct {
		Version      int
		Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
		Encapsulated asn1.RawValue
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		SignerInfos  []signerInfo  `asn1:"set"`
	}
	signerInfo struct {
		Version    int
		Identifier asn1.RawValue
		Digest     pkix.AlgorithmIdentifier
		Attributes []cmsAttribute `asn1:"optional,tag:0,set"`
		Algorithm  pkix.AlgorithmIdentifier
		Signature  []byte
	}
	cmsAttribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
)

// rewrite takes a message apart, lets bend change it and puts it together again.
func rewrite(t testing.TB, message []byte, bend func(*signedData)) []byte {
	t.Helper()
	var outer struct {
		Type    asn1.ObjectIdentifier
		Content signedData `asn1:"explicit,tag:0"`
	}
	if rest, err := asn1.Unmarshal(message, &outer); err != nil || len(rest) > 0 {
		t.Fatalf("%v, and %d bytes after", err, len(rest))
	}
	bend(&outer.Content)
	out, err := asn1.Marshal(outer)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// reorder replaces the certificates of a message.
func reorder(t testing.TB, message []byte, certificates ...*openssl.Certificate) []byte {
	t.Helper()
	return rewrite(t, message, func(d *signedData) {
		var bag []byte
		for _, c := range certificates {
			bag = append(bag, c.Raw...)
		}
		d.Certificates = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: bag}
	})
}

func swapDigest(t testing.TB, message []byte, oid asn1.ObjectIdentifier) []byte {
	t.Helper()
	return rewrite(t, message, func(d *signedData) { d.SignerInfos[0].Digest.Algorithm = oid })
}

func swapSignature(t testing.TB, message []byte, oid asn1.ObjectIdentifier) []byte {
	t.Helper()
	return rewrite(t, message, func(d *signedData) { d.SignerInfos[0].Algorithm.Algorithm = oid })
}

func without(list []cmsAttribute, oid asn1.ObjectIdentifier) []cmsAttribute {
	return slices.DeleteFunc(list, func(a cmsAttribute) bool { return a.Type.Equal(oid) })
}

// certsOnly is a message without a signer.
func certsOnly(t testing.TB, c *openssl.Certificate) []byte {
	t.Helper()
	return rewrite(t, c.SignCMS(t, content), func(d *signedData) { d.SignerInfos = nil })
}

// detached is a message without its content.
func detached(t testing.TB, c *openssl.Certificate) []byte {
	t.Helper()
	return rewrite(t, c.SignCMS(t, content), func(d *signedData) {
		var e contentInfo
		if _, err := asn1.Unmarshal(d.Encapsulated.FullBytes, &e); err != nil {
			t.Fatal(err)
		}
		oid, err := asn1.Marshal(e.Type)
		if err != nil {
			t.Fatal(err)
		}
		d.Encapsulated = asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: oid}
	})
}
