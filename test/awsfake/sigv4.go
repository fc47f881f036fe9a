package awsfake

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Key is an access key that the cloud knows, and whose it is.
type Key struct {
	ID, Secret string
	// SessionToken is empty for the key of a user.
	SessionToken string
	// Account, ARN and UserID are of the caller.
	Account, ARN, UserID string
	// Expires is zero if it does not.
	Expires time.Time
}

// Failure is an error as AWS names it.
type Failure struct {
	Status        int
	Code, Message string
}

// clockSkew is how far the time of a signature may be off.
const clockSkew = 5 * time.Minute

// authenticate checks the Signature Version 4 of a request, written after AWS's
// description of it and without the code under test. The host says the region:
// service.region.suffix.
func (c *Cloud) authenticate(r *http.Request, body []byte, service string) (Key, *Failure) {
	deny := func(code, message string) (Key, *Failure) {
		return Key{}, &Failure{http.StatusForbidden, code, message}
	}
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return deny("MissingAuthenticationToken", "one Authorization header, please")
	}
	rest, ok := strings.CutPrefix(values[0], "AWS4-HMAC-SHA256 ")
	if !ok {
		return deny("IncompleteSignature", "unknown algorithm")
	}
	fields := map[string]string{}
	for _, part := range strings.Split(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[name] = value
	}
	credential := strings.Split(fields["Credential"], "/")
	if len(credential) != 5 || credential[4] != "aws4_request" {
		return deny("IncompleteSignature", "bad credential")
	}
	labels := strings.Split(r.Host, ".")
	if len(labels) < 3 || credential[3] != service || credential[2] != labels[1] || strings.TrimSuffix(labels[0], "-fips") != service {
		return deny("SignatureDoesNotMatch", "Credential should be scoped to a valid region and service")
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || at.Format("20060102") != credential[1] {
		return deny("IncompleteSignature", "bad date")
	}
	if d := c.now().Sub(at); d > clockSkew || d < -clockSkew {
		return deny("SignatureDoesNotMatch", "Signature expired or not yet current")
	}
	key, ok := c.key(credential[0])
	if !ok || subtle.ConstantTimeCompare([]byte(key.SessionToken), []byte(r.Header.Get("X-Amz-Security-Token"))) != 1 {
		return deny("InvalidClientTokenId", "The security token included in the request is invalid")
	}
	signed := strings.Split(fields["SignedHeaders"], ";")
	if missing := unsigned(r, signed); missing != "" {
		return deny("SignatureDoesNotMatch", "header "+missing+" is not signed")
	}
	want := signature(key.Secret, credential[1:4], stringToSign(r, body, signed, credential[1:4]))
	if !hmac.Equal([]byte(want), []byte(fields["Signature"])) {
		return deny("SignatureDoesNotMatch", "The request signature we calculated does not match")
	}
	if !key.Expires.IsZero() && c.now().After(key.Expires) {
		return deny("ExpiredToken", "The security token included in the request is expired")
	}
	return key, nil
}

// unsigned names a header that must be signed and is not.
func unsigned(r *http.Request, signed []string) string {
	have := map[string]bool{}
	for _, name := range signed {
		have[name] = true
	}
	if !have["host"] {
		return "host"
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !have[name] {
			return name
		}
	}
	return ""
}

func stringToSign(r *http.Request, body []byte, signed, scope []string) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n")
	b.WriteString(r.URL.EscapedPath() + "\n")
	b.WriteString(sortedQuery(r.URL.Query()) + "\n")
	for _, name := range signed {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = strconv.FormatInt(r.ContentLength, 10)
		}
		b.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	hash := sha256.Sum256(body)
	b.WriteString("\n" + strings.Join(signed, ";") + "\n" + hex.EncodeToString(hash[:]))
	canonical := sha256.Sum256([]byte(b.String()))
	return strings.Join([]string{
		"AWS4-HMAC-SHA256", r.Header.Get("X-Amz-Date"), strings.Join(scope, "/") + "/aws4_request", hex.EncodeToString(canonical[:]),
	}, "\n")
}

func sortedQuery(q url.Values) string {
	var pairs [][2]string
	for name, values := range q {
		for _, v := range values {
			pairs = append(pairs, [2]string{queryEscape(name), queryEscape(v)})
		}
	}
	sort.Slice(pairs, func(i, j int) bool {
		return pairs[i][0] < pairs[j][0] || pairs[i][0] == pairs[j][0] && pairs[i][1] < pairs[j][1]
	})
	var b strings.Builder
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p[0] + "=" + p[1])
	}
	return b.String()
}

func queryEscape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func signature(secret string, scope []string, text string) string {
	sum := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	key := []byte("AWS4" + secret)
	for _, part := range append(append([]string{}, scope...), "aws4_request") {
		key = sum(key, part)
	}
	return hex.EncodeToString(sum(key, text))
}
