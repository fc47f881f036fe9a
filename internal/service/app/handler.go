package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/cors"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// flushAfter is how long an answer of known length may wait for more of it: a small one goes
// in one piece. One without a length goes as it comes.
const flushAfter = 2 * time.Millisecond

// handler passes requests on to applications.
type handler struct{ s *Service }

// ServeHTTP serves one request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*connection)
	if !ok {
		http.Error(w, "no connection", http.StatusInternalServerError)
		return
	}
	if c.refused != nil {
		w.Header().Set("Connection", "close")
		fail(w, r, statusOf(c.refused), c.refused.Error())
		return
	}
	if c.sv.target.tcp() {
		fail(w, r, http.StatusMisdirectedRequest, fmt.Sprintf("application %q is no web application: use tsh proxy app %s", c.sv.name, c.sv.name))
		return
	}
	done, err := c.session.request(r)
	if err != nil {
		fail(w, r, http.StatusTooManyRequests, err.Error())
		return
	}
	defer done()
	app := c.sv.Resource()
	staysHTTP(r.Header)
	to, err := forwardedURL(r, c.sv.target)
	if err == nil {
		err = checkHeaders(r)
	}
	if err != nil {
		w.Header().Set("Connection", "close")
		fail(w, r, http.StatusBadRequest, err.Error())
		return
	}
	switch policy := app.GetSpec().GetCors(); {
	case policy != nil && cors.Preflight(r):
		cors.Answer(w, r, policy)
	case upgradeOf(r) != "" && !sameSite(r, app):
		fail(w, r, http.StatusForbidden, fmt.Sprintf("a page at %s may not open web sockets to application %q: cors.allowed_origins of the application does not have it",
			clip(r.Header.Get("Origin"), maxPath), c.sv.name))
	case r.RequestURI == "/" && c.sv.target.path != "" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		w.Header().Set("Location", c.sv.target.path)
		w.WriteHeader(http.StatusFound)
	default:
		h.forward(w, r, c, app, to)
	}
}

// forward passes one request on.
func (h *handler) forward(w http.ResponseWriter, r *http.Request, c *connection, app *typesv1.App, to *url.URL) {
	own, err := newOwnHeaders(r.Context(), c, app)
	if err != nil {
		h.s.cfg.Log.WarnContext(r.Context(), "a request for an application was refused: it cannot be said who asks", "app", c.sv.name, "user", c.id.User.Name, "error", err)
		fail(w, r, http.StatusServiceUnavailable, fmt.Sprintf("application %q cannot be told who you are, since the Auth Service does not answer: try again later", c.sv.name))
		return
	}
	if r.ProtoMajor == 1 {
		// An application may answer before it has read everything.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	proxy := &httputil.ReverseProxy{
		Transport:     c.session.up.choose(h.s, c.sv, r),
		FlushInterval: flushAfter,
		BufferPool:    buffers,
		ErrorLog:      h.s.h1.server.ErrorLog,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL = to
			p.Out.Host = c.sv.target.host
			own.apply(p.Out, c, p.In)
			passBody(http.NewResponseController(w), p.In, p.Out, own)
		},
		ModifyResponse: func(resp *http.Response) error {
			h.s.metrics.requests.WithLabelValues("ok").Inc()
			rewriteResponse(resp, r, c, app)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) { h.failed(w, r, c, err) },
	}
	proxy.ServeHTTP(&faithful{ResponseWriter: w}, r)
}

