package ec2_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/ec2"
	"teleport/internal/join/egress"
	"teleport/internal/join/jointest"
	"teleport/internal/join/method"
	"teleport/test/awsfake"
	"teleport/test/netns"
	"teleport/test/openssl"
)

const (
	account = "123456789012"
	region  = "eu-central-1"
	image   = "ami-0123456789abcdef0"
)

// world is AWS with one instance in it, which has its document.
type world struct {
	instance string
	signer   *openssl.Certificate
	metadata *awsfake.Metadata
	cloud    *awsfake.Cloud
	// document is what is signed.
	document map[string]any
}

var instances atomic.Uint64

// newWorld returns a world in which everything is well, and an attempt of it. The
// signer is known to Auth as a certificate of the region, beside the genuine one.
func newWorld(t *testing.T, signer *openssl.Certificate) (*world, *jointest.Setup) {
	t.Helper()
	w := &world{
		instance: fmt.Sprintf("i-%017x", instances.Add(1)),
		signer:   signer, metadata: &awsfake.Metadata{Region: region}, cloud: awsfake.New(t),
	}
	w.document = map[string]any{
		"accountId": account, "architecture": "x86_64", "availabilityZone": region + "b", "billingProducts": nil, "devpayProductCodes": nil,
		"marketplaceProductCodes": nil, "imageId": image, "instanceId": w.instance, "instanceType": "t3.micro", "kernelId": nil,
		"pendingTime": time.Now().Add(-time.Minute).UTC().Format(time.RFC3339), "privateIp": "10.0.0.7", "ramdiskId": nil, "region": region,
		"version": "2017-09-30",
	}
	w.sign(t)
	key := awsfake.Key{ID: "AKIAIOSFODNN7EXAMPLE", Secret: "secret", Account: account, ARN: "arn:aws:iam::" + account + ":user/auth", UserID: "AIDA"}
	w.cloud.Add(key)
	w.runs(awsfake.Instance{ID: w.instance, Account: account, Region: region})
	env := map[string]string{
		ec2.CertificatesVariable: folder(t, region, signer.PEM), "AWS_ACCESS_KEY_ID": key.ID, "AWS_SECRET_ACCESS_KEY": key.Secret,
	}
	return w, &jointest.Setup{
		Spec: &typesv1.TokenSpec{Allow: []*typesv1.AWSRule{{AwsAccount: account, AwsRegions: []string{"us-east-1", region}}}},
		Machine: method.Machine{
			Getenv:   func(string) string { return "" },
			Metadata: egress.Metadata(egress.Config{Dial: w.metadata.Start(t)}), Egress: egress.New(egress.Config{Dial: nowhere}),
		},
		Auth:    egress.Config{Roots: w.cloud.Roots(), Dial: w.cloud.Start(t)},
		AuthEnv: func(name string) string { return env[name] },
	}
}

func nowhere(_ context.Context, _, addr string) (net.Conn, error) {
	return nil, errors.New("no way to " + addr)
}

// folder is a folder with the certificate of a region.
func folder(t *testing.T, region string, pem []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, region+".pem"), pem, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (w *world) runs(all ...awsfake.Instance) { w.cloud.Services["ec2"] = awsfake.Instances(all...) }

