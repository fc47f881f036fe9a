// Package azure is the join method of virtual machines in Azure. The machine sends two
// things: a document in which Azure's metadata service attests which machine it is, with
// a nonce that is made of the transcript, so that it is good for this attempt and these
// keys only; and an access token of the managed identity, which says which tenant it is
// of. Neither says where the machine stands in Azure, so the machine says that as well,
// and Auth asks the resource manager of Azure, with the machine's token, whether the
// machine that stands there is the one that was attested.
package azure

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/join/cms"
	"teleport/internal/join/egress"
	"teleport/internal/join/jwk"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// Method returns the method. The keys of tenants are remembered in issuers.
func Method(issuers *jwt.Issuers) method.Method {
	return method.Method{
		Name: types.JoinMethodAzure, Attests: true, Bearer: true, Prove: prove,
		Verify: func(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
			return verifier{Attempt: a, issuers: issuers}.verify(ctx, ask)
		},
	}
}

// ClientIDSetting is the key of teleport.join_params with the client id of the managed
// identity, for machines that have several.
const ClientIDSetting = "azure.client_id"

// answer is what the machine sends.
type answer struct {
	// Attested is the signed document.
	Attested []byte `json:"attested"`
	// Chain are certificates between its signer and a root.
	Chain [][]byte `json:"chain"`
	// Token is the access token of the managed identity.
	Token string `json:"token"`
	// Resource is the id that the machine has in Azure.
	Resource string `json:"resource"`
}

// nonce is the part of the transcript that fits in what Azure attests: 192 bits in the
// 32 characters that it allows.
func nonce(transcript [32]byte) string { return base64.RawURLEncoding.EncodeToString(transcript[:24]) }

// prove answers with the two proofs.
func prove(m method.Machine) method.Exchange {
	return func(ctx context.Context, _ []byte) ([]byte, error) {
		p := prover{m}
		where, err := p.get(ctx, "/metadata/instance/compute", url.Values{"api-version": {"2020-09-01"}})
		if err != nil {
			return nil, fault.New(fault.Kind(err), "join method azure works on virtual machines of Azure only: %w", err).WithCode(fault.Code(err))
		}
		name, _ := where["azEnvironment"].(string)
		c, ok := cloudNamed(name)
		if !ok {
			return nil, metadata("the metadata service says that this machine is in %.64q, which is not a cloud of Azure that Teleport knows", name)
		}
		var a answer
		if a.Resource, _ = where["resourceId"].(string); a.Resource == "" {
			return nil, metadata("the metadata service does not say which resource this machine is (no resourceId): only virtual machines and scale sets can join")
		}
		if a.Attested, err = p.attested(ctx); err != nil {
			return nil, err
		}
		if a.Token, err = p.token(ctx, c); err != nil {
			return nil, err
		}
		if a.Chain, err = p.chain(ctx, a.Attested); err != nil {
			return nil, err
		}
		return json.Marshal(a)
	}
}

type prover struct{ method.Machine }

// metadataService is the same in all clouds.
const metadataService = "http://169.254.169.254"

// get asks the metadata service.
func (p prover) get(ctx context.Context, path string, query url.Values) (map[string]any, error) {
	resp, err := p.Metadata.Do(ctx, egress.Request{
		URL: metadataService + path + "?" + query.Encode(), Header: http.Header{"Metadata": {"true"}},
	})
	if err != nil {
		return nil, metadata("the metadata service: %w", err)
	}
	if resp.Status != http.StatusOK {
		return nil, statusError{path: path, status: resp.Status, body: resp.Body}.fault()
	}
	o, err := jwk.Object(resp.Body)
	if err != nil {
		return nil, metadata("the metadata service answers for %s: %w", path, err)
	}
	return o, nil
}

// statusError is an answer that is not 200.
type statusError struct {
	path   string
	status int
	body   []byte
}

func (e statusError) fault() error {
	if strings.HasSuffix(e.path, "/oauth2/token") && e.status >= 400 && e.status < 500 {
		return fault.New(fault.ErrDenied, "this machine has no managed identity that Teleport can use (GET %s: HTTP %d%s): assign one to it, and if it has several, say which by teleport.join_params.azure.client_id",
			e.path, e.status, e.reason()).WithCode(method.CodeCredentials)
	}
	return metadata("the metadata service answers HTTP %d for %s%s", e.status, e.path, e.reason())
}

// reason is Azure's own word for it, in a form that can be shown.
func (e statusError) reason() string {
	o, err := jwk.Object(e.body)
	if err != nil {
		return ""
	}
	word, _ := o["error"].(string)
	if word == "" || len(word) > 64 || strings.Trim(strings.ToLower(word), "abcdefghijklmnopqrstuvwxyz_ ") != "" {
		return ""
	}
	return ", " + word
}

