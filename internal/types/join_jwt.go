package types

import (
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/join/jwk"
)

// What the rows of the methods that verify signed tokens (JWT) share.

// MatchSegments reports whether all of text fits the pattern, segment by segment: in
// the pattern ? stands for one character and * for any run of characters that has no
// slash and no colon, ** for any run that has no colon, and everything else for
// itself, case and all. So "acme/*" has the projects of the group acme, "acme/**" those
// of its subgroups too, and neither reaches into the next part of a subject.
func MatchSegments(pattern, text string) bool {
	if len(pattern) > maxLabelValue || len(text) > 4*maxLabelValue {
		return false
	}
	literal := strings.IndexAny(pattern, "*?")
	if literal < 0 {
		return pattern == text
	}
	if !strings.HasPrefix(text, pattern[:literal]) {
		return false
	}
	pattern, text = pattern[literal:], text[literal:]
	// fits[t] is whether the pattern so far fits text[:t].
	fits, next := make([]bool, len(text)+1), make([]bool, len(text)+1)
	fits[0] = true
	for p := 0; p < len(pattern); p++ {
		stops := ""
		switch {
		case strings.HasPrefix(pattern[p:], "**"):
			stops = ":"
			p++
		case pattern[p] == '*':
			stops = "/:"
		}
		before := false
		for t := range next {
			switch {
			case stops != "":
				before = fits[t] || before && strings.IndexByte(stops, text[t-1]) < 0
				next[t] = before
			case t == 0:
				next[t] = false
			default:
				c := text[t-1]
				next[t] = fits[t-1] && (pattern[p] == c || pattern[p] == '?' && c != '/' && c != ':')
			}
		}
		fits, next = next, fits
	}
	return fits[len(text)]
}

// checkNoGlob refuses wildcards where values are compared to the letter: they would
// match nothing, or were meant to match too much.
func checkNoGlob(value string) error {
	if strings.ContainsAny(value, "*?") {
		return fault.Invalid("%q has a wildcard, and this field is compared to the letter", value)
	}
	return nil
}

// checkRootedGlob refuses patterns that would admit what somebody else made: the part
// up to the first slash, which is the owner, must be literal.
func checkRootedGlob(value string) error {
	wild := strings.IndexAny(value, "*?")
	if wild < 0 {
		return nil
	}
	if slash := strings.IndexByte(value, '/'); slash < 1 || slash > wild {
		return fault.Invalid("%q would admit what anybody may create: write everything up to the first slash without wildcards, as in \"acme/*\"", value)
	}
	return nil
}

// checkSomeGlob refuses patterns that say nothing.
func checkSomeGlob(value string) error {
	if strings.Trim(value, "*?/:") == "" {
		return fault.Invalid("%q matches everything: leave the field out, or say more", value)
	}
	return nil
}

// checkStaticJWKS looks at a key set with the eyes of the verifier.
func checkStaticJWKS(text string) error {
	if _, err := jwk.Parse(text); err != nil {
		return fault.Invalid("%w", err)
	}
	return nil
}

// checkIssuerURL checks the address of an issuer. It is compared to the letter with
// what tokens say, so nothing of it is changed.
func checkIssuerURL(issuer string, insecure bool) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" ||
		u.Scheme != "https" && (u.Scheme != "http" || !insecure) {
		return fault.Invalid("%q: expected https://host/path, exactly as the tokens of the issuer have it in iss", issuer)
	}
	return nil
}

// checkIssuerHost checks the host of an issuer, with or without a port.
func checkIssuerHost(host string) error {
	u, err := url.Parse("https://" + host)
	if err != nil || u.Host != host || u.User != nil || u.Hostname() == "" || strings.ContainsAny(host, "*?\\ ") {
		return fault.Invalid("%q: expected a host such as git.example.com, without https:// and path", host)
	}
	return nil
}

// checkIssuerCA checks certificate authorities.
func checkIssuerCA(text string) error {
	rest := []byte(text)
	n := 0
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fault.Invalid("a PEM block %q: expected CERTIFICATE only", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fault.Invalid("certificate %d: %w", n+1, err)
		}
		n++
	}
	if n == 0 || strings.TrimSpace(string(rest)) != "" {
		return fault.Invalid("expected certificates as PEM, and nothing else")
	}
	return nil
}

// checkRuleText refuses text that no platform states and that would only be compared
// in vain.
func checkRuleText(value string) error {
	if strings.TrimSpace(value) != value {
		return fault.Invalid("%q begins or ends with a space", value)
	}
	return checkNoGlob(value)
}

// literals gives the fields without a Check of their own checkRuleText.
func literals(fields ...RuleField) []RuleField {
	fields = slices.Clone(fields)
	for i := range fields {
		if fields[i].Check == nil {
			fields[i].Check = checkRuleText
		}
	}
	return fields
}

// checkUUID accepts a UUID in lower case.
func checkUUID(value string) error {
	ok := len(value) == 36
	for i := 0; ok && i < len(value); i++ {
		switch c := value[i]; i {
		case 8, 13, 18, 23:
			ok = c == '-'
		default:
			ok = '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		}
	}
	if !ok {
		return fault.Invalid("%q: expected a UUID in lower case, such as 3f2504e0-4f89-41d3-9a0c-0305e82c3301", value)
	}
	return nil
}

func oneOf(values ...string) func(string) error {
	return func(value string) error {
		if !slices.Contains(values, value) {
			return fault.Invalid("%q: expected %s", value, strings.Join(values, " or "))
		}
		return nil
	}
}

// rulePath is where the rule i of a list stands.
func rulePath(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

// problem adds err, if it is one, as what is wrong at path.
func problem(path string, err error, add func(path, format string, args ...any)) {
	if err != nil {
		add(path, "%s", err.Error())
	}
}
