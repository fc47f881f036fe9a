// Package kube starts a real Kubernetes API server for tests, with Debian's etcd behind
// it: a cluster without nodes, whose service accounts, bound tokens, token reviews and
// OpenID Connect issuer are the real ones. The program is built once per version by
// `make kube-apiserver`, from the module in the folder apiserver, into the cache of the
// user. It is no client library: a test says what it wants by a few methods, or by Do.
package kube

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Version is that of the API server; apiserver/go.mod has it too.
const Version = "v1.36.3"

// readyTime is how long the cluster may take to start on a busy machine.
const readyTime = 2 * time.Minute

// Cluster is a running API server. Its zero value is not usable.
type Cluster struct {
	// URL is the address of the API server, and the issuer of its tokens.
	URL string
	// Host and Port are those of URL, as KUBERNETES_SERVICE_HOST and
	// KUBERNETES_SERVICE_PORT have them in a pod.
	Host, Port string
	// CA is the certificate authority of the API server, PEM.
	CA []byte
	// Admin is the bearer token of an administrator. It is no service account.
	Admin string

	client *http.Client
}

// User is a user of the cluster that is no service account: whoever shows Token is
// called Name.
type User struct{ Token, Name string }

// Start starts a cluster of its own for the test, and waits until it serves. It ends
// with the test. Missing programs are a failure.
func Start(t testing.TB, users ...User) *Cluster {
	t.Helper()
	apiserver, etcd := programs(t)
	var err error
	// A port that was free may be somebody else's when the program gets to it.
	for range 3 {
		var c *Cluster
		if c, err = start(t, apiserver, etcd, users); err == nil {
			return c
		}
	}
	t.Fatal(err)
	return nil
}

// Program returns where `make kube-apiserver` puts the API server.
func Program() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "teleport-test", "kube-apiserver-"+Version), nil
}

func programs(t testing.TB) (apiserver, etcd string) {
	t.Helper()
	apiserver, err := Program()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(apiserver); err != nil {
		t.Fatalf("the API server is not built: run make kube-apiserver (%v)", err)
	}
	if etcd, err = exec.LookPath("etcd"); err != nil {
		t.Fatalf("etcd is missing: run make test-deps (%v)", err)
	}
	return apiserver, etcd
}

// start starts both programs; what it leaves behind when it fails ends with the test.
func start(t testing.TB, apiserver, etcd string, users []User) (*Cluster, error) {
	t.Helper()
	dir := t.TempDir()
	var ports [3]string
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	c := &Cluster{Host: "127.0.0.1", Port: ports[0], URL: "https://127.0.0.1:" + ports[0], Admin: rand.Text()}
	if err := c.files(dir, users); err != nil {
		return nil, err
	}
	store, peer := "http://127.0.0.1:"+ports[1], "http://127.0.0.1:"+ports[2]
	database := run(t, dir, etcd, "--name=test", "--data-dir="+filepath.Join(dir, "etcd"), "--listen-client-urls="+store, "--advertise-client-urls="+store,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=test="+peer)
	server := run(t, dir, apiserver,
		"--etcd-servers="+store,
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+c.Port, "--endpoint-reconciler-type=none",
		"--tls-cert-file="+filepath.Join(dir, "server.pem"), "--tls-private-key-file="+filepath.Join(dir, "server.key"), "--cert-dir="+dir,
		"--token-auth-file="+filepath.Join(dir, "users.csv"), "--authorization-mode=RBAC",
		"--service-account-key-file="+filepath.Join(dir, "accounts.key"), "--service-account-signing-key-file="+filepath.Join(dir, "accounts.key"),
		"--service-account-issuer="+c.URL, "--service-account-jwks-uri="+c.URL+"/openid/v1/jwks",
		"--service-cluster-ip-range=10.0.0.0/24",
		// Its controller, which gives each namespace a default account, does not run.
		"--disable-admission-plugins=ServiceAccount",
	)
	deadline := time.Now().Add(readyTime)
	for {
		if err := c.ready(); err == nil {
			return c, nil
		} else if time.Now().After(deadline) {
			return nil, fmt.Errorf("the API server is not ready after %s: %w\n%s", readyTime, err, server.tail())
		}
		select {
		case <-server.ended:
			return nil, fmt.Errorf("the API server ended: %s", server.tail())
		case <-database.ended:
			return nil, fmt.Errorf("etcd ended: %s", database.tail())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *Cluster) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return c.do(ctx, http.MethodGet, "/readyz", nil, nil)
}

// files writes what the API server reads.
func (c *Cluster) files(dir string, users []User) error {
	ca, caKey, err := certificate("test of Kubernetes", nil, nil)
	if err != nil {
		return err
	}
	c.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
	leaf, key, err := certificate("kube-apiserver", ca, caKey)
	if err != nil {
		return err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csv := fmt.Sprintf("%q,admin,admin,\"system:masters\"\n", c.Admin)
	for i, u := range users {
		csv += fmt.Sprintf("%q,%q,user-%d\n", u.Token, u.Name, i)
	}
	for name, content := range map[string]any{
		"server.pem": leaf, "server.key": key, "accounts.key": accounts, "users.csv": csv,
	} {
		var data []byte
		switch v := content.(type) {
		case *x509.Certificate:
			data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Raw})
		case *ecdsa.PrivateKey:
			der, err := x509.MarshalECPrivateKey(v)
			if err != nil {
				return err
			}
			data = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
		case string:
			data = []byte(v)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	c.client = &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true},
		Timeout:   time.Minute,
	}
	return nil
}

// certificate makes an authority, or a server's certificate by one.
func certificate(name string, issuer *x509.Certificate, issuerKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
	}
	if issuer == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		issuer, issuerKey = template, key
	} else {
		template.IPAddresses, template.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost", "kubernetes.default.svc"}
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// program is a program that runs until the test ends.
type program struct {
	ended chan struct{}
	log   lastBytes
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	mu  sync.Mutex
	buf []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if len(l.buf) > 8<<10 {
		l.buf = l.buf[len(l.buf)-4<<10:]
	}
	return len(p), nil
}

func (p *program) tail() string {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	return string(p.log.buf)
}

// run starts a program. It is killed when the test ends, the last one first: an API
// server whose etcd is gone does not end when it is asked to.
func run(t testing.TB, dir, name string, args ...string) *program {
	t.Helper()
	p := &program{ended: make(chan struct{})}
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", filepath.Base(name), p.tail())
		}
	})
	return p
}

