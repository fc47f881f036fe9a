package ec2

import (
	"crypto/rsa"
	"crypto/x509"
	"io/fs"
	"strings"
	"testing"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/aws"
	"teleport/internal/join/method"
)

// TestPublishedCertificates: what is built in is what AWS's certificates are: RSA keys
// of 2048 bits that signed themselves, one for each region and none for two, good for
// years to come.
func TestPublishedCertificates(t *testing.T) {
	files, err := fs.Glob(published, "certificates/*.pem")
	if err != nil || len(files) < 36 {
		t.Fatalf("%d certificates, %v", len(files), err)
	}
	seen := map[string]string{}
	for _, file := range files {
		region := strings.TrimSuffix(strings.TrimPrefix(file, "certificates/"), ".pem")
		if _, ok := aws.PartitionOf(region); !ok {
			t.Errorf("%s is not a region of AWS", region)
		}
		found, err := certificatesOf(region, func(string) string { return "" })
		if err != nil || len(found) != 1 {
			t.Errorf("%s: %d certificates, %v", region, len(found), err)
			continue
		}
		c := found[0]
		if key, ok := c.PublicKey.(*rsa.PublicKey); !ok || key.N.BitLen() != 2048 {
			t.Errorf("%s: not an RSA key of 2048 bits", region)
		}
		// It says that it is an authority, or nothing about it: only the signature counts.
		if err := c.CheckSignature(x509.SHA256WithRSA, c.RawTBSCertificate, c.Signature); err != nil {
			t.Errorf("%s: not signed by itself: %v", region, err)
		}
		if got := c.Subject.String(); got != "O=Amazon Web Services LLC,L=Seattle,ST=Washington State,C=US" || c.Issuer.String() != got {
			t.Errorf("%s: subject %q", region, got)
		}
		if now := time.Now(); now.Before(c.NotBefore) || now.AddDate(50, 0, 0).After(c.NotAfter) {
			t.Errorf("%s: good from %s to %s", region, c.NotBefore, c.NotAfter)
		}
		if other := seen[string(c.RawSubjectPublicKeyInfo)]; other != "" {
			t.Errorf("%s and %s have one key", region, other)
		}
		seen[string(c.RawSubjectPublicKeyInfo)] = region
	}
}

func TestCertificatesOfOddRegions(t *testing.T) {
	for region, code := range map[string]string{
		"":                 method.CodeProofMalformed,
		"../../etc/passwd": method.CodeProofMalformed,
		"us-east-1/..":     method.CodeProofMalformed,
		"US-EAST-1":        method.CodeProofMalformed,
		"us-east-1\x00":    method.CodeProofMalformed,
		"us-east-9":        method.CodeProofSignature,
	} {
		if _, err := certificatesOf(region, func(string) string { return "" }); fault.Code(err) != code {
			t.Errorf("certificatesOf(%q) = %v, want code %s", region, err, code)
		}
	}
}
