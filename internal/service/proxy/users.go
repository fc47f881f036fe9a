package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	proxyv1 "teleport/api/proxy/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/mux"
	"teleport/internal/route"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

const (
	// maxRequest is the size of the frame that says where a user wants to go.
	maxRequest = 4 << 10
	// maxHandshakes bounds the users that have not shown a certificate yet;
	// handshakeGrace is how long one may take when others wait.
	maxHandshakes  = 1000
	handshakeGrace = 3 * time.Second
	// dialTimeout bounds the way to the node, answerTimeout telling the user.
	dialTimeout   = 20 * time.Second
	answerTimeout = 10 * time.Second
	// lingerTime and maxLinger bound what is taken of a user that was refused.
	lingerTime = time.Second
	maxLinger  = 64 << 10
	// refusalRate and refusalBurst bound the audit events about the refusals of one
	// user: a client that tries over and over must not fill the audit log. Every
	// refusal is in the service's log and counted.
	refusalRate, refusalBurst = 0.2, 20
	// emitTimeout bounds the sending of an audit event.
	emitTimeout = 5 * time.Second
)

// serveUsers takes the connections of users to nodes, and to the agents of applications
// and databases: TLS with the user's certificate, one DialRequest, one DialResponse, then
// the bytes of both sides.
func (s *Service) serveUsers(ctx context.Context, ln net.Listener) error {
	config := s.serverTLS(tls.RequireAndVerifyClientCert, mux.ALPNProxySSH)
	gate := mux.NewGate(maxHandshakes, maxHandshakes/2, handshakeGrace)
	return mux.Accept(ctx, ln, s.cfg.Log, func(raw net.Conn) {
		conn := tls.Server(raw, config)
		s.track(ctx, conn, s.cfg.Drain, func(own context.Context) {
			slot, err := gate.Enter(ctx, raw)
			if err != nil {
				s.metrics.overLimit.Inc()
				_ = raw.Close()
				return
			}
			defer slot.Leave()
			if err := s.serveUser(own, conn, slot); err != nil {
				s.cfg.Log.InfoContext(own, "connection of a user refused", "remote_addr", conn.RemoteAddr().String(), "error", err)
			}
		})
	})
}

func (s *Service) serveUser(ctx context.Context, conn *tls.Conn, slot *mux.Slot) error {
	caller, req, err := s.greet(ctx, conn)
	slot.Leave()
	if err != nil {
		linger(conn)
		return err
	}
	node, stock, resp, err := s.dial(ctx, caller, req, conn.RemoteAddr().String())
	if err != nil {
		err = errors.Join(err, respond(conn, resp))
		linger(conn)
		return err
	}
	defer func() {
		if node != nil {
			_ = node.Close()
		}
	}()
	leave, err := s.enter(caller, resp.GetHostId(), conn.NetConn())
	if err != nil {
		err = errors.Join(err, respond(conn, refusal(err)))
		linger(conn)
		return err
	}
	defer leave()
	defer s.metrics.opened(req.GetService())()
	if err := respond(conn, resp); err != nil {
		return err
	}
	if stock != nil {
		s.servers.serve(ctx, conn, stock)
		return nil
	}
	s.carry(ctx, conn, node)
	return nil
}

// greet authenticates the user and reads where the connection is to go.
func (s *Service) greet(ctx context.Context, conn *tls.Conn) (*identity.Identity, *proxyv1.DialRequest, error) {
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, nil, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("tls handshake: %w", err)
	}
	caller, err := s.cfg.Holder.Trust().Identify(conn.ConnectionState())
	if err == nil && (caller == nil || caller.User == nil) {
		err = fault.Denied("only users may connect to nodes, and %q is none", caller.Name())
	}
	if err == nil && caller.User.Routed() {
		// It may be in the hands of any program that speaks with that one resource.
		err = fault.Denied("this certificate of user %q is for one application or database only, and the agent that serves it: use the one of tsh login", caller.User.Name)
	}
	if err == nil {
		err = caller.CheckSource(conn.RemoteAddr())
	}
	if err != nil {
		return nil, nil, errors.Join(err, respond(conn, refusal(err)))
	}
	req := new(proxyv1.DialRequest)
	if err := rpc.ReadFrame(conn, req, maxRequest); err != nil {
		err = fmt.Errorf("dial request of user %q: %w", caller.User.Name, err)
		if fault.Kind(err) != nil {
			err = errors.Join(err, respond(conn, refusal(err)))
		}
		return nil, nil, err
	}
	return caller, req, conn.SetDeadline(time.Time{})
}