func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port), nil
}

// StatusError is an answer that is no success.
type StatusError struct {
	Status int
	Body   string
}

// Error returns the status and the beginning of the body.
func (e *StatusError) Error() string {
	return fmt.Sprintf("status %d: %.512s", e.Status, e.Body)
}

// do makes a request as the administrator; in and out are JSON, and may be nil.
func (c *Cluster) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader = http.NoBody
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.Admin)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return &StatusError{resp.StatusCode, string(data)}
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *string:
		*out = string(data)
		return nil
	default:
		return json.Unmarshal(data, out)
	}
}

// Do makes a request as the administrator, e.g. Do(t, "POST", "/api/v1/namespaces", in,
// nil). In is marshalled to JSON; the answer is read into out, which may be a *string
// for the text as it is. Either may be nil. Anything but success fails the test.
func (c *Cluster) Do(t testing.TB, method, path string, in, out any) {
	t.Helper()
	if err := c.do(t.Context(), method, path, in, out); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
}

// object is a resource of Kubernetes, as JSON has it.
type object = map[string]any

// Namespace makes a namespace, unless it is there.
func (c *Cluster) Namespace(t testing.TB, name string) {
	t.Helper()
	c.create(t, "/api/v1/namespaces", object{"metadata": object{"name": name}})
}

// create makes a resource, unless it is there.
func (c *Cluster) create(t testing.TB, path string, in object) {
	t.Helper()
	err := c.do(t.Context(), http.MethodPost, path, in, nil)
	var status *StatusError
	if errors.As(err, &status) && status.Status == http.StatusConflict {
		return
	}
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
}

// ServiceAccount makes an account and its namespace, unless they are there.
func (c *Cluster) ServiceAccount(t testing.TB, namespace, name string) {
	t.Helper()
	c.Namespace(t, namespace)
	c.create(t, "/api/v1/namespaces/"+namespace+"/serviceaccounts", object{"metadata": object{"name": name}})
}

// Pod is a pod; nothing runs it.
type Pod struct{ Namespace, Name, UID, ServiceAccount string }

