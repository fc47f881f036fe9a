// Package ocifake is as much of Oracle Cloud as a join needs, for tests: the metadata
// service of an instance, and the Auth service of every region, which checks request
// signatures for real. OpenSSL makes the certificates of the instances. It is our own
// stand-in: shapes and rules are those of Oracle's documents and of its Go SDK.
package ocifake

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"teleport/internal/join/egress"
)

// Cloud is a small Oracle Cloud. Its fields may be changed until it is asked.
type Cloud struct {
	// Now is its clock.
	Now func() time.Time
	// Roots, if set, answers in place of the real list of root certificates.
	Roots http.HandlerFunc
	// RefreshIn is when the roots should be fetched again, an hour from Now if empty.
	RefreshIn string

	dir      string
	tls      tls.Certificate
	pool     *x509.CertPool
	server   *httptest.Server
	mu       sync.Mutex
	sessions map[string]*rsa.PublicKey
	asked    []string
	machines int
}

// Instance is a machine: what its metadata service hands out.
type Instance struct {
	Certificate, Key, Intermediate []byte
}

// Units are the units (OU) of an instance's certificate.
func Units(instance, compartment, tenancy string) []string {
	return []string{"opc-certtype:instance", "opc-compartment:" + compartment, "opc-instance:" + instance, "opc-tenant:" + tenancy}
}

// New returns a cloud with a root authority and an intermediate one.
func New(t testing.TB) *Cloud {
	t.Helper()
	c := &Cloud{Now: time.Now, dir: t.TempDir(), sessions: map[string]*rsa.PublicKey{}}
	c.authority(t, "root", "")
	c.authority(t, "intermediate", "root")
	c.openssl(t, "genrsa", "-out", "instance.key", "2048")
	c.makeTLS(t)
	c.server = httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	c.server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{c.tls}}
	c.server.StartTLS()
	t.Cleanup(c.server.Close)
	return c
}

func (c *Cloud) openssl(t testing.TB, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = c.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (c *Cloud) authority(t testing.TB, name, parent string) {
	t.Helper()
	c.write(t, name+".ext", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n")
	c.openssl(t, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", name+".key", "-out", name+".csr", "-subj", "/CN=PKISVC "+name)
	args := []string{"x509", "-req", "-in", name + ".csr", "-out", name + ".pem", "-days", "30", "-extfile", name + ".ext"}
	if parent == "" {
		args = append(args, "-signkey", name+".key")
	} else {
		args = append(args, "-CA", parent+".pem", "-CAkey", parent+".key", "-CAcreateserial")
	}
	c.openssl(t, args...)
}

// Issue makes the certificate of an instance with the units. The key is the one in the
// file, "instance.key" if empty; the usage is clientAuth if empty.
func (c *Cloud) Issue(t testing.TB, units []string, keyFile, usage string) Instance {
	t.Helper()
	c.mu.Lock()
	c.machines++
	name := fmt.Sprintf("machine%d", c.machines)
	c.mu.Unlock()
	if keyFile == "" {
		keyFile = "instance.key"
	}
	if usage == "" {
		usage = "clientAuth"
	}
	c.write(t, name+".ext", "keyUsage=critical,digitalSignature\nextendedKeyUsage="+usage+"\n")
	c.openssl(t, "req", "-new", "-key", keyFile, "-out", name+".csr", "-subj", "/CN="+name+"/OU="+strings.Join(units, "/OU="))
	c.openssl(t, "x509", "-req", "-in", name+".csr", "-out", name+".pem", "-days", "1", "-CA", "intermediate.pem", "-CAkey", "intermediate.key", "-CAcreateserial", "-extfile", name+".ext")
	return Instance{Certificate: c.read(t, name+".pem"), Key: c.read(t, keyFile), Intermediate: c.read(t, "intermediate.pem")}
}

// Key makes a key in the way of openssl's genpkey, and returns the name of its file.
func (c *Cloud) Key(t testing.TB, name string, options ...string) string {
	t.Helper()
	c.openssl(t, append([]string{"genpkey", "-out", name}, options...)...)
	return name
}

func (c *Cloud) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c *Cloud) read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// makeTLS makes the certificate of the Auth services, for every region by wildcards.
func (c *Cloud) makeTLS(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ocifake"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"auth.us-phoenix-1.oraclecloud.com", "auth.eu-frankfurt-1.oraclecloud.com", "auth.us-gov-ashburn-1.oraclegovcloud.com"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c.pool = x509.NewCertPool()
	c.pool.AddCert(cert)
	c.tls = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Addr is where the Auth services of all regions listen.
func (c *Cloud) Addr() string { return c.server.Listener.Addr().String() }

// RootPEM is what their certificate is to be checked with.
func (c *Cloud) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.tls.Certificate[0]})
}

