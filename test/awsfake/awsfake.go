// Package awsfake is as much of AWS as a join needs, for tests: an STS that checks
// Signature Version 4 for real, behind TLS certificates for whatever of its names is
// asked for, and the instance metadata service, version 2.
package awsfake

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Cloud is a small AWS. It is an http.Handler that answers by the host that is asked.
type Cloud struct {
	// Now is its clock, time.Now if nil.
	Now func() time.Time
	// Answer, if set, answers in place of the real handler, for a cloud that lies.
	Answer http.HandlerFunc
	// Services answer for hosts that start with their name, beside "sts".
	Services map[string]Service

	ca    *x509.Certificate
	caKey *ecdsa.PrivateKey
	roots *x509.CertPool

	mu     sync.Mutex
	keys   map[string]Key
	tokens map[string]string
	roles  map[string]Key
	asked  []Asked
	issued int
}

// Service is one more service of the Query API: it gets the form of a request whose
// signature is good, and answers with the body of a 200 or with a failure.
type Service func(caller Key, region string, form map[string][]string) (xmlBody string, failure *Failure)

// Asked is a request that the cloud got.
type Asked struct {
	Method, Host, URI, Body string
	Header                  http.Header
}

// New returns a cloud that knows nobody.
func New(t testing.TB) *Cloud {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "awsfake root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cloud{
		ca: ca, caKey: key, roots: x509.NewCertPool(), Services: map[string]Service{},
		keys: map[string]Key{}, tokens: map[string]string{}, roles: map[string]Key{},
	}
	c.roots.AddCert(ca)
	return c
}

// Add makes a key known.
func (c *Cloud) Add(k Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[k.ID] = k
}

// AddRole makes a role that AssumeRole and, with one of the tokens, AssumeRoleWithWebIdentity
// give keys of. The key is that of the sessions, with a new id and token for each.
func (c *Cloud) AddRole(arn string, session Key, webTokens ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roles[arn] = session
	for _, t := range webTokens {
		c.tokens[t] = arn
	}
}

// Roots are what its certificates are to be checked with.
func (c *Cloud) Roots() *x509.CertPool { return c.roots }

// RootPEM is the same as a file.
func (c *Cloud) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Raw})
}

// Asked returns the requests so far.
func (c *Cloud) Asked() []Asked {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Asked(nil), c.asked...)
}

// Start serves the cloud on a port of this machine until the test ends. The function
// it returns is a dialer that finds every host of AWS there, and nobody else.
func (c *Cloud) Start(t testing.TB) func(ctx context.Context, network, addr string) (net.Conn, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Serve(t, l)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil || port != "443" || !strings.Contains(host, ".amazonaws.") {
			return nil, errors.New("the cloud of this test has no " + addr)
		}
		var d net.Dialer
		return d.DialContext(ctx, network, l.Addr().String())
	}
}

// Serve serves the cloud on l until the test ends.
func (c *Cloud) Serve(t testing.TB, l net.Listener) {
	t.Helper()
	s := httptest.NewUnstartedServer(c)
	s.Listener.Close()
	s.Listener = l
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.certificate}
	s.StartTLS()
	t.Cleanup(s.Close)
}

// certificate makes a certificate for the name that the client asks for.
func (c *Cloud) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{hello.ServerName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.ca, key.Public(), c.caKey)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// ServeHTTP answers a request.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	c.asked = append(c.asked, Asked{r.Method, r.Host, r.RequestURI, string(body), r.Header.Clone()})
	answer := c.Answer
	c.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	service, rest, _ := strings.Cut(strings.TrimSuffix(r.Host, ":443"), ".")
	region, _, _ := strings.Cut(rest, ".")
	form, err := parseForm(r, body)
	if err != nil {
		reply(w, r, "", &Failure{http.StatusBadRequest, "MalformedInput", err.Error()})
		return
	}
	service = strings.TrimSuffix(service, "-fips")
	if service == "sts" {
		c.sts(w, r, body, form)
		return
	}
	serve, ok := c.Services[service]
	if !ok {
		http.NotFound(w, r)
		return
	}
	caller, failure := c.authenticate(r, body, service)
	xmlBody := ""
	if failure == nil {
		xmlBody, failure = serve(caller, region, form)
	}
	if failure != nil && service == "ec2" {
		w.WriteHeader(failure.Status)
		_, _ = io.WriteString(w, "<Response><Errors><Error><Code>"+failure.Code+"</Code><Message>"+failure.Message+"</Message></Error></Errors></Response>")
		return
	}
	reply(w, r, xmlBody, failure)
}

// reply answers with XML, or with an error in the form that the client accepts.
func reply(w http.ResponseWriter, r *http.Request, body string, failure *Failure) {
	if failure == nil {
		w.Header().Set("Content-Type", "text/xml")
		_, _ = io.WriteString(w, body)
		return
	}
	if r.Header.Get("Accept") == "application/json" {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(failure.Status)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"Error": map[string]string{"Type": "Sender", "Code": failure.Code, "Message": failure.Message}, "RequestId": "0",
		})
		return
	}
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(failure.Status)
	_, _ = io.WriteString(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>`+
		failure.Code+"</Code><Message>"+failure.Message+"</Message></Error><RequestId>0</RequestId></ErrorResponse>")
}

func (c *Cloud) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Cloud) key(id string) (Key, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.keys[id]
	return k, ok
}

// session makes keys of a role.
func (c *Cloud) session(arn, name string) (Key, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.roles[arn]
	if !ok {
		return Key{}, false
	}
	c.issued++
	n := strconv.Itoa(c.issued)
	k.ID += "SESSION" + n
	k.SessionToken = "token+of/session=" + n
	k.ARN, k.UserID = k.ARN+"/"+name, k.UserID+":"+name
	k.Expires = c.now().Add(time.Hour)
	c.keys[k.ID] = k
	return k, true
}

func escapeXML(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}
