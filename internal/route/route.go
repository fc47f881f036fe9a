// Package route finds what a user asks for and connects to it: a name or an id
// becomes one registered node that the user may see, reached through its tunnel or
// at its registered address. It authenticates nobody, and it never dials an address
// that a client names.
package route

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/mux"
	"teleport/internal/types"
)

const (
	maxHost     = 253 + 64
	dialTimeout = 10 * time.Second
	// maxListed is how many candidates an error names.
	maxListed = 10
	// relayedPurpose is what the signed statement about the client is for.
	relayedPurpose = "node"
)

// Tunnels is the Proxy's end of the reverse tunnels.
type Tunnels interface {
	// Dial opens a connection to a service of the host; fault.ErrUnreachable if no
	// tunnel of it works.
	Dial(ctx context.Context, hostID string, service types.SystemRole, clientAddr string) (net.Conn, error)
	// Connected reports whether the host has a tunnel to this Proxy.
	Connected(hostID string) bool
}

// Config is what New needs.
type Config struct {
	Cache   *cache.Cache
	Tunnels Tunnels
	// Certificate is the Proxy's: it signs the statement about the client that a
	// node reached by TCP gets first.
	Certificate func() *tls.Certificate
	// DialTCP replaces the network in tests.
	DialTCP func(ctx context.Context, network, addr string) (net.Conn, error)
	Now     func() time.Time
}

// Router finds and dials. It is safe for concurrent use.
type Router struct{ cfg Config }

// New returns a Router.
func New(cfg Config) *Router {
	if cfg.DialTCP == nil {
		cfg.DialTCP = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Router{cfg}
}

// Target is what a user asks for.
type Target struct {
	// Host is a host name or host id, with or without ".<cluster>".
	Host string
	// Cluster is empty or the name of this cluster.
	Cluster string
}

// Find returns the one node that the target means to the caller. Nodes that the
// caller may not see do not exist for it; of several with the name, those that
// cannot be reached now are left out.
func (r *Router) Find(caller *identity.Identity, target Target) (*typesv1.Server, error) {
	if caller == nil || caller.User == nil {
		return nil, fault.Denied("only users may connect to nodes")
	}
	host, err := r.hostOf(target)
	if err != nil {
		return nil, err
	}
	checker := access.NewChecker(access.Subject{
		User: caller.User.Name, Roles: r.cfg.Cache.Roles(caller.User.Roles), Traits: caller.User.Traits,
	})
	if node, ok := r.cfg.Cache.Node(host); ok && checker.Sees(types.ServerLabels(node)).Allowed {
		return node, nil
	}
	var found []*typesv1.Server
	for _, node := range r.cfg.Cache.Nodes() {
		if strings.EqualFold(node.GetSpec().GetHostname(), host) && checker.Sees(types.ServerLabels(node)).Allowed {
			found = append(found, node)
		}
	}
	if len(found) == 0 {
		return nil, fault.NotFound("there is no node %q in this cluster that you may connect to: see `tsh ls`", host)
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return r.choose(host, found)
}

// choose leaves out the nodes that cannot be reached; if that leaves several, the
// user has to say which.
func (r *Router) choose(host string, found []*typesv1.Server) (*typesv1.Server, error) {
	live := slices.DeleteFunc(slices.Clone(found), func(n *typesv1.Server) bool {
		return n.GetSpec().GetUseTunnel() && !r.cfg.Tunnels.Connected(n.GetMetadata().GetName())
	})
	switch len(live) {
	case 0:
		return nil, fault.Unreachable("none of the %d nodes named %q is connected just now", len(found), host)
	case 1:
		return live[0], nil
	}
	slices.SortFunc(live, func(a, b *typesv1.Server) int {
		return cmp.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
	})
	ids := make([]string, 0, maxListed)
	for _, n := range live[:min(len(live), maxListed)] {
		ids = append(ids, n.GetMetadata().GetName())
	}
	return nil, fault.Invalid("%d nodes are named %q, say which by its id: %s", len(live), host, strings.Join(ids, ", "))
}

// hostOf returns the host of the target without the name of the cluster.
func (r *Router) hostOf(target Target) (string, error) {
	cluster := r.cfg.Cache.ClusterName().GetSpec().GetClusterName()
	if target.Cluster != "" && target.Cluster != cluster {
		return "", fault.NotFound("this Proxy serves cluster %q, not %q", cluster, target.Cluster)
	}
	host := strings.ToLower(target.Host)
	if host == "" || len(host) > maxHost {
		return "", fault.Invalid("a host name has 1 to %d characters, this one has %d", maxHost, len(host))
	}
	if bare, ok := strings.CutSuffix(host, "."+strings.ToLower(cluster)); ok && bare != "" {
		return bare, nil
	}
	return host, nil
}

// Dial finds the node and connects to its SSH Service. The caller closes the
// connection. The node is returned also with an error of the connection.
func (r *Router) Dial(ctx context.Context, caller *identity.Identity, target Target, clientAddr string) (net.Conn, *typesv1.Server, error) {
	node, err := r.Find(caller, target)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if node.GetSpec().GetUseTunnel() {
		conn, err := r.cfg.Tunnels.Dial(ctx, node.GetMetadata().GetName(), types.RoleNode, clientAddr)
		return conn, node, err
	}
	conn, err := r.dialTCP(ctx, node.GetSpec().GetAddr(), clientAddr)
	return conn, node, err
}

// dialTCP connects to a node that is not behind a tunnel and tells it, signed, who
// the client is.
func (r *Router) dialTCP(ctx context.Context, addr, clientAddr string) (net.Conn, error) {
	conn, err := r.cfg.DialTCP(ctx, "tcp", addr)
	if err != nil {
		return nil, fault.Unreachable("connect to the node at %q: %w", addr, err)
	}
	// The address is checked after the name was resolved: a name may mean anything.
	if err := allowed(conn.RemoteAddr()); err != nil {
		return nil, closeWith(conn, err)
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return nil, closeWith(conn, err)
	}
	if err := mux.WriteRelayed(conn, clientAddr, relayedPurpose, r.cfg.Certificate(), r.cfg.Now()); err != nil {
		return nil, closeWith(conn, fault.Unreachable("connect to the node at %q: %w", addr, err))
	}
	if err := conn.SetWriteDeadline(time.Time{}); err != nil {
		return nil, closeWith(conn, err)
	}
	return conn, nil
}

func closeWith(c io.Closer, err error) error {
	_ = c.Close()
	return err
}

// allowed refuses addresses that no node has: those of metadata services, and
// groups. A node on the Proxy's own host may be reached by loopback.
func allowed(remote net.Addr) error {
	ap, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return nil //nolint:nilerr // not an IP network: a test's pipe
	}
	ip := ap.Addr().Unmap()
	if ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() || ip == netip.MustParseAddr("fd00:ec2::254") {
		return fault.Denied("the node's address %s is not one that a Proxy connects to", ip)
	}
	return nil
}
