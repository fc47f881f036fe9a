package iam

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/aws"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/keys"
)

const (
	// window is how far the time of a signature may be from Auth's. AWS has a window of
	// its own; the transcript says that the signature was made in this attempt.
	window = 5 * time.Minute
	// maxARN bounds the ARN of a caller: a role session has at most 64 characters each
	// for role and session, a user a path of 512.
	maxARN = 2048
)

// verify is Auth's half.
func verify(ctx context.Context, a method.Attempt, ask method.Exchange) (method.Claims, error) {
	raw, err := ask(ctx, nil)
	if err != nil {
		return method.Claims{}, err
	}
	p, err := parseAnswer(raw)
	if err != nil {
		return method.Claims{}, err
	}
	if err := checkTime(p.at, a.Now); err != nil {
		return method.Claims{}, err
	}
	req, scope := request(p.host, p.region, a.T, p.at)
	// The host is of our own table, so an address inside the network is the private
	// endpoint that the network's owner made for STS.
	resp, err := a.Egress.Do(ctx, egress.Request{
		Method: req.Method, URL: "https://" + p.host + req.Path, Body: req.Body, Private: true,
		Header: aws.Header(req, scope, p.accessKeyID, p.sessionToken, p.signature),
	})
	if err != nil {
		return method.Claims{}, fault.New(fault.ErrUnreachable, "Auth cannot ask AWS who this machine is: %w", err).WithCode(method.CodeCloudUnreachable)
	}
	if resp.Status != http.StatusOK {
		return method.Claims{}, aws.Refused(p.host, resp.Status, errorCode(resp.Body))
	}
	claims, err := parseIdentity(resp.Body, p.region)
	if err != nil {
		return method.Claims{}, fault.New(fault.ErrDenied, "the answer of %s: %w", p.host, err).WithCode(method.CodeCloudRefused)
	}
	return claims, nil
}

// proof is an answer in its checked form.
type proof struct {
	host, region, accessKeyID, signature string
	sessionToken                         keys.Secret
	at                                   time.Time
}

// parseAnswer reads what the machine sent, and lets nothing pass that could be more
// than the part of a signature that it stands for.
func parseAnswer(raw []byte) (proof, error) {
	var in answer
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return proof{}, malformed("the proof is not the JSON of one")
	}
	if _, err := d.Token(); err != io.EOF {
		return proof{}, malformed("the proof has something after it")
	}
	p := proof{region: in.Region, accessKeyID: in.AccessKeyID, signature: in.Signature, sessionToken: keys.Secret(in.SessionToken)}
	var err error
	if p.host, err = aws.Host("sts", in.Region, in.FIPS); err != nil {
		return proof{}, malformed("%w", err)
	}
	if err := aws.CheckAccessKeyID(p.accessKeyID); err != nil {
		return proof{}, malformed("%w", err)
	}
	if err := aws.CheckSessionToken(p.sessionToken); err != nil {
		return proof{}, malformed("%w", err)
	}
	if len(p.signature) != 64 || strings.ContainsFunc(p.signature, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') }) {
		return proof{}, malformed("the signature is not 64 hexadecimal digits")
	}
	p.at, err = parseDate(in.Date)
	return p, err
}

func malformed(format string, args ...any) error {
	return fault.New(fault.ErrInvalid, format, args...).WithCode(method.CodeProofMalformed)
}

func checkTime(at, now time.Time) error {
	switch ahead := at.Sub(now); {
	case ahead > window:
		return fault.New(fault.ErrDenied, "the signature is dated %s in the future: set the clock of the machine (NTP)", ahead.Round(time.Second)).
			WithCode(method.CodeProofNotYetValid)
	case ahead < -window:
		return fault.New(fault.ErrDenied, "the signature is dated %s in the past: set the clock of the machine (NTP)", (-ahead).Round(time.Second)).
			WithCode(method.CodeProofExpired)
	}
	return nil
}

// parseIdentity reads the answer of STS, and compares it with the partition that was
// asked.
func parseIdentity(raw []byte, region string) (method.Claims, error) {
	result, err := member(raw, "GetCallerIdentityResponse", "GetCallerIdentityResult")
	if err != nil {
		return method.Claims{}, err
	}
	values := map[string]string{}
	for _, name := range []string{"Account", "Arn", "UserId"} {
		value, err := member(result, name)
		if err != nil {
			return method.Claims{}, err
		}
		var text string
		if json.Unmarshal(value, &text) != nil || text == "" || len(text) > maxARN || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return method.Claims{}, fault.Invalid("its %s is not a name", name)
		}
		values[name] = text
	}
	account, arn := values["Account"], values["Arn"]
	if len(account) != 12 || strings.ContainsFunc(account, func(r rune) bool { return r < '0' || r > '9' }) {
		return method.Claims{}, fault.Invalid("its account is not 12 digits")
	}
	partition, _ := aws.PartitionOf(region)
	parts := strings.SplitN(arn, ":", 6)
	switch {
	case len(parts) != 6 || parts[0] != "arn" || parts[2] != "sts" && parts[2] != "iam" || parts[3] != "" || parts[5] == "":
		return method.Claims{}, fault.Invalid("its ARN is not that of a caller")
	case parts[1] != partition.ID:
		return method.Claims{}, fault.Invalid("its ARN is of another partition than %s", partition.ID)
	case parts[4] != account:
		return method.Claims{}, fault.Invalid("its ARN is of another account")
	}
	return method.Claims{Attributes: map[string][]string{
		"aws_account": {account}, "aws_arn": {arn}, "aws_user_id": {values["UserId"]},
		"aws_partition": {partition.ID}, "aws_region": {region},
	}}, nil
}

// member returns a member of a JSON object by exact name, and its member, and so on.
// A name that stands twice is an error, also in other capitals: which one counts would
// be up to the reader.
func member(raw []byte, names ...string) (json.RawMessage, error) {
	for _, name := range names {
		var found json.RawMessage
		d := json.NewDecoder(bytes.NewReader(raw))
		if t, err := d.Token(); err != nil || t != json.Delim('{') {
			return nil, fault.Invalid("it is not the JSON that AWS answers with")
		}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, fault.Invalid("it is not the JSON that AWS answers with")
			}
			var value json.RawMessage
			if err := d.Decode(&value); err != nil {
				return nil, fault.Invalid("it is not the JSON that AWS answers with")
			}
			text, _ := key.(string)
			switch {
			case !strings.EqualFold(text, name):
			case text != name || found != nil:
				return nil, fault.Invalid("it has %s twice, or in other capitals", name)
			default:
				found = value
			}
		}
		// The end of the object, and nothing behind it.
		if _, err := d.Token(); err != nil {
			return nil, fault.Invalid("it is not the JSON that AWS answers with")
		}
		if _, err := d.Token(); err != io.EOF {
			return nil, fault.Invalid("it has something behind the JSON")
		}
		if found == nil {
			return nil, fault.Invalid("it has no %s", name)
		}
		raw = found
	}
	return raw, nil
}

// errorCode returns AWS's name of an error, or "". What stands between Auth and STS
// answers in XML.
func errorCode(raw []byte) string {
	value, err := member(raw, "Error", "Code")
	var code string
	if err != nil || json.Unmarshal(value, &code) != nil {
		return aws.ErrorCode(raw)
	}
	return code
}
