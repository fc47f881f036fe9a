package oracle

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/keys"
)

// metadataURL is the instance metadata service, version 2.
const metadataURL = "http://169.254.169.254/opc/v2/identity/"

func prove(m method.Machine) method.Exchange {
	return func(ctx context.Context, _ []byte) ([]byte, error) {
		id, err := fetchIdentity(ctx, m)
		if err != nil {
			return nil, err
		}
		a := answer{Certificate: id.leaf.Raw}
		for _, c := range id.intermediates {
			a.Intermediates = append(a.Intermediates, c.Raw)
		}
		d := digest(m.T)
		if a.Signature, err = id.key.Sign(rand.Reader, d[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}); err != nil {
			return nil, fmt.Errorf("sign with the instance's key: %w", err)
		}
		if a.Request, err = id.signRootsRequest(ctx, m); err != nil {
			return nil, err
		}
		return json.Marshal(a)
	}
}

// identity is the instance's certificate and key.
type identity struct {
	instance
	leaf          *x509.Certificate
	intermediates []*x509.Certificate
	key           *rsa.PrivateKey
}

// fetchIdentity reads the certificate and its key from the metadata service. The key
// is read between two readings of the certificate, which the platform renews.
func fetchIdentity(ctx context.Context, m method.Machine) (*identity, error) {
	certPEM, err := fetch(ctx, m, "cert.pem")
	if err != nil {
		return nil, err
	}
	intermediatePEM, err := fetch(ctx, m, "intermediate.pem")
	if err != nil {
		return nil, err
	}
	keyPEM, err := fetch(ctx, m, "key.pem")
	if err != nil {
		return nil, err
	}
	id := &identity{}
	chain, err := pemCertificates(certPEM)
	if err != nil || len(chain) == 0 {
		return nil, badMetadata("cert.pem", "is not a certificate")
	}
	id.leaf = chain[0]
	if id.intermediates, err = pemCertificates(intermediatePEM); err != nil || len(id.intermediates) > maxIntermediate {
		return nil, badMetadata("intermediate.pem", "is not a list of at most "+strconv.Itoa(maxIntermediate)+" certificates")
	}
	if id.key, err = parseKey(keyPEM); err != nil {
		return nil, badMetadata("key.pem", "is not an RSA key")
	}
	if !id.key.PublicKey.Equal(id.leaf.PublicKey) {
		return nil, badMetadata("key.pem", "belongs to another certificate than cert.pem, which happens while the platform renews it; the join is tried again")
	}
	if id.instance, err = parseInstance(id.leaf.Subject.OrganizationalUnit); err != nil {
		return nil, fault.New(fault.ErrInvalid, "the instance's certificate %w", err).WithCode(method.CodeMetadata)
	}
	return id, nil
}

func badMetadata(file, what string) error {
	return fault.New(fault.ErrUnreachable, "%s%s of the instance metadata service %s", metadataURL, file, what).WithCode(method.CodeMetadata)
}

func fetch(ctx context.Context, m method.Machine, file string) ([]byte, error) {
	resp, err := m.Metadata.Do(ctx, egress.Request{URL: metadataURL + file, Header: http.Header{"Authorization": {"Bearer Oracle"}}})
	if err != nil {
		return nil, fault.New(fault.ErrUnreachable, "the instance metadata service of Oracle Cloud does not give %s%s (%w): join method oracle works on compute instances only, and in a container only with the host's network", metadataURL, file, err).WithCode(method.CodeMetadata)
	}
	if resp.Status != http.StatusOK {
		return nil, badMetadata(file, fmt.Sprintf("answers with status %d: is this a compute instance of Oracle Cloud, with version 2 of the service?", resp.Status))
	}
	return resp.Body, nil
}

func pemCertificates(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out, nil
		}
		cert, err := parseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, cert)
	}
}

func parseKey(data []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fault.Invalid("not PEM")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fault.Invalid("not a private key")
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fault.Invalid("not RSA")
	}
	return key, nil
}

