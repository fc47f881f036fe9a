// Package azurefake is as much of Azure as a join needs, for tests: the metadata service
// of one virtual machine, which attests documents with openssl, the tenant that signs
// its tokens, the resource manager that knows the machine, and the place where the
// certificates of the signers are published.
package azurefake

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"teleport/test/oidcfake"
	"teleport/test/openssl"
)

// Authority signs the signers of metadata services: a root that Auth must be told of,
// and an authority below it that only its published certificate leads to.
type Authority struct {
	Root, Sub *openssl.Certificate
	// key signs the tokens of all tenants: making one takes long.
	key *oidcfake.Key
}

// SubURL is where the certificate of Sub is published.
const SubURL = "http://www.microsoft.com/pkiops/certs/sub.crt"

// NewAuthority makes an authority.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	root := openssl.SelfSigned(t, openssl.Spec{Subject: "/CN=Root of a test", Extensions: openssl.Authority()})
	return &Authority{
		Root: root, Sub: root.Issue(t, openssl.Spec{Subject: "/CN=Issuing authority of a test", Extensions: openssl.Authority()}),
		key: oidcfake.NewKey(t, "RS256"),
	}
}

// Signer makes the certificate of a metadata service.
func (a *Authority) Signer(t testing.TB, name string) *openssl.Certificate {
	t.Helper()
	return a.Sub.Issue(t, openssl.Spec{Subject: "/CN=" + name, NewKey: openssl.RSA2048(), Extensions: ServerExtensions(name)})
}

// ServerExtensions are those of the certificate of a metadata service.
func ServerExtensions(name string) []string {
	return []string{
		"subjectAltName=DNS:" + name, "extendedKeyUsage=serverAuth", "keyUsage=critical,digitalSignature",
		"authorityInfoAccess=caIssuers;URI:" + SubURL,
	}
}

// Machine is a virtual machine, as Azure knows it.
type Machine struct {
	VMID, Subscription, Tenant string
	// Resource is its id, Environment the cloud.
	Resource, Environment string
	// Identity is xms_mirid of its token and Runs xms_az_rid; empty leaves one out.
	Identity, Runs string
	// ClientID, if set, must be asked for.
	ClientID string
}

// World is one machine, and all of Azure around it.
type World struct {
	Machine
	Authority *Authority
	// Signer signs the attested documents; it is called by the metadata service.
	Signer *openssl.Certificate
	// Issuer is the tenant.
	Issuer *oidcfake.Issuer
	Now    func() time.Time
	// Document and Claims, if set, change what is attested and what the token says.
	Document, Claims func(map[string]any)
	// Sign, if set, signs in place of Signer; Mint in place of Issuer.
	Sign func(content []byte) []byte
	Mint func(claims map[string]any) string
	// Manager, if set, answers in place of the resource manager.
	Manager http.HandlerFunc
	// Published, if set, answers for all addresses of certificates.
	Published http.HandlerFunc
	// Token is the last one that was given out.
	Token string

	t     testing.TB
	tls   *oidcfake.Server
	plain *httptest.Server
	mu    sync.Mutex
	asked []string
}

var machines atomic.Uint64

// The names of the public cloud.
const (
	Signers    = "metadata.azure.com"
	ManagerURL = "https://management.azure.com/"
)

// New makes a machine of its own in the public cloud, in the resource group "Nodes",
// with an identity of the system.
func New(t testing.TB, a *Authority, signer *openssl.Certificate) *World {
	t.Helper()
	n := machines.Add(1)
	guid := func(kind int) string { return fmt.Sprintf("%08x-0000-4000-8000-%012x", kind, n) }
	w := &World{
		Machine:   Machine{VMID: guid(0xa), Subscription: guid(0xb), Tenant: guid(0xc), Environment: "AzurePublicCloud"},
		Authority: a, Signer: signer, Now: time.Now, t: t,
	}
	w.Resource = "/subscriptions/" + w.Subscription + "/resourceGroups/Nodes/providers/Microsoft.Compute/virtualMachines/node-1"
	w.Identity = w.Resource
	w.Issuer = oidcfake.New(t, "https://sts.windows.net/"+w.Tenant+"/", "ES256")
	w.Issuer.Publish(a.key)
	w.tls = oidcfake.Serve(t, map[string]http.Handler{
		"sts.windows.net": w.Issuer, "login.microsoftonline.com": w.Issuer, "login.microsoftonline.us": w.Issuer,
		"sts.chinacloudapi.cn": w.Issuer, "login.partner.microsoftonline.cn": w.Issuer,
		"management.azure.com": http.HandlerFunc(w.manager), "management.usgovcloudapi.net": http.HandlerFunc(w.manager),
		"management.chinacloudapi.cn": http.HandlerFunc(w.manager),
	})
	w.plain = httptest.NewServer(http.HandlerFunc(w.published))
	t.Cleanup(w.plain.Close)
	return w
}

// Server is what serves the tenant and the resource manager.
func (w *World) Server() *oidcfake.Server { return w.tls }

// PublishedAddr is where the certificates of the signers are published.
func (w *World) PublishedAddr() string { return w.plain.Listener.Addr().String() }

// DialAuth finds the tenant and the resource manager, and nobody else.
func (w *World) DialAuth(ctx context.Context, network, addr string) (net.Conn, error) {
	if !strings.HasSuffix(addr, ":443") {
		return nil, errors.New("the cloud of this test has no " + addr)
	}
	return w.tls.Dial(ctx, network, addr)
}

