package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	opensshv1 "teleport/api/openssh/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

const (
	// upstreamTimeout bounds the way to a server, from TCP to the end of its login.
	upstreamTimeout = 20 * time.Second
	// maxBanner bounds what a server shows to its users.
	maxBanner = 8 << 10
	// expiresSoon is when an administrator is told that a server's certificate ends.
	expiresSoon = 30 * 24 * time.Hour
)

// visit is a connection of a user to an OpenSSH server.
type visit struct {
	o     *servers
	place sshaccess.Place
	log   *slog.Logger
	// up is the connection to the server; set by authorize.
	up sshd.Upstream
	// banner is what the server showed before it let the login in.
	banner string
	// Connection is there from connected on.
	*sshaccess.Connection
}

func (v *visit) signers(ctx context.Context) []ssh.Signer {
	node, ok := v.o.node(v.place.ID)
	if !ok {
		return nil
	}
	signer, err := v.o.answerFor(ctx, node)
	if err != nil {
		v.log.WarnContext(ctx, "cannot answer for an OpenSSH server", "error", err)
		return nil
	}
	return []ssh.Signer{signer}
}

// authorize decides whether the user may log in to the server, and logs in to it.
func (v *visit) authorize(ctx context.Context, meta ssh.ConnMetadata, login *sshd.Login) error {
	g, err := sshaccess.GuestOf(login)
	if err != nil {
		return err
	}
	guard := v.o.guard
	if err := guard.WaitSynced(ctx); err != nil {
		return err
	}
	if d := v.decide(g.ID, meta.User()); !d.Allowed {
		return guard.RefuseLogin(ctx, v.place, meta, g.ID, v.told(meta.User(), d), d)
	}
	if err := guard.Grant(ctx, v.place, meta, login, g.ID, v.denied(meta.User())); err != nil {
		return err
	}
	if err := v.connect(ctx, meta, g); err != nil {
		login.Ended()
		text := fmt.Sprintf("cannot connect you to %s: %s", v.place.Hostname, outside(err))
		return guard.Reject(ctx, v.place, meta, g.ID, text, err.Error())
	}
	login.Banner = v.banner
	end := login.Ended
	login.Ended = func() {
		_ = v.up.Conn.Close()
		end()
	}
	return nil
}

// outside is the text of an error that users see.
func outside(err error) string {
	var known *fault.Error
	if errors.As(err, &known) {
		return known.Error()
	}
	return "the Proxy's log has the cause"
}

// decide is asked at login and again for whatever is opened.
func (v *visit) decide(id *identity.Identity, login string) access.Decision {
	if d, refused := v.o.guard.LockRefuses(v.place, id, login); refused {
		return d
	}
	if d, refused := v.o.guard.CertificateRefuses(id, login); refused {
		return d
	}
	node, ok := v.o.node(v.place.ID)
	if !ok {
		return access.Decision{Rule: "node", Reason: fmt.Sprintf("OpenSSH server %s is not in the cluster any more", v.place.ID)}
	}
	subject := v.o.guard.Subject(id)
	if d := access.Alone(subject, types.KindSSH); !d.Allowed {
		return d
	}
	return access.Login(subject, login, types.ServerLabels(node))
}

// told returns what the user is told about a refusal: the rule of a role is for the
// audit log, the message of a lock is meant for them.
func (v *visit) told(login string, d access.Decision) string {
	if d.Rule == access.RuleLock {
		return d.Reason
	}
	if d.Rule == access.RuleCompany {
		return fmt.Sprintf("access denied: your roles ask for others to be in your sessions, and on %s, which runs only OpenSSH, they cannot be: use a server with an agent", v.place.Hostname)
	}
	return v.denied(login)
}

func (v *visit) denied(login string) string {
	return fmt.Sprintf("access denied to %s connecting to %s: your roles do not allow it, ask an administrator", login, v.place.Hostname)
}