// Egress reaches the Auth services of the cloud, and nobody else.
func (c *Cloud) Egress() egress.Config {
	return egress.Config{Roots: c.pool, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !strings.HasPrefix(addr, "auth.") || !strings.HasSuffix(addr, ":443") {
			return nil, errors.New("the cloud of this test has no " + addr)
		}
		var d net.Dialer
		return d.DialContext(ctx, network, c.server.Listener.Addr().String())
	}}
}

// Metadata is the metadata service of a machine.
func Metadata(t testing.TB, m Instance) egress.Config {
	t.Helper()
	s := httptest.NewServer(MetadataHandler(m))
	t.Cleanup(s.Close)
	return egress.Config{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != "169.254.169.254:80" {
			return nil, errors.New("the metadata service is not at " + addr)
		}
		var d net.Dialer
		return d.DialContext(ctx, network, s.Listener.Addr().String())
	}}
}

// MetadataHandler answers as the metadata service of a machine, version 2.
func MetadataHandler(m Instance) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer Oracle" {
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
		switch r.URL.Path {
		case "/opc/v2/identity/cert.pem":
			_, _ = w.Write(m.Certificate)
		case "/opc/v2/identity/key.pem":
			_, _ = w.Write(m.Key)
		case "/opc/v2/identity/intermediate.pem":
			_, _ = w.Write(m.Intermediate)
		default:
			http.NotFound(w, r)
		}
	})
}

// Asked returns the requests so far, as "host method path".
func (c *Cloud) Asked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.asked...)
}

func (c *Cloud) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.asked = append(c.asked, r.Host+" "+r.Method+" "+r.URL.RequestURI())
	c.mu.Unlock()
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		http.Error(w, "body", http.StatusBadRequest)
		return
	}
	var status int
	switch r.Method + " " + r.URL.RequestURI() {
	case "POST /v1/x509":
		status, err = c.federate(w, r, body)
	case "GET /v1/instancePrincipalRootCACertificates":
		status, err = c.rootCertificates(w, r)
	default:
		status, err = http.StatusNotFound, errors.New("no such thing")
	}
	if err != nil {
		http.Error(w, err.Error(), status)
	}
}