func metadata(format string, args ...any) error {
	return fault.New(fault.ErrUnreachable, format, args...).WithCode(method.CodeMetadata)
}

// attested returns the signed document for this attempt.
func (p prover) attested(ctx context.Context) ([]byte, error) {
	o, err := p.get(ctx, "/metadata/attested/document", url.Values{"api-version": {"2020-09-01"}, "nonce": {nonce(p.T)}})
	if err != nil {
		return nil, err
	}
	encoding, _ := o["encoding"].(string)
	text, _ := o["signature"].(string)
	document, err := base64.StdEncoding.DecodeString(text)
	if encoding != "pkcs7" || err != nil || len(document) == 0 {
		return nil, metadata("the metadata service gives an attested document of encoding %.32q: expected pkcs7, in base64", encoding)
	}
	return document, nil
}

// token returns an access token of the managed identity.
func (p prover) token(ctx context.Context, c cloud) (string, error) {
	query := url.Values{"api-version": {"2019-08-01"}, "resource": {c.audience}}
	if id := p.Settings[ClientIDSetting]; id != "" {
		query.Set("client_id", id)
	}
	o, err := p.get(ctx, "/metadata/identity/oauth2/token", query)
	if err != nil {
		return "", err
	}
	token, _ := o["access_token"].(string)
	if token == "" {
		return "", metadata("the metadata service gives no access token")
	}
	return token, nil
}

// Limits of the walk to the root.
const (
	maxChain       = 4
	maxIssuerBytes = 16 << 10
)

// issuerHosts are those that Microsoft and its authorities publish their certificates
// at. The address of an issuer stands in a certificate that nobody has verified yet.
func issuerHosts() []string {
	return []string{"www.microsoft.com", "caissuers.microsoft.com", "cacerts.digicert.com", "cacerts.digicert.cn", "cacerts.geotrust.com"}
}

// chain fetches the certificates between the signer of a document and a root that Auth
// has: Azure sends the signer's only. It ends at a certificate that is its own issuer,
// or that does not say where its issuer is: whether the chain is good is for Auth.
func (p prover) chain(ctx context.Context, document []byte) ([][]byte, error) {
	message, err := cms.Parse(document)
	if err != nil {
		return nil, metadata("the attested document: %w", err)
	}
	signed, err := message.Verify()
	if err != nil {
		return nil, metadata("the attested document: %w", err)
	}
	roots, err := builtIn()
	if err != nil {
		return nil, err
	}
	var chain [][]byte
	at := signed.Signer
	for range maxChain {
		anchored := slices.ContainsFunc(roots, func(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, at.RawIssuer) })
		if anchored || bytes.Equal(at.RawIssuer, at.RawSubject) {
			return chain, nil
		}
		i := slices.IndexFunc(signed.Others, func(c *x509.Certificate) bool { return at.CheckSignatureFrom(c) == nil })
		if i >= 0 {
			at = signed.Others[i] // Auth has it already
			continue
		}
		address := issuerAddress(at)
		if address == "" {
			return chain, nil
		}
		issuer, err := p.fetch(ctx, address)
		if err != nil {
			return nil, fault.New(fault.ErrUnreachable, "the certificate that completes Azure's document cannot be fetched: %w. Allow the machine to reach %s by http",
				err, strings.Join(issuerHosts(), ", ")).WithCode(method.CodeCredentials)
		}
		if at.CheckSignatureFrom(issuer) != nil {
			return nil, metadata("%s is not the certificate of the issuer of %.128q", address, at.Subject.String())
		}
		chain = append(chain, issuer.Raw)
		at = issuer
	}
	return nil, metadata("the chain of the signer of Azure's document has more than %d certificates", maxChain)
}

// issuerAddress returns where a certificate says that its issuer's is, if that is one of
// the places where Microsoft has them.
func issuerAddress(c *x509.Certificate) string {
	for _, address := range c.IssuingCertificateURL {
		u, err := url.Parse(address)
		if err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.User == nil && slices.Contains(issuerHosts(), u.Host) {
			return u.String()
		}
	}
	return ""
}

func (p prover) fetch(ctx context.Context, address string) (*x509.Certificate, error) {
	resp, err := p.Egress.Do(ctx, egress.Request{URL: address, Limit: maxIssuerBytes, Plain: true})
	if err != nil {
		return nil, err
	}
	if resp.Status != http.StatusOK {
		return nil, fault.New(fault.ErrUnreachable, "HTTP %d for %s", resp.Status, address)
	}
	return cms.Certificate(resp.Body)
}
