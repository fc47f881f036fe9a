package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/audit"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/mux"
	"teleport/internal/route"
	"teleport/internal/rpc"
)

// maxRequest is the size of the frame that says where a user wants to go.
const maxRequest = 4 << 10

// serveUsers takes the connections of users to nodes.
func (s *Service) serveUsers(ctx context.Context, ln net.Listener) error {
	config := ca.ServerTLS(s.certificate, s.cfg.Holder.Trust, tls.RequireAndVerifyClientCert, mux.ALPNProxySSH)
	gate := mux.NewGate(maxHandshakes, maxHandshakes/4, time.Second)
	return mux.Accept(ctx, ln, s.cfg.Log, func(raw net.Conn) {
		slot, err := gate.Enter(ctx, raw)
		if err != nil {
			_ = raw.Close()
			return
		}
		conn := tls.Server(raw, config)
		s.track(ctx, conn, func(ctx context.Context) {
			node, err := s.admit(ctx, conn, slot)
			if err != nil {
				s.cfg.Log.InfoContext(ctx, "connection of a user refused", "remote_addr", conn.RemoteAddr().String(), "error", err)
				return
			}
			s.metrics.sessions.Inc()
			s.metrics.active.Inc()
			defer s.metrics.active.Dec()
			join(conn, node)
		})
	})
}

// maxHandshakes bounds the users that have not shown a certificate yet.
const maxHandshakes = 1000

// admit authenticates the user, reads where the connection is to go, and answers.
func (s *Service) admit(ctx context.Context, conn *tls.Conn, slot *mux.Slot) (net.Conn, error) {
	defer slot.Leave()
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	id, err := s.cfg.Holder.Trust().Identify(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	if id == nil || id.User == nil {
		return nil, fault.Denied("only users may connect to nodes")
	}
	req := &proxyv1.DialRequest{}
	if err := rpc.ReadFrame(conn, req, maxRequest); err != nil {
		return nil, err
	}
	node, resp, err := s.dial(ctx, id, req, conn.RemoteAddr().String())
	if werr := rpc.WriteFrame(conn, resp); werr != nil || err != nil {
		if node != nil {
			_ = node.Close()
		}
		return nil, errors.Join(err, werr)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = node.Close()
		return nil, err
	}
	return node, nil
}

// dial connects to the node and makes the answer for the user.
func (s *Service) dial(ctx context.Context, id *identity.Identity, req *proxyv1.DialRequest, clientAddr string) (net.Conn, *proxyv1.DialResponse, error) {
	target := route.Target{Host: req.GetHost(), Cluster: req.GetCluster()}
	conn, node, err := s.router.Dial(ctx, id, target, clientAddr)
	if err != nil {
		s.metrics.failed.Inc()
		if !errors.Is(err, fault.ErrUnreachable) {
			s.emitRefusal(ctx, id, req, clientAddr, err)
		}
		resp := &proxyv1.DialResponse{Error: err.Error()}
		if kind := fault.Kind(err); kind != nil {
			resp.ErrorKind = kind.Error()
		} else {
			resp.Error = "the Proxy could not connect to the node (its log has the cause)"
		}
		return nil, resp, err
	}
	return conn, &proxyv1.DialResponse{
		HostId:   node.GetMetadata().GetName(),
		HostName: node.GetSpec().GetHostname(),
	}, nil
}

// emitRefusal records that a user asked for a node and was refused by the Proxy. The
// node's own refusals are recorded by the node.
func (s *Service) emitRefusal(ctx context.Context, id *identity.Identity, req *proxyv1.DialRequest, clientAddr string, cause error) {
	event := audit.New(audit.AuthAttemptFailure, map[string]any{
		"user": id.User.Name, "success": false, "error": cause.Error(), "addr.remote": clientAddr,
		"target": req.GetHost(), "proxy_id": s.cfg.Holder.HostID(),
	})
	if err := s.cfg.Emit(ctx, event); err != nil {
		s.cfg.Log.WarnContext(ctx, "a refusal could not be recorded", "error", err)
	}
}
