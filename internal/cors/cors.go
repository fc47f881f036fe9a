// Package cors is what scripts of other origins may do at an application, by the policy in
// its resource: the Proxy answers browsers by it that ask without a session, and the
// Application Service marks the application's answers. Whatever the application says about
// this itself does not count where there is a policy.
package cors

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// Headers of answers.
const (
	headerPrefix      = "Access-Control-"
	headerOrigin      = headerPrefix + "Allow-Origin"
	headerCredentials = headerPrefix + "Allow-Credentials"
)

// Preflight reports whether a browser asks what scripts of another origin may do. It
// shows no cookie then, so that the answer comes of the policy alone.
func Preflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get(headerPrefix+"Request-Method") != ""
}

// Allows reports whether scripts of the origin may ask, and what to tell them. Without a
// policy none may.
func Allows(policy *typesv1.AppCORS, origin string) (answer string, ok bool) {
	if policy == nil || origin == "" {
		return "", false
	}
	switch {
	case slices.Contains(policy.GetAllowedOrigins(), origin):
		return origin, true
	case slices.Contains(policy.GetAllowedOrigins(), types.Wildcard):
		return types.Wildcard, true
	}
	return "", false
}

// Answer answers a preflight by the policy. What the policy does not allow gets an answer
// without permissions, which browsers take as a refusal.
func Answer(w http.ResponseWriter, r *http.Request, policy *typesv1.AppCORS) {
	header := w.Header()
	header.Add("Vary", "Origin")
	header.Add("Vary", headerPrefix+"Request-Method")
	header.Add("Vary", headerPrefix+"Request-Headers")
	defer w.WriteHeader(http.StatusNoContent)
	method := r.Header.Get(headerPrefix + "Request-Method")
	if !Mark(header, policy, r.Header.Get("Origin")) || !listed(policy.GetAllowedMethods(), method, false) {
		header.Del(headerOrigin)
		header.Del(headerCredentials)
		return
	}
	header.Set(headerPrefix+"Allow-Methods", method)
	var granted []string
	for name := range strings.SplitSeq(r.Header.Get(headerPrefix+"Request-Headers"), ",") {
		if name = strings.TrimSpace(name); name != "" && listed(policy.GetAllowedHeaders(), name, true) {
			granted = append(granted, name)
		}
	}
	if len(granted) > 0 {
		header.Set(headerPrefix+"Allow-Headers", strings.Join(granted, ", "))
	}
	if age := policy.GetMaxAge(); age > 0 {
		header.Set(headerPrefix+"Max-Age", strconv.FormatUint(uint64(age), 10))
	}
}

// Mark lets scripts of the origin read an answer, if the policy does.
func Mark(header http.Header, policy *typesv1.AppCORS, origin string) bool {
	answer, ok := Allows(policy, origin)
	if !ok {
		return false
	}
	header.Set(headerOrigin, answer)
	if policy.GetAllowCredentials() && answer != types.Wildcard {
		header.Set(headerCredentials, "true")
	}
	return true
}

// Rewrite makes what an application's answer says to scripts of other origins what the
// policy says.
func Rewrite(header http.Header, policy *typesv1.AppCORS, origin string) {
	for name := range header {
		if strings.HasPrefix(name, headerPrefix) {
			delete(header, name)
		}
	}
	if !slices.Contains(header["Vary"], "Origin") {
		header.Add("Vary", "Origin")
	}
	if Mark(header, policy, origin) && len(policy.GetExposedHeaders()) > 0 {
		header.Set(headerPrefix+"Expose-Headers", strings.Join(policy.GetExposedHeaders(), ", "))
	}
}

// listed looks a name up in a list of the policy. Methods are compared as they are,
// headers in any case.
func listed(list []string, name string, fold bool) bool {
	return slices.ContainsFunc(list, func(s string) bool {
		return s == types.Wildcard || s == name || fold && strings.EqualFold(s, name)
	})
}