// failed answers a request that could not be passed on, or not to its end.
func (h *handler) failed(w http.ResponseWriter, r *http.Request, c *connection, err error) {
	if r.Context().Err() != nil || c.reason.Load() != nil {
		// Who asked has gone: this is for the case that they still listen.
		fail(w, r, http.StatusBadGateway, "the request was broken off")
		return
	}
	h.s.metrics.requests.WithLabelValues("failed").Inc()
	c.sv.failed()
	var body *bodyError
	if errors.As(err, &body) {
		fail(w, r, http.StatusBadRequest, "the body of the request broke off or is not as it should be")
		return
	}
	h.s.cfg.Log.WarnContext(r.Context(), "a request for an application failed", "app", c.sv.name, "target", c.sv.target.addr, "user", c.id.User.Name, "error", err)
	if errors.Is(err, errNoTarget) {
		h.s.dialDenied(r.Context(), c, err)
		fail(w, r, http.StatusForbidden, fmt.Sprintf("application %q is configured to be where no application may be: tell an administrator", c.sv.name))
		return
	}
	status, text := http.StatusBadGateway, fmt.Sprintf("application %q broke the connection off: try again, and tell who runs the application if that does not help", c.sv.name)
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		text = fmt.Sprintf("application %q cannot be reached from the host %s: try again later, and tell who runs the application if that does not help", c.sv.name, h.s.cfg.Hostname)
	case isCertificate(err):
		text = fmt.Sprintf("the certificate of application %q is not good: tell who runs the application (a private authority has to be in the trust store of the host %s)", c.sv.name, h.s.cfg.Hostname)
	case errors.Is(err, context.DeadlineExceeded):
		status = http.StatusGatewayTimeout
	}
	fail(w, r, status, text)
}

// dialDenied records that the address of an application was not dialled.
func (s *Service) dialDenied(ctx context.Context, c *connection, err error) {
	e := audit.New(audit.AppDialDenied, c.fields(map[string]any{"success": false, "error": err.Error(), "target": c.sv.target.addr}))
	s.report(ctx, e, c.id.User.Name, c.sv.name)
}

// forwardedURL returns the URL whose request line is that of the request, to the byte.
func forwardedURL(r *http.Request, t *target) (*url.URL, error) {
	if r.Method == http.MethodConnect {
		return nil, fault.Invalid("CONNECT is for proxies, and this is none: use tsh proxy app")
	}
	scheme := t.scheme
	if r.RequestURI == "*" && r.Method == http.MethodOptions {
		return &url.URL{Scheme: scheme, Host: t.host, Opaque: "*"}, nil
	}
	path, query, question := strings.Cut(r.RequestURI, "?")
	if !strings.HasPrefix(path, "/") {
		return nil, fault.Invalid("the request names no path, but %q", clip(r.RequestURI, maxPath))
	}
	u := &url.URL{Scheme: scheme, Host: t.host, RawQuery: query, ForceQuery: question && query == ""}
	if strings.HasPrefix(path, "//") {
		u.Path, u.RawPath = r.URL.Path, r.URL.RawPath
	} else {
		u.Opaque = path
	}
	if u.RequestURI() != r.RequestURI {
		return nil, fault.Invalid("the path of the request cannot be passed on as it is: it begins with // and has characters that have to be escaped")
	}
	return u, nil
}

// checkHeaders refuses what the application could read in another way than we do.
func checkHeaders(r *http.Request) error {
	for name := range r.Header {
		switch plain(name) {
		case "content-length", "transfer-encoding":
			if strings.ContainsFunc(name, func(c rune) bool { return c != '-' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') }) {
				return fault.Invalid("header %q is not how that is written", clip(name, maxPath))
			}
		}
	}
	if n := len(r.Header["Upgrade"]); n > 1 {
		return fault.Invalid("the request asks for %d protocols at once", n)
	}
	return nil
}

// upgradeOf returns the protocol that the request asks for in place of HTTP, or "".
func upgradeOf(r *http.Request) string {
	if !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade") {
		return ""
	}
	return r.Header.Get("Upgrade")
}

