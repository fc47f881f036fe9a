package webapp

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"time"

	"teleport/internal/buffer"
	"teleport/internal/fault"
)

// flushInterval is how long a part of an answer waits for the next, so that they go out
// together; an answer of unknown length goes out as it comes (package httputil).
const flushInterval = 2 * time.Millisecond

// forward passes a request on to an agent of the application. Path, query, headers and
// body go through as they came, but for what belongs to the connection, what this Proxy
// says itself (X-Forwarded-*), and the cookies that are ours.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, app target, one *session) {
	to, err := requestTarget(r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	via := one.h1
	if r.ProtoMajor == 2 {
		via = one.h2
	}
	proxy := &httputil.ReverseProxy{
		Transport:     via,
		FlushInterval: flushInterval,
		BufferPool:    buffers,
		ErrorLog:      slog.NewLogLogger(h.cfg.Log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL = to
			p.Out.Host = p.In.Host
			p.SetXForwarded()
			dropOwnCookies(p.Out.Header)
		},
		ModifyResponse: func(resp *http.Response) error {
			keepOwnCookies(resp.Header)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
				return // who asked has gone
			}
			h.cfg.Log.InfoContext(r.Context(), "request of an application failed", "app", app.name, "user", one.caller.User.Name, "error", err)
			if fault.Kind(err) == nil {
				err = fault.Unreachable("the connection to the agent of application %q broke: try again", app.name)
			}
			h.fail(w, r, err)
		},
	}
	proxy.ServeHTTP(w, r)
}

// requestTarget returns the URL whose request line is that of the request, to the byte.
// Cleaning it up would let the agent decide about another path than the application
// then reads.
func requestTarget(r *http.Request) (*url.URL, error) {
	path, query, question := strings.Cut(r.RequestURI, "?")
	if !strings.HasPrefix(path, "/") {
		return nil, fault.Invalid("the request names no path")
	}
	u := &url.URL{Scheme: "https", Host: "app.invalid", RawQuery: query, ForceQuery: question && query == ""}
	if strings.HasPrefix(path, "//") {
		u.Path, u.RawPath = r.URL.Path, r.URL.RawPath
	} else {
		u.Opaque = path
	}
	if u.RequestURI() != r.RequestURI {
		return nil, fault.Invalid("the path of the request cannot be passed on as it is")
	}
	return u, nil
}

// dropOwnCookies keeps from the application what only this Proxy is to see.
func dropOwnCookies(header http.Header) {
	lines := header["Cookie"]
	if len(lines) == 0 {
		return
	}
	kept := lines[:0:0]
	for _, line := range lines {
		if !strings.Contains(line, ownCookies) {
			kept = append(kept, line)
			continue
		}
		var rest []string
		for part := range strings.SplitSeq(line, ";") {
			if !strings.HasPrefix(strings.TrimSpace(part), ownCookies) {
				rest = append(rest, strings.TrimSpace(part))
			}
		}
		if len(rest) > 0 {
			kept = append(kept, strings.Join(rest, "; "))
		}
	}
	if len(kept) == 0 {
		header.Del("Cookie")
		return
	}
	header["Cookie"] = kept
}

// keepOwnCookies keeps the application from setting what only this Proxy is to set: a
// session that is somebody else's, for one.
func keepOwnCookies(header http.Header) {
	lines := slices.DeleteFunc(header["Set-Cookie"], func(line string) bool {
		// Browsers send a cookie without a name as its value alone.
		pair, _, _ := strings.Cut(line, ";")
		return strings.Contains(strings.ToLower(pair), strings.ToLower(ownCookies))
	})
	if len(lines) == 0 {
		header.Del("Set-Cookie")
		return
	}
	header["Set-Cookie"] = lines
}

// buffers are those of copies.
var buffers = new(buffer.Pool)
