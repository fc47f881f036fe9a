package app

import (
	"context"
	"crypto/sha256"
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
	// maxTokens bounds those of one session: each Proxy has another certificate for it.
	maxTokens = 64
	// tokenAgain is the pause after a failure for which nobody else asks Auth.
	tokenAgain = time.Second
)

// tokens are those of a session that tell its application who asks. One is good for all
// requests with the same certificate, until shortly before it expires.
type tokens struct {
	auth func() appv1.AppServiceClient
	now  func() time.Time

	mu sync.Mutex
	// kept has them by the SHA-256 of the certificate.
	kept map[[sha256.Size]byte]*token
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

// get returns a token for the user of the connection.
func (t *tokens) get(ctx context.Context, c *connection) (string, error) {
	for {
		t.mu.Lock()
		k, now := t.kept[c.print], t.now()
		if k == nil {
			k = t.addLocked(c.print, now)
		}
		left := k.expires.Sub(now)
		// A token that lives shortly is renewed late, too.
		early := min(tokenEarly, k.expires.Sub(k.issued)/4)
		fresh := now.Sub(k.failed) < tokenAgain
		if k.fetching == nil && left < max(early, tokenSpare) && !fresh {
			k.fetching = make(chan struct{})
			go t.fetch(context.WithoutCancel(ctx), c.sv.name, k, c.cert)
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
func (t *tokens) fetch(ctx context.Context, app string, k *token, cert []byte) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	var resp *appv1.SignTokenResponse
	var err error
	if client := t.auth(); client == nil {
		err = fault.Unreachable("there is no connection to the Auth Service")
	} else {
		resp, err = client.SignToken(ctx, &appv1.SignTokenRequest{App: app, UserCertificate: cert})
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

// addLocked makes room for the token of a certificate.
func (t *tokens) addLocked(print [sha256.Size]byte, now time.Time) *token {
	for old, k := range t.kept {
		if len(t.kept) < maxTokens {
			break
		}
		if k.fetching == nil && !k.expires.After(now) {
			delete(t.kept, old)
		}
	}
	for old := range t.kept {
		if len(t.kept) < maxTokens {
			break
		}
		delete(t.kept, old)
	}
	if t.kept == nil {
		t.kept = map[[sha256.Size]byte]*token{}
	}
	k := &token{}
	t.kept[print] = k
	return k
}
