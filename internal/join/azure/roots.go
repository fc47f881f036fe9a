package azure

import (
	"crypto/x509"
	"embed"
	"encoding/pem"
	"io"
	"os"

	"teleport/internal/fault"
	"teleport/internal/join/method"
)

// anchors are the root certificates that the signers of Azure's metadata services lead
// to, as Debian ships them.
//
//go:embed roots/*.pem
var anchors embed.FS

// RootsVariable names the environment variable of the Auth Service with a file (PEM) of
// further root certificates, for the day when Azure changes to another authority.
const RootsVariable = "TELEPORT_AZURE_ROOTS"

// maxRootsFile bounds such a file.
const maxRootsFile = 256 << 10

// builtIn returns the roots that are built in.
func builtIn() ([]*x509.Certificate, error) {
	files, err := anchors.ReadDir("roots")
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, f := range files {
		text, err := anchors.ReadFile("roots/" + f.Name())
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, fault.Invalid("%s: expected a certificate in PEM", f.Name())
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.Invalid("%s: %w", f.Name(), err)
		}
		out = append(out, c)
	}
	return out, nil
}

// rootsOf returns the roots that are built in and those of the operator.
func rootsOf(getenv func(string) string) (*x509.CertPool, error) {
	own, err := builtIn()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range own {
		pool.AddCert(c)
	}
	name := getenv(RootsVariable)
	if name == "" {
		return pool, nil
	}
	unusable := fault.New(fault.ErrDenied, "the root certificates that the Auth Service was given for Azure cannot be used: %s is to be the name of a file of certificates in PEM", RootsVariable).WithCode(method.CodeProofSignature)
	f, err := os.Open(name)
	if err != nil {
		return nil, unusable
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRootsFile+1))
	if err != nil || len(text) > maxRootsFile || !pool.AppendCertsFromPEM(text) {
		return nil, unusable
	}
	return pool, nil
}
