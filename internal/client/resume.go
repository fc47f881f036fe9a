package client

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/fault"
	"teleport/internal/resume"
	"teleport/internal/rpc"
)

// Resumption has connections to nodes survive the loss of what they come over.
type Resumption struct {
	// Refresh returns the credentials that the user has now, when those of before have
	// expired. It may be nil.
	Refresh func(ctx context.Context) (*Credentials, error)
	// Notify is told when the connection to a host is lost and when it is back. It may
	// be nil and must not block.
	Notify func(host string, e resume.Event)
}

// DialNode opens a connection to a node, named by host name or host id, either
// followed by ".<cluster>" or not. One TCP and one TLS handshake are made.
func (c *Client) DialNode(ctx context.Context, host string, port uint32) (*NodeConn, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if c.cfg.Resume == nil {
		return c.dialNode(ctx, host, port, nil)
	}
	offer, err := resume.NewOffer()
	if err != nil {
		return nil, err
	}
	node, err := c.dialNode(ctx, host, port, offer)
	if errors.Is(err, resume.ErrNotOffered) {
		return c.dialNode(ctx, host, port, nil)
	}
	return node, err
}

// request is what is sent to the Proxy first, and behind it to the node: in one write,
// so that the offer costs no round trip.
func request(req *proxyv1.DialRequest, offer *resume.Offer) ([]byte, error) {
	var out bytes.Buffer
	if err := rpc.WriteFrame(&out, req); err != nil {
		return nil, err
	}
	if offer != nil {
		out.Write(offer.Line())
	}
	return out.Bytes(), nil
}

// accept reads what the node made of the offer.
func (c *Client) accept(node *NodeConn, port uint32, offer *resume.Offer) error {
	conn, err := offer.Accept(node.Conn, resume.ClientConfig{
		Redial: func(ctx context.Context) (net.Conn, error) { return c.redial(ctx, node.HostID, port) },
		Final:  func(err error) bool { return errors.Is(err, fault.ErrDenied) },
		Notify: func(e resume.Event) {
			if c.cfg.Resume.Notify != nil {
				c.cfg.Resume.Notify(node.HostName, e)
			}
		},
	})
	if err != nil {
		if errors.Is(err, resume.ErrNotOffered) {
			return err
		}
		return fault.Unreachable("no answer from %q: %w", node.HostName, err)
	}
	node.Conn = conn
	return nil
}

// redial opens another connection to the same node.
func (c *Client) redial(ctx context.Context, hostID string, port uint32) (net.Conn, error) {
	present := c
	if expired := c.cfg.Credentials.Check(c.cfg.Now()); expired != nil {
		if c.cfg.Resume.Refresh == nil {
			return nil, expired
		}
		fresh, err := c.cfg.Resume.Refresh(ctx)
		if err != nil {
			return nil, errors.Join(expired, err)
		}
		cfg := c.cfg
		cfg.Credentials = fresh
		if present, err = New(cfg); err != nil {
			return nil, err
		}
	}
	node, err := present.dialNode(ctx, hostID, port, nil)
	if err != nil {
		return nil, err
	}
	if !strings.EqualFold(node.HostID, hostID) {
		_ = node.Close()
		return nil, fault.Unauthenticated("the Proxy connected to %q when asked for %q", node.HostID, hostID)
	}
	return node.Conn, nil
}

// steady returns the connection to log in over: writes that follow each other are
// joined.
func steady(node *NodeConn) net.Conn {
	if _, ok := node.Conn.(*resume.Conn); ok {
		return node.Conn
	}
	return coalesce(node)
}

// lossPatience is how long the reason of an end is waited for.
const lossPatience = 200 * time.Millisecond

// lost returns why the connection ended, where the session only knows that it did.
func lost(client *ssh.Client, err error) error {
	if !errors.Is(err, fault.ErrUnreachable) {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- client.Wait() }()
	patience := time.NewTimer(lossPatience)
	defer patience.Stop()
	select {
	case why := <-ended:
		if fault.Kind(why) != nil {
			return why
		}
	case <-patience.C:
	}
	return err
}