// federate exchanges an instance's certificate for a token over a session key.
func (c *Cloud) federate(w http.ResponseWriter, r *http.Request, body []byte) (int, error) {
	var in struct {
		Certificate, PublicKey   string
		IntermediateCertificates []string
		FingerprintAlgorithm     string
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return http.StatusBadRequest, err
	}
	leaf, err := parseBase64(in.Certificate)
	if err != nil {
		return http.StatusBadRequest, err
	}
	pool, roots := x509.NewCertPool(), x509.NewCertPool()
	for _, text := range in.IntermediateCertificates {
		cert, err := parseBase64(text)
		if err != nil {
			return http.StatusBadRequest, err
		}
		pool.AddCert(cert)
	}
	root, err := os.ReadFile(filepath.Join(c.dir, "root.pem"))
	if err != nil {
		return http.StatusInternalServerError, err
	}
	roots.AppendCertsFromPEM(root)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool, CurrentTime: c.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return http.StatusUnauthorized, err
	}
	tenancy := ""
	for _, unit := range leaf.Subject.OrganizationalUnit {
		if t, ok := strings.CutPrefix(unit, "opc-tenant:"); ok {
			tenancy = t
		}
	}
	sum := sha256.Sum256(leaf.Raw)
	fingerprint := strings.ReplaceAll(fmt.Sprintf("% x", sum), " ", ":")
	bodySum := sha256.Sum256(body)
	if in.FingerprintAlgorithm != "SHA256" || r.Header.Get("X-Content-Sha256") != base64.StdEncoding.EncodeToString(bodySum[:]) {
		return http.StatusUnauthorized, errors.New("the body is not the signed one")
	}
	key, ok := leaf.PublicKey.(*rsa.PublicKey)
	if !ok {
		return http.StatusUnauthorized, errors.New("not RSA")
	}
	if err := c.checkSignature(r, []string{"date", "(request-target)", "content-length", "content-type", "x-content-sha256"},
		func(keyID string) *rsa.PublicKey {
			if keyID != tenancy+"/fed-x509-sha256/"+fingerprint {
				return nil
			}
			return key
		}); err != nil {
		return http.StatusUnauthorized, err
	}
	public, err := base64.StdEncoding.DecodeString(in.PublicKey)
	if err != nil {
		return http.StatusBadRequest, err
	}
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return http.StatusBadRequest, err
	}
	session, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return http.StatusBadRequest, errors.New("not RSA")
	}
	id := make([]byte, 24)
	if _, err := rand.Read(id); err != nil {
		return http.StatusInternalServerError, err
	}
	// Its form is a JWT, which nobody but Oracle can verify.
	payload := fmt.Sprintf(`{"jti":"%x","exp":%d}`, id, c.Now().Add(20*time.Minute).Unix())
	token := "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
	c.mu.Lock()
	c.sessions["ST$"+token] = session
	c.mu.Unlock()
	return http.StatusOK, json.NewEncoder(w).Encode(map[string]string{"token": token})
}

func parseBase64(text string) (*x509.Certificate, error) {
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (c *Cloud) rootCertificates(w http.ResponseWriter, r *http.Request) (int, error) {
	err := c.checkSignature(r, []string{"date", "(request-target)", "host"}, func(keyID string) *rsa.PublicKey {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.sessions[keyID]
	})
	if err != nil {
		return http.StatusUnauthorized, err
	}
	if c.Roots != nil {
		c.Roots(w, r)
		return http.StatusOK, nil
	}
	data, err := os.ReadFile(filepath.Join(c.dir, "root.pem"))
	if err != nil {
		return http.StatusInternalServerError, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return http.StatusInternalServerError, errors.New("no root")
	}
	refresh := c.RefreshIn
	if refresh == "" {
		refresh = c.Now().Add(time.Hour).Format(time.RFC3339)
	}
	return http.StatusOK, json.NewEncoder(w).Encode(map[string]any{
		"certificates": []string{base64.StdEncoding.EncodeToString(block.Bytes)}, "refreshIn": refresh,
	})
}

// checkSignature verifies the Authorization header against the request as it came.
func (c *Cloud) checkSignature(r *http.Request, want []string, keyOf func(keyID string) *rsa.PublicKey) error {
	fields := map[string]string{}
	for _, m := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(strings.TrimPrefix(r.Header.Get("Authorization"), "Signature "), -1) {
		fields[m[1]] = m[2]
	}
	headers := strings.Fields(fields["headers"])
	if fields["version"] != "1" || fields["algorithm"] != "rsa-sha256" || strings.Join(headers, " ") != strings.Join(want, " ") {
		return fmt.Errorf("authorization header of version %q with headers %q", fields["version"], headers)
	}
	date, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil || date.Sub(c.Now()).Abs() > 5*time.Minute {
		return fmt.Errorf("date %q", r.Header.Get("Date"))
	}
	var text bytes.Buffer
	for i, h := range headers {
		value := r.Header.Get(h)
		switch h {
		case "(request-target)":
			value = strings.ToLower(r.Method) + " " + r.URL.RequestURI()
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(r.ContentLength)
		}
		if i > 0 {
			text.WriteByte('\n')
		}
		text.WriteString(h + ": " + value)
	}
	key := keyOf(fields["keyId"])
	signature, err := base64.StdEncoding.DecodeString(fields["signature"])
	if err != nil || key == nil {
		return errors.New("unknown key")
	}
	sum := sha256.Sum256(text.Bytes())
	return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature)
}
