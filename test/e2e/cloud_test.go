package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"teleport/test/awsfake"
	"teleport/test/azurefake"
	"teleport/test/netns"
	"teleport/test/ocifake"
	"teleport/test/oidcfake"
	"teleport/test/openssl"
)

// proxyAddr is the Proxy of the guides in docs/how-to, and clusterName their cluster.
const (
	clusterName = "teleport.example.com"
	proxyAddr   = clusterName + ":443"
)

// Addresses of everybody else, which are on the public network as far as anybody in
// there can tell: the Auth Service asks nobody on a private one.
const (
	proxyIP   = "198.51.100.10"
	awsIP     = "198.51.100.1"
	issuersIP = "198.51.100.2"
	azureIP   = "198.51.100.3"
	oracleIP  = "198.51.100.4"
	otherIP   = "198.51.100.66"
	linkLocal = "169.254.169.254"
)

// The machines and accounts are those of the examples in the guides.
const (
	uuid1 = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
	uuid2 = "9a0c0305-4f89-41d3-9a0c-3f2504e0e82c"

	ec2Account, ec2Region = "111111111111", "eu-central-1"
	azureSubscription     = "11111111-1111-1111-1111-111111111111"
	gcpAccount            = "teleport-agent@my-project.iam.gserviceaccount.com"
	oracleTenancy         = "ocid1.tenancy.oc1..aaaaexample"
	oracleCompartment     = "ocid1.compartment.oc1..aaaaexample"
	githubRequest         = "https://pipelines.actions.githubusercontent.com/token?api-version=2.0"
	azureDevopsRequest    = "https://dev.azure.com/acme/oidctoken"
	jobSecret             = "the-secret-of-the-job"
	clusterIssuer         = "https://kubernetes.default.svc.cluster.local"
	eksHost               = "https://oidc.eks.eu-central-1.amazonaws.com/id/"
	eksIssuer             = eksHost + "0A1B2C"
)

// network is where the machines and the clouds are.
func network() netns.Network {
	hosts := map[string]string{clusterName: proxyIP, "metadata.google.internal": linkLocal, "www.microsoft.com": azureIP}
	for ip, names := range map[string][]string{
		awsIP:    {"sts.eu-central-1.amazonaws.com", "ec2.eu-central-1.amazonaws.com"},
		azureIP:  {"sts.windows.net", "login.windows.net", "login.microsoftonline.com", "management.azure.com"},
		oracleIP: {"auth.eu-frankfurt-1.oraclecloud.com"},
	} {
		for _, name := range names {
			hosts[name] = ip
		}
	}
	for _, i := range issuers() {
		if u, err := url.Parse(i); err == nil {
			hosts[u.Host] = issuersIP
		}
	}
	return netns.Network{
		Addresses: []string{linkLocal + "/32", proxyIP + "/32", awsIP + "/32", issuersIP + "/32", azureIP + "/32", oracleIP + "/32", otherIP + "/32", sourceNet + "0/24"},
		Hosts:     hosts,
	}
}

// issuers are who signs tokens for jobs, pods and machines; the last two only hand out
// those of others.
func issuers() map[string]string {
	return map[string]string{
		"gcp": "https://accounts.google.com", "github": "https://token.actions.githubusercontent.com", "gitlab": "https://gitlab.example.com",
		"circleci": "https://oidc.circleci.com/org/" + uuid1, "spacelift": "https://demo.app.spacelift.io", "terraform_cloud": "https://tfe.example.com",
		"bitbucket":    "https://api.bitbucket.org/2.0/workspaces/WORKSPACE/pipelines-config/identity/oidc",
		"azure_devops": "https://vstoken.dev.azure.com/" + uuid1, "env0": "https://login.app.env0.com/", "oidc": "https://id.example.com/realms/ci",
		"eks": eksIssuer, "eks2": eksHost + "SECOND", "kubernetes": clusterIssuer,
		"": githubRequest, "-": azureDevopsRequest,
	}
}

