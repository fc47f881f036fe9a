package aws

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"teleport/internal/keys"
)

// DateLayout is the form of X-Amz-Date.
const DateLayout = "20060102T150405Z"

// algorithm is the only one there is.
const algorithm = "AWS4-HMAC-SHA256"

// Request is what a Signature Version 4 covers. The headers Host, X-Amz-Date and
// X-Amz-Security-Token are added, and are not to stand in Header.
type Request struct {
	// Method in capitals.
	Method string
	// Host as it stands in the Host header.
	Host string
	// Path is absolute and not escaped; empty is "/".
	Path  string
	Query url.Values
	// Header has every other header that is signed, each with one value.
	Header map[string]string
	Body   []byte
}

// Scope is what a signature is good for.
type Scope struct {
	Service, Region string
	Time            time.Time
}

// String returns the scope as a credential has it: date/region/service/aws4_request.
func (s Scope) String() string {
	return s.Time.UTC().Format("20060102") + "/" + s.Region + "/" + s.Service + "/aws4_request"
}

// Sign returns the signature of a request, in lower-case hexadecimal.
func Sign(r Request, s Scope, c Credentials) string {
	key := mac([]byte("AWS4"+c.SecretAccessKey.Reveal()), s.Time.UTC().Format("20060102"))
	for _, part := range []string{s.Region, s.Service, "aws4_request"} {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, StringToSign(r, s, c.SessionToken)))
}

// SignedHeader returns the headers of the signed request, as they are sent.
func SignedHeader(r Request, s Scope, c Credentials) http.Header {
	return Header(r, s, c.AccessKeyID, c.SessionToken, Sign(r, s, c))
}

// Header returns the headers of a request with a signature that somebody made: the
// receiver of a signature writes the request anew with it.
func Header(r Request, s Scope, accessKeyID string, sessionToken keys.Secret, signature string) http.Header {
	headers := r.headers(s, sessionToken)
	out := http.Header{}
	for name, value := range headers {
		if name != "host" { // of the URL
			out.Set(name, value)
		}
	}
	out.Set("Authorization", algorithm+" Credential="+accessKeyID+"/"+s.String()+
		", SignedHeaders="+signedHeaders(headers)+", Signature="+signature)
	return out
}

// StringToSign returns the text that is signed. It holds the hash of Canonical.
func StringToSign(r Request, s Scope, sessionToken keys.Secret) string {
	sum := sha256.Sum256([]byte(Canonical(r, s, sessionToken)))
	return algorithm + "\n" + s.Time.UTC().Format(DateLayout) + "\n" + s.String() + "\n" + hex.EncodeToString(sum[:])
}

// Canonical returns the canonical request of Signature Version 4.
func Canonical(r Request, s Scope, sessionToken keys.Secret) string {
	headers := r.headers(s, sessionToken)
	path := r.Path
	if path == "" {
		path = "/"
	}
	lines := []string{r.Method, escape(path, true), canonicalQuery(r.Query)}
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		lines = append(lines, name+":"+headers[name])
	}
	body := sha256.Sum256(r.Body)
	lines = append(lines, "", signedHeaders(headers), hex.EncodeToString(body[:]))
	return strings.Join(lines, "\n")
}

// headers returns all signed headers in their canonical form.
func (r Request) headers(s Scope, sessionToken keys.Secret) map[string]string {
	out := map[string]string{"host": r.Host, "x-amz-date": s.Time.UTC().Format(DateLayout)}
	if sessionToken != "" {
		out["x-amz-security-token"] = sessionToken.Reveal()
	}
	for name, value := range r.Header {
		out[strings.ToLower(name)] = strings.Join(strings.Fields(value), " ")
	}
	return out
}

func signedHeaders(headers map[string]string) string {
	return strings.Join(slices.Sorted(maps.Keys(headers)), ";")
}

// canonicalQuery sorts by name and then by value, both escaped.
func canonicalQuery(q url.Values) string {
	escaped := map[string][]string{}
	for name, values := range q {
		for _, v := range values {
			name := escape(name, false)
			escaped[name] = append(escaped[name], escape(v, false))
		}
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(escaped)) {
		for _, v := range slices.Sorted(slices.Values(escaped[name])) {
			parts = append(parts, name+"="+v)
		}
	}
	return strings.Join(parts, "&")
}

// escape percent-encodes all but the unreserved characters of RFC 3986, and slashes
// if they are to stay.
func escape(s string, slashes bool) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9', strings.IndexByte("-_.~", c) >= 0, c == '/' && slashes:
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
	return b.String()
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
