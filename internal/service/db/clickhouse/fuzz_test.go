package clickhouse

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// FuzzQuery: of what a request says, nothing that logs somebody in is left for the server
// to read, and the rest is what it was.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{
		"", "user=a&password=b&query=SELECT+1", "us%65r=x&database=d&param_n=1", "query=a;user=b&decompress=1", "=&&&=", "user", "%zz", "user=a&user=b", "a=%26user%3Dx",
	} {
		f.Add(s, "alice", "Basic YTpi")
	}
	f.Fuzz(func(t *testing.T, raw, header, authorization string) {
		r := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: "/", RawQuery: raw}, Header: http.Header{}}
		r.Header.Set(headerUser, header)
		r.Header.Set("Authorization", authorization)
		a, err := read(r)
		if err != nil {
			return
		}
		left := 0
		for part := range strings.SplitSeq(a.rest, "&") {
			name, _, _ := strings.Cut(part, "=")
			if name, err = url.QueryUnescape(name); err != nil || name == "user" || name == "password" {
				t.Fatalf("%q leaves %q", raw, a.rest)
			}
			left++
		}
		if header != "" && a.user != header {
			t.Fatalf("the header says %q, read was %q", header, a.user)
		}
		if len(a.rest) > len(raw) || left > strings.Count(raw, "&")+1 {
			t.Fatalf("%q became %q", raw, a.rest)
		}
		a.login(r.Header, "bob")
		if r.Header.Get(headerUser) != "bob" || r.Header.Get("Authorization") != "" {
			t.Fatalf("headers are %v", r.Header)
		}
	})
}