// DialMachine finds the published certificates, and nobody else.
func (w *World) DialMachine(ctx context.Context, network, addr string) (net.Conn, error) {
	if !strings.HasSuffix(addr, ":80") {
		return nil, errors.New("the cloud of this test has no " + addr)
	}
	w.note("certificates " + addr)
	return (&net.Dialer{}).DialContext(ctx, network, w.plain.Listener.Addr().String())
}

// DialMetadata finds the metadata service in a process that has no other. For the true
// address see package netns.
func (w *World) DialMetadata(t testing.TB) func(ctx context.Context, network, addr string) (net.Conn, error) {
	t.Helper()
	s := httptest.NewServer(w)
	t.Cleanup(s.Close)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != "169.254.169.254:80" {
			return nil, errors.New("the machine of this test has no " + addr)
		}
		return (&net.Dialer{}).DialContext(ctx, network, s.Listener.Addr().String())
	}
}

// Asked returns what was asked for, beside the metadata service and the tenant.
func (w *World) Asked() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.asked...)
}

func (w *World) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, what)
}

// ServeHTTP is the metadata service.
func (w *World) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	fail := func(status int, word string) {
		rw.WriteHeader(status)
		answer(rw, map[string]any{"error": word, "error_description": "see " + word})
	}
	q := r.URL.Query()
	switch {
	case r.Header.Get("Metadata") != "true" || r.Header.Get("X-Forwarded-For") != "":
		fail(http.StatusBadRequest, "Bad request. Required metadata header not specified")
	case q.Get("api-version") == "":
		fail(http.StatusBadRequest, "Bad request. api-version is invalid or was not specified in the request")
	case r.URL.Path == "/metadata/instance/compute":
		answer(rw, map[string]any{"azEnvironment": w.Environment, "resourceId": w.Resource, "vmId": w.VMID, "subscriptionId": w.Subscription})
	case r.URL.Path == "/metadata/attested/document":
		if len(q.Get("nonce")) > 32 {
			fail(http.StatusBadRequest, "Bad request. Nonce is too long")
			return
		}
		answer(rw, map[string]any{"encoding": "pkcs7", "signature": base64.StdEncoding.EncodeToString(w.attest(q.Get("nonce")))})
	case r.URL.Path == "/metadata/identity/oauth2/token":
		if w.Identity == "" || q.Get("client_id") != w.ClientID {
			fail(http.StatusBadRequest, "invalid_request")
			return
		}
		w.Token = w.mint(q.Get("resource"))
		answer(rw, map[string]any{"access_token": w.Token, "resource": q.Get("resource"), "token_type": "Bearer", "expires_in": "86399"})
	default:
		http.NotFound(rw, r)
	}
}

func answer(rw http.ResponseWriter, v any) { _ = json.NewEncoder(rw).Encode(v) }

func (w *World) attest(nonce string) []byte {
	const layout = "01/02/06 15:04:05 -0700"
	now := w.Now().UTC()
	d := map[string]any{
		"licenseType": "", "nonce": nonce, "plan": map[string]any{"name": "", "product": "", "publisher": ""}, "sku": "12",
		"subscriptionId": w.Subscription, "vmId": w.VMID,
		"timeStamp": map[string]any{"createdOn": now.Format(layout), "expiresOn": now.Add(6 * time.Hour).Format(layout)},
	}
	if w.Document != nil {
		w.Document(d)
	}
	text, err := json.Marshal(d)
	if err != nil {
		w.t.Error(err)
	}
	if w.Sign != nil {
		return w.Sign(text)
	}
	return w.Signer.SignCMS(w.t, text)
}

func (w *World) mint(audience string) string {
	now := w.Now()
	c := map[string]any{
		"aud": audience, "iss": w.Issuer.URL, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(24 * time.Hour).Unix(),
		"appid": "11111111-0000-0000-0000-000000000000", "idtyp": "app", "oid": "22222222-0000-0000-0000-000000000000",
		"tid": w.Tenant, "ver": "1.0", "xms_mirid": w.Identity,
	}
	if w.Runs != "" {
		c["xms_az_rid"] = w.Runs
	}
	if w.Claims != nil {
		w.Claims(c)
	}
	if w.Mint != nil {
		return w.Mint(c)
	}
	return w.Issuer.Mint(now, c)
}

// manager is the resource manager, which knows the one machine.
func (w *World) manager(rw http.ResponseWriter, r *http.Request) {
	w.note(r.Method + " https://" + r.Host + r.URL.Path)
	if w.Manager != nil {
		w.Manager(rw, r)
		return
	}
	switch {
	case r.Header.Get("Authorization") != "Bearer "+w.Token:
		rw.WriteHeader(http.StatusUnauthorized)
	case !strings.EqualFold(r.URL.Path, w.Resource) || r.URL.Query().Get("api-version") == "" || r.Method != http.MethodGet:
		http.NotFound(rw, r)
	default:
		w.Describe(rw, w.Resource, w.VMID)
	}
}

// Describe answers with a machine.
func (w *World) Describe(rw http.ResponseWriter, id, vmID string) {
	answer(rw, map[string]any{
		"id": strings.Replace(id, "/resourceGroups/Nodes/", "/resourceGroups/NODES/", 1), "name": "node-1", "type": "Microsoft.Compute/virtualMachines", "location": "westeurope",
		"properties": map[string]any{"vmId": strings.ToUpper(vmID), "provisioningState": "Succeeded"},
	})
}

func (w *World) published(rw http.ResponseWriter, r *http.Request) {
	if w.Published != nil {
		w.Published(rw, r)
		return
	}
	if "http://"+r.Host+r.URL.Path != SubURL {
		http.NotFound(rw, r)
		return
	}
	_, _ = rw.Write(w.Authority.Sub.Raw)
}
