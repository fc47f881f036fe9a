package ec2

import (
	"context"
	"encoding/xml"
	"net/url"
	"os"
	"slices"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/aws"
	"teleport/internal/join/cms"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// verify checks the document and asks EC2 about the instance.
func verify(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
	answer, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	d, err := open(answer, a)
	if err != nil {
		return method.Claims{}, err
	}
	claims := d.claims()
	ttl, err := types.EC2DocumentTTL(a.Token.GetSpec())
	if err != nil {
		return claims, err
	}
	if err := d.checkTime(a.Now, ttl); err != nil {
		return claims, err
	}
	if err := a.Allowed(claims); err != nil {
		return claims, err
	}
	return claims, running(ctx, a, d, claims)
}

// open verifies the document by the certificate of its region and reads what was
// verified. The region is read before, but only to choose among the pinned
// certificates: one key per region, so that a document of another region fails.
func open(answer []byte, a method.Attempt) (document, error) {
	message, err := cms.Parse(answer)
	if err != nil {
		return document{}, err
	}
	region, err := regionOf(message.Untrusted())
	if err != nil {
		return document{}, err
	}
	pinned, err := certificatesOf(region, a.Getenv)
	if err != nil {
		return document{}, err
	}
	signed, err := message.VerifyBy(pinned)
	if err != nil {
		return document{}, err
	}
	if a.Now.Before(signed.Signer.NotBefore) || a.Now.After(signed.Signer.NotAfter) {
		return document{}, fault.New(fault.ErrDenied, "the certificate of AWS region %s is good from %s to %s, and it is %s: check the clock of the Auth Service, or give it AWS's new certificate by %s",
			region, stamp(signed.Signer.NotBefore), stamp(signed.Signer.NotAfter), stamp(a.Now), CertificatesVariable).WithCode(method.CodeProofSignature)
	}
	return parseDocument(signed.Content)
}

// maxRoles is how many roles are tried to ask about one instance.
const maxRoles = 4

// running asks EC2 whether the instance runs, with Auth's own credentials or, if the
// rule that admits says so, as a role that they may assume.
func running(ctx context.Context, a method.Attempt, d document, claims method.Claims) error {
	roles := rolesOf(a, claims)
	if len(roles) > maxRoles {
		return fault.New(fault.ErrInvalid, "%d rules of the token with different aws_role match this instance: the most is %d", len(roles), maxRoles).WithCode(method.CodeRuleMismatch)
	}
	env := aws.Env{
		Getenv: a.Getenv, HomeDir: a.Getenv("HOME"), ReadFile: os.ReadFile,
		// The Auth Service may run on an instance itself, and have a role from there.
		Metadata: egress.Metadata(egress.Config{}), Egress: a.Egress, Now: func() time.Time { return a.Now },
	}
	own, err := aws.Load(ctx, env)
	if err != nil {
		return fault.New(fault.ErrUnreachable, "the Auth Service asks EC2 whether the instance runs, and has no AWS credentials for it: %w", err).WithCode(method.CodeCloudUnreachable)
	}
	var refused error
	for _, role := range roles {
		if refused = runningAs(ctx, a, d, own, role, aws.FIPS(env)); refused == nil {
			return nil
		}
	}
	return refused
}

// rolesOf returns the roles of the rules that match, each once; "" is none.
func rolesOf(a method.Attempt, claims method.Claims) []string {
	results, _ := method.Match(a.Token.GetSpec(), claims)
	var roles []string
	for i, rule := range a.Token.GetSpec().GetAllow() {
		if i < len(results) && results[i].Matched && !slices.Contains(roles, rule.GetAwsRole()) {
			roles = append(roles, rule.GetAwsRole())
		}
	}
	return roles
}

func runningAs(ctx context.Context, a method.Attempt, d document, c aws.Credentials, role string, fips bool) error {
	if role != "" {
		assumed, err := aws.AssumeRole(ctx, a.Egress, c, aws.Role{ARN: role, Session: "teleport-join", Region: d.region, FIPS: fips}, a.Now)
		if err != nil {
			return fault.New(fault.Kind(err), "ask EC2 about instance %s: %w", d.instance, err).WithCode(fault.Code(err))
		}
		c = assumed
	}
	body, err := aws.Call(ctx, a.Egress, c, "ec2", d.region, fips, a.Now, url.Values{
		"Action": {"DescribeInstances"}, "Version": {"2016-11-15"}, "InstanceId.1": {d.instance},
	})
	if err != nil {
		return fault.New(fault.Kind(err), "ask EC2 about instance %s (the credentials of the Auth Service need ec2:DescribeInstances in account %s): %w", d.instance, d.account, err).WithCode(fault.Code(err))
	}
	return d.checkState(body)
}

// checkState reads the answer of DescribeInstances.
func (d document) checkState(body []byte) error {
	var answer struct {
		Reservations []struct {
			Owner     string `xml:"ownerId"`
			Instances []struct {
				ID    string `xml:"instanceId"`
				State string `xml:"instanceState>name"`
			} `xml:"instancesSet>item"`
		} `xml:"reservationSet>item"`
	}
	if err := xml.Unmarshal(body, &answer); err != nil {
		return refusal("EC2 answers about instance %s with something that is not its XML", d.instance)
	}
	if len(answer.Reservations) != 1 || len(answer.Reservations[0].Instances) != 1 || answer.Reservations[0].Instances[0].ID != d.instance {
		return refusal("EC2 does not know instance %s in region %s", d.instance, d.region)
	}
	if owner := answer.Reservations[0].Owner; owner != d.account {
		return refusal("EC2 says that instance %s is of account %.12q, and its identity document says %s", d.instance, owner, d.account)
	}
	if state := answer.Reservations[0].Instances[0].State; state != "running" {
		return refusal("EC2 says that instance %s is %.32q: expected running", d.instance, state)
	}
	return nil
}

func refusal(format string, args ...any) error {
	return fault.New(fault.ErrDenied, format, args...).WithCode(method.CodeCloudRefused)
}
