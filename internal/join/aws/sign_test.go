package aws_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"teleport/internal/join/aws"
	"teleport/internal/keys"
)

// TestSignVector is the first case of AWS's own test suite for Signature Version 4.
func TestSignVector(t *testing.T) {
	at := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	c := aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
	r := aws.Request{Method: "GET", Host: "example.amazonaws.com"}
	got := aws.SignedHeader(r, aws.Scope{Service: "service", Region: "us-east-1", Time: at}, c).Get("Authorization")
	want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, " +
		"Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
	if got != want {
		t.Errorf("Authorization:\n%s\nwant\n%s", got, want)
	}
}

// signed is a request, as the script below gets it.
type signed struct {
	Method, URL, Body string
	Header            map[string]string
	ID, Secret, Token string
	Service, Region   string
	Date              string
}

// botocoreSigner signs with the library of Debian's awscli, which has not one line in
// common with ours.
const botocoreSigner = `
import datetime, json, sys, types
import awscli, botocore.session
from botocore import auth, awsrequest, credentials
for line in sys.stdin:
    c = json.loads(line)
    now = datetime.datetime.strptime(c["Date"], "%Y%m%dT%H%M%SZ")
    class Fixed(datetime.datetime):
        @classmethod
        def utcnow(cls):
            return now
    auth.datetime = types.SimpleNamespace(datetime=Fixed)
    r = awsrequest.AWSRequest(method=c["Method"], url=c["URL"], data=c["Body"].encode(), headers=c["Header"])
    k = credentials.Credentials(c["ID"], c["Secret"], c["Token"] or None)
    auth.SigV4Auth(k, c["Service"], c["Region"]).add_auth(r)
    print(r.headers["Authorization"])
`

// TestSignAgreesWithBotocore signs requests of many shapes with both.
func TestSignAgreesWithBotocore(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	text := func(alphabet string, most int) string {
		out := make([]rune, random.IntN(most+1))
		for i := range out {
			out[i] = []rune(alphabet)[random.IntN(len([]rune(alphabet)))]
		}
		return string(out)
	}
	var input bytes.Buffer
	var want []string
	for i := range 200 {
		r := aws.Request{
			Method: []string{"GET", "POST", "PUT"}[random.IntN(3)], Host: fmt.Sprintf("sts.eu-central-%d.amazonaws.com", 1+i%9), Path: "/",
			Header: map[string]string{"content-type": aws.FormType, "x-teleport-challenge": text("abcXYZ019-_", 43)},
			Body:   []byte(text("Action=Get&ü ", 60)),
		}
		address := url.URL{Scheme: "https", Host: r.Host, Path: r.Path}
		if r.Method == "GET" { // a form in the address is of GET
			r.Query = url.Values{}
			for range random.IntN(4) {
				r.Query.Add("k"+text("az~. +/", 3), text("aZ9-._~ /&=+%ü*'()", 12))
			}
			address.RawQuery = strings.ReplaceAll(r.Query.Encode(), "+", "%20")
		}
		c := aws.Credentials{AccessKeyID: "ASIAIOSFODNN7EXAMPLE", SecretAccessKey: keys.Secret("s" + text("abc/+=", 40)), SessionToken: keys.Secret(text("abc/+=", 90))}
		scope := aws.Scope{Service: []string{"sts", "ec2"}[i%2], Region: "eu-central-1", Time: time.Unix(1_700_000_000+random.Int64N(1e8), 0)}
		want = append(want, aws.SignedHeader(r, scope, c).Get("Authorization"))
		if err := json.NewEncoder(&input).Encode(signed{
			Method: r.Method, URL: address.String(), Body: string(r.Body), Header: r.Header,
			ID: c.AccessKeyID, Secret: c.SecretAccessKey.Reveal(), Token: c.SessionToken.Reveal(),
			Service: scope.Service, Region: scope.Region, Date: scope.Time.UTC().Format(aws.DateLayout),
		}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c", botocoreSigner)
	requests := bytes.Split(bytes.TrimSpace(input.Bytes()), []byte("\n"))
	cmd.Stdin = &input
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("botocore of Debian's awscli: %v\n%s", err, stderr.String())
	}
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(got) != len(want) {
		t.Fatalf("botocore signed %d of %d requests", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("request %s\nbotocore %s\nours     %s", requests[i], got[i], want[i])
		}
	}
}

func TestHosts(t *testing.T) {
	rows := []struct {
		service, region string
		fips            bool
		host            string
	}{
		{"sts", "us-east-1", false, "sts.us-east-1.amazonaws.com"},
		{"sts", "us-east-1", true, "sts-fips.us-east-1.amazonaws.com"},
		{"ec2", "us-west-2", true, "ec2-fips.us-west-2.amazonaws.com"},
		{"sts", "eu-central-1", true, ""},
		{"sts", "ap-southeast-7", false, "sts.ap-southeast-7.amazonaws.com"},
		{"sts", "mx-central-1", false, "sts.mx-central-1.amazonaws.com"},
		{"ec2", "cn-north-1", false, "ec2.cn-north-1.amazonaws.com.cn"},
		{"sts", "cn-north-1", true, ""},
		{"sts", "us-gov-east-1", false, "sts.us-gov-east-1.amazonaws.com"},
		{"sts", "us-gov-east-1", true, "sts.us-gov-east-1.amazonaws.com"},
		{"sts", "us-iso-east-1", false, "sts.us-iso-east-1.c2s.ic.gov"},
		{"sts", "us-isob-east-1", false, "sts.us-isob-east-1.sc2s.sgov.gov"},
		{"sts", "us-isof-south-1", false, "sts.us-isof-south-1.csp.hci.ic.gov"},
		{"sts", "eu-isoe-west-1", false, "sts.eu-isoe-west-1.cloud.adc-e.uk"},
		{"sts", "eusc-de-east-1", false, "sts.eusc-de-east-1.amazonaws.eu"},
		{"sts", "", false, ""},
		{"sts", "-1", false, ""},
		{"sts", "us-1", false, ""},
		{"sts", "us-east-0", false, ""},
		{"sts", "us-east-10", false, ""},
		{"sts", "us-up-1", false, ""},
		{"sts", "xx-east-1", false, ""},
		{"sts", "us-gov-evil-1", false, ""},
		{"sts", "a.us-east-1", false, ""},
		{"sts", "us-east-1.evil", false, ""},
		{"sts", "us-east-1\n", false, ""},
	}
	for _, row := range rows {
		got, err := aws.Host(row.service, row.region, row.fips)
		if got != row.host || (err == nil) != (row.host != "") {
			t.Errorf("Host(%q, %q, %v) = %q, %v, want %q", row.service, row.region, row.fips, got, err, row.host)
		}
	}
}