// clouds is every platform, with one machine of each: this one.
type clouds struct {
	t testing.TB
	// roots is a file with the authorities of their certificates.
	roots string
	// authEnv is what the Auth Service is given: keys of AWS, and the certificates that
	// stand for those of AWS and Azure.
	authEnv map[string]string

	aws      *awsfake.Cloud
	metadata *awsfake.Metadata
	signer   *openssl.Certificate
	azure    *azurefake.World
	gcp      *oidcfake.GCP
	oci      *ocifake.Cloud
	issuers  map[string]*oidcfake.Issuer
	jobs     map[string]map[string]any

	mu        sync.Mutex
	instances int
	oracle    http.Handler
	minted    int
}

// newClouds starts all platforms at their own addresses. It is for one test in a
// network of its own.
func newClouds(t *testing.T) *clouds {
	t.Helper()
	c := &clouds{t: t, authEnv: map[string]string{}, issuers: map[string]*oidcfake.Issuer{}}
	c.startAWS(t)
	c.startAzure(t)
	c.oci = ocifake.New(t)
	relay(t, oracleIP+":443", c.oci.Addr())
	c.NewOracle()
	hosts := map[string]http.Handler{}
	for name, issuer := range issuers() {
		u, err := url.Parse(issuer)
		if err != nil {
			t.Fatal(err)
		}
		if name != "" && name != "-" {
			c.issuers[name] = oidcfake.New(t, issuer, "ES256")
			hosts[u.Host] = or(hosts[u.Host], c.issuers[name])
			continue
		}
		hosts[u.Host] = http.HandlerFunc(c.serveJobs)
	}
	c.jobs = jobClaims()
	c.gcp = &oidcfake.GCP{Issuer: c.issuers["gcp"], Now: time.Now, Email: gcpAccount, Instance: oidcfake.GCPInstance("my-project", "europe-west4-a", "web-1", 152986662232938449)}
	server := oidcfake.Serve(t, hosts)
	relay(t, issuersIP+":443", server.Addr)
	c.serveMetadata(t)
	c.roots = c.file(t, "roots.pem", bytes.Join([][]byte{c.aws.RootPEM(), []byte(c.azure.Server().CA), c.oci.RootPEM(), []byte(server.CA)}, []byte("\n")))
	return c
}

// or asks the second what the first does not know.
func or(first, second http.Handler) http.Handler {
	if first == nil {
		return second
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		if first.ServeHTTP(answer, r); answer.Code == http.StatusNotFound {
			second.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(answer.Code)
		_, _ = answer.Body.WriteTo(w)
	})
}

func (c *clouds) file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c *clouds) startAWS(t *testing.T) {
	key := awsfake.Key{
		ID: "ASIAIOSFODNN7EXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", SessionToken: "FwoGZXIvYXdzEBY+/=",
		Account: "333333333333", ARN: "arn:aws:sts::333333333333:assumed-role/teleport-node-role/i-0123456789abcdef0",
		UserID: "AROAIOSFODNN7EXAMPLE:i-0123456789abcdef0", Expires: time.Now().Add(time.Hour),
	}
	auth := awsfake.Key{ID: "AKIAIOSFODNN7EXAMPLE", Secret: "secretOfAuth", Account: ec2Account, ARN: "arn:aws:iam::" + ec2Account + ":user/auth", UserID: "AIDA"}
	c.aws = awsfake.New(t)
	c.aws.Add(key)
	c.aws.Add(auth)
	c.aws.Serve(t, listenOn(t, awsIP+":443"))
	c.metadata = &awsfake.Metadata{Region: ec2Region, Role: "teleport-node-role", Key: key}
	c.signer = openssl.SelfSigned(t, openssl.Spec{Subject: "/C=US/O=Amazon Web Services LLC", NewKey: openssl.RSA2048()})
	c.authEnv["AWS_ACCESS_KEY_ID"], c.authEnv["AWS_SECRET_ACCESS_KEY"] = auth.ID, auth.Secret
	c.authEnv["TELEPORT_EC2_CERTIFICATES"] = filepath.Dir(c.file(t, ec2Region+".pem", c.signer.PEM))
	c.NewEC2()
}

