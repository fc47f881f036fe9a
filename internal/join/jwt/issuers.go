package jwt

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"net/url"
	"strings"
	"sync"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/jwk"
	"teleport/internal/join/method"
)

// Times and sizes of the cache.
const (
	// ttl is how long keys are used before the issuer is asked again.
	ttl = 10 * time.Minute
	// minRefresh is the least time between two answers of an issuer, however many
	// tokens name a key that it does not have.
	minRefresh = time.Minute
	// retryAfter is the same after an issuer did not answer.
	retryAfter = 10 * time.Second
	// maxStale is how long keys are used while the issuer does not answer.
	maxStale = 24 * time.Hour
	// fetchTime is for both requests together.
	fetchTime    = 15 * time.Second
	maxIssuers   = 256
	maxDiscovery = 64 << 10
)

// Keys are the keys that a token may be signed with.
type Keys struct {
	find func(ctx context.Context, kid string) ([]jwk.Key, error)
}

// Static returns the keys of a JSON Web Key Set that an administrator wrote down.
// There is nothing to fetch.
func Static(text string) (Keys, error) {
	keys, err := jwk.Parse(text)
	if err != nil {
		return Keys{}, fault.New(fault.ErrInvalid, "static_jwks of the token: %w", err).WithCode(method.CodeProofSignature)
	}
	return Keys{find: func(_ context.Context, kid string) ([]jwk.Key, error) {
		return pick(keys, kid, "static_jwks of the token")
	}}, nil
}

// Source is an issuer that publishes its keys (OpenID Connect Discovery 1.0).
type Source struct {
	// Issuer is the address, exactly as iss has it. It comes from an administrator or
	// from our own tables, never from a token.
	Issuer string
	// Private allows the issuer's own host to be on a private network: only if an
	// administrator named it. Another host that its document names must be public.
	Private bool
	// Insecure allows an issuer without TLS.
	Insecure bool
	// CA has the certificate authorities of the issuer as PEM; empty: the system's.
	CA string
}

// Issuers remembers the keys of issuers. One value serves all join methods of an
// Auth Service; it is safe for concurrent use. Keys are used for 10 minutes; an issuer
// is asked by one join at a time and at most once a minute, also if tokens name keys
// that it does not have; if it does not answer, the keys that it had are good for a
// day.
type Issuers struct {
	now func() time.Time

	mu sync.Mutex
	// entries by what the keys depend on; at most maxIssuers.
	entries map[entryKey]*entry
}

type entryKey struct {
	issuer            string
	private, insecure bool
	ca                [sha256.Size]byte
}

type entry struct {
	// busy is closed when the fetch that is under way ends; nil if none is.
	busy chan struct{}
	keys []jwk.Key
	// fetched is when keys came; tried when the issuer was last asked; used when
	// the entry was last wanted.
	fetched, tried, used time.Time
	err                  error
}

// NewIssuers returns an empty cache.
func NewIssuers() *Issuers {
	return &Issuers{now: time.Now, entries: map[entryKey]*entry{}}
}

// Keys returns the keys of an issuer; they are fetched through out when a token is
// verified with them and the cache has none.
func (i *Issuers) Keys(out *egress.Client, from Source) Keys {
	return Keys{find: func(ctx context.Context, kid string) ([]jwk.Key, error) {
		keys, err := i.keys(ctx, out, from, kid)
		if err != nil {
			return nil, err
		}
		return pick(keys, kid, from.Issuer)
	}}
}

// keys returns what is known of an issuer, and asks it first if that is too old or
// has no such key.
func (i *Issuers) keys(ctx context.Context, out *egress.Client, from Source, kid string) ([]jwk.Key, error) {
	key := entryKey{from.Issuer, from.Private, from.Insecure, sha256.Sum256([]byte(from.CA))}
	for {
		i.mu.Lock()
		now := i.now()
		e := i.entryLocked(key, now)
		if e == nil {
			i.mu.Unlock()
			return nil, fault.New(fault.ErrLimit, "Auth is asking %d issuers at once: try again", maxIssuers).WithCode(method.CodeCloudUnreachable)
		}
		if !e.due(now, kid) {
			keys, err := e.keys, e.err
			if len(keys) > 0 && now.Sub(e.fetched) < maxStale {
				err = nil
			}
			i.mu.Unlock()
			return keys, err
		}
		if e.busy == nil {
			e.busy, e.tried = make(chan struct{}), now
			i.mu.Unlock()
			i.refresh(ctx, out, from, e)
			continue
		}
		busy := e.busy
		i.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fault.New(fault.ErrUnreachable, "issuer %s does not answer: %w", from.Issuer, context.Cause(ctx)).WithCode(method.CodeCloudUnreachable)
		}
	}
}

// due reports whether the issuer is to be asked before a token that names kid is
// verified.
func (e *entry) due(now time.Time, kid string) bool {
	if e.busy != nil {
		// Somebody asks already: wait only if what we have would not do.
		return !e.fresh(now) || !has(e.keys, kid)
	}
	pause := minRefresh
	if e.err != nil {
		pause = retryAfter
	}
	if !e.tried.IsZero() && now.Sub(e.tried) < pause && !now.Before(e.tried) {
		return false
	}
	return !e.fresh(now) || !has(e.keys, kid)
}

