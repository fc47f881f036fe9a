package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// authority signs the certificates of a script.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// certificate HOST CERT KEY writes a certificate for the host; the first one makes the
// authority, too, whose certificate is ca.pem. Its serial number is what served waits
// for.
func certificate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: certificate HOST CERT KEY")
	}
	s := own(ts)
	if s.authority == nil {
		template := &x509.Certificate{Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		s.authority = &authority{}
		s.authority.cert, s.authority.key = sign(ts, template, nil)
		writePEM(ts, "ca.pem", "CERTIFICATE", s.authority.cert.Raw)
	}
	cert, key := sign(ts, &x509.Certificate{Subject: pkix.Name{CommonName: args[0]}, DNSNames: []string{args[0]}}, s.authority)
	s.serial = cert.SerialNumber
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	writePEM(ts, args[1], "CERTIFICATE", cert.Raw)
	writePEM(ts, args[2], "PRIVATE KEY", der)
}

// sign makes a key and a certificate, signed by the authority or by itself.
func sign(ts *testscript.TestScript, template *x509.Certificate, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	ts.Check(err)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	ts.Check(err)
	cert, err := x509.ParseCertificate(der)
	ts.Check(err)
	return cert, key
}

func writePEM(ts *testscript.TestScript, name, kind string, der []byte) {
	ts.Check(os.WriteFile(ts.MkAbs(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// served ADDR waits until the server shows the certificate that was made last.
func served(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: served ADDR")
	}
	var last error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		conn, err := tls.Dial("tcp", args[0], &tls.Config{InsecureSkipVerify: true})
		if last = err; err != nil {
			continue
		}
		shown := conn.ConnectionState().PeerCertificates[0].SerialNumber
		_ = conn.Close()
		if shown.Cmp(own(ts).serial) == 0 {
			return
		}
	}
	ts.Fatalf("%s does not show the newest certificate after 15 s (%v)", args[0], last)
}