// connect opens the connection to the server as the user's login, with a key and a
// certificate that are for this login and nothing else.
func (v *visit) connect(ctx context.Context, meta ssh.ConnMetadata, g *sshaccess.Guest) error {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	node, ok := v.o.node(v.place.ID)
	if !ok {
		return fault.NotFound("it is not in the cluster any more")
	}
	conn, err := v.o.s.router.Connect(ctx, node, "")
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = v.handshake(ctx, sshd.Coalesce(conn), meta, g)
	if !stop() && err == nil {
		err = fault.Unreachable("it does not answer within %s", upstreamTimeout)
		_ = v.up.Conn.Close()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = fault.Unreachable("it does not answer within %s", upstreamTimeout)
		}
	}
	return err
}

// handshake logs in to the server.
func (v *visit) handshake(ctx context.Context, conn net.Conn, meta ssh.ConnMetadata, g *sshaccess.Guest) error {
	signer, err := v.signLogin(ctx, conn, meta, g)
	if err != nil {
		return err
	}
	trust := v.o.s.cfg.Holder.Trust()
	var refused error
	verify := trust.OpenSSHServerKey(v.place.ID, func(expires time.Time) {
		if left := time.Until(expires); left < expiresSoon {
			v.log.WarnContext(ctx, "the host certificate of an OpenSSH server ends soon: run `teleport join openssh` there again", "hostname", v.place.Hostname, "expires", expires)
		}
	})
	c, chans, reqs, err := ssh.NewClientConn(conn, v.place.Hostname, &ssh.ClientConfig{
		Config: ssh.Config{
			KeyExchanges: []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519, ssh.KeyExchangeECDHP256},
			Ciphers:      []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305, ssh.CipherAES256CTR, ssh.CipherAES128CTR},
			MACs:         []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM},
		},
		User: meta.User(), Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyAlgorithms: []string{ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01},
		HostKeyCallback: func(host string, addr net.Addr, key ssh.PublicKey) error {
			refused = verify(host, addr, key)
			return refused
		},
		ClientVersion: "SSH-2.0-Teleport",
		BannerCallback: func(text string) error {
			v.banner += text[:min(len(text), maxBanner-len(v.banner))]
			return nil
		},
	})
	if err != nil {
		return v.explain(meta.User(), refused, err)
	}
	v.up = sshd.Upstream{Conn: c, Channels: chans, Requests: reqs}
	return nil
}

// signLogin gets a certificate for this login from Auth.
func (v *visit) signLogin(ctx context.Context, conn net.Conn, meta ssh.ConnMetadata, g *sshaccess.Guest) (ssh.Signer, error) {
	key, err := keys.Generate(keys.Ed25519)
	if err != nil {
		return nil, err
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("make the key of a login: %w", err)
	}
	from, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return nil, fault.Unsupported("the connection to it is no TCP connection")
	}
	sources := []string{from.IP.String()}
	for _, addr := range v.o.s.cfg.OpenSSHSources {
		sources = append(sources, addr.String())
	}
	client := ""
	if a := meta.RemoteAddr(); a != nil {
		client = a.String()
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	resp, err := v.o.api.SignLogin(ctx, &opensshv1.SignLoginRequest{
		ServerId: v.place.ID, Login: meta.User(), UserCertificate: g.Certificate.Marshal(), ClientAddr: client, PublicKey: public.Marshal(), Sources: sources,
	})
	if err != nil {
		return nil, needsAuth(err)
	}
	return certSigner(resp.GetCertificate(), key)
}

// explain says what was wrong with a handshake, and what to do.
func (v *visit) explain(login string, refused, err error) error {
	text := err.Error()
	switch {
	case refused != nil:
		return fault.New(fault.ErrUnauthenticated, "its host certificate is not good (%w): run `teleport join openssh` there again", refused)
	case strings.Contains(text, "no common algorithm for host key"):
		return fault.New(fault.ErrUnauthenticated, "it shows no host certificate: run `teleport join openssh` there, which sets HostCertificate (%w)", err)
	case strings.Contains(text, "unable to authenticate"):
		return fault.New(fault.ErrDenied, "its sshd does not let %q in: the account must exist there, and TrustedUserCAKeys name the keys of `tctl auth export --type=openssh` (%w)", login, err)
	}
	return fault.Unreachable("SSH handshake with it: %w", err)
}
