package ec2

import (
	"bytes"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"

	"teleport/internal/fault"
	"teleport/internal/join/aws"
	"teleport/internal/join/method"
)

// published are the RSA-2048 certificates that AWS publishes for the identity documents
// of its regions, one file for each region.
//
//go:embed certificates/*.pem
var published embed.FS

// CertificatesVariable names the environment variable of the Auth Service with a
// folder of further certificates, REGION.pem: for a region that AWS opened, or a key
// that it changed, after this release.
const CertificatesVariable = "TELEPORT_EC2_CERTIFICATES"

// maxCertificateFile bounds such a file.
const maxCertificateFile = 64 << 10

// certificatesOf returns the certificates that may sign documents of a region. The
// region is what a stranger says: it becomes a file name only if it has the form of one
// of AWS's.
func certificatesOf(region string, getenv func(string) string) ([]*x509.Certificate, error) {
	if _, ok := aws.PartitionOf(region); !ok {
		return nil, malformed("the document is of region %.64q, which is not one of AWS", region)
	}
	found, err := readCertificates(published, "certificates/"+region+".pem")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if dir := getenv(CertificatesVariable); dir != "" {
		more, err := readCertificates(os.DirFS(dir), region+".pem")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.ErrDenied, "the certificates of AWS region %s that the Auth Service was given cannot be used: correct %s.pem in the folder of %s",
				region, region, CertificatesVariable).WithCode(method.CodeProofSignature)
		}
		for _, c := range more {
			if !slices.ContainsFunc(found, c.Equal) {
				found = append(found, c)
			}
		}
	}
	if len(found) == 0 {
		return nil, fault.New(fault.ErrDenied, "the Auth Service has no certificate of AWS region %s: save AWS's RSA-2048 certificate of the region as %s.pem in a folder, and name the folder in %s of the Auth Service",
			region, region, CertificatesVariable).WithCode(method.CodeProofSignature)
	}
	return found, nil
}

// readCertificates reads a file of one or several certificates in PEM.
func readCertificates(from fs.FS, name string) ([]*x509.Certificate, error) {
	f, err := from.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCertificateFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxCertificateFile {
		return nil, fault.Invalid("%s is longer than %d bytes", name, maxCertificateFile)
	}
	var out []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.Invalid("%s: %w", name, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 || len(bytes.TrimSpace(text)) > 0 {
		return nil, fault.Invalid("%s: expected certificates in PEM and nothing after them", name)
	}
	return out, nil
}