// NewEC2 makes this machine another EC2 instance, that was started just now. It returns
// its id.
func (c *clouds) NewEC2() string {
	c.mu.Lock()
	c.instances++
	n := c.instances
	c.mu.Unlock()
	id := fmt.Sprintf("i-%017x", n)
	document, err := json.MarshalIndent(map[string]any{
		"accountId": ec2Account, "architecture": "x86_64", "availabilityZone": ec2Region + "b", "imageId": "ami-0123456789abcdef0", "instanceId": id,
		"instanceType": "t3.micro", "pendingTime": time.Now().Add(-time.Minute).UTC().Format(time.RFC3339), "privateIp": "10.0.0.7", "region": ec2Region,
		"version": "2017-09-30", "kernelId": nil, "ramdiskId": nil, "billingProducts": nil, "devpayProductCodes": nil, "marketplaceProductCodes": nil,
	}, "", "  ")
	if err != nil {
		c.t.Fatal(err)
	}
	c.metadata.Paths = map[string]string{"/latest/dynamic/instance-identity/rsa2048": base64.StdEncoding.EncodeToString(c.signer.SignCMS(c.t, document, "-nocerts"))}
	c.aws.Services["ec2"] = awsfake.Instances(awsfake.Instance{ID: id, Account: ec2Account, Region: ec2Region})
	return id
}

func (c *clouds) startAzure(t *testing.T) {
	authority := azurefake.NewAuthority(t)
	w := azurefake.New(t, authority, authority.Signer(t, azurefake.Signers))
	w.Subscription = azureSubscription
	w.Resource = "/subscriptions/" + w.Subscription + "/resourceGroups/Nodes/providers/Microsoft.Compute/virtualMachines/node-1"
	w.Identity = w.Resource
	c.azure = w
	c.authEnv["TELEPORT_AZURE_ROOTS"] = authority.Root.File
	relay(t, azureIP+":443", w.Server().Addr)
	relay(t, azureIP+":80", w.PublishedAddr())
}

// NewOracle makes this machine another instance of Oracle Cloud.
func (c *clouds) NewOracle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.instances++
	id := fmt.Sprintf("ocid1.instance.oc1.eu-frankfurt-1.aaaa%d", c.instances)
	c.oracle = ocifake.MetadataHandler(c.oci.Issue(c.t, ocifake.Units(id, oracleCompartment, oracleTenancy), "", ""))
}

// serveMetadata is the metadata service of the machine: which cloud it is in is a
// matter of whom one asks for.
func (c *clouds) serveMetadata(t *testing.T) {
	serveHTTP(t, listenOn(t, linkLocal+":80"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/latest/"):
			c.metadata.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/metadata/"):
			c.azure.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/computeMetadata/"):
			c.gcp.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/opc/"):
			c.mu.Lock()
			h := c.oracle
			c.mu.Unlock()
			h.ServeHTTP(w, r)
		default:
			http.NotFound(w, r)
		}
	}))
}

// serveJobs are the services that two of the CI platforms have for their jobs.
func (c *clouds) serveJobs(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+jobSecret {
		http.Error(w, "no such job", http.StatusUnauthorized)
		return
	}
	if strings.HasPrefix(r.Host, "dev.azure.com") {
		_ = json.NewEncoder(w).Encode(map[string]string{"oidcToken": c.Mint("azure_devops", nil)})
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"value": c.Mint("github", map[string]any{"aud": r.URL.Query().Get("audience")})})
}

