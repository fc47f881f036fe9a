package ec2

import (
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/jwk"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// document is what AWS says about an instance.
type document struct {
	account, instance, region string
	// pending is when the instance was last started.
	pending time.Time
	// others are stated as well, for the audit log.
	others map[string]string
}

// regionOf reads the region from a document that nobody has verified, to choose the
// certificate with.
func regionOf(content []byte) (string, error) {
	values, err := jwk.Object(content)
	if err != nil {
		return "", malformed("the instance identity document: %w", err)
	}
	region, _ := values["region"].(string)
	return region, nil
}

// parseDocument reads the content that was verified.
func parseDocument(content []byte) (document, error) {
	values, err := jwk.Object(content)
	if err != nil {
		return document{}, malformed("the instance identity document: %w", err)
	}
	text := func(name string) string {
		s, _ := values[name].(string)
		return s
	}
	d := document{account: text("accountId"), instance: text("instanceId"), region: text("region"), others: map[string]string{}}
	if len(d.account) != 12 || !only(d.account, "0123456789") {
		return document{}, malformed("the instance identity document has accountId %.32q: expected 12 digits", d.account)
	}
	id, ok := strings.CutPrefix(d.instance, "i-")
	if !ok || len(id) < 8 || len(id) > 32 || !only(id, "0123456789abcdef") {
		return document{}, malformed("the instance identity document has instanceId %.64q: expected one like i-0123456789abcdef0", d.instance)
	}
	if d.pending, err = time.Parse(time.RFC3339, text("pendingTime")); err != nil {
		return document{}, malformed("the instance identity document has pendingTime %.64q: expected one like 2026-01-02T15:04:05Z", text("pendingTime"))
	}
	for name, attribute := range map[string]string{
		"imageId": "aws_image_id", "instanceType": "aws_instance_type", "availabilityZone": "aws_availability_zone", "privateIp": "aws_private_ip",
	} {
		if v := text(name); v != "" && len(v) <= maxOther {
			d.others[attribute] = v
		}
	}
	return d, nil
}

// maxOther bounds what is only noted.
const maxOther = 128

func only(s, characters string) bool {
	return strings.Trim(s, characters) == ""
}

// claims are what the document proves.
func (d document) claims() method.Claims {
	c := method.Claims{
		Attributes: map[string][]string{
			"aws_account": {d.account}, "aws_region": {d.region}, "aws_instance_id": {d.instance},
			"aws_pending_time": {d.pending.UTC().Format(time.RFC3339)},
		},
		Machine: types.JoinMethodEC2 + "/" + d.account + "/" + d.instance,
		HostID:  d.account + "-" + d.instance,
		Once:    []method.Proof{{ID: d.account + "/" + d.instance + "/" + d.pending.UTC().Format(time.RFC3339Nano)}},
	}
	for name, v := range d.others {
		c.Attributes[name] = []string{v}
	}
	return c
}

// maxAhead is how far AWS's clock may be ahead of Auth's.
const maxAhead = time.Minute

// checkTime refuses a document of an instance that was started too long ago, or is yet
// to be started.
func (d document) checkTime(now time.Time, ttl time.Duration) error {
	if d.pending.Sub(now) > maxAhead {
		return fault.New(fault.ErrDenied, "the instance identity document says that the instance was started at %s, and it is %s: check the clock of the Auth Service",
			stamp(d.pending), stamp(now)).WithCode(method.CodeProofNotYetValid)
	}
	if age := now.Sub(d.pending); age > ttl {
		return fault.New(fault.ErrDenied, "the instance was started %s ago, and the token accepts its identity document for %s: stop and start the instance, or give the token a longer aws_iid_ttl",
			age.Round(time.Second), ttl).WithCode(method.CodeProofExpired)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func malformed(format string, args ...any) error {
	return fault.New(fault.ErrInvalid, format, args...).WithCode(method.CodeProofMalformed)
}
