package awsfake

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Metadata is the instance metadata service, version 2: no answer without a token.
type Metadata struct {
	// Region of the instance; empty is none.
	Region string
	// Role is the name of the instance's role, and Key its keys; empty is none.
	Role string
	Key  Key
	// Paths has what else there is, by path, e.g. "/latest/dynamic/instance-identity/rsa2048".
	Paths map[string]string

	mu     sync.Mutex
	tokens map[string]bool
	// untold counts the requests without a token, which version 1 would answer.
	untold int
}

// Untold returns how many requests came without a token.
func (m *Metadata) Untold() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.untold
}

// ServeHTTP answers a request.
func (m *Metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tokens == nil {
		m.tokens = map[string]bool{}
	}
	if r.URL.Path == "/latest/api/token" {
		ttl, err := strconv.Atoi(r.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds"))
		switch {
		case r.Method != http.MethodPut:
			w.WriteHeader(http.StatusMethodNotAllowed)
		case err != nil || ttl < 1 || ttl > 21600:
			w.WriteHeader(http.StatusBadRequest)
		case r.Header.Get("X-Forwarded-For") != "":
			w.WriteHeader(http.StatusForbidden)
		default:
			token := "AQAEA-" + strconv.Itoa(len(m.tokens)) + "=="
			m.tokens[token] = true
			_, _ = io.WriteString(w, token)
		}
		return
	}
	if !m.tokens[r.Header.Get("X-Aws-Ec2-Metadata-Token")] {
		m.untold++
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	body, ok := m.at(r.URL.Path)
	if !ok || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	_, _ = io.WriteString(w, body)
}

func (m *Metadata) at(path string) (string, bool) {
	const roles = "/latest/meta-data/iam/security-credentials/"
	name, isRole := strings.CutPrefix(path, roles)
	switch {
	case path == "/latest/meta-data/placement/region":
		return m.Region, m.Region != ""
	case path == roles:
		return m.Role, m.Role != ""
	case isRole && m.Role != "" && name == m.Role:
		return m.Key.JSON("Success"), true
	}
	body, ok := m.Paths[path]
	return body, ok
}

// JSON is the key as the metadata services give it.
func (k Key) JSON(code string) string {
	values := map[string]string{
		"AccessKeyId": k.ID, "SecretAccessKey": k.Secret, "Token": k.SessionToken,
		"Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": k.Expires.UTC().Format(time.RFC3339),
	}
	if code != "" {
		values["Code"] = code
	}
	text, err := json.Marshal(values)
	if err != nil {
		return ""
	}
	return string(text)
}

// Start serves the service on a port of this machine until the test ends. The function
// it returns is a dialer that finds 169.254.169.254 there, and nothing else. For the
// true address see package netns.
func (m *Metadata) Start(t testing.TB) func(ctx context.Context, network, addr string) (net.Conn, error) {
	t.Helper()
	s := httptest.NewServer(m)
	t.Cleanup(s.Close)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != "169.254.169.254:80" {
			return nil, errors.New("the instance of this test has no " + addr)
		}
		var d net.Dialer
		return d.DialContext(ctx, network, s.Listener.Addr().String())
	}
}
