package process

import (
	"io"
	"net/http"
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

func TestDebugApp(t *testing.T) {
	var d debugApp
	defer d.stop()
	uri, err := d.start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.start(t.Context()); err != nil || again != uri {
		t.Errorf("started again: %q, %v, want what runs at %q", again, err, uri)
	}
	for _, tt := range []struct{ token, want string }{
		{"", "GET /a?b=c HTTP/1.1\nHost: "},
		{"e30.eyJzdWIiOiJhbGljZSJ9.x", "\"sub\": \"alice\""},
		{"e30.bm90aGluZw.x", "no claims: "},
		{"e30.%%%.x", "no token: "},
		{"one", "no token in compact form"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, uri+"/a?b=c", nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.token != "" {
			req.Header.Set(jwtHeader, tt.token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !strings.Contains(string(body), tt.want) || strings.Contains(string(body), "Claims") != (tt.token != "") {
			t.Errorf("with the token %q: %s (%v), want %q", tt.token, body, err, tt.want)
		}
	}
	d.stop()
	if resp, err := http.Get(uri); err == nil { //nolint:noctx // it is not there
		_ = resp.Body.Close()
		t.Error("it runs after it was stopped")
	}
}

func TestServers(t *testing.T) {
	s := newServers()
	app := func(name string) types.Resource {
		return &typesv1.AppServer{Kind: types.KindAppServer, Metadata: &typesv1.Metadata{Name: name}}
	}
	node := &typesv1.Server{Kind: types.KindNode, Metadata: &typesv1.Metadata{Name: "h"}}
	expect := func(n int, changed bool) {
		t.Helper()
		if got := s.list(); len(got) != n {
			t.Errorf("list = %v, want %d", got, n)
		}
		select {
		case <-s.changed:
			if !changed {
				t.Error("a change was told of, and nothing has changed")
			}
		default:
			if changed {
				t.Error("no change was told of")
			}
		}
	}
	s.announce(app("a@h"))
	s.announce(app("b@h"))
	s.announce(app("b@h"))
	s.announce(node)
	expect(3, true)
	s.withdraw(types.KindAppServer, "a@h")
	expect(2, true)
	s.withdrawAll(types.KindAppServer)
	expect(1, true)
	s.freeze()
	s.announce(app("a@h"))
	s.withdrawAll(types.KindNode)
	expect(1, false)
}
