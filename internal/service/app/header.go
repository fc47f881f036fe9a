package app

import (
	"context"
	"maps"
	"net"
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
)

// jwtHeader tells an application who asks.
const jwtHeader = "Teleport-Jwt-Assertion"

// jwtTrait is what {{internal.jwt}} stands for.
const jwtTrait = "jwt"

// ownHeaders are those that a request gets here, in place of all that came under their
// names.
type ownHeaders struct {
	// host is what the configuration says, or empty.
	host   string
	values http.Header
	// names are the plain forms of those in values and of those without a value.
	names map[string]bool
}

// newOwnHeaders makes the headers of the application's configuration and the token for a
// connection.
func newOwnHeaders(ctx context.Context, c *connection, app *typesv1.App) (*ownHeaders, error) {
	own := &ownHeaders{values: http.Header{}, names: map[string]bool{}}
	token, err := c.session.tokens.get(ctx, c)
	if err != nil && needsToken(app) {
		return nil, err
	}
	if err == nil {
		own.values[jwtHeader] = []string{token}
	}
	headers := app.GetSpec().GetRewrite().GetHeaders()
	if len(headers) == 0 {
		return own, nil
	}
	traits := c.id.User.Traits
	if token != "" {
		traits = maps.Clone(traits)
		if traits == nil {
			traits = map[string][]string{}
		}
		traits[jwtTrait] = []string{token}
	}
	for _, h := range headers {
		if err != nil && strings.Contains(strings.ReplaceAll(h.GetValue(), " ", ""), "{{internal."+jwtTrait) {
			return nil, err
		}
		name := http.CanonicalHeaderKey(h.GetName())
		own.names[plain(name)] = true
		for _, value := range access.Headers(h.GetValue(), traits) {
			if !httpguts.ValidHeaderFieldValue(value) {
				return nil, fault.Invalid("a trait of user %q cannot be in the header %s", c.id.User.Name, name)
			}
			if name == "Host" {
				own.host = value
				continue
			}
			own.values[name] = append(own.values[name], value)
		}
	}
	return own, nil
}

// apply makes the headers of out, which are a copy of in's without those of the connection,
// what the application gets.
func (o *ownHeaders) apply(out *http.Request, c *connection, in *http.Request) {
	for name := range out.Header {
		if o.ours(name) {
			delete(out.Header, name)
		}
	}
	maps.Copy(out.Header, o.values)
	if o.host != "" {
		out.Host = o.host
	}
	out.Header["X-Forwarded-Host"] = []string{publicHost(c, in)}
	out.Header["X-Forwarded-Proto"] = []string{schemeHTTPS}
	if addr, ok := c.addr.(*net.TCPAddr); ok {
		out.Header["X-Forwarded-For"] = []string{addr.IP.String()}
		out.Header["X-Real-Ip"] = out.Header["X-Forwarded-For"]
	}
}

// ours reports whether a header is one that only Teleport or the application's
// configuration may send, in whatever spelling: many servers take "_" for "-", and some
// every other sign.
func (o *ownHeaders) ours(name string) bool {
	p := plain(name)
	switch {
	case p == "forwarded", p == "x-real-ip", strings.HasPrefix(p, "x-forwarded"), strings.HasPrefix(p, "teleport-"), strings.HasPrefix(p, "x-teleport-"):
		return true
	case len(p) > len("x-forwarded") && strings.HasPrefix(strings.TrimLeft(p, "-"), "x-forwarded"):
		return true
	}
	return len(o.names) > 0 && o.names[p]
}

// plain is the form of a header's name by which all of its spellings are the same.
func plain(name string) string {
	same := true
	for i := range len(name) {
		if c := name[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			same = false
			break
		}
	}
	if same {
		return name
	}
	b := make([]byte, len(name))
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'A' && c <= 'Z':
			b[i] = c + 'a' - 'A'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			b[i] = c
		default:
			b[i] = '-'
		}
	}
	return string(b)
}

// publicHost is how the user calls the application: what the request says, if it says the
// application's public address, with its port.
func publicHost(c *connection, r *http.Request) string {
	public := c.id.User.App.PublicAddr
	if public == "" {
		return r.Host
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if strings.EqualFold(host, public) {
		return r.Host
	}
	return public
}
