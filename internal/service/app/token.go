package app

import (
	"context"
	"sync"
	"time"

	appv1 "teleport/api/app/v1"
	"teleport/internal/fault"
)

const (
	tokenTimeout = 5 * time.Second
	// tokenSpare is how much of a token's life is left at least when it is used; from
	// tokenEarly on a new one is fetched beside the requests.
	tokenSpare = 10 * time.Second
	tokenEarly = time.Minute
	maxTokens  = 50_000
	// tokenAgain is the pause after a failure for which nobody else asks Auth.
	tokenAgain = time.Second
)

// tokens are those that tell applications who asks. One is good for all requests with the
// same certificate, until shortly before it expires.
type tokens struct {
	auth func() appv1.AppServiceClient
	now  func() time.Time

	mu   sync.Mutex
	kept map[tokenKey]*token
}

type tokenKey struct {
	app   string
	print [32]byte
}

type token struct {
	// fetching is closed when the fetch that is under way is over; nil if none is.
	fetching chan struct{}
	text     string
	issued   time.Time
	expires  time.Time
	err      error
	failed   time.Time
}

func newTokens(auth func() appv1.AppServiceClient, now func() time.Time) *tokens {
	return &tokens{auth: auth, now: now, kept: map[tokenKey]*token{}}
}

// get returns a token for the user of the connection.
func (t *tokens) get(ctx context.Context, c *connection) (string, error) {
	key := tokenKey{c.sv.name, c.print}
	for {
		t.mu.Lock()
		k, now := t.kept[key], t.now()
		if k == nil {
			t.tidyLocked(now)
			k = &token{}
			t.kept[key] = k
		}
		left := k.expires.Sub(now)
		// A token that lives shortly is renewed late, too.
		early := min(tokenEarly, k.expires.Sub(k.issued)/4)
		fresh := now.Sub(k.failed) < tokenAgain
		if k.fetching == nil && left < max(early, tokenSpare) && !fresh {
			k.fetching = make(chan struct{})
			go t.fetch(context.WithoutCancel(ctx), key, k, c.cert)
		}
		text, err, fetching := k.text, k.err, k.fetching
		t.mu.Unlock()
		switch {
		case left >= tokenSpare:
			return text, nil
		case fetching == nil && err != nil:
			return "", err
		case fetching == nil:
			return "", fault.Unreachable("the Auth Service gives only tokens that are about to expire")
		}
		select {
		case <-fetching:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// fetch asks Auth for a token.
func (t *tokens) fetch(ctx context.Context, key tokenKey, k *token, cert []byte) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	var resp *appv1.SignTokenResponse
	var err error
	if client := t.auth(); client == nil {
		err = fault.Unreachable("there is no connection to the Auth Service")
	} else {
		resp, err = client.SignToken(ctx, &appv1.SignTokenRequest{App: key.app, UserCertificate: cert})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	close(k.fetching)
	k.fetching = nil
	now := t.now()
	if err != nil {
		k.err, k.failed = err, now
		return
	}
	k.text, k.issued, k.expires, k.err = resp.GetToken(), now, resp.GetExpires().AsTime(), nil
	if k.expires.Sub(now) < tokenSpare {
		// Asked at once it would give no better one.
		k.failed = now
	}
}

// tidyLocked forgets tokens that have expired, when there are many.
func (t *tokens) tidyLocked(now time.Time) {
	if len(t.kept) < maxTokens/2 {
		return
	}
	for key, k := range t.kept {
		if k.fetching == nil && (k.expires.Before(now) || len(t.kept) >= maxTokens) {
			delete(t.kept, key)
		}
	}
}
