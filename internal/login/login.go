// Package login is how a person gets in: invitations that set a password and a
// second factor, logins that turn both into short-lived certificates, and
// certificates that an administrator signs for a user. It serves LoginService,
// to callers without a certificate, and UserService, to administrators.
//
//	administrator -> CreateUser           user and invitation link, good once
//	person        -> GetInvitation        whom it is for, TOTP secret
//	person        -> RedeemInvitation     password and first code
//	person        -> Login                password, code, public keys: certificates
//	Proxy         -> CreateWebSession     password, code of who has a browser: a session
//
// Whoever fails to log in gets the same answer after the same work, whether the
// user exists, is locked, or typed a wrong password or code: the audit log has
// the reason. What an attempt costs is bounded before anything is hashed.
package login

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"time"

	loginv1 "teleport/api/login/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/authz"
	"teleport/internal/budget"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/store"
)

const (
	// commitTimeout bounds the writing of an outcome, which happens even if the
	// caller has gone: a failure counts whether or not its answer is awaited.
	commitTimeout = 10 * time.Second
	// maxRetries bounds how often an outcome is decided anew because somebody else
	// changed what it rests on. On one user, each retry means that another attempt
	// was counted, and few are before the account is locked.
	maxRetries = 20
	// defaultSourceRate is how many attempts a second one source may make.
	defaultSourceRate = 5
	// burstSeconds is how many seconds of attempts a source may make at once.
	burstSeconds = 6
	// maxSources bounds how many sources are remembered.
	maxSources = 16384
	// noiseRate and noiseBurst bound the events about attempts that cost their
	// maker nothing; the rest are counted in the next one.
	noiseRate  = 5
	noiseBurst = 100
)

// Config is what a Server needs.
type Config struct {
	Store      *store.Store
	Signer     func() *ca.Signer
	Trust      func() *ca.Trust
	Authorizer *authz.Authorizer
	// Cluster returns the cluster's name.
	Cluster func() string
	// ProxyAddr returns the public address of a Proxy, host:port, or "" while none
	// is known.
	ProxyAddr func() string
	// SourceRate is how many attempts a second one source address (one /64 network
	// with IPv6) may make; 0 means 5. Six seconds' worth may be made at once.
	SourceRate float64
	Now        func() time.Time
	Log        *slog.Logger
}

// Server serves LoginService and UserService.
type Server struct {
	loginv1.UnimplementedLoginServiceServer
	userv1.UnimplementedUserServiceServer

	cfg     Config
	hasher  *hasher
	sources *budget.Sources
	noise   *budget.Noise
}

// New returns a Server.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Store == nil, cfg.Signer == nil, cfg.Trust == nil, cfg.Authorizer == nil, cfg.Cluster == nil, cfg.ProxyAddr == nil:
		return nil, errors.New("login: Store, Signer, Trust, Authorizer, Cluster and ProxyAddr are required")
	case cfg.SourceRate < 0:
		return nil, errors.New("login: SourceRate is negative")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.SourceRate == 0 {
		cfg.SourceRate = defaultSourceRate
	}
	h, err := newHasher(defaultCost, runtime.GOMAXPROCS(0))
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg:     cfg,
		hasher:  h,
		sources: budget.NewSources(cfg.SourceRate, int(cfg.SourceRate*burstSeconds), maxSources),
		noise:   budget.NewNoise(noiseRate, noiseBurst),
	}, nil
}

// errLogin is the one answer to every login that fails.
func errLogin() error {
	return fault.New(fault.ErrUnauthenticated, "invalid username, password or second factor").WithCode("login_failed")
}

// errInvitation is the one answer about every invitation that does not work.
func errInvitation() error {
	return fault.New(fault.ErrNotFound, "this invitation does not exist, was used or has expired: ask for a new one").WithCode("invitation_invalid")
}

// lasting returns a context for writing an outcome down: it outlives the call.
func lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
}

// raced reports whether a transaction failed because what it rests on changed.
func raced(err error) bool {
	return errors.Is(err, fault.ErrStale) || errors.Is(err, fault.ErrNotFound) || errors.Is(err, fault.ErrExists)
}