// sign gives the instance its document.
func (w *world) sign(t *testing.T) {
	t.Helper()
	text, err := json.MarshalIndent(w.document, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	w.serve(w.signer.SignCMS(t, text, "-nocerts"))
}

// serve has the metadata service give a document, in lines as the real one does.
func (w *world) serve(document []byte) {
	text := base64.StdEncoding.EncodeToString(document)
	var lines []string
	for len(text) > 64 {
		lines, text = append(lines, text[:64]), text[64:]
	}
	w.metadata.Paths = map[string]string{"/latest/dynamic/instance-identity/rsa2048": strings.Join(append(lines, text), "\n")}
}

// signerOf makes a certificate like those of AWS.
func signerOf(t *testing.T) *openssl.Certificate {
	t.Helper()
	return openssl.SelfSigned(t, openssl.Spec{Subject: "/C=US/O=Amazon Web Services LLC", NewKey: openssl.RSA2048()})
}

// bad is a case that bends the world before its attempt.
func bad(name, code string, bend func(t *testing.T, w *world, s *jointest.Setup)) func(*openssl.Certificate) jointest.Case {
	return func(signer *openssl.Certificate) jointest.Case {
		return jointest.Case{Name: name, Code: code, Bend: func(t *testing.T, s *jointest.Setup) {
			w, bent := newWorld(t, signer)
			bend(t, w, bent)
			*s = *bent
		}}
	}
}

// set is a case with other members in the document, signed by AWS.
func set(name, code string, values map[string]any) func(*openssl.Certificate) jointest.Case {
	return bad(name, code, func(t *testing.T, w *world, _ *jointest.Setup) {
		for k, v := range values {
			w.document[k] = v
		}
		w.sign(t)
	})
}

func TestSuite(t *testing.T) {
	signer := signerOf(t)
	rig := jointest.Rig{
		Method: ec2.Method(),
		Good: func(t *testing.T) *jointest.Setup {
			_, s := newWorld(t, signer)
			return s
		},
		Claims: map[string]string{"aws_account": account, "aws_region": region, "aws_image_id": image, "aws_private_ip": "10.0.0.7"},
		NotApplicable: map[string]string{
			"wrong_audience": "an identity document names no audience: it admits once, see \"proof of another attempt\"",
		},
	}
	for _, c := range [][]func(*openssl.Certificate) jointest.Case{documentCases(), signatureCases(), ruleCases(), cloudCases()} {
		for _, make := range c {
			rig.Bad = append(rig.Bad, make(signer))
		}
	}
	jointest.Run(t, rig)
}

func documentCases() []func(*openssl.Certificate) jointest.Case {
	at := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	return []func(*openssl.Certificate) jointest.Case{
		set("expired", method.CodeProofExpired, map[string]any{"pendingTime": at(-6 * time.Minute)}),
		set("future", method.CodeProofNotYetValid, map[string]any{"pendingTime": at(2 * time.Minute)}),
		bad("expired by the token", method.CodeProofExpired, func(_ *testing.T, _ *world, s *jointest.Setup) { s.Spec.AwsIidTtl = "30s" }),
		set("wrong_account", method.CodeRuleMismatch, map[string]any{"accountId": "210987654321"}),
		set("account is a number", method.CodeProofMalformed, map[string]any{"accountId": 123456789012}),
		set("account in other digits", method.CodeProofMalformed, map[string]any{"accountId": "12345678901²"}),
		set("no instance", method.CodeProofMalformed, map[string]any{"instanceId": nil}),
		set("instance with a slash", method.CodeProofMalformed, map[string]any{"instanceId": "i-0123456789/../1"}),
		set("no time", method.CodeProofMalformed, map[string]any{"pendingTime": ""}),
		bad("names twice", method.CodeProofMalformed, func(t *testing.T, w *world, _ *jointest.Setup) {
			text, err := json.Marshal(w.document)
			if err != nil {
				t.Fatal(err)
			}
			w.serve(w.signer.SignCMS(t, append([]byte(`{"accountId":"210987654321",`), text[1:]...), "-nocerts"))
		}),
		bad("names in another case", method.CodeProofMalformed, func(t *testing.T, w *world, _ *jointest.Setup) {
			delete(w.document, "accountId")
			w.document["AccountID"] = account
			w.sign(t)
		}),
		bad("not json", method.CodeProofMalformed, func(t *testing.T, w *world, _ *jointest.Setup) {
			w.serve(w.signer.SignCMS(t, []byte("region: eu-central-1"), "-nocerts"))
		}),
	}
}

func signatureCases() []func(*openssl.Certificate) jointest.Case {
	return []func(*openssl.Certificate) jointest.Case{
		bad("key of another region", method.CodeProofSignature, func(t *testing.T, w *world, _ *jointest.Setup) {
			w.document["region"] = "us-east-1" // where Auth has AWS's own certificate only
			w.sign(t)
		}),
		bad("another key", method.CodeProofSignature, func(t *testing.T, w *world, _ *jointest.Setup) {
			w.signer = signerOf(t)
			w.sign(t)
		}),
		bad("own certificate in the bag", method.CodeProofSignature, func(t *testing.T, w *world, _ *jointest.Setup) {
			text, err := json.Marshal(w.document)
			if err != nil {
				t.Fatal(err)
			}
			w.serve(signerOf(t).SignCMS(t, text, "-certfile", w.signer.File))
		}),
		bad("second signer", method.CodeProofMalformed, func(t *testing.T, w *world, _ *jointest.Setup) {
			text, err := json.Marshal(w.document)
			if err != nil {
				t.Fatal(err)
			}
			other := signerOf(t)
			w.serve(w.signer.SignCMS(t, text, "-signer", other.File, "-inkey", other.Key))
		}),
		bad("content bent", method.CodeProofSignature, func(_ *testing.T, w *world, s *jointest.Setup) {
			s.Tamper = func(answer []byte) []byte {
				return bytes.Replace(answer, []byte(w.instance), []byte("i-0ffffffffffffffff"), 1)
			}
		}),
		bad("region that AWS does not have", method.CodeProofMalformed, func(t *testing.T, w *world, _ *jointest.Setup) {
			w.document["region"] = "../" + region
			w.sign(t)
		}),
		bad("region without a certificate", method.CodeProofSignature, func(t *testing.T, w *world, _ *jointest.Setup) {
			w.document["region"] = "eu-north-9"
			w.sign(t)
		}),
		bad("certificate file with something else", method.CodeProofSignature, func(t *testing.T, _ *world, s *jointest.Setup) {
			dir := folder(t, region, []byte("not a certificate"))
			s.AuthEnv = func(string) string { return dir }
		}),
		bad("certificate over", method.CodeProofSignature, func(t *testing.T, w *world, s *jointest.Setup) {
			// Signed without attributes, so that no signing time says so first.
			over := openssl.SelfSigned(t, openssl.Spec{
				Subject: "/O=AWS", NewKey: openssl.RSA2048(), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
			})
			text, err := json.Marshal(w.document)
			if err != nil {
				t.Fatal(err)
			}
			w.serve(over.SignCMS(t, text, "-nocerts", "-noattr"))
			dir := folder(t, region, over.PEM)
			s.AuthEnv = func(string) string { return dir }
		}),
	}
}

func ruleCases() []func(*openssl.Certificate) jointest.Case {
	rule := func(name string, r *typesv1.AWSRule) func(*openssl.Certificate) jointest.Case {
		return bad(name, method.CodeRuleMismatch, func(_ *testing.T, w *world, s *jointest.Setup) {
			s.Spec.Allow = []*typesv1.AWSRule{r}
			// Nobody is asked about an instance that the rules do not want.
			s.Auth.Dial = nowhere
		})
	}
	return []func(*openssl.Certificate) jointest.Case{
		rule("another account", &typesv1.AWSRule{AwsAccount: "210987654321"}),
		rule("another region", &typesv1.AWSRule{AwsAccount: account, AwsRegions: []string{"eu-central-2"}}),
		rule("role of another account", &typesv1.AWSRule{AwsRole: "arn:aws:iam::210987654321:role/teleport"}),
	}
}

func cloudCases() []func(*openssl.Certificate) jointest.Case {
	instance := func(name string, bend func(*awsfake.Instance)) func(*openssl.Certificate) jointest.Case {
		return bad(name, method.CodeCloudRefused, func(_ *testing.T, w *world, _ *jointest.Setup) {
			i := awsfake.Instance{ID: w.instance, Account: account, Region: region}
			bend(&i)
			w.runs(i)
		})
	}
	answer := func(name, code string, answer http.HandlerFunc) func(*openssl.Certificate) jointest.Case {
		return bad(name, code, func(_ *testing.T, w *world, _ *jointest.Setup) { w.cloud.Answer = answer })
	}
	return []func(*openssl.Certificate) jointest.Case{
		bad("cloud_down", method.CodeCloudUnreachable, func(_ *testing.T, _ *world, s *jointest.Setup) { s.Auth.Dial = nowhere }),
		answer("cloud fails", method.CodeCloudUnreachable, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }),
		answer("cloud redirects", method.CodeCloudUnreachable, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://ec2.us-east-1.amazonaws.com/", http.StatusTemporaryRedirect)
		}),
		instance("cloud_lies", func(i *awsfake.Instance) { i.Says.ID = "i-0ffffffffffffffff" }),
		instance("cloud names another account", func(i *awsfake.Instance) { i.Says.Account = "210987654321" }),
		answer("cloud babbles", method.CodeCloudRefused, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>hello</html>") }),
		answer("cloud knows nothing", method.CodeCloudRefused, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>")
		}),
		instance("stopped", func(i *awsfake.Instance) { i.State = "stopped" }),
		instance("terminated", func(i *awsfake.Instance) { i.State = "terminated" }),
		instance("in another region", func(i *awsfake.Instance) { i.Region = "eu-central-2" }),
		instance("of another account", func(i *awsfake.Instance) { i.Account = "210987654321" }),
		bad("role not given", method.CodeCloudRefused, func(_ *testing.T, _ *world, s *jointest.Setup) {
			s.Spec.Allow = []*typesv1.AWSRule{{AwsRole: "arn:aws:iam::" + account + ":role/nobody"}}
		}),
		bad("secret of Auth wrong", method.CodeCloudRefused, func(_ *testing.T, w *world, _ *jointest.Setup) {
			w.cloud.Add(awsfake.Key{ID: "AKIAIOSFODNN7EXAMPLE", Secret: "another", Account: account})
		}),
		bad("no metadata service", method.CodeMetadata, func(_ *testing.T, _ *world, s *jointest.Setup) {
			s.Machine.Metadata = egress.Metadata(egress.Config{Dial: nowhere})
		}),
		bad("no document", method.CodeMetadata, func(_ *testing.T, w *world, _ *jointest.Setup) { w.metadata.Paths = nil }),
		bad("document not base64", method.CodeMetadata, func(_ *testing.T, w *world, _ *jointest.Setup) {
			w.metadata.Paths = map[string]string{"/latest/dynamic/instance-identity/rsa2048": "<html>"}
		}),
	}
}

