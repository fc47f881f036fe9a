package process

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// debugApp is an application that shows the requests that reach it: for whoever sets up
// access to applications and wants to see what they get. It listens on the loopback
// interface and shows nothing but what came with the request.
type debugApp struct {
	mu     sync.Mutex
	server *http.Server
	uri    string
}

const (
	// debugTimeout bounds a request to it, debugIdle the time between two.
	debugTimeout = 10 * time.Second
	debugIdle    = time.Minute
	// maxDebugHeader bounds the head of one.
	maxDebugHeader = 64 << 10
)

// start runs the application, unless it runs, and returns where it is.
func (d *debugApp) start(ctx context.Context) (uri string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.server != nil {
		return d.uri, nil
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("app_service.debug_app: %w", err)
	}
	d.server = &http.Server{
		Handler: http.HandlerFunc(showRequest), ReadTimeout: debugTimeout, WriteTimeout: debugTimeout, IdleTimeout: debugIdle, MaxHeaderBytes: maxDebugHeader,
	}
	d.uri = "http://" + ln.Addr().String()
	server := d.server
	// It ends with stop.
	go func() { _ = server.Serve(ln) }()
	return d.uri, nil
}

// stop ends it, if it runs.
func (d *debugApp) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.server != nil {
		_ = d.server.Close()
		d.server = nil
	}
}

// jwtHeader is where an application finds who its user is.
const jwtHeader = "Teleport-Jwt-Assertion"

// showRequest answers with the request and with what its token says.
func showRequest(w http.ResponseWriter, r *http.Request) {
	var out strings.Builder
	fmt.Fprintf(&out, "%s %s %s\nHost: %s\n", r.Method, r.URL.RequestURI(), r.Proto, r.Host)
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		for _, value := range r.Header[name] {
			fmt.Fprintf(&out, "%s: %s\n", name, value)
		}
	}
	if token := r.Header.Get(jwtHeader); token != "" {
		fmt.Fprintf(&out, "\nClaims of %s (not verified here):\n%s\n", jwtHeader, claims(token))
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write([]byte(out.String()))
}

// claims returns what a token says, to be read by people.
func claims(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "no token in compact form"
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "no token: " + err.Error()
	}
	var value map[string]any
	if err := json.Unmarshal(data, &value); err != nil {
		return "no claims: " + err.Error()
	}
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return "no claims: " + err.Error()
	}
	return string(text)
}
