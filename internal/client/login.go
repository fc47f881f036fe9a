package client

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	loginv1 "teleport/api/login/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
)

const (
	// maxInvite bounds the text of an invite link.
	maxInvite = 2048
	// maxInviteToken bounds the secret in it.
	maxInviteToken = 256
)

// Invite is what an invite link says.
type Invite struct {
	// Proxy is host or host:port.
	Proxy string
	// Token is the secret.
	Token string
	// Pins are those of the host CA, from the fragment, which is not sent to
	// anybody; may be empty.
	Pins []string
}

// ParseInvite reads https://<proxy>/web/invite/<token>#sha256:<hex>, or the same
// with "reset" for "invite". Its errors do not quote the link.
func ParseInvite(link string) (*Invite, error) {
	const shape = "expected https://HOST/web/invite/TOKEN#sha256:PIN"
	if len(link) > maxInvite {
		return nil, fault.Invalid("the invite link is too long: %s", shape)
	}
	u, err := url.Parse(strings.TrimSpace(link))
	if err != nil || u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Host == "" {
		return nil, fault.Invalid("the invite link cannot be read: %s", shape)
	}
	token, ok := strings.CutPrefix(u.Path, "/web/invite/")
	if !ok {
		token, ok = strings.CutPrefix(u.Path, "/web/reset/")
	}
	if !ok || token == "" || len(token) > maxInviteToken || strings.Trim(token, tokenChars) != "" {
		return nil, fault.Invalid("the invite link has no token: %s", shape)
	}
	if _, err := ProxyAddrs(u.Host); err != nil {
		return nil, fault.Invalid("the invite link names no host: %s", shape)
	}
	inv := &Invite{Proxy: u.Host, Token: token}
	if u.Fragment != "" {
		if inv.Pins, err = ca.ParsePins(strings.Split(u.Fragment, ",")); err != nil {
			return nil, fault.Invalid("the CA pin at the end of the invite link is not sha256: and 64 hexadecimal digits: copy the whole link")
		}
	}
	return inv, nil
}

const tokenChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

// LoginRequest is what a person proves itself with.
type LoginRequest struct {
	User, Password, Code string
	// TTL of the certificates; 0 is the cluster's default.
	TTL  time.Duration
	Keys Keys
}

// Login exchanges password and code for certificates.
func (p *Proxy) Login(ctx context.Context, req LoginRequest) (*Credentials, error) {
	pub, err := req.Keys.Public()
	if err != nil {
		return nil, err
	}
	conn, err := p.grpc()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	in := &loginv1.LoginRequest{User: req.User, Password: req.Password, TotpCode: req.Code, Keys: pub, Ttl: ttlOf(req)}
	resp, err := loginv1.NewLoginServiceClient(conn).Login(ctx, in)
	if err != nil {
		return nil, p.explain("log in", err)
	}
	return p.accept(req, resp.GetCertificates())
}

// vouched refuses authorities that the cluster's Auth Service did not send: the answer
// came through the Proxy, which could add one. A host authority that the user knows,
// by a pin that was given or else from an earlier login, must have signed the list.
// Where none is known the Proxy's certificate vouches for everything.
func (p *Proxy) vouched(c *Credentials, certs *loginv1.UserCertificates) error {
	pins := p.cfg.Pins
	if len(pins) == 0 && !p.cfg.Insecure {
		pins = p.cfg.Known
	}
	known := len(pins) == 0 || slices.ContainsFunc(c.Trust.Pins(), func(pin string) bool { return slices.Contains(pins, pin) })
	switch {
	case !known && len(p.cfg.Pins) > 0:
		return fault.Unauthenticated("the cluster behind %s has none of the CA pins that were given: the link is for another cluster, "+
			"or somebody is in between", p.addr)
	case !known:
		return fault.Unauthenticated("the cluster behind %s is not the one of your earlier login: if it was replaced, or its host CA was rotated, "+
			"give --ca-pin with the pin that `tctl status` shows; otherwise somebody is in between", p.addr)
	}
	digest := ca.AuthoritiesDigest(certs.GetTls(), certs.GetAuthorities())
	if err := c.Trust.VerifyPinned(pins, digest, certs.GetAuthoritiesSignatures()); err != nil {
		return fault.Unauthenticated("the certificate authorities in the answer of %s are not signed by the cluster's host CA: "+
			"something between this machine and the Auth Service changed them, or the Auth Service is older than this tsh", p.addr)
	}
	return nil
}

// Invitation asks whom an invitation is for.
func (p *Proxy) Invitation(ctx context.Context, token string) (*loginv1.GetInvitationResponse, error) {
	conn, err := p.grpc()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := loginv1.NewLoginServiceClient(conn).GetInvitation(ctx, &loginv1.GetInvitationRequest{Token: token})
	if err != nil {
		return nil, p.explain("open the invitation", err)
	}
	return resp, nil
}

// Redeem uses an invitation up: it sets the password and the second factor, and
// logs in with them.
func (p *Proxy) Redeem(ctx context.Context, token string, req LoginRequest) (*Credentials, error) {
	pub, err := req.Keys.Public()
	if err != nil {
		return nil, err
	}
	conn, err := p.grpc()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	in := &loginv1.RedeemInvitationRequest{Token: token, Password: req.Password, TotpCode: req.Code, Keys: pub, Ttl: ttlOf(req)}
	resp, err := loginv1.NewLoginServiceClient(conn).RedeemInvitation(ctx, in)
	if err != nil {
		return nil, p.explain("redeem the invitation", err)
	}
	if resp.GetCertificates() == nil {
		return nil, fault.Unsupported("password and second factor are set, but the cluster did not log you in: run tsh login --proxy=%s --user=%s",
			p.addr, resp.GetUser())
	}
	return p.accept(req, resp.GetCertificates())
}

// accept joins the keys of a login with what was issued for them.
func (p *Proxy) accept(req LoginRequest, certs *loginv1.UserCertificates) (*Credentials, error) {
	c, err := NewCredentials(req.Keys, certs)
	if err != nil {
		return nil, err
	}
	if err := p.vouched(c, certs); err != nil {
		return nil, err
	}
	c.Renew = fmt.Sprintf("tsh login --proxy=%s --user=%s", p.addr, certs.GetUser())
	return c, nil
}

func ttlOf(req LoginRequest) *durationpb.Duration {
	if req.TTL <= 0 {
		return nil
	}
	return durationpb.New(req.TTL)
}

// explain names what was being done, and the address where it helps.
func (p *Proxy) explain(doing string, err error) error {
	if errors.Is(err, fault.ErrUnreachable) || errors.Is(err, fault.ErrUnsupported) {
		return fmt.Errorf("%s at %s: %w", doing, p.addr, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