// TestClaims: what the ledger and the host id are made of.
func TestClaims(t *testing.T) {
	w, s := newWorld(t, signerOf(t))
	c, err := jointest.Attempt(t.Context(), ec2.Method(), s, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if want := account + "-" + w.instance; c.HostID != want {
		t.Errorf("HostID = %q, want %q", c.HostID, want)
	}
	if want := "ec2/" + account + "/" + w.instance; c.Machine != want {
		t.Errorf("Machine = %q, want %q", c.Machine, want)
	}
	if len(c.Once) != 1 || !c.Once[0].Until.IsZero() || c.Once[0].ID != account+"/"+w.instance+"/"+w.document["pendingTime"].(string) {
		t.Errorf("Once = %+v", c.Once)
	}
	// After a stop and a start it is another document, which admits once more; another
	// signature of the same one is not.
	again, err := jointest.Attempt(t.Context(), ec2.Method(), s, [32]byte{2})
	if err != nil || again.Once[0] != c.Once[0] {
		t.Errorf("the same start: %+v, %v", again.Once, err)
	}
	w.document["pendingTime"] = time.Now().UTC().Format(time.RFC3339)
	w.sign(t)
	restarted, err := jointest.Attempt(t.Context(), ec2.Method(), s, [32]byte{3})
	if err != nil || restarted.Once[0] == c.Once[0] {
		t.Errorf("after another start: %+v, %v", restarted.Once, err)
	}
	if w.metadata.Untold() != 0 {
		t.Error("the machine asked without a token of the metadata service")
	}
}

// TestRefusedClaims: a refusal after the signature was good comes with what was
// verified, and one before it with nothing.
func TestRefusedClaims(t *testing.T) {
	w, s := newWorld(t, signerOf(t))
	w.runs()
	if c, err := jointest.Attempt(t.Context(), ec2.Method(), s, [32]byte{}); err == nil || c.Get("aws_instance_id") != w.instance {
		t.Errorf("refused by the cloud: claims %v, error %v", c.Attributes, err)
	}
	w.signer = signerOf(t)
	w.sign(t)
	if c, err := jointest.Attempt(t.Context(), ec2.Method(), s, [32]byte{}); err == nil || c.Attributes != nil {
		t.Errorf("not signed: claims %v, error %v", c.Attributes, err)
	}
}

// TestRole: Auth assumes the role of the rule that matches, and asks with its keys.
func TestRole(t *testing.T) {
	w, s := newWorld(t, signerOf(t))
	const role = "arn:aws:iam::" + account + ":role/teleport-describe"
	// Auth's own keys are of another account, and see nothing.
	w.cloud.Add(awsfake.Key{ID: "AKIAIOSFODNN7EXAMPLE", Secret: "secret", Account: "210987654321", ARN: "arn:aws:iam::210987654321:user/auth", UserID: "AIDA"})
	w.cloud.AddRole(role, awsfake.Key{ID: "ASIAIOSFODNN7EXAMPL", Secret: "session", Account: account, ARN: "arn:aws:sts::" + account + ":assumed-role/teleport-describe", UserID: "AROA"})
	s.Spec.Allow = []*typesv1.AWSRule{
		{AwsAccount: "210987654321", AwsRole: "arn:aws:iam::210987654321:role/other"},
		{AwsAccount: account, AwsRegions: []string{"us-east-1"}},
		{AwsRole: role},
	}
	if _, err := jointest.Attempt(t.Context(), ec2.Method(), s, [32]byte{}); err != nil {
		t.Fatal(err)
	}
	var asked []string
	for _, a := range w.cloud.Asked() {
		asked = append(asked, a.Host)
	}
	if want := []string{"sts." + region + ".amazonaws.com", "ec2." + region + ".amazonaws.com"}; strings.Join(asked, " ") != strings.Join(want, " ") {
		t.Errorf("Auth asked %q, want %q", asked, want)
	}
	s.Spec.Allow = nil
	for i := range 5 {
		s.Spec.Allow = append(s.Spec.Allow, &typesv1.AWSRule{AwsRole: fmt.Sprintf("arn:aws:iam::%s:role/r%d", account, i)})
	}
	if _, err := jointest.Attempt(t.Context(), ec2.Method(), s, [32]byte{}); fault.Code(err) != method.CodeRuleMismatch {
		t.Errorf("five roles: %v, want code %s", err, method.CodeRuleMismatch)
	}
}

// TestTrueAddress: the metadata service at the address where instances have it, in a
// network where it is the only one; Auth takes its keys from there as well.
func TestTrueAddress(t *testing.T) {
	netns.Run(t, netns.Network{Addresses: []string{"169.254.169.254/32"}}, func(t *testing.T) {
		w, s := newWorld(t, signerOf(t))
		key := awsfake.Key{
			ID: "ASIAIOSFODNN7EXAMPLE", Secret: "of-the-role", SessionToken: "token", Expires: time.Now().Add(time.Hour),
			Account: account, ARN: "arn:aws:sts::" + account + ":assumed-role/auth/" + w.instance, UserID: "AROA",
		}
		w.cloud.Add(key)
		w.metadata.Role, w.metadata.Key = "auth", key
		l, err := net.Listen("tcp", "169.254.169.254:80")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: w.metadata, ReadHeaderTimeout: time.Minute}
		done := make(chan error, 1)
		go func() { done <- server.Serve(l) }()
		defer func() {
			server.Close()
			<-done
		}()
		s.Machine.Metadata = egress.Metadata(egress.Config{})
		certificates := s.AuthEnv(ec2.CertificatesVariable)
		s.AuthEnv = func(name string) string {
			return map[string]string{ec2.CertificatesVariable: certificates, "HOME": t.TempDir()}[name]
		}
		c, err := jointest.Attempt(t.Context(), ec2.Method(), s, [32]byte{})
		if err != nil || c.Get("aws_instance_id") != w.instance {
			t.Errorf("claims %v, error %v", c.Attributes, err)
		}
		if w.metadata.Untold() != 0 {
			t.Error("somebody asked the metadata service without a token")
		}
	})
}