func (e *entry) fresh(now time.Time) bool {
	return len(e.keys) > 0 && now.Sub(e.fetched) < ttl
}

func has(keys []jwk.Key, kid string) bool {
	for _, k := range keys {
		if kid == "" || k.ID == kid {
			return true
		}
	}
	return false
}

// entryLocked returns the entry, making room for it if need be; nil if there is no
// room because all entries are being fetched.
func (i *Issuers) entryLocked(key entryKey, now time.Time) *entry {
	e := i.entries[key]
	if e == nil {
		if len(i.entries) >= maxIssuers && !i.evictLocked() {
			return nil
		}
		e = &entry{}
		i.entries[key] = e
	}
	e.used = now
	return e
}

func (i *Issuers) evictLocked() bool {
	var oldest *entryKey
	for k, e := range i.entries {
		if e.busy == nil && (oldest == nil || e.used.Before(i.entries[*oldest].used)) {
			oldest = &k
		}
	}
	if oldest == nil {
		return false
	}
	delete(i.entries, *oldest)
	return true
}

// refresh asks the issuer. Others wait for the answer, so it is not broken off when
// the join that asked is.
func (i *Issuers) refresh(ctx context.Context, out *egress.Client, from Source, e *entry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
	defer cancel()
	keys, err := fetch(ctx, out, from)
	i.mu.Lock()
	defer i.mu.Unlock()
	if e.err = err; err == nil {
		e.keys, e.fetched = keys, i.now()
	}
	close(e.busy)
	e.busy = nil
}

// pick returns the keys that a token with this kid may be signed with.
func pick(keys []jwk.Key, kid, where string) ([]jwk.Key, error) {
	if kid == "" {
		if len(keys) == 1 {
			return keys, nil
		}
		return nil, fault.New(fault.ErrDenied, "the token does not say which of the %d keys of %s it is signed with (no kid)", len(keys), where).WithCode(method.CodeProofSignature)
	}
	var out []jwk.Key
	for _, k := range keys {
		if k.ID == kid {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, fault.New(fault.ErrDenied, "the token is signed with key %.64q, which %s does not have; an issuer is asked for new keys once a minute", kid, where).WithCode(method.CodeProofSignature)
	}
	return out, nil
}

// fetch reads the discovery document of an issuer and the key set that it names.
func fetch(ctx context.Context, out *egress.Client, from Source) ([]jwk.Key, error) {
	u, err := url.Parse(from.Issuer)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && (u.Scheme != "http" || !from.Insecure) {
		return nil, unfit(method.CodeProofIssuer, "issuer %q: expected https://host/path", from.Issuer)
	}
	var roots *x509.CertPool
	if from.CA != "" {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(from.CA)) {
			return nil, unfit(method.CodeProofIssuer, "the certificate authorities given for issuer %s: expected PEM", from.Issuer)
		}
	}
	get := func(address string, own bool, limit int64) ([]byte, error) {
		resp, err := out.Do(ctx, egress.Request{URL: address, Limit: limit, Private: from.Private && own, Plain: from.Insecure && own, Roots: roots})
		if err != nil {
			return nil, fault.New(fault.ErrUnreachable, "keys of issuer %s: %w", from.Issuer, err).WithCode(method.CodeCloudUnreachable)
		}
		if resp.Status != 200 {
			return nil, fault.New(fault.ErrUnreachable, "keys of issuer %s: %s answers with status %d", from.Issuer, address, resp.Status).WithCode(method.CodeCloudUnreachable)
		}
		return resp.Body, nil
	}
	body, err := get(strings.TrimSuffix(from.Issuer, "/")+"/.well-known/openid-configuration", true, maxDiscovery)
	if err != nil {
		return nil, err
	}
	doc, err := jwk.Object(body)
	if err != nil {
		return nil, unfit(method.CodeCloudUnreachable, "the discovery document of issuer %s: %w", from.Issuer, err)
	}
	if name, _ := doc["issuer"].(string); name != from.Issuer {
		return nil, unfit(method.CodeProofIssuer, "the discovery document at %s is of another issuer: expected %q, got %.256q", from.Issuer, from.Issuer, name)
	}
	address, _ := doc["jwks_uri"].(string)
	k, err := url.Parse(address)
	if err != nil || k.Host == "" || k.User != nil {
		return nil, unfit(method.CodeProofIssuer, "the discovery document of issuer %s has jwks_uri %.256q: expected https://host/path", from.Issuer, address)
	}
	// The document is not an administrator: a host that only it names is asked over
	// TLS and on the public network.
	own := k.Host == u.Host
	if k.Scheme != "https" && (k.Scheme != "http" || !from.Insecure || !own) {
		return nil, unfit(method.CodeProofIssuer, "the discovery document of issuer %s has jwks_uri %.256q: expected https", from.Issuer, address)
	}
	body, err = get(address, own, jwk.MaxSet)
	if err != nil {
		return nil, err
	}
	keys, err := jwk.ParsePublished(body)
	if err != nil {
		return nil, unfit(method.CodeCloudUnreachable, "the keys of issuer %s: %w", from.Issuer, err)
	}
	return keys, nil
}

func unfit(code, format string, args ...any) error {
	return fault.New(fault.ErrDenied, format, args...).WithCode(code)
}
