package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	opensshv1 "teleport/api/openssh/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

const (
	permitPTY     = "permit-pty"
	sourceAddress = "source-address"
	// upstreamTimeout bounds the way to a server, from TCP to the end of its login.
	upstreamTimeout = 20 * time.Second
	// expiresSoon is when an administrator is told that a server's certificate ends.
	expiresSoon = 30 * 24 * time.Hour
)

// visit is a connection of a user to an OpenSSH server.
type visit struct {
	o *servers
	// id and hostname are the server's.
	id, hostname string
	log          *slog.Logger
	// up is the connection to the server; set by authorize.
	up sshd.Upstream
	// From connected on:
	conn   *sshd.Conn
	user   *identity.Identity
	once   sync.Once
	reason atomic.Pointer[string]
	// limited is set when a limit of time closes the connection.
	limited atomic.Bool

	mu sync.Mutex
	// uses are the ways in which the connection forwarded.
	uses map[use]*traffic
}

// guest is whose certificate was shown.
type guest struct {
	id   *identity.Identity
	cert *ssh.Certificate
}

func guestOf(login *sshd.Login) (*guest, error) {
	g, ok := login.Value.(*guest)
	if !ok || g == nil || g.id == nil || g.id.User == nil {
		return nil, fault.Unauthenticated("the connection has no user")
	}
	return g, nil
}