// Pod makes a pod of a service account, and the account unless it is there.
func (c *Cluster) Pod(t testing.TB, namespace, name, account string) Pod {
	t.Helper()
	c.ServiceAccount(t, namespace, account)
	var out struct {
		Metadata struct {
			UID string `json:"uid"`
		} `json:"metadata"`
	}
	c.Do(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/pods", object{
		"metadata": object{"name": name},
		"spec":     object{"serviceAccountName": account, "containers": []object{{"name": "agent", "image": "none"}}},
	}, &out)
	return Pod{Namespace: namespace, Name: name, UID: out.Metadata.UID, ServiceAccount: account}
}

// Delete deletes the pod, at once: no kubelet has to confirm it.
func (c *Cluster) Delete(t testing.TB, p Pod) {
	t.Helper()
	c.Do(t, http.MethodDelete, "/api/v1/namespaces/"+p.Namespace+"/pods/"+p.Name, object{"gracePeriodSeconds": 0}, nil)
}

// Token returns a token as a projected volume of the pod has it: bound to the pod, for
// one audience ("": that of the API server itself), good for life, of which Kubernetes
// wants 10 minutes at the least.
func (c *Cluster) Token(t testing.TB, p Pod, audience string, life time.Duration) string {
	t.Helper()
	spec := tokenSpec(audience, life)
	spec["boundObjectRef"] = object{"kind": "Pod", "apiVersion": "v1", "name": p.Name, "uid": p.UID}
	return c.request(t, p.Namespace, p.ServiceAccount, spec)
}

// UnboundToken returns a token of an account that is bound to no pod, as `kubectl
// create token` makes them.
func (c *Cluster) UnboundToken(t testing.TB, namespace, account, audience string, life time.Duration) string {
	t.Helper()
	return c.request(t, namespace, account, tokenSpec(audience, life))
}

func tokenSpec(audience string, life time.Duration) object {
	spec := object{"expirationSeconds": int64(life / time.Second)}
	if audience != "" {
		spec["audiences"] = []string{audience}
	}
	return spec
}

func (c *Cluster) request(t testing.TB, namespace, account string, spec object) string {
	t.Helper()
	var out struct {
		Status struct {
			Token string `json:"token"`
		} `json:"status"`
	}
	c.Do(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts/"+account+"/token", object{"spec": spec}, &out)
	return out.Status.Token
}

// Reviewer lets a service account review tokens, which an Auth Service needs, and
// returns a token of it for the API server.
func (c *Cluster) Reviewer(t testing.TB, namespace, account string) string {
	t.Helper()
	c.ServiceAccount(t, namespace, account)
	c.bind(t, "reviewer-"+namespace+"-"+account, "system:auth-delegator", object{"kind": "ServiceAccount", "namespace": namespace, "name": account})
	return c.UnboundToken(t, namespace, account, "", time.Hour)
}

// Publish lets everybody read the keys of the issuer, without logging in.
func (c *Cluster) Publish(t testing.TB) {
	t.Helper()
	c.bind(t, "issuer-keys", "system:service-account-issuer-discovery", object{"kind": "Group", "name": "system:unauthenticated", "apiGroup": "rbac.authorization.k8s.io"})
}

// bind gives a subject a role of the whole cluster, and waits until the API server's
// own copy of the binding says so too.
func (c *Cluster) bind(t testing.TB, name, role string, subject object) {
	t.Helper()
	c.create(t, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", object{
		"metadata": object{"name": name},
		"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
		"subjects": []object{subject},
	})
	attributes := object{"nonResourceAttributes": object{"path": "/openid/v1/jwks", "verb": "get"}}
	if subject["kind"] == "ServiceAccount" {
		attributes = object{"resourceAttributes": object{"group": "authentication.k8s.io", "resource": "tokenreviews", "verb": "create"}}
		attributes["user"] = fmt.Sprintf("system:serviceaccount:%s:%s", subject["namespace"], subject["name"])
	} else {
		attributes["groups"] = []any{subject["name"]}
	}
	for {
		var out struct {
			Status struct {
				Allowed bool `json:"allowed"`
			} `json:"status"`
		}
		c.Do(t, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", object{"spec": attributes}, &out)
		if out.Status.Allowed {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal("the role binding has no effect")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// JWKS returns the keys that the tokens are signed with, as `kubectl get --raw
// /openid/v1/jwks` prints them.
func (c *Cluster) JWKS(t testing.TB) string {
	t.Helper()
	var out string
	c.Do(t, http.MethodGet, "/openid/v1/jwks", nil, &out)
	return strings.TrimSpace(out)
}
