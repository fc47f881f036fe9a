package aws

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/keys"
)

// The metadata service of an instance, and how long a token of it is asked for.
const (
	metadataIPv4     = "http://169.254.169.254"
	metadataIPv6     = "http://[fd00:ec2::254]"
	metadataTokenTTL = "60"
)

// Instance speaks to the metadata service of the EC2 instance, version 2 only: a
// token first, then what is asked for. Version 1 answers anybody who can make the
// machine send a GET, so it is not fallen back to.
type Instance struct {
	client *egress.Client
	base   string
	token  string
}

// OpenInstance gets a token of the metadata service. The error has the code
// metadata_unreachable.
func OpenInstance(ctx context.Context, env Env) (*Instance, error) {
	base := metadataIPv4
	if strings.EqualFold(env.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"), "IPv6") {
		base = metadataIPv6
	}
	i := &Instance{client: env.Metadata, base: base}
	resp, err := i.client.Do(ctx, egress.Request{
		Method: http.MethodPut, URL: base + "/latest/api/token",
		Header: http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {metadataTokenTTL}}, Limit: 4 << 10,
	})
	if err != nil {
		return nil, fault.New(fault.ErrUnreachable, "the instance metadata service: %w; in a container the hop limit of the instance must be 2 or more", err).WithCode(method.CodeMetadata)
	}
	i.token = string(resp.Body)
	if resp.Status != http.StatusOK || i.token == "" || strings.ContainsFunc(i.token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, fault.New(fault.ErrUnreachable, "the instance metadata service gave no token (PUT /latest/api/token: HTTP %d); Teleport speaks version 2 of it only", resp.Status).WithCode(method.CodeMetadata)
	}
	return i, nil
}

// Get returns what the metadata service has at a path, such as
// "/latest/meta-data/placement/region". A path that is not there is ErrNotFound.
func (i *Instance) Get(ctx context.Context, path string) ([]byte, error) {
	resp, err := i.client.Do(ctx, egress.Request{URL: i.base + path, Header: http.Header{"X-Aws-Ec2-Metadata-Token": {i.token}}})
	if err != nil {
		return nil, fault.New(fault.ErrUnreachable, "the instance metadata service: %w", err).WithCode(method.CodeMetadata)
	}
	switch resp.Status {
	case http.StatusOK:
		return resp.Body, nil
	case http.StatusNotFound:
		return nil, fault.New(fault.ErrNotFound, "the instance metadata service has nothing at %s", path).WithCode(method.CodeMetadata)
	}
	return nil, fault.New(fault.ErrUnreachable, "the instance metadata service answers HTTP %d for %s", resp.Status, path).WithCode(method.CodeMetadata)
}

func (e Env) instanceRegion(ctx context.Context) (string, error) {
	if e.metadataDisabled() {
		return "", none("AWS_EC2_METADATA_DISABLED is set")
	}
	i, err := OpenInstance(ctx, e)
	if err != nil {
		return "", err
	}
	body, err := i.Get(ctx, "/latest/meta-data/placement/region")
	if err != nil {
		return "", err
	}
	region := strings.TrimSpace(string(body))
	if _, ok := PartitionOf(region); !ok {
		return "", fault.Invalid("the instance metadata service says region %q, which is none", short(region))
	}
	return region, nil
}

func (e Env) metadataDisabled() bool {
	return strings.EqualFold(e.Getenv("AWS_EC2_METADATA_DISABLED"), "true")
}

// fromInstance takes the credentials of the instance's role.
func (e Env) fromInstance(ctx context.Context) (Credentials, error) {
	if e.metadataDisabled() {
		return Credentials{}, none("AWS_EC2_METADATA_DISABLED is set")
	}
	const roles = "/latest/meta-data/iam/security-credentials/"
	i, err := OpenInstance(ctx, e)
	if err != nil {
		return Credentials{}, none("%w", err)
	}
	body, err := i.Get(ctx, roles)
	if errors.Is(err, fault.ErrNotFound) {
		return Credentials{}, none("the instance has no IAM role: attach one, it needs no policy")
	}
	if err != nil {
		return Credentials{}, err
	}
	role, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	if role == "" {
		return Credentials{}, none("the instance has no IAM role: attach one, it needs no policy")
	}
	body, err = i.Get(ctx, roles+url.PathEscape(strings.TrimSpace(role)))
	if err != nil {
		return Credentials{}, err
	}
	c, err := parseCredentials(body)
	c.Source = "instance metadata, role " + short(strings.TrimSpace(role))
	return c, err
}

// fromContainer takes the credentials that the agent of ECS, or of EKS Pod Identity,
// gives to the container.
func (e Env) fromContainer(ctx context.Context) (Credentials, error) {
	address, err := e.containerURL()
	if err != nil {
		return Credentials{}, err
	}
	header := http.Header{}
	token := e.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
	if file := e.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); file != "" {
		if token, err = e.readText(file); err != nil {
			return Credentials{}, fault.Invalid("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: %w", err)
		}
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
		return Credentials{}, fault.Invalid("the authorization token of the container has characters that a header cannot have")
	}
	if token != "" {
		header.Set("Authorization", token)
	}
	client := e.Metadata
	if address.Scheme == "https" {
		client = e.Egress
	}
	resp, err := client.Do(ctx, egress.Request{URL: address.String(), Header: header, Private: true})
	if err != nil {
		return Credentials{}, err
	}
	if resp.Status != http.StatusOK {
		return Credentials{}, fault.Unreachable("%s answers HTTP %d", address.Host, resp.Status)
	}
	c, err := parseCredentials(resp.Body)
	c.Source = "container endpoint"
	return c, err
}

// containerURL returns the endpoint. Plain HTTP goes to this machine and to the
// addresses that ECS and EKS use, nowhere else.
func (e Env) containerURL() (*url.URL, error) {
	if path := e.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); path != "" {
		u, err := url.Parse("http://169.254.170.2" + path)
		if err != nil || !strings.HasPrefix(path, "/") || u.Host != "169.254.170.2" {
			return nil, fault.Invalid("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is not a path")
		}
		return u, nil
	}
	full := e.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
	if full == "" {
		return nil, none("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI and AWS_CONTAINER_CREDENTIALS_FULL_URI are not set")
	}
	u, err := url.Parse(full)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return nil, fault.Invalid("AWS_CONTAINER_CREDENTIALS_FULL_URI is not an address")
	case u.Scheme == "https", u.Scheme == "http" && containerHost(u.Hostname()):
		return u, nil
	}
	return nil, fault.Invalid("AWS_CONTAINER_CREDENTIALS_FULL_URI names %s: plain http is for localhost, 169.254.170.2 and 169.254.170.23 only", short(u.Host))
}

func containerHost(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	switch ip.String() {
	case "169.254.170.2", "169.254.170.23", "fd00:ec2::23":
		return true
	}
	return ip.IsLoopback()
}

// parseCredentials reads the JSON that both metadata services give.
func parseCredentials(body []byte) (Credentials, error) {
	var answer struct {
		Code            string
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string
		Token           string
		Expiration      time.Time
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return Credentials{}, fault.Invalid("the answer is not the JSON of credentials")
	}
	if answer.Code != "" && answer.Code != "Success" {
		return Credentials{}, fault.Invalid("the answer is %q instead of credentials", short(answer.Code))
	}
	return Credentials{
		AccessKeyID: answer.AccessKeyID, SecretAccessKey: keys.Secret(answer.SecretAccessKey), SessionToken: keys.Secret(answer.Token),
		Expires: answer.Expiration,
	}, nil
}
