package client

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"teleport/internal/fault"
)

const (
	// retryEvery is how long a certificate that is still good is used before getting
	// another one is tried again.
	retryEvery = 30 * time.Second
	// watchEvery is how often it is looked at whether the login has ended or there is a
	// new one.
	watchEvery = 5 * time.Second
)

// Reach keeps what is needed to reach one resource: credentials of the user and a
// certificate for the resource. Both are renewed while they are used; a new login of
// the user is taken up without a restart.
type Reach struct {
	// Login returns a client with the credentials that the user has now, and until when
	// they are good. If they are not, the error says so.
	Login func(ctx context.Context) (c *Client, until time.Time, err error)
	// Certify gets a certificate for the resource. Nil: none is needed.
	Certify func(ctx context.Context, c *Client) (tls.Certificate, error)
	// Note tells the user something in one line; may be nil.
	Note func(string)

	// lock is held by whoever changes what follows; a channel, so that waiting for it
	// ends with the context.
	lock      chan struct{}
	client    *Client
	until     time.Time
	cert      tls.Certificate
	loginDue  time.Time
	renewDue  time.Time
	obtained  time.Time
	certified bool
}

// NewReach returns a Reach.
func NewReach(login func(ctx context.Context) (*Client, time.Time, error), certify func(ctx context.Context, c *Client) (tls.Certificate, error), note func(string)) *Reach {
	return &Reach{Login: login, Certify: certify, Note: note, lock: make(chan struct{}, 1)}
}

// Get returns a client and a certificate that are good now.
func (r *Reach) Get(ctx context.Context) (*Client, tls.Certificate, error) {
	select {
	case r.lock <- struct{}{}:
		defer func() { <-r.lock }()
	case <-ctx.Done():
		return nil, tls.Certificate{}, context.Cause(ctx)
	}
	now := time.Now()
	if err := r.refreshLogin(ctx, now); err != nil {
		return nil, tls.Certificate{}, err
	}
	if err := r.refreshCertificate(ctx, now); err != nil {
		return nil, tls.Certificate{}, err
	}
	return r.client, r.cert, nil
}

func (r *Reach) refreshLogin(ctx context.Context, now time.Time) error {
	if r.client != nil && now.Before(r.loginDue) {
		return nil
	}
	c, until, err := r.Login(ctx)
	switch {
	case err == nil && (r.client == nil || !until.Equal(r.until)):
		r.client, r.until, r.obtained, r.certified = c, until, now, false
		r.loginDue = due(now, until)
	case err == nil:
		r.loginDue = due(now, until)
	case r.client == nil || !now.Before(r.until):
		r.client = nil
		return err
	default:
		r.loginDue = now.Add(retryEvery)
	}
	return nil
}

func (r *Reach) refreshCertificate(ctx context.Context, now time.Time) error {
	if r.Certify == nil || r.certified && now.Before(r.renewDue) {
		return nil
	}
	cert, err := r.Certify(ctx, r.client)
	switch {
	case err == nil:
		r.cert, r.certified, r.renewDue = cert, true, due(now, cert.Leaf.NotAfter)
	case !r.certified || !now.Before(r.cert.Leaf.NotAfter):
		r.certified = false
		return err
	default:
		// The certificate at hand is good: perhaps Auth is away for a moment.
		r.renewDue = now.Add(retryEvery)
	}
	return nil
}

// due is when something that is good until end is to be renewed.
func due(now, end time.Time) time.Time {
	return now.Add(max(end.Sub(now)*2/3, min(retryEvery, end.Sub(now))))
}

// Dial connects by dial with what Get returns. If the other side does not believe the
// user, everything is read again, once: there may be a new login.
func (r *Reach) Dial(ctx context.Context, dial func(ctx context.Context, c *Client, cert tls.Certificate) (net.Conn, error)) (net.Conn, error) {
	c, cert, err := r.Get(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, c, cert)
	if err == nil || !errors.Is(err, fault.ErrUnauthenticated) || !r.drop(ctx, retryEvery) {
		return conn, err
	}
	if c, cert, err = r.Get(ctx); err != nil {
		return nil, err
	}
	return dial(ctx, c, cert)
}

// drop forgets what is kept if it is that old, and reports whether it did.
func (r *Reach) drop(ctx context.Context, age time.Duration) bool {
	select {
	case r.lock <- struct{}{}:
		defer func() { <-r.lock }()
	case <-ctx.Done():
		return false
	}
	if time.Since(r.obtained) < age {
		return false
	}
	r.client = nil
	return true
}

// Watch tells the user when the login has ended or was given up, and when there is a new
// one, until ctx ends. Without a login nothing is connected any more.
func (r *Reach) Watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for ended := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_, _, err := r.Login(ctx)
		switch {
		case errors.Is(err, fault.ErrExists):
			// Another tsh changes the profile just now.
		case err == nil && ended:
			ended = false
			r.tell("logged in again: new connections work")
		case err != nil && !ended:
			ended = true
			r.drop(ctx, 0)
			r.tell(err.Error() + "; until then new connections are refused")
		}
	}
}

func (r *Reach) tell(text string) {
	if r.Note != nil {
		r.Note(text)
	}
}
