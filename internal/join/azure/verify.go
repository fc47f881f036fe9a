package azure

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/cms"
	"teleport/internal/join/egress"
	"teleport/internal/join/jwk"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// verifier is Auth's half, for one attempt.
type verifier struct {
	method.Attempt
	issuers *jwt.Issuers
}

func (v verifier) verify(ctx context.Context, ask method.Exchange) (method.Claims, error) {
	text, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	proof, machine, err := parseAnswer(text)
	if err != nil {
		return method.Claims{}, err
	}
	doc, err := v.attested(proof)
	if err != nil {
		return method.Claims{}, err
	}
	claims := method.Claims{Attributes: map[string][]string{
		"azure_environment": {doc.cloud.name}, "subscription": {doc.subscription}, "vm_id": {doc.vmID},
	}}
	if machine.subscription != doc.subscription {
		return claims, mixed("the machine says that it is %s, and its attested document is of subscription %s", machine, doc.subscription)
	}
	id, err := v.identity(ctx, proof.Token, doc.cloud)
	if err != nil {
		return claims, err
	}
	claims.Attributes["tenant"] = []string{id.tenant}
	claims.Attributes["identity"] = []string{id.resource.String()}
	claims.Machine = types.JoinMethodAzure + "/" + id.tenant + "/" + doc.vmID
	if err := id.fits(machine); err != nil {
		return claims, err
	}
	// What the machine says about its place is tried on the rules before Azure is asked
	// whether it is true; until then it is no claim.
	place := method.Claims{Attributes: map[string][]string{"resource_group": {machine.group}, "resource_id": {machine.String()}}, Machine: claims.Machine}
	for name, values := range claims.Attributes {
		place.Attributes[name] = values
	}
	if err := v.Allowed(place); err != nil {
		return claims, err
	}
	if err := v.confirm(ctx, doc, machine, proof.Token); err != nil {
		return claims, err
	}
	return place, nil
}

// parseAnswer reads what the machine sent.
func parseAnswer(text []byte) (answer, resource, error) {
	var a answer
	if len(text) > method.MaxAnswer || json.Unmarshal(text, &a) != nil || len(a.Attested) == 0 || a.Token == "" {
		return answer{}, resource{}, malformed("the proof is not what join method azure sends: install the same major version on both sides")
	}
	if len(a.Chain) > maxChain {
		return answer{}, resource{}, malformed("%d certificates next to the attested document: the most is %d", len(a.Chain), maxChain)
	}
	r, err := parseResource(a.Resource)
	if err != nil || !r.machine() {
		return answer{}, resource{}, malformed("the machine says that it is %.128q: expected the resource id of a virtual machine or of an instance of a scale set", a.Resource)
	}
	return a, r, nil
}

// document is what Azure attests about a machine.
type document struct {
	cloud              cloud
	vmID, subscription string
}

// attested verifies the attested document: the certificate that signed it is of one of
// Azure's metadata services and leads to a pinned root, the nonce is of this attempt.
func (v verifier) attested(a answer) (document, error) {
	message, err := cms.Parse(a.Attested)
	if err != nil {
		return document{}, err
	}
	signed, err := message.Verify()
	if err != nil {
		return document{}, err
	}
	c, err := cloudOf(signed.Signer)
	if err != nil {
		return document{}, err
	}
	if err := v.chain(signed, a.Chain); err != nil {
		return document{}, err
	}
	values, err := jwk.Object(signed.Content)
	if err != nil {
		return document{}, malformed("the attested document: %w", err)
	}
	text := func(name string) string {
		s, _ := values[name].(string)
		return s
	}
	if subtle.ConstantTimeCompare([]byte(text("nonce")), []byte(nonce(v.T))) != 1 {
		return document{}, fault.New(fault.ErrDenied, "the attested document was not made for this attempt (another nonce)").WithCode(method.CodeProofAttempt)
	}
	d := document{cloud: c, vmID: strings.ToLower(text("vmId")), subscription: strings.ToLower(text("subscriptionId"))}
	if !isGUID(d.vmID) || !isGUID(d.subscription) {
		return document{}, malformed("the attested document has vmId %.64q and subscriptionId %.64q: expected GUIDs", text("vmId"), text("subscriptionId"))
	}
	stamps, _ := values["timeStamp"].(map[string]any)
	return d, v.checkTime(stamps)
}

// chain checks that the signer's certificate leads to a root of ours and may be used
// by a server.
func (v verifier) chain(signed cms.Signed, sent [][]byte) error {
	refuse := func(format string, args ...any) error {
		return fault.New(fault.ErrDenied, "the signer of the attested document: "+format, args...).WithCode(method.CodeProofSignature)
	}
	roots, err := rootsOf(v.Getenv)
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	for _, c := range signed.Others {
		between.AddCert(c)
	}
	for _, der := range sent {
		c, err := cms.Certificate(der)
		if err != nil {
			return err
		}
		between.AddCert(c)
	}
	if signed.Signer.IsCA || !slices.Contains(signed.Signer.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return refuse("its certificate is not one of a server")
	}
	if _, err := signed.Signer.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		CurrentTime: v.Now.Truncate(time.Second), // as certificates have it
	}); err != nil {
		return refuse("%w; if Azure changed to another authority, give Auth its root by %s", err, RootsVariable)
	}
	return nil
}

// maxAhead is how far Azure's clock may be ahead of Auth's.
const maxAhead = time.Minute

