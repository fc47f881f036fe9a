package oracle

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"sync"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// How long root certificates are kept: until the region says to ask again, within
// bounds.
const (
	minKeep     = time.Minute
	maxKeep     = 24 * time.Hour
	defaultKeep = 5 * time.Minute
	maxRoots    = 32
)

// rootCache is the root certificates of one region.
type rootCache struct {
	// turn holds a value while nobody asks. Those who come meanwhile wait and find the
	// answer; if there was none, each asks with a request of its own, so that the bad
	// request of one machine refuses no other.
	turn chan struct{}

	mu    sync.Mutex
	pool  *x509.CertPool
	until time.Time
}

// known returns the roots of a region if they are there and not too old, or nil.
func (v *verifier) known(a method.Attempt, region types.OracleRegion) *x509.CertPool {
	c := v.cache(region.Name)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !a.Now.Before(c.until) {
		return nil
	}
	return c.pool
}

func (v *verifier) cache(region string) *rootCache {
	v.mu.Lock()
	defer v.mu.Unlock()
	c, ok := v.regions[region]
	if !ok {
		c = &rootCache{turn: make(chan struct{}, 1)}
		c.turn <- struct{}{}
		v.regions[region] = c
	}
	return c
}

// roots returns the root certificates of a region, from Oracle if they are not known or
// too old.
func (v *verifier) roots(ctx context.Context, a method.Attempt, region types.OracleRegion, req signedRequest) (*x509.CertPool, error) {
	if pool := v.known(a, region); pool != nil {
		return pool, nil
	}
	c := v.cache(region.Name)
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, fault.New(fault.ErrUnreachable, "too many joins wait for the root certificates of region %s: try again", region.Name).WithCode(method.CodeCloudUnreachable)
	}
	if pool := v.known(a, region); pool != nil {
		return pool, nil
	}
	pool, refresh, err := fetchRoots(ctx, a.Egress, region, req)
	if err != nil {
		return nil, err
	}
	keep := defaultKeep
	if !refresh.IsZero() {
		keep = min(max(refresh.Sub(a.Now), minKeep), maxKeep)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pool, c.until = pool, a.Now.Add(keep)
	return pool, nil
}

// fetchRoots writes the request that the machine signed, and sends it.
func fetchRoots(ctx context.Context, client *egress.Client, region types.OracleRegion, req signedRequest) (*x509.CertPool, time.Time, error) {
	host := authHost(region)
	resp, err := client.Do(ctx, egress.Request{
		URL: "https://" + host + rootsPath,
		Header: http.Header{
			"Date":          {req.Date},
			"Authorization": {authorization(req.KeyID, signedHeaders, req.Signature)},
		},
	})
	if err != nil {
		return nil, time.Time{}, fault.New(fault.ErrUnreachable, "the Auth Service cannot get the root certificates of Oracle Cloud in region %s (%w): it needs a way to %s", region.Name, err, host).WithCode(method.CodeCloudUnreachable)
	}
	switch {
	case resp.Status >= 500 || resp.Status == http.StatusTooManyRequests:
		return nil, time.Time{}, fault.New(fault.ErrUnreachable, "%s answers with status %d to the request for its root certificates: try again", host, resp.Status).WithCode(method.CodeCloudUnreachable)
	case resp.Status != http.StatusOK:
		return nil, time.Time{}, fault.New(fault.ErrDenied, "%s answers with status %d to the request that the machine signed: it does not take the machine for one of its own", host, resp.Status).WithCode(method.CodeCloudRefused)
	}
	pool, refresh, err := parseRoots(resp.Body)
	if err != nil {
		return nil, time.Time{}, fault.New(fault.ErrDenied, "%s answered with something else than its root certificates: %w", host, err).WithCode(method.CodeCloudRefused)
	}
	return pool, refresh, nil
}

// parseRoots reads the answer: certificates in base64 of DER, or in PEM, and the time
// to ask again.
func parseRoots(body []byte) (*x509.CertPool, time.Time, error) {
	var out struct {
		Certificates []string `json:"certificates"`
		RefreshIn    string   `json:"refreshIn"`
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return nil, time.Time{}, fault.Invalid("it is not the expected JSON")
	}
	if n := len(out.Certificates); n == 0 || n > maxRoots {
		return nil, time.Time{}, fault.Invalid("it has %d certificates", n)
	}
	pool := x509.NewCertPool()
	for _, text := range out.Certificates {
		der, err := base64.StdEncoding.DecodeString(text)
		if block, rest := pem.Decode([]byte(text)); block != nil && len(bytes.TrimSpace(rest)) == 0 {
			der, err = block.Bytes, nil
		}
		if err != nil {
			return nil, time.Time{}, fault.Invalid("a certificate is neither base64 nor PEM")
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil || keys.Check(cert.PublicKey) != nil {
			return nil, time.Time{}, fault.Invalid("a certificate cannot be used")
		}
		pool.AddCert(cert)
	}
	refresh, err := time.Parse(time.RFC3339, out.RefreshIn)
	if err != nil {
		refresh = time.Time{}
	}
	return pool, refresh, nil
}
