package proxy

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	opensshv1 "teleport/api/openssh/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/mux"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

const (
	// maxPendingVisits bounds the users on their way into OpenSSH servers.
	maxPendingVisits = 512
	// maxAnswers bounds the certificates that are kept for servers.
	maxAnswers = 10_000
	// signTimeout bounds a call to Auth.
	signTimeout = 10 * time.Second
)

// servers are those that run only OpenSSH. They cannot decide anything, so the Proxy
// does what the SSH Service does on a host of its own: it answers the user with a host
// certificate that Auth gave it for this server, decides, records, and carries what is
// allowed over a connection of its own, which it logs in to with a certificate that
// Auth signs for each login.
type servers struct {
	s       *Service
	api     opensshv1.OpenSSHServiceClient
	pending *mux.Gate
	guard   *sshaccess.Guard
	visits  *sshaccess.Registry[*visit]

	answersMu sync.Mutex
	key       crypto.Signer
	answers   map[string]*standIn
}

// standIn is a host certificate with which the Proxy answers for a server.
type standIn struct {
	hostname string
	signer   ssh.Signer
	renew    time.Time
}

func newServers(s *Service) (*servers, error) {
	key, err := keys.Generate(keys.Ed25519)
	if err != nil {
		return nil, err
	}
	guard := sshaccess.New(sshaccess.Config{
		Trust: s.cfg.Holder.Trust, Cache: s.cfg.Cache, Emit: s.cfg.Emit, Log: s.cfg.Log, Now: time.Now,
		Here: "this Proxy", LockedOut: s.lockedOutText, Refused: s.metrics.failed.Inc,
	})
	return &servers{
		s: s, api: opensshv1.NewOpenSSHServiceClient(s.cfg.AuthConn), pending: sshd.NewPending(maxPendingVisits),
		guard: guard, visits: sshaccess.NewRegistry[*visit](guard), key: key, answers: map[string]*standIn{},
	}, nil
}

// answerFor returns what the Proxy answers users of the server with.
func (o *servers) answerFor(ctx context.Context, node *typesv1.Server) (ssh.Signer, error) {
	id, hostname := node.GetMetadata().GetName(), node.GetSpec().GetHostname()
	o.answersMu.Lock()
	have := o.answers[id]
	o.answersMu.Unlock()
	if have != nil && have.hostname == hostname && time.Now().Before(have.renew) {
		return have.signer, nil
	}
	public, err := ssh.NewPublicKey(o.key.Public())
	if err != nil {
		return nil, fmt.Errorf("make the key for an OpenSSH server: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	resp, err := o.api.SignProxy(ctx, &opensshv1.SignProxyRequest{ServerId: id, PublicKey: public.Marshal()})
	if err != nil {
		return nil, needsAuth(err)
	}
	signer, err := certSigner(resp.GetCertificate(), o.key)
	if err != nil {
		return nil, err
	}
	o.answersMu.Lock()
	defer o.answersMu.Unlock()
	if len(o.answers) >= maxAnswers {
		clear(o.answers)
	}
	o.answers[id] = &standIn{hostname: hostname, signer: signer, renew: time.Now().Add(ca.MaxOpenSSHProxyTTL / 2)}
	return signer, nil
}

// certSigner joins a certificate in wire format with its key.
func certSigner(wire []byte, key crypto.Signer) (ssh.Signer, error) {
	cert, err := ca.ParseSSHCertificate(wire)
	if err != nil {
		return nil, err
	}
	plain, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, fmt.Errorf("use the key for an OpenSSH server: %w", err)
	}
	signer, err := ssh.NewCertSigner(cert, plain)
	if err != nil {
		return nil, fault.Invalid("the Auth Service signed a certificate for another key: %w", err)
	}
	return signer, nil
}

// needsAuth says why a login to an OpenSSH server needs the Auth Service, where that is
// what is missing.
func needsAuth(err error) error {
	if errors.Is(err, fault.ErrUnreachable) {
		return fault.Unreachable("new logins to OpenSSH servers need the Auth Service, which cannot be reached just now: try again")
	}
	return err
}

// serve answers a user in the place of a server, and returns when the connection is over.
func (o *servers) serve(ctx context.Context, conn net.Conn, node *typesv1.Server) {
	id := node.GetMetadata().GetName()
	v := &visit{o: o, log: o.s.cfg.Log.With("server_id", id), place: sshaccess.Place{
		ID: id, Hostname: node.GetSpec().GetHostname(),
		Own: map[string]any{"server_sub_kind": types.SubKindOpenSSH, "proxy_id": o.s.cfg.Holder.HostID()},
	}}
	server, err := sshd.New(sshd.Config{
		HostSigners:  func() []ssh.Signer { return v.signers(ctx) },
		Authenticate: o.guard.Authenticate,
		Authorize:    v.authorize,
		Connected:    v.connected,
		Carrier: &sshd.Carrier{
			Upstream: v.upstream, Session: v.session, Dial: v.dial, Listen: v.listen, Listening: v.listening, Agent: v.agent, X11: v.display, Closed: v.forwarded,
		},
		Pending: o.pending,
		Log:     v.log,
	})
	if err != nil {
		o.s.cfg.Log.ErrorContext(ctx, "cannot answer for an OpenSSH server", "error", err)
		return
	}
	server.ServeConn(ctx, conn)
}

// node returns the server as it is now.
func (o *servers) node(id string) (*typesv1.Server, bool) {
	n, ok := o.s.cfg.Cache.Node(id)
	if !ok || n.GetSubKind() != types.SubKindOpenSSH {
		return nil, false
	}
	if e := n.GetMetadata().GetExpires(); e != nil && !e.AsTime().After(time.Now()) {
		return nil, false
	}
	return n, true
}
