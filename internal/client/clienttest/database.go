package clienttest

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	databasev1 "teleport/api/database/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/keystore"
)

// databases are the authorities of databases and what signs with them; RSA keys take a
// while, so that all clusters share them.
var databases = sync.OnceValues(func() ([]*typesv1.CertAuthority, error) {
	var out []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser, ca.TypeDB, ca.TypeDBClient} {
		a, err := ca.Generate(keystore.Software(), Name, typ, time.Now())
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
})

// DatabaseAuthority returns the authority of the type, db or db_client.
func (c *Cluster) DatabaseAuthority(typ string) *typesv1.CertAuthority {
	c.t.Helper()
	all, err := databases()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, a := range all {
		if a.GetSpec().GetType() == typ {
			return ca.Public(a)
		}
	}
	return nil
}

func databaseSigner() (*ca.Signer, *ca.Trust, error) {
	all, err := databases()
	if err != nil {
		return nil, nil, err
	}
	signer, err := ca.NewSigner(keystore.Software(), all, time.Now)
	if err != nil {
		return nil, nil, err
	}
	trust, err := ca.NewTrust(all)
	return signer, trust, err
}

// SignServer signs for whomever asks; a day unless another time is asked for.
func (s databaseService) SignServer(_ context.Context, req *databasev1.SignServerRequest) (*databasev1.SignServerResponse, error) {
	signer, trust, err := databaseSigner()
	if err != nil {
		return nil, err
	}
	ttl := 24 * time.Hour
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	ders, err := signer.DatabaseServer(ca.DatabaseServerRequest{Hosts: req.GetHosts(), TLSKey: req.GetTlsKey(), TTL: ttl})
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return nil, err
	}
	return &databasev1.SignServerResponse{
		Certificate: ders[0], Expires: timestamppb.New(cert.NotAfter),
		Authorities: pemOf(trust.DatabaseCertificates()), ClientAuthorities: pemOf(trust.DatabaseClientCertificates()),
	}, nil
}

func pemOf(certs []*x509.Certificate) string {
	var out strings.Builder
	for _, c := range certs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return out.String()
}

// SignRevocations signs an empty list.
func (s databaseService) SignRevocations(_ context.Context, req *databasev1.SignRevocationsRequest) (*databasev1.SignRevocationsResponse, error) {
	signer, _, err := databaseSigner()
	if err != nil {
		return nil, err
	}
	list, err := signer.RevocationList(req.GetAuthority())
	return &databasev1.SignRevocationsResponse{List: list}, err
}