// signRootsRequest signs, and does not send, the request for the region's roots. As
// Oracle wants it, that is done with a session key, for which the certificate first
// gets a security token.
func (id *identity) signRootsRequest(ctx context.Context, m method.Machine) (signedRequest, error) {
	session, err := keys.Generate(keys.RSA2048)
	if err != nil {
		return signedRequest{}, err
	}
	token, err := id.federate(ctx, m, session)
	if err != nil {
		return signedRequest{}, err
	}
	r := signedRequest{Date: httpDate(m.Now()), KeyID: "ST$" + token}
	r.Signature, err = signRequest(session, signingString(r.Date, authHost(id.Region)))
	return r, err
}

func httpDate(t time.Time) string { return t.UTC().Format(http.TimeFormat) }

func signRequest(key crypto.Signer, text string) ([]byte, error) {
	sum := sha256.Sum256([]byte(text))
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	return signature, nil
}

// federate exchanges the instance's certificate for a security token over the session
// key, at the Auth service of the instance's region.
func (id *identity) federate(ctx context.Context, m method.Machine, session crypto.Signer) (string, error) {
	public, err := x509.MarshalPKIXPublicKey(session.Public())
	if err != nil {
		return "", err
	}
	details := struct {
		Certificate   string   `json:"certificate"`
		PublicKey     string   `json:"publicKey"`
		Intermediates []string `json:"intermediateCertificates,omitempty"`
		Algorithm     string   `json:"fingerprintAlgorithm"`
	}{base64.StdEncoding.EncodeToString(id.leaf.Raw), base64.StdEncoding.EncodeToString(public), nil, "SHA256"}
	for _, c := range id.intermediates {
		details.Intermediates = append(details.Intermediates, base64.StdEncoding.EncodeToString(c.Raw))
	}
	body, err := json.Marshal(details)
	if err != nil {
		return "", err
	}
	header, err := id.signFederation(m.Now(), body)
	if err != nil {
		return "", err
	}
	host := authHost(id.Region)
	resp, err := m.Egress.Do(ctx, egress.Request{Method: http.MethodPost, URL: "https://" + host + federationPath, Header: header, Body: body})
	if err != nil {
		return "", fault.New(fault.ErrUnreachable, "the Auth service of Oracle Cloud in this region cannot be asked for a security token (%w): the instance needs a route to %s, by an internet or a service gateway", err, host).WithCode(method.CodeCredentials)
	}
	var token struct {
		Token string `json:"token"`
	}
	if resp.Status != http.StatusOK {
		return "", fault.New(fault.ErrUnreachable, "%s gives this instance no security token: status %d", host, resp.Status).WithCode(method.CodeCredentials)
	}
	if err := json.Unmarshal(bytes.TrimSpace(resp.Body), &token); err != nil || !plainToken(token.Token) {
		return "", fault.New(fault.ErrUnreachable, "%s answered with something else than a security token", host).WithCode(method.CodeCredentials)
	}
	return token.Token, nil
}

// federationPath is where a certificate is exchanged.
const federationPath = "/v1/x509"

// signFederation returns the headers of the exchange, signed by the certificate's key.
func (id *identity) signFederation(now time.Time, body []byte) (http.Header, error) {
	sum := sha256.Sum256(body)
	h := http.Header{
		"Date":             {httpDate(now)},
		"Content-Type":     {"application/json"},
		"X-Content-Sha256": {base64.StdEncoding.EncodeToString(sum[:])},
	}
	// As Oracle's own clients do it, the host is not among what is signed here.
	// Content-Length is what net/http sends for the body.
	text := "date: " + h.Get("Date") + "\n(request-target): post " + federationPath + "\ncontent-length: " + strconv.Itoa(len(body)) + "\ncontent-type: application/json\nx-content-sha256: " + h.Get("X-Content-Sha256")
	signature, err := signRequest(id.key, text)
	if err != nil {
		return nil, err
	}
	print := sha256.Sum256(id.leaf.Raw)
	octets := make([]string, len(print))
	for i, b := range print {
		octets[i] = hex.EncodeToString([]byte{b})
	}
	h.Set("Authorization", authorization(id.Tenancy+"/fed-x509-sha256/"+strings.Join(octets, ":"),
		"date (request-target) content-length content-type x-content-sha256", signature))
	return h, nil
}

// plainToken reports whether a token can stand in a header between quotes.
func plainToken(s string) bool {
	return s != "" && len(s) <= maxKeyID && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.=+/", r)
	})
}