// staysHTTP takes the wish out of a request to go on in another version of HTTP, or in HTTP
// within TLS: an application that grants it would get requests that nobody has looked at,
// with whatever headers about the user. To ignore the wish is what RFC 9110, section 7.8,
// lets every server do.
func staysHTTP(h http.Header) {
	for part := range strings.SplitSeq(strings.Join(h["Upgrade"], ","), ",") {
		name, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(part)), "/")
		switch {
		case name == "http", name == "tls", strings.HasPrefix(name, "h2"), strings.HasPrefix(name, "h3"):
			delete(h, "Upgrade")
			delete(h, "Http2-Settings")
			return
		}
	}
}

// sameSite reports whether a request that opens a stream comes from a page of the
// application itself, of an origin that may, or of no page. Browsers ask nobody before
// they open a web socket, and send cookies along.
func sameSite(r *http.Request, app *typesv1.App) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	if u, err := url.Parse(origin); err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) {
		return true
	}
	// That all may ask without the user's cookies says nothing about who may with them.
	answer, ok := cors.Allows(app.GetSpec().GetCors(), origin)
	return ok && answer != types.Wildcard
}

// faithful keeps the library from adding what the application did not say.
type faithful struct {
	http.ResponseWriter
	began bool
}

// Unwrap is for http.ResponseController.
func (f *faithful) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// WriteHeader sends the head of an answer.
func (f *faithful) WriteHeader(status int) {
	if status >= http.StatusOK && !f.began {
		f.began = true
		h := f.Header()
		for _, name := range []string{"Content-Type", "Date"} {
			if _, said := h[name]; !said {
				h[name] = nil
			}
		}
	}
	f.ResponseWriter.WriteHeader(status)
}

// bodyError is one of the user's side.
type bodyError struct{ err error }

// Error returns the error's text.
func (e *bodyError) Error() string { return "body of the request: " + e.err.Error() }

// Unwrap returns the error.
func (e *bodyError) Unwrap() error { return e.err }

// sentBody is the body of a request on its way to the application.
type sentBody struct {
	io.ReadCloser
	// wait says until when the next bytes have to come; nil if they may take their time.
	wait  func(time.Time)
	ended func()
}

// Read reads the body; at its end the trailers are known.
func (b *sentBody) Read(p []byte) (int, error) {
	if b.wait != nil {
		b.wait(time.Now().Add(stallTimeout))
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && b.wait != nil {
		b.wait(time.Time{})
	}
	switch {
	case errors.Is(err, io.EOF):
		b.ended()
	case err != nil:
		err = &bodyError{err}
	}
	return n, err
}

// passBody sends the body of a request along, with its trailers as far as they are no
// headers that only Teleport may send. A body whose length is known has to go on coming:
// that of a stream may pause.
func passBody(rc *http.ResponseController, in, out *http.Request, own *ownHeaders) {
	if out.Body == nil || out.Body == http.NoBody {
		out.Trailer = nil
		return
	}
	trailer := http.Header{}
	for name := range in.Trailer {
		if own.passesTrailer(name) {
			trailer[name] = nil
		}
	}
	out.Trailer = nil
	if len(trailer) > 0 {
		out.Trailer = trailer
	}
	body := &sentBody{ReadCloser: out.Body, ended: func() {
		for name := range trailer {
			if values, ok := in.Trailer[name]; ok {
				trailer[name] = values
			}
		}
	}}
	if in.ProtoMajor == 1 && in.ContentLength > 0 {
		body.wait = func(until time.Time) { _ = rc.SetReadDeadline(until) }
	}
	out.Body = body
}

// passesTrailer reports whether a trailer may be sent along.
func (o *ownHeaders) passesTrailer(name string) bool {
	return httpguts.ValidTrailerHeader(name) && !o.ours(textproto.CanonicalMIMEHeaderKey(name))
}

// needsToken reports whether the application is to hear who asks in any case. Where it is
// told neither roles nor traits, it is left to it whether it asks for the token.
func needsToken(app *typesv1.App) bool {
	return app.GetSpec().GetRewrite().GetJwtClaims() != types.JWTClaimsNone
}
