package aws

import (
	"context"
	"encoding/xml"
	"net/http"
	"net/url"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/keys"
)

// The form in which the older services of AWS are asked.
const (
	FormType    = "application/x-www-form-urlencoded; charset=utf-8"
	stsVersion  = "2011-06-15"
	defaultName = "teleport"
)

// Role is a role to assume.
type Role struct {
	ARN string
	// Session names the session in AWS's logs; empty is "teleport".
	Session    string
	ExternalID string
	// Region of the STS that is asked.
	Region string
	FIPS   bool
}

// Call makes a signed call of the Query API: a form posted to a host of the table.
// The answer comes back as it is when its status is 200; otherwise the error has the
// code of AWS and, with Auth's reason codes, whether it refused or failed.
func Call(ctx context.Context, client *egress.Client, c Credentials, service, region string, fips bool, now time.Time, form url.Values) ([]byte, error) {
	host, err := Host(service, region, fips)
	if err != nil {
		return nil, err
	}
	r := Request{Method: http.MethodPost, Host: host, Path: "/", Header: map[string]string{"content-type": FormType}, Body: []byte(form.Encode())}
	return post(ctx, client, host, SignedHeader(r, Scope{Service: service, Region: region, Time: now}, c), r.Body)
}

// post sends a form. The host is one of ours, so that an address inside the network
// is a private endpoint of AWS that the network's owner made.
func post(ctx context.Context, client *egress.Client, host string, header http.Header, body []byte) ([]byte, error) {
	resp, err := client.Do(ctx, egress.Request{Method: http.MethodPost, URL: "https://" + host + "/", Header: header, Body: body, Private: true})
	if err != nil {
		return nil, fault.New(fault.ErrUnreachable, "%w", err).WithCode(method.CodeCloudUnreachable)
	}
	if resp.Status != http.StatusOK {
		return nil, Refused(host, resp.Status, ErrorCode(resp.Body))
	}
	return resp.Body, nil
}

// ErrorCode returns AWS's name of the error in an answer in XML, or "" if it has none.
func ErrorCode(body []byte) string {
	var answer struct {
		Code string `xml:"Error>Code"`
		EC2  string `xml:"Errors>Error>Code"`
	}
	if err := xml.Unmarshal(body, &answer); err != nil {
		return ""
	}
	return answer.Code + answer.EC2
}

// Refused is the error for an answer of AWS that is not 200; code is AWS's own name of
// it, or empty.
func Refused(host string, status int, code string) error {
	if status >= 500 || status == http.StatusTooManyRequests || code == "Throttling" {
		return fault.New(fault.ErrUnreachable, "%s fails with HTTP %d%s: try again later", host, status, named(code)).WithCode(method.CodeCloudUnreachable)
	}
	if status >= 300 && status < 400 {
		return fault.New(fault.ErrUnreachable, "%s answers with a redirect (HTTP %d), which AWS does not do: something stands in between", host, status).WithCode(method.CodeCloudUnreachable)
	}
	return fault.New(fault.ErrDenied, "AWS refuses: %s answers HTTP %d%s%s", host, status, named(code), advice(code)).WithCode(method.CodeCloudRefused)
}

// named returns AWS's error code in a form that can be shown.
func named(code string) string {
	if code == "" || len(code) > 64 || strings.ContainsFunc(code, func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	}) {
		return ""
	}
	return " " + code
}

// advice says what to do about the error codes that people see.
func advice(code string) string {
	switch code {
	case "SignatureDoesNotMatch":
		return ": the secret key does not belong to the access key, or the machine's clock is wrong"
	case "ExpiredToken", "ExpiredTokenException":
		return ": the temporary credentials of the machine expired; where they stand in a file or the environment, renew them"
	case "InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure":
		return ": the access key does not exist, is switched off, or belongs to another partition or to a region that the account has not opted into"
	case "RequestExpired":
		return ": the machine's clock is wrong"
	case "AccessDenied", "UnauthorizedOperation":
		return ": a policy forbids it"
	}
	return ""
}

// AssumeRole returns the credentials of a role.
func AssumeRole(ctx context.Context, client *egress.Client, c Credentials, role Role, now time.Time) (Credentials, error) {
	form := url.Values{"Action": {"AssumeRole"}, "Version": {stsVersion}, "RoleArn": {role.ARN}, "RoleSessionName": {sessionName(role.Session)}}
	if role.ExternalID != "" {
		form.Set("ExternalId", role.ExternalID)
	}
	body, err := Call(ctx, client, c, "sts", role.Region, role.FIPS, now, form)
	if err != nil {
		return Credentials{}, fault.New(fault.Kind(err), "assume role %s: %w", role.ARN, err).WithCode(fault.Code(err))
	}
	return parseAssumed(body)
}

// fromWebIdentity assumes a role with the token that EKS, or another platform, mounts.
func (e Env) fromWebIdentity(ctx context.Context) (Credentials, error) {
	file, role := e.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE"), e.Getenv("AWS_ROLE_ARN")
	switch {
	case file == "":
		return Credentials{}, none("AWS_WEB_IDENTITY_TOKEN_FILE is not set")
	case role == "":
		return Credentials{}, fault.Invalid("AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not")
	}
	return e.webIdentity(ctx, "web identity", file, role, e.Getenv("AWS_ROLE_SESSION_NAME"))
}

func (e Env) webIdentity(ctx context.Context, source, file, role, session string) (Credentials, error) {
	token, err := e.readText(file)
	if err != nil {
		return Credentials{}, fault.Invalid("the web identity token: %w", err)
	}
	region, _ := Region(ctx, e)
	host, err := Host("sts", region, FIPS(e))
	if err != nil {
		return Credentials{}, err
	}
	form := url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {stsVersion}, "RoleArn": {role},
		"RoleSessionName": {sessionName(session)}, "WebIdentityToken": {token},
	}
	body, err := post(ctx, e.Egress, host, http.Header{"Content-Type": {FormType}}, []byte(form.Encode()))
	if err != nil {
		return Credentials{}, fault.New(fault.Kind(err), "assume role %s with the web identity token: %w", role, err).WithCode(fault.Code(err))
	}
	c, err := parseAssumed(body)
	c.Source = source
	return c, err
}

func sessionName(name string) string {
	if name == "" {
		return defaultName
	}
	return name
}

// parseAssumed reads the answer of AssumeRole and AssumeRoleWithWebIdentity.
func parseAssumed(body []byte) (Credentials, error) {
	type result struct {
		AccessKeyID     string    `xml:"Credentials>AccessKeyId"`
		SecretAccessKey string    `xml:"Credentials>SecretAccessKey"`
		SessionToken    string    `xml:"Credentials>SessionToken"`
		Expiration      time.Time `xml:"Credentials>Expiration"`
	}
	var answer struct {
		Role result `xml:"AssumeRoleResult"`
		Web  result `xml:"AssumeRoleWithWebIdentityResult"`
	}
	if err := xml.Unmarshal(body, &answer); err != nil {
		return Credentials{}, fault.Invalid("the answer of STS is not the XML it should be")
	}
	r := answer.Role
	if r.AccessKeyID == "" {
		r = answer.Web
	}
	return Credentials{
		AccessKeyID: r.AccessKeyID, SecretAccessKey: keys.Secret(r.SecretAccessKey), SessionToken: keys.Secret(r.SessionToken),
		Expires: r.Expiration,
	}, nil
}