// checkTime checks when the document was made and until when it is good.
func (v verifier) checkTime(stamps map[string]any) error {
	created, okCreated := parseStamp(stamps["createdOn"])
	expires, okExpires := parseStamp(stamps["expiresOn"])
	switch {
	case !okCreated || !okExpires:
		return malformed("the attested document does not say when it was made and until when it is good")
	case created.Sub(v.Now) > maxAhead:
		return fault.New(fault.ErrDenied, "the attested document was made at %s, and it is %s: check the clock of the Auth Service", stamp(created), stamp(v.Now)).WithCode(method.CodeProofNotYetValid)
	case !v.Now.Truncate(time.Second).Before(expires):
		return fault.New(fault.ErrDenied, "the attested document was good until %s, and it is %s: check the clock of the Auth Service", stamp(expires), stamp(v.Now)).WithCode(method.CodeProofExpired)
	}
	return nil
}

// parseStamp reads a time as Azure writes it, e.g. "11/28/18 00:16:17 -0000".
func parseStamp(v any) (time.Time, bool) {
	s, _ := v.(string)
	for _, layout := range []string{"1/2/06 15:04:05 -0700", "1/2/2006 15:04:05 -0700"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// identity is what the access token says about the managed identity.
type identity struct {
	tenant string
	// resource is what the token was given to: the machine, its scale set, or an
	// identity that several machines may have.
	resource resource
}

// maxLifetime bounds an access token: those of managed identities are good for a day,
// with continuous access evaluation for 28 hours.
const maxLifetime = 30 * time.Hour

// identity verifies the access token: of a tenant in this cloud, for its resource
// manager, given to a managed identity.
func (v verifier) identity(ctx context.Context, token string, c cloud) (identity, error) {
	said, err := jwt.Unverified(token)
	if err != nil {
		return identity{}, err
	}
	tenant := said.Text("tid")
	if !isGUID(tenant) {
		return identity{}, malformed("the access token is of tenant %.64q: expected a GUID", tenant)
	}
	issuer, err := c.issuer(said.Issuer, tenant)
	if err != nil {
		return identity{}, err
	}
	claims, err := jwt.Verify(ctx, token, v.issuers.Keys(v.Egress, jwt.Source{Issuer: issuer}), jwt.Expect{
		Issuer: issuer, Audience: c.audience, Now: v.Now, Leeway: jwt.Leeway, MaxLifetime: maxLifetime,
	})
	if err != nil {
		return identity{}, err
	}
	if claims.Text("tid") != tenant {
		return identity{}, malformed("the access token names two tenants")
	}
	id := identity{tenant: tenant}
	given := claims.Text("xms_az_rid")
	if given == "" {
		given = claims.Text("xms_mirid")
	}
	if id.resource, err = parseResource(given); err != nil {
		return identity{}, mixed("the access token is not one of a managed identity of a virtual machine: %w", err)
	}
	return id, nil
}

// fits checks that the token was given to the machine that says it has it. An identity
// that several machines may have fits all of them: which of them this is, the
// resource manager says.
func (id identity) fits(machine resource) error {
	set, _ := machine.owner()
	switch id.resource.kind {
	case userAssigned:
		return nil
	case scaleSet:
		if id.resource.equal(set) {
			return nil
		}
	case virtualMachine, scaleSetInstance:
		if id.resource.equal(machine) {
			return nil
		}
	}
	return mixed("the machine says that it is %s, and its access token was given to %s", machine, id.resource)
}

// computeVersion is the version of the interface that is asked, maxMachine the length of
// its description of a machine.
const (
	computeVersion = "2023-03-01"
	maxMachine     = 256 << 10
)

// confirm asks the resource manager, with the machine's token, whether the machine
// that stands at its place is the one that was attested. The host is the cloud's, and
// the path is made of parts that were checked.
func (v verifier) confirm(ctx context.Context, d document, machine resource, token string) error {
	resp, err := v.Egress.Do(ctx, egress.Request{
		URL:    strings.TrimSuffix(d.cloud.audience, "/") + machine.url() + "?api-version=" + computeVersion,
		Header: http.Header{"Authorization": {"Bearer " + token}, "Accept": {"application/json"}},
		Limit:  maxMachine,
		// A network may have an endpoint of its own for the resource manager.
		Private: true,
	})
	if err != nil {
		return fault.New(fault.ErrUnreachable, "the resource manager of Azure: %w", err).WithCode(method.CodeCloudUnreachable)
	}
	switch resp.Status {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return refused("the resource manager of Azure does not let the managed identity read its own machine (HTTP %d): give it a role with Microsoft.Compute/virtualMachines/read on %s, such as Reader", resp.Status, machine)
	case http.StatusNotFound:
		return refused("the resource manager of Azure does not know %s", machine)
	default:
		return fault.New(fault.ErrUnreachable, "the resource manager of Azure answers HTTP %d: try again later", resp.Status).WithCode(method.CodeCloudUnreachable)
	}
	o, err := jwk.Object(resp.Body)
	if err != nil {
		return refused("the resource manager of Azure answers with something else than a machine: %w", err)
	}
	properties, _ := o["properties"].(map[string]any)
	vmID, _ := properties["vmId"].(string)
	id, _ := o["id"].(string)
	if found, err := parseResource(id); err != nil || !found.equal(machine) {
		return refused("the resource manager of Azure was asked about %s and answers about %.128q", machine, id)
	}
	if !strings.EqualFold(vmID, d.vmID) {
		return mixed("the machine at %s has vmId %.64q, and the attested document is of %s", machine, vmID, d.vmID)
	}
	return nil
}

func malformed(format string, args ...any) error {
	return fault.New(fault.ErrInvalid, format, args...).WithCode(method.CodeProofMalformed)
}

func mixed(format string, args ...any) error {
	return fault.New(fault.ErrDenied, format, args...).WithCode(method.CodeProofMachine)
}

func refused(format string, args ...any) error {
	return fault.New(fault.ErrDenied, format, args...).WithCode(method.CodeCloudRefused)
}
