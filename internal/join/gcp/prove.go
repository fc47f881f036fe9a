package gcp

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
)

// prove is the machine's half: one token of the metadata service.
func prove(m method.Machine) method.Exchange {
	return func(ctx context.Context, _ []byte) ([]byte, error) {
		// The variable is Google's own, for hosts whose metadata service is elsewhere.
		host := m.Getenv("GCE_METADATA_HOST")
		if host == "" {
			host = "metadata.google.internal"
		}
		query := url.Values{"audience": {audience(m.Cluster, m.T)}, "format": {"full"}, "licenses": {"FALSE"}}
		resp, err := m.Metadata.Do(ctx, egress.Request{
			URL:    "http://" + host + "/computeMetadata/v1/instance/service-accounts/default/identity?" + query.Encode(),
			Header: http.Header{"Metadata-Flavor": {"Google"}},
			Limit:  jwt.MaxToken,
		})
		if err != nil {
			return nil, fault.New(fault.ErrUnreachable, "this machine's metadata service at %s does not answer (%w): is it a virtual machine of Google Compute Engine, or a pod with workload identity?", host, err).WithCode(method.CodeMetadata)
		}
		if resp.Header.Get("Metadata-Flavor") != "Google" {
			return nil, fault.New(fault.ErrDenied, "what answers at %s is not Google's metadata service: its answer has no header Metadata-Flavor: Google", host).WithCode(method.CodeMetadata)
		}
		switch resp.Status {
		case http.StatusOK:
			return []byte(strings.TrimSpace(string(resp.Body))), nil
		case http.StatusNotFound:
			return nil, fault.New(fault.ErrDenied, "this machine has no service account, so it has no identity to prove: attach one, scopes and roles are not needed").WithCode(method.CodeCredentials)
		default:
			return nil, fault.New(fault.ErrUnreachable, "this machine's metadata service at %s answers a request for an identity token with status %d", host, resp.Status).WithCode(method.CodeMetadata)
		}
	}
}