func (v *visit) signers(ctx context.Context) []ssh.Signer {
	node, ok := v.o.node(v.id)
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

// authenticate says whose certificate was offered, as the SSH Service does. Whether it
// is good for the login is left to authorize.
func (v *visit) authenticate(_ context.Context, meta ssh.ConnMetadata, key ssh.PublicKey) (*sshd.Login, error) {
	cert, ok := key.(*ssh.Certificate)
	if !ok || len(cert.ValidPrincipals) == 0 {
		return nil, fault.Unauthenticated("a plain SSH key was offered, a user certificate of the cluster is needed")
	}
	now := time.Now()
	id, perms, err := v.o.s.cfg.Holder.Trust().AuthenticateSSH(asUser{meta, cert.ValidPrincipals[0]}, cert, now)
	if err != nil {
		if cert.ValidBefore != ssh.CertTimeInfinity && uint64(now.Unix()) >= cert.ValidBefore {
			return nil, errors.Join(&sshd.Refusal{Text: "your certificate has expired: log in again with tsh login"}, err)
		}
		return nil, err
	}
	if id.User == nil {
		return nil, fault.Unauthenticated("a host certificate was offered, a user certificate is needed")
	}
	_, terminal := perms.Extensions[permitPTY]
	return &sshd.Login{
		Value: &guest{id, cert}, CriticalOptions: perms.CriticalOptions, Extensions: perms.Extensions, NoTerminal: !terminal,
	}, nil
}

// asUser is the metadata of a connection with another login.
type asUser struct {
	ssh.ConnMetadata
	login string
}

// User returns the other login.
func (a asUser) User() string { return a.login }

// authorize decides whether the user may log in to the server, and logs in to it.
func (v *visit) authorize(ctx context.Context, meta ssh.ConnMetadata, login *sshd.Login) error {
	g, err := guestOf(login)
	if err != nil {
		return err
	}
	if err := v.o.s.cfg.Cache.WaitSynced(ctx); err != nil {
		return errors.Join(&sshd.Refusal{Text: "this Proxy does not know the state of the cluster yet: try again in a moment"}, err)
	}
	if d := v.decide(g.id, meta.User()); !d.Allowed {
		text := v.told(meta.User(), d)
		kind := audit.AuthAttemptFailure
		if d.Rule == access.RuleLock {
			kind = audit.SessionRejected
		}
		e := audit.New(kind, v.fields(meta, g.id, map[string]any{
			"success": false, "error": text, "reason": d.Reason, "role": d.Role, "rule": d.Rule,
		}))
		return v.refuse(ctx, e, g.id, text, d.Reason)
	}
	if err := v.grant(ctx, meta, login, g.id); err != nil {
		return err
	}
	if err := v.connect(ctx, meta, g); err != nil {
		login.Ended()
		text := fmt.Sprintf("cannot connect you to %s: %s", v.hostname, outside(err))
		e := audit.New(audit.SessionRejected, v.fields(meta, g.id, map[string]any{"success": false, "error": text, "reason": err.Error()}))
		return v.refuse(ctx, e, g.id, text, err.Error())
	}
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
	cfg := &v.o.s.cfg
	if text := v.locked(id, login); text != "" {
		return access.Decision{Rule: access.RuleLock, Reason: text}
	}
	roles := cfg.Cache.Roles(id.User.Roles)
	if cfg.Cache.Stale(time.Now()) && access.StrictLocks(roles) {
		return access.Decision{Rule: access.RuleLock, Reason: fmt.Sprintf(
			"this Proxy has not heard from the Auth Service for more than %s and may have missed locks: your roles do not let you in until it has (options.lock is %s)",
			cache.MaxSilence, types.LockStrict)}
	}
	if !slices.Contains(id.User.Logins, login) {
		return access.Decision{Rule: "certificate", Reason: fmt.Sprintf("the certificate of %s is not good for login %q, only for %q", id.User.Name, login, id.User.Logins)}
	}
	if now := time.Now(); !now.Before(id.Expires) {
		return access.Decision{Rule: "certificate", Reason: fmt.Sprintf("the certificate of %s expired at %s", id.User.Name, id.Expires.UTC())}
	}
	node, ok := v.o.node(v.id)
	if !ok {
		return access.Decision{Rule: "node", Reason: fmt.Sprintf("OpenSSH server %s is not in the cluster any more", v.id)}
	}
	subject := access.Subject{User: id.User.Name, Roles: roles, Traits: id.User.Traits}
	if d := access.Alone(subject, types.KindSSH); !d.Allowed {
		return d
	}
	return access.Login(subject, login, types.ServerLabels(node))
}

// locked returns the text of the lock that forbids the user to be there as the login,
// or "".
func (v *visit) locked(id *identity.Identity, login string) string {
	cfg := &v.o.s.cfg
	if err := v.o.s.lockedOut(); err != nil {
		return err.Error()
	}
	l := access.FindLock(cfg.Cache.Locks(), access.Facts{
		User: id.User.Name, Roles: id.User.Roles, Login: login, ServerID: v.id, JoinToken: cfg.Cache.JoinToken(v.id), MFADevice: id.User.MFADevice,
	}, time.Now())
	if l == nil {
		return ""
	}
	return access.LockText(l)
}

// told returns what the user is told about a refusal: the rule of a role is for the
// audit log, the message of a lock is meant for them.
func (v *visit) told(login string, d access.Decision) string {
	if d.Rule == access.RuleLock {
		return d.Reason
	}
	if d.Rule == access.RuleCompany {
		return fmt.Sprintf("access denied: your roles ask for others to be in your sessions, and on %s, which runs only OpenSSH, they cannot be: use a server with an agent", v.hostname)
	}
	return v.denied(login)
}

func (v *visit) denied(login string) string {
	return fmt.Sprintf("access denied to %s connecting to %s: your roles do not allow it, ask an administrator", login, v.hostname)
}

// options are what the user's roles say now.
func (v *visit) options(id *identity.Identity) access.Options {
	return access.OptionsOf(access.Subject{User: id.User.Name, Roles: v.o.s.cfg.Cache.Roles(id.User.Roles), Traits: id.User.Traits})
}

// grant applies the options of the user's roles to a login that is allowed.
func (v *visit) grant(ctx context.Context, meta ssh.ConnMetadata, login *sshd.Login, id *identity.Identity) error {
	o := v.options(id)
	name := id.User.Name
	refuse := func(ctx context.Context, text, reason string) error {
		e := audit.New(audit.SessionRejected, v.fields(meta, id, map[string]any{"success": false, "error": text, "reason": reason}))
		return v.refuse(ctx, e, id, text, reason)
	}
	if o.Broken != nil {
		return refuse(ctx, v.denied(meta.User()), o.Broken.Error())
	}
	if _, pinned := login.CriticalOptions[sourceAddress]; o.PinSource && !pinned {
		return refuse(ctx, "access denied: your roles bind certificates to the address of the login, and yours names none: log in again",
			"options.pin_source_ip: the certificate has no critical option "+sourceAddress)
	}
	key := name + "\x00" + v.id
	if !v.o.counts.take(key, o.MaxConnections) {
		return refuse(ctx, fmt.Sprintf("access denied: you have %d connections to %s already, and your roles allow no more: close one", o.MaxConnections, v.hostname),
			fmt.Sprintf("options.max_connections is %d", o.MaxConnections))
	}
	login.Ended = func() { v.o.counts.give(key) }
	if o.MaxSessions > 0 {
		login.MaxSessions = int(min(o.MaxSessions, sshd.DefaultMaxSessions))
		login.TooMany = func(ctx context.Context) string {
			err := refuse(ctx, fmt.Sprintf("your roles allow %d sessions on one connection: close one or connect again", o.MaxSessions),
				fmt.Sprintf("options.max_sessions is %d", o.MaxSessions))
			var r *sshd.Refusal
			if errors.As(err, &r) {
				return r.Text
			}
			return ""
		}
	}
	return nil
}

// connect opens the connection to the server as the user's login, with a key and a
// certificate that are for this login and nothing else.
func (v *visit) connect(ctx context.Context, meta ssh.ConnMetadata, g *guest) error {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	node, ok := v.o.node(v.id)
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
func (v *visit) handshake(ctx context.Context, conn net.Conn, meta ssh.ConnMetadata, g *guest) error {
	signer, err := v.signLogin(ctx, conn, meta, g)
	if err != nil {
		return err
	}
	trust := v.o.s.cfg.Holder.Trust()
	var refused error
	verify := trust.OpenSSHServerKey(v.id, func(expires time.Time) {
		if left := time.Until(expires); left < expiresSoon {
			v.log.WarnContext(ctx, "the host certificate of an OpenSSH server ends soon: run `teleport join openssh` there again", "hostname", v.hostname, "expires", expires)
		}
	})
	c, chans, reqs, err := ssh.NewClientConn(conn, v.hostname, &ssh.ClientConfig{
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
	})
	if err != nil {
		return v.explain(meta.User(), refused, err)
	}
	v.up = sshd.Upstream{Conn: c, Channels: chans, Requests: reqs}
	return nil
}

// signLogin gets a certificate for this login from Auth.
func (v *visit) signLogin(ctx context.Context, conn net.Conn, meta ssh.ConnMetadata, g *guest) (ssh.Signer, error) {
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
		ServerId: v.id, Login: meta.User(), UserCertificate: g.cert.Marshal(), ClientAddr: client, PublicKey: public.Marshal(), Sources: sources,
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

// refuse records a refusal and returns the error that tells the user about it.
func (v *visit) refuse(ctx context.Context, e *auditv1.Event, id *identity.Identity, text, reason string) error {
	v.o.s.metrics.failed.Inc()
	key := strings.Join([]string{e.GetCode(), v.id, id.User.Name, text, reason}, "\x00")
	if v.o.refusals.note(key, e) {
		if err := v.o.s.cfg.Emit(ctx, e); err != nil {
			v.log.ErrorContext(ctx, "refusal is not in the audit log", "error", err, "event", e.GetEvent(), "reason", reason)
		}
		v.log.InfoContext(ctx, "access denied", "event_id", e.GetUid(), "reason", reason)
	}
	return &sshd.Refusal{Text: fmt.Sprintf("%s (audit event %s)", text, e.GetUid())}
}
