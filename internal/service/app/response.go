package app

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/cors"
)

// rewriteResponse makes an answer of the application what the user gets.
func rewriteResponse(resp *http.Response, in *http.Request, c *connection, app *typesv1.App) {
	rewriteLocation(resp, in, c, app.GetSpec().GetRewrite().GetRedirect())
	if in.ProtoMajor == 1 && len(resp.Trailer) > 0 {
		// HTTP/1 has room for trailers only where it does not say the length before.
		resp.Header.Del("Content-Length")
	}
	if policy := app.GetSpec().GetCors(); policy != nil {
		cors.Rewrite(resp.Header, policy, in.Header.Get("Origin"))
	}
}

// rewriteLocation sends users who are sent to one of the hosts to the public address of
// the application.
func rewriteLocation(resp *http.Response, in *http.Request, c *connection, hosts []string) {
	location := resp.Header.Get("Location")
	if len(hosts) == 0 || location == "" || resp.StatusCode/100 != 3 && resp.StatusCode != http.StatusCreated {
		return
	}
	u, err := url.Parse(location)
	if err != nil || u.Host == "" || u.Scheme != "" && u.Scheme != schemeHTTP && u.Scheme != schemeHTTPS {
		return
	}
	if !slices.ContainsFunc(hosts, func(h string) bool { return strings.EqualFold(h, u.Hostname()) }) {
		return
	}
	// The rest of it stays as it is, to the byte.
	_, rest, _ := strings.Cut(location, "//")
	end := strings.IndexAny(rest, "/?#\\")
	if end < 0 {
		end = len(rest)
	}
	resp.Header.Set("Location", schemeHTTPS+"://"+publicHost(c, in)+rest[end:])
}
