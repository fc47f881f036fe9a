package cms_test

import (
	"bytes"
	"testing"

	"teleport/internal/fault"
	"teleport/internal/join/cms"
	"teleport/test/openssl"
)

// FuzzParse: what is not a message is refused with a kind, and what is verified is
// never anything but the content that was signed.
func FuzzParse(f *testing.F) {
	c := openssl.SelfSigned(f, openssl.Spec{Subject: "/CN=signer"})
	good := c.SignCMS(f, content)
	f.Add(good)
	f.Add(c.SignCMS(f, content, "-noattr"))
	f.Add(c.SignCMS(f, content, "-stream", "-indef"))
	f.Add(good[:len(good)/2])
	f.Add(bytes.Repeat([]byte{0x30, 0x80}, 64))
	f.Add([]byte{0x30, 0x83, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, message []byte) {
		m, err := cms.Parse(message)
		if err != nil {
			if fault.Kind(err) == nil || fault.Code(err) == "" {
				t.Fatalf("an error without kind or code: %v", err)
			}
			return
		}
		got, err := m.Verify()
		if err != nil {
			if fault.Kind(err) == nil || fault.Code(err) == "" {
				t.Fatalf("an error without kind or code: %v", err)
			}
			return
		}
		if got.Signer.Equal(c.Certificate) && !bytes.Equal(got.Content, content) {
			t.Fatalf("content that nobody signed: %q", got.Content)
		}
	})
}
