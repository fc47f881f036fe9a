package webapp

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"teleport/internal/types"
)

// preflight reports whether a browser asks what scripts of another origin may do. It
// shows no cookie then, so that the answer comes of the policy alone.
func preflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != ""
}

// allowsOrigin reports whether scripts of the origin may ask, and what to tell them.
func (t target) allowsOrigin(origin string) (answer string, ok bool) {
	if t.cors == nil || origin == "" {
		return "", false
	}
	switch {
	case slices.Contains(t.cors.GetAllowedOrigins(), origin):
		return origin, true
	case slices.Contains(t.cors.GetAllowedOrigins(), types.Wildcard):
		return types.Wildcard, true
	}
	return "", false
}

// answerPreflight answers by the policy of the application. What the policy does not
// allow gets an answer without permissions, which browsers take as a refusal.
func (t target) answerPreflight(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Add("Vary", "Origin")
	header.Add("Vary", "Access-Control-Request-Method")
	header.Add("Vary", "Access-Control-Request-Headers")
	defer w.WriteHeader(http.StatusNoContent)
	method := r.Header.Get("Access-Control-Request-Method")
	if !t.markOrigin(header, r.Header.Get("Origin")) || !listed(t.cors.GetAllowedMethods(), method, false) {
		header.Del("Access-Control-Allow-Origin")
		header.Del("Access-Control-Allow-Credentials")
		return
	}
	header.Set("Access-Control-Allow-Methods", method)
	var granted []string
	for name := range strings.SplitSeq(r.Header.Get("Access-Control-Request-Headers"), ",") {
		if name = strings.TrimSpace(name); name != "" && listed(t.cors.GetAllowedHeaders(), name, true) {
			granted = append(granted, name)
		}
	}
	if len(granted) > 0 {
		header.Set("Access-Control-Allow-Headers", strings.Join(granted, ", "))
	}
	if age := t.cors.GetMaxAge(); age > 0 {
		header.Set("Access-Control-Max-Age", strconv.FormatUint(uint64(age), 10))
	}
}

// markOrigin lets scripts of the origin read an answer, if the policy does.
func (t target) markOrigin(header http.Header, origin string) bool {
	answer, ok := t.allowsOrigin(origin)
	if !ok {
		return false
	}
	header.Set("Access-Control-Allow-Origin", answer)
	if t.cors.GetAllowCredentials() && answer != types.Wildcard {
		header.Set("Access-Control-Allow-Credentials", "true")
	}
	return true
}

// listed looks a name up in a list of the policy. Methods are compared as they are,
// headers in any case.
func listed(list []string, name string, fold bool) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		return s == types.Wildcard || s == name || fold && strings.EqualFold(s, name)
	})
}