// dial connects to the node, or to an agent of what else is asked for, and makes the answer for the user. A node that runs only
// OpenSSH is returned in place of a connection: who the user is there is not known yet.
func (s *Service) dial(ctx context.Context, caller *identity.Identity, req *proxyv1.DialRequest, clientAddr string) (net.Conn, *typesv1.Server, *proxyv1.DialResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := s.locked(caller, ""); err != nil {
		return nil, nil, refusal(err), s.rejected(ctx, caller, req, clientAddr, err)
	}
	if req.GetService() != "" {
		conn, resp, err := s.dialResource(ctx, caller, req, clientAddr)
		return conn, nil, resp, err
	}
	target := route.Target{Host: req.GetHost(), Cluster: req.GetCluster(), Port: req.GetPort(), Join: req.GetJoin()}
	node, err := s.router.Find(caller, target)
	if err == nil {
		if locked := s.locked(caller, node.GetMetadata().GetName()); locked != nil {
			return nil, nil, refusal(locked), s.rejected(ctx, caller, req, clientAddr, locked)
		}
	}
	var conn net.Conn
	switch {
	case err != nil:
	case node.GetSubKind() == types.SubKindOpenSSH:
		_, err = s.servers.answerFor(ctx, node)
	default:
		conn, err = s.router.Connect(ctx, node, clientAddr)
	}
	if err != nil {
		return nil, nil, refusal(err), s.failed(ctx, caller, req, clientAddr, err)
	}
	resp := &proxyv1.DialResponse{HostId: node.GetMetadata().GetName(), HostName: node.GetSpec().GetHostname()}
	if conn == nil {
		return nil, node, resp, nil
	}
	return conn, nil, resp, nil
}

// dialResource connects to an agent of an application or database.
func (s *Service) dialResource(ctx context.Context, caller *identity.Identity, req *proxyv1.DialRequest, clientAddr string) (net.Conn, *proxyv1.DialResponse, error) {
	service, err := types.ParseSystemRole(req.GetService())
	switch {
	case err != nil:
	case req.GetHost() != "" || req.GetPort() != 0 || req.GetJoin():
		err = fault.Invalid("a connection goes to a host or to a resource, and this asks for both")
	case req.GetCluster() != "" && !strings.EqualFold(req.GetCluster(), s.cluster()):
		err = fault.NotFound("this Proxy serves cluster %q, and the connection is for another one", s.cluster())
	}
	var conn net.Conn
	var host string
	if err == nil {
		conn, host, err = s.router.DialResource(ctx, caller, service, req.GetResource(), req.GetNative(), clientAddr)
	}
	if err != nil {
		return nil, refusal(err), s.failed(ctx, caller, req, clientAddr, err)
	}
	return conn, &proxyv1.DialResponse{HostId: host}, nil
}

// failed counts a connection that was not made, and records it if it was refused.
func (s *Service) failed(ctx context.Context, caller *identity.Identity, req *proxyv1.DialRequest, clientAddr string, err error) error {
	s.metrics.notOpened(req.GetService())
	if !errors.Is(err, fault.ErrUnreachable) {
		s.emitRefusal(ctx, audit.AuthAttemptFailure, caller, req, clientAddr, err)
	}
	return fmt.Errorf("user %q to %q: %w", caller.User.Name, target(req), err)
}

// target is what a user asked for, in few words.
func target(req *proxyv1.DialRequest) string {
	if req.GetService() != "" {
		return req.GetResource()
	}
	return req.GetHost()
}

// refusal is the answer to a user that does not get a connection.
func refusal(err error) *proxyv1.DialResponse {
	if kind := fault.Kind(err); kind != nil {
		return &proxyv1.DialResponse{Error: err.Error(), ErrorKind: kind.Error()}
	}
	return &proxyv1.DialResponse{Error: "the Proxy could not connect: its log has the cause", ErrorKind: fault.ErrUnreachable.Error()}
}

// respond sends the answer.
func respond(conn net.Conn, resp *proxyv1.DialResponse) error {
	if err := conn.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	if err := rpc.WriteFrame(conn, resp); err != nil {
		return fmt.Errorf("answer the user: %w", err)
	}
	return conn.SetWriteDeadline(time.Time{})
}

// linger takes what a user sends behind the request for a moment: to close with it unread
// would reset the connection, and the answer might be lost on the way. Only who has shown
// a certificate is waited for.
func linger(conn *tls.Conn) {
	if !conn.ConnectionState().HandshakeComplete || conn.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, conn, maxLinger)
}

// emitRefusal records that a user asked for a node and was refused by the Proxy. The
// node's own refusals are recorded by the node.
func (s *Service) emitRefusal(ctx context.Context, kind audit.Kind, caller *identity.Identity, req *proxyv1.DialRequest, clientAddr string, cause error) {
	if !s.refusals.Allow(caller.User.Name, time.Now()) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), emitTimeout)
	defer cancel()
	event := audit.New(kind, map[string]any{
		"user": caller.User.Name, "success": false, "error": cause.Error(), "addr.remote": clientAddr,
		"target": target(req), "proxy_id": s.cfg.Holder.HostID(),
	})
	if err := s.cfg.Emit(ctx, event); err != nil {
		s.cfg.Log.WarnContext(ctx, "a refusal could not be recorded", "user", caller.User.Name, "error", err)
	}
}
