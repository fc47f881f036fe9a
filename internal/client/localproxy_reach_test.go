package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"teleport/internal/client"
	"teleport/internal/fault"
)

func leaf(end time.Time) tls.Certificate {
	return tls.Certificate{Leaf: &x509.Certificate{NotAfter: end}}
}

func TestReachRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loginEnd := time.Now().Add(12 * time.Hour)
		var loginErr, certErr error
		certs := 0
		r := client.NewReach(
			func(context.Context) (*client.Client, time.Time, error) { return &client.Client{}, loginEnd, loginErr },
			func(context.Context, *client.Client) (tls.Certificate, error) {
				certs++
				return leaf(time.Now().Add(time.Hour)), certErr
			}, nil)
		get := func(want int, failure error) {
			t.Helper()
			_, _, err := r.Get(t.Context())
			if certs != want || !errors.Is(err, failure) {
				t.Errorf("%d certificates, %v; want %d, %v", certs, err, want, failure)
			}
		}
		get(1, nil)
		time.Sleep(39 * time.Minute)
		get(1, nil)
		time.Sleep(2 * time.Minute)
		get(2, nil)
		certErr = fault.ErrUnreachable
		time.Sleep(41 * time.Minute)
		get(3, nil) // the old one is good
		get(3, nil) // and no other is asked for at once
		time.Sleep(time.Minute)
		get(4, nil)
		time.Sleep(20 * time.Minute)
		get(5, fault.ErrUnreachable)
		certErr = nil
		get(6, nil)
		// The login ends.
		ended := fault.Unauthenticated("your certificate expired")
		loginErr = ended
		time.Sleep(12 * time.Hour)
		get(6, ended)
		loginErr, loginEnd = nil, time.Now().Add(12*time.Hour)
		get(7, nil)
	})
}

func TestReachWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := time.Now().Add(time.Hour)
		var n noted
		var mu sync.Mutex
		r := client.NewReach(func(context.Context) (*client.Client, time.Time, error) {
			mu.Lock()
			defer mu.Unlock()
			if time.Now().After(end) {
				return nil, time.Time{}, fault.Unauthenticated("your certificate expired: run tsh login")
			}
			return &client.Client{}, end, nil
		}, nil, n.note)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go r.Watch(ctx)
		time.Sleep(59 * time.Minute)
		if got := n.lines(); len(got) != 0 {
			t.Errorf("told %q", got)
		}
		time.Sleep(time.Hour)
		if got := n.lines(); len(got) != 1 || !strings.Contains(got[0], "run tsh login") {
			t.Errorf("told %q", got)
		}
		mu.Lock()
		end = time.Now().Add(time.Hour)
		mu.Unlock()
		time.Sleep(time.Minute)
		if got := n.lines(); len(got) != 2 || !strings.Contains(got[1], "logged in again") {
			t.Errorf("told %q", got)
		}
		// Who logs out is served no longer, although the certificates would be good.
		if _, _, err := r.Get(t.Context()); err != nil {
			t.Error(err)
		}
		mu.Lock()
		end = time.Now().Add(-time.Hour)
		mu.Unlock()
		time.Sleep(10 * time.Second)
		if _, _, err := r.Get(t.Context()); err == nil {
			t.Error("served after the logout")
		}
	})
}

func TestReachDialsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logins := 0
		r := client.NewReach(func(context.Context) (*client.Client, time.Time, error) {
			logins++
			return &client.Client{}, time.Now().Add(time.Hour), nil
		}, nil, nil)
		dials := 0
		dial := func(refusals int, err error) error {
			dials = 0
			conn, got := r.Dial(t.Context(), func(context.Context, *client.Client, tls.Certificate) (net.Conn, error) {
				if dials++; dials <= refusals {
					return nil, err
				}
				return &net.TCPConn{}, nil
			})
			if got == nil && conn == nil {
				t.Error("no connection")
			}
			return got
		}
		no := fault.Unauthenticated("who are you")
		if err := dial(1, no); !errors.Is(err, no) || dials != 1 {
			t.Errorf("with a new login: %v after %d", err, dials)
		}
		time.Sleep(time.Minute)
		if err := dial(1, no); err != nil || dials != 2 || logins != 2 {
			t.Errorf("with an older login: %v after %d, %d logins", err, dials, logins)
		}
		time.Sleep(time.Minute)
		if err := dial(1, fault.Denied("no")); !errors.Is(err, fault.ErrDenied) || dials != 1 {
			t.Errorf("denied: %v after %d", err, dials)
		}
	})
}
