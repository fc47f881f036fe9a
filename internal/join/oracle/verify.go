package oracle

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"net/http"
	"strings"
	"sync"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/method"
)

// dateWindow is how far the date of the signed request may be from Auth's clock, as
// Oracle has it.
const dateWindow = 5 * time.Minute

// verifier is Auth's half.
type verifier struct {
	mu      sync.Mutex
	regions map[string]*rootCache
}

func (v *verifier) verify(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
	raw, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	p, err := parseProof(raw)
	if err != nil {
		return method.Claims{}, err
	}
	key, ok := p.leaf.PublicKey.(*rsa.PublicKey)
	if !ok {
		return method.Claims{}, malformed("the instance's certificate has a key of type %T, expected RSA", p.leaf.PublicKey)
	}
	d := digest(a.T)
	if rsa.VerifyPSS(key, crypto.SHA256, d[:], p.Signature, pssOptions()) != nil {
		return method.Claims{}, fault.New(fault.ErrDenied, "the signature by the instance's key does not fit what was asked: something between this machine and the Auth Service changed the request, or the answer was made for another join").WithCode(method.CodeProofSignature)
	}
	if err := p.checkTimes(a.Now); err != nil {
		return method.Claims{}, err
	}
	claims := p.claims()
	if err := a.Allowed(claims); err != nil {
		// Oracle is not asked about a machine that no rule wants. What it says about itself
		// is proven only if the roots are known already.
		if pool := v.known(a, p.Region); pool == nil || p.checkChain(pool, a.Now) != nil {
			return method.Claims{}, err
		}
		return claims, err
	}
	roots, err := v.roots(ctx, a, p.Region, p.Request)
	if err != nil {
		return method.Claims{}, err
	}
	if err := p.checkChain(roots, a.Now); err != nil {
		return method.Claims{}, err
	}
	return claims, nil
}

// checkChain verifies that Oracle made the certificate, for an instance to be a client.
func (p *proof) checkChain(roots *x509.CertPool, now time.Time) error {
	_, err := p.leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: p.pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fault.New(fault.ErrDenied, "the instance's certificate is not one of Oracle Cloud's in region %s: its chain does not end at the region's root certificates", p.Region.Name).WithCode(method.CodeProofSignature)
	}
	return nil
}

// proof is a parsed answer; nothing of it is verified.
type proof struct {
	answer
	instance
	leaf *x509.Certificate
	pool *x509.CertPool
	date time.Time
}

func malformed(format string, args ...any) error {
	return fault.New(fault.ErrInvalid, format, args...).WithCode(method.CodeProofMalformed)
}

func parseProof(raw []byte) (*proof, error) {
	if len(raw) > maxAnswer {
		return nil, malformed("the answer of method oracle has %d bytes, the most is %d", len(raw), maxAnswer)
	}
	p := &proof{pool: x509.NewCertPool()}
	if err := decode(raw, &p.answer); err != nil {
		return nil, malformed("the answer of method oracle is %w: install the same version on both sides", err)
	}
	if len(p.Intermediates) > maxIntermediate || len(p.Signature) > maxSignature || len(p.Request.Signature) == 0 || len(p.Request.Signature) > maxSignature {
		return nil, malformed("the answer of method oracle has parts that are missing or too long")
	}
	var err error
	if p.leaf, err = parseCertificate(p.Certificate); err != nil {
		return nil, malformed("the instance's certificate: %w", err)
	}
	for _, der := range p.Intermediates {
		cert, err := parseCertificate(der)
		if err != nil {
			return nil, malformed("an intermediate certificate: %w", err)
		}
		p.pool.AddCert(cert)
	}
	if p.instance, err = parseInstance(p.leaf.Subject.OrganizationalUnit); err != nil {
		return nil, fault.New(fault.ErrInvalid, "the instance's certificate %w", err).WithCode(method.CodeProofMachine)
	}
	token, ok := strings.CutPrefix(p.Request.KeyID, "ST$")
	if !ok || !plainToken(token) {
		return nil, malformed("the request for the root certificates is signed with a key that has no security token")
	}
	if p.date, err = time.Parse(http.TimeFormat, p.Request.Date); err != nil || httpDate(p.date) != p.Request.Date {
		return nil, malformed("the request for the root certificates has a bad date")
	}
	return p, nil
}

// checkTimes checks the certificate's own times, and that the request is new.
func (p *proof) checkTimes(now time.Time) error {
	switch {
	case now.After(p.leaf.NotAfter):
		return fault.New(fault.ErrDenied, "the instance's certificate ended at %s: the platform renews it every hour or two, so check the clocks of the machine and of the Auth Service, and try again",
			p.leaf.NotAfter.UTC().Format(time.RFC3339)).WithCode(method.CodeProofExpired)
	case now.Before(p.leaf.NotBefore):
		return fault.New(fault.ErrDenied, "the instance's certificate begins at %s, which is in the future: check the clock of the Auth Service",
			p.leaf.NotBefore.UTC().Format(time.RFC3339)).WithCode(method.CodeProofNotYetValid)
	case p.date.Before(now.Add(-dateWindow)):
		return fault.New(fault.ErrDenied, "the request for the root certificates was signed at %s, more than %s ago: set the machine's clock",
			p.Request.Date, dateWindow).WithCode(method.CodeProofExpired)
	case p.date.After(now.Add(dateWindow)):
		return fault.New(fault.ErrDenied, "the request for the root certificates was signed at %s, which is in the future: set the machine's clock",
			p.Request.Date).WithCode(method.CodeProofNotYetValid)
	}
	return nil
}

func (p *proof) claims() method.Claims {
	return method.Claims{
		Attributes: map[string][]string{
			"tenancy":             {p.Tenancy},
			"parent_compartments": {p.Compartment},
			"regions":             {p.Region.Name},
			"instances":           {p.ID},
		},
		Machine: "oracle/" + p.ID,
	}
}