// Mint returns a token as the platform gives the job or the pod of the guides.
func (c *clouds) Mint(platform string, claims map[string]any) string {
	c.mu.Lock()
	c.minted++
	all := map[string]any{"jti": fmt.Sprintf("token-%d", c.minted)}
	c.mu.Unlock()
	for _, from := range []map[string]any{c.jobs[platform], claims} {
		for name, v := range from {
			all[name] = v
		}
	}
	return c.issuers[platform].Mint(time.Now(), all)
}

// jobClaims are the jobs and pods of the guides.
func jobClaims() map[string]map[string]any {
	pod := map[string]any{
		"sub": "system:serviceaccount:teleport-agents:teleport-agent", "aud": []string{clusterName},
		"kubernetes.io": map[string]any{
			"namespace": "teleport-agents", "serviceaccount": map[string]any{"name": "teleport-agent", "uid": uuid1},
			"pod": map[string]any{"name": "teleport-agent-0", "uid": uuid2}, "node": map[string]any{"name": "worker-1", "uid": uuid1},
		},
	}
	return map[string]map[string]any{
		"github": {
			"sub": "repo:octo-org/octo-repo:environment:production", "repository": "octo-org/octo-repo", "repository_id": "74", "repository_owner": "octo-org",
			"ref": "refs/heads/main", "ref_type": "branch", "environment": "production", "event_name": "push",
		},
		"gitlab": {"aud": clusterName, "sub": "project_path:acme/web:ref_type:branch:ref:main", "project_path": "acme/web", "ref": "main", "ref_type": "branch", "ref_protected": "true"},
		"circleci": {
			"aud": uuid1, "sub": "org/" + uuid1 + "/project/" + uuid2 + "/user/" + uuid1, "oidc.circleci.com/project-id": uuid2,
			"oidc.circleci.com/context-ids": []string{"a74579f1-2e7d-451e-b009-5c082ad2729e"},
		},
		"spacelift": {
			"aud": "demo.app.spacelift.io", "sub": "space:root:stack:infra:run_type:TRACKED:scope:write", "spaceId": "root", "callerId": "infra", "callerType": "stack", "scope": "write",
		},
		"terraform_cloud": {
			"aud": clusterName, "sub": "organization:acme:project:Default Project:workspace:web:run_phase:apply", "terraform_organization_name": "acme",
			"terraform_workspace_name": "web", "terraform_run_phase": "apply",
		},
		"bitbucket": {
			"aud": "ari:cloud:bitbucket::workspace/" + uuid1, "sub": "{" + uuid2 + "}:{" + uuid1 + "}", "repositoryUuid": "{" + uuid2 + "}", "workspaceUuid": "{" + uuid1 + "}", "branchName": "main",
		},
		"azure_devops": {"aud": "api://AzureADTokenExchange", "sub": "p://acme/web/deploy", "org_id": uuid1, "rpo_ref": "refs/heads/main"},
		"env0": {
			"aud": "https://prod.env0.com", "sub": "auth0|1", "apiKeyType": "oidc", "organizationId": uuid1, "projectId": uuid2, "environmentName": "production",
		},
		"oidc":       {"aud": clusterName, "sub": "job:17", "org": "acme", "runner": map[string]any{"trusted": true}, "ref": "refs/heads/release/1.2"},
		"eks":        pod,
		"eks2":       pod,
		"kubernetes": pod,
	}
}

func listenOn(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func serveHTTP(t *testing.T, l net.Listener, h http.Handler) {
	t.Helper()
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // ends with Close
	}()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
}

// relay passes connections to an address on to another one, and they come from the
// first.
func relay(t *testing.T, from, to string) {
	t.Helper()
	l := listenOn(t, from)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer down.Close()
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: l.Addr().(*net.TCPAddr).IP}}
				up, err := dialer.Dial("tcp", to)
				if err != nil {
					return
				}
				defer up.Close()
				go func() {
					_, _ = io.Copy(up, down)
					_ = up.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(down, up)
			}()
		}
	}()
}
