// Package openssl makes certificates and signed documents (CMS) with the openssl
// program, so that what our verifiers accept was not made by our own code.
package openssl

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Certificate is a certificate with its key, as files and parsed.
type Certificate struct {
	*x509.Certificate
	// PEM is the certificate, File and Key are where it and its key are.
	PEM       []byte
	File, Key string
}

// Spec says what a certificate is to be.
type Spec struct {
	// Subject as openssl takes it, e.g. "/CN=name".
	Subject string
	// Extensions are lines of an openssl extension section, e.g.
	// "subjectAltName=DNS:name".
	Extensions []string
	// NewKey are the arguments of `openssl genpkey`, an EC P-256 key if empty.
	NewKey []string
	// Key is the file of a key to use in place of a new one.
	Key string
	// Serial is the serial number; zero takes a random one.
	Serial int64
	// NotBefore and NotAfter bound its validity; zero is an hour ago and in a day.
	NotBefore, NotAfter time.Time
}

// RSA2048 makes RSA keys of 2048 bits.
func RSA2048() []string { return []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"} }

// SelfSigned makes a certificate that is its own issuer.
func SelfSigned(t testing.TB, s Spec) *Certificate {
	t.Helper()
	return create(t, s, nil)
}

// Issue makes a certificate of this issuer.
func (c *Certificate) Issue(t testing.TB, s Spec) *Certificate {
	t.Helper()
	return create(t, s, c)
}

// Authority are the extensions of a certificate authority.
func Authority() []string {
	return []string{"basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign", "subjectKeyIdentifier=hash"}
}

func create(t testing.TB, s Spec, issuer *Certificate) *Certificate {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	newKey := s.NewKey
	if newKey == nil {
		newKey = []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}
	}
	key := s.Key
	if key == "" {
		key = at("key.pem")
		Run(t, append([]string{"genpkey", "-out", key}, newKey...)...)
	}
	if s.NotBefore.IsZero() {
		s.NotBefore = time.Now().Add(-time.Hour)
	}
	if s.NotAfter.IsZero() {
		s.NotAfter = time.Now().Add(24 * time.Hour)
	}
	config := "[req]\ndistinguished_name=dn\n[dn]\n[ext]\n"
	for _, line := range s.Extensions {
		config += line + "\n"
	}
	// `openssl ca` is the one command that takes both times.
	config += fmt.Sprintf("[ca]\ndefault_ca=d\n[d]\ndatabase=%s\nnew_certs_dir=%s\nserial=%s\ndefault_md=sha256\npolicy=p\nunique_subject=no\nx509_extensions=ext\n[p]\n"+
		"commonName=optional\ncountryName=optional\norganizationName=optional\n", at("index"), dir, at("serial"))
	write(t, at("openssl.cnf"), config)
	write(t, at("index"), "")
	Run(t, "req", "-new", "-config", at("openssl.cnf"), "-key", key, "-subj", s.Subject, "-out", at("req.pem"))
	args := []string{
		"ca", "-batch", "-notext", "-config", at("openssl.cnf"), "-in", at("req.pem"), "-out", at("cert.pem"),
		"-startdate", s.NotBefore.UTC().Format("20060102150405Z"), "-enddate", s.NotAfter.UTC().Format("20060102150405Z"),
	}
	if s.Serial != 0 {
		write(t, at("serial"), fmt.Sprintf("%016X\n", s.Serial))
	} else {
		args = append(args, "-rand_serial")
	}
	if issuer == nil {
		args = append(args, "-selfsign", "-keyfile", key)
	} else {
		args = append(args, "-cert", issuer.File, "-keyfile", issuer.Key)
	}
	Run(t, args...)
	c := &Certificate{File: at("cert.pem"), Key: key}
	var err error
	if c.PEM, err = os.ReadFile(c.File); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(c.PEM)
	if block == nil {
		t.Fatalf("openssl made no certificate: %q", c.PEM)
	}
	if c.Certificate, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return c
}

// SignCMS returns a signed document (DER) with the content inside, and whatever else
// the arguments of `openssl cms -sign` say.
func (c *Certificate) SignCMS(t testing.TB, content []byte, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "content"), filepath.Join(dir, "signed")
	write(t, in, string(content))
	Run(t, append([]string{
		"cms", "-sign", "-binary", "-nodetach", "-md", "sha256", "-signer", c.File, "-inkey", c.Key,
		"-in", in, "-outform", "DER", "-out", out,
	}, args...)...)
	signed, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// Run runs openssl, and fails the test if that fails.
func Run(t testing.TB, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	return out
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
