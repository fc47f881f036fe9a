// Package route finds what a user asks for and connects to it: a name or an id
// becomes one registered node that the user may see, reached through its tunnel or
// at its registered address; the name of an application or a database becomes one of
// the agents that serve it. It authenticates nobody, and it never dials an address
// that a client names.
package route

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/mux"
	"teleport/internal/tunnel"
	"teleport/internal/types"
)

const (
	maxHost     = 253 + 64
	dialTimeout = 10 * time.Second
	// maxListed is how many candidates an error names.
	maxListed = 10
)

// Tunnels is the Proxy's end of the reverse tunnels.
type Tunnels interface {
	// Dial opens a connection to a service of the host; fault.ErrUnreachable if no
	// tunnel of it works.
	Dial(ctx context.Context, hostID string, req tunnel.Request) (net.Conn, error)
	// Connected reports whether the host has a tunnel to this Proxy, and Serves whether
	// that leads to the service.
	Connected(hostID string) bool
	Serves(hostID string, service types.SystemRole) bool
}

// Config is what New needs.
type Config struct {
	Cache   *cache.Cache
	Tunnels Tunnels
	// Certificate is the Proxy's: it signs the statement about the client that a
	// node reached by TCP gets first.
	Certificate func() *tls.Certificate
	// Loopback says whether the node with the id may be dialled at a loopback
	// address, where the Proxy's own machine serves things that are nobody else's
	// business; nil is never.
	Loopback func(hostID string) bool
	// Usable, if set, refuses the agents of applications and databases that nobody is to
	// be sent to just now, by an error.
	Usable func(hostID string) error
	// DialTCP replaces the network in tests.
	DialTCP func(ctx context.Context, network, addr string) (net.Conn, error)
	Now     func() time.Time
}

// Router finds and dials. It is safe for concurrent use.
type Router struct{ cfg Config }

// New returns a Router.
func New(cfg Config) *Router {
	if cfg.Loopback == nil {
		cfg.Loopback = func(string) bool { return false }
	}
	if cfg.Usable == nil {
		cfg.Usable = func(string) error { return nil }
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
	// Port is what the user gave. A node has one SSH port, the one it registered, so
	// this is checked and not used.
	Port uint32
	// Join says that a session of somebody else is to be joined there. The host may
	// then be one that the caller does not see: it decides itself who joins.
	Join bool
}

// Find returns the one node that the target means to the caller. Nodes that the
// caller may not see do not exist for it; of several with the name, those that
// cannot be reached now are left out.
func (r *Router) Find(caller *identity.Identity, target Target) (*typesv1.Server, error) {
	if caller == nil || caller.User == nil {
		return nil, fault.Denied("only users may connect to nodes")
	}
	names, err := r.names(target)
	if err != nil {
		return nil, err
	}
	checker := r.checker(caller)
	// Whoever joins sessions reaches hosts by their ids; servers that run only OpenSSH have
	// no sessions to join.
	joins := target.Join && checker.JoinsSome(types.KindSSH).Allowed
	hidden := func(n *typesv1.Server) bool {
		joinable := joins && n.GetSubKind() != types.SubKindOpenSSH && slices.Contains(names, n.GetMetadata().GetName())
		return !joinable && !checker.Sees(types.ServerLabels(n)).Allowed
	}
	for _, found := range r.candidates(names) {
		found = slices.DeleteFunc(found, hidden)
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return r.choose(names[len(names)-1], found)
		}
	}
	return nil, fault.NotFound("there is no node %q in this cluster that you may connect to: see `tsh ls`", names[len(names)-1])
}

// candidates returns the nodes that are called so, in the order in which a meaning
// is tried: a host id goes before every host name. A host name with and without the
// cluster's is one meaning: who is called "db.prod" in cluster "prod" must not get
// the connections meant for "db", nor the other way round, so both together are
// ambiguous.
func (r *Router) candidates(names []string) [][]*typesv1.Server {
	now := r.cfg.Now()
	gone := func(n *typesv1.Server) bool {
		// An OpenSSH server need not have joined; what removes the host removes it too.
		removed := n.GetSubKind() != types.SubKindOpenSSH && r.cfg.Cache.Removed(n.GetMetadata().GetName())
		return expired(n, now) || removed
	}
	var out [][]*typesv1.Server
	for _, name := range names {
		if node, ok := r.cfg.Cache.Node(name); ok && !gone(node) {
			out = append(out, []*typesv1.Server{node})
		}
	}
	var named []*typesv1.Server
	for _, node := range r.cfg.Cache.Nodes() {
		called := func(name string) bool { return strings.EqualFold(node.GetSpec().GetHostname(), name) }
		if slices.ContainsFunc(names, called) && !gone(node) {
			named = append(named, node)
		}
	}
	return append(out, named)
}

// checker decides about what the caller sees.
func (r *Router) checker(caller *identity.Identity) *access.Checker {
	return access.NewChecker(access.Subject{
		User: caller.User.Name, Roles: r.cfg.Cache.Roles(caller.User.Roles), Traits: caller.User.Traits,
	})
}

func expired(res types.Resource, now time.Time) bool {
	e := res.GetMetadata().GetExpires()
	return e != nil && !e.AsTime().After(now)
}

// choose leaves out the nodes that cannot be reached; if that leaves several, the
// user has to say which.
func (r *Router) choose(host string, found []*typesv1.Server) (*typesv1.Server, error) {
	live := slices.DeleteFunc(slices.Clone(found), func(n *typesv1.Server) bool {
		return (n.GetSpec().GetUseTunnel() || n.GetSpec().GetAddr() == "") && !r.cfg.Tunnels.Connected(n.GetMetadata().GetName())
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

// names returns what the node may be called, in lower case: as the target says, and
// without the name of the cluster.
func (r *Router) names(target Target) ([]string, error) {
	cluster := r.cfg.Cache.ClusterName().GetSpec().GetClusterName()
	switch {
	case cluster == "":
		return nil, fault.Unreachable("this Proxy has not heard from the Auth Service yet: try again")
	case target.Cluster != "" && !strings.EqualFold(target.Cluster, cluster):
		return nil, fault.NotFound("this Proxy serves cluster %q, not %q", cluster, clip(target.Cluster))
	case target.Host == "" || len(target.Host) > maxHost:
		return nil, fault.Invalid("a host name has 1 to %d characters, this one has %d", maxHost, len(target.Host))
	case target.Port > 65535:
		return nil, fault.Invalid("port %d: expected at most 65535", target.Port)
	}
	host := strings.ToLower(target.Host)
	if err := types.ValidHostname(host); err != nil {
		return nil, fault.Invalid("%q is not a host name or host id", clip(target.Host))
	}
	if bare, ok := strings.CutSuffix(host, "."+strings.ToLower(cluster)); ok && bare != "" {
		return []string{host, bare}, nil
	}
	return []string{host}, nil
}

// clip bounds what is quoted back to the one who sent it.
func clip(s string) string {
	const limit = 64
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}

// Dial finds the node and connects to its SSH Service. The caller closes the
// connection. The node is returned also with an error of the connection.
func (r *Router) Dial(ctx context.Context, caller *identity.Identity, target Target, clientAddr string) (net.Conn, *typesv1.Server, error) {
	node, err := r.Find(caller, target)
	if err != nil {
		return nil, nil, err
	}
	conn, err := r.Connect(ctx, node, clientAddr)
	return conn, node, err
}

// Connect connects to a node that Find returned: to its SSH Service, or to the sshd of
// one that runs only OpenSSH. The caller closes the connection.
func (r *Router) Connect(ctx context.Context, node *typesv1.Server, clientAddr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	id := node.GetMetadata().GetName()
	if node.GetSubKind() == types.SubKindOpenSSH {
		return r.dialTCP(ctx, id, node.GetSpec().GetAddr())
	}
	if node.GetSpec().GetUseTunnel() || r.cfg.Tunnels.Connected(id) {
		conn, err := r.cfg.Tunnels.Dial(ctx, id, tunnel.Request{Service: types.RoleNode, ClientAddr: clientAddr})
		if errors.Is(err, fault.ErrUnreachable) {
			err = fault.Unreachable("node %q cannot be reached just now: %w", clip(node.GetSpec().GetHostname()), err)
		}
		return conn, err
	}
	conn, err := r.dialTCP(ctx, id, node.GetSpec().GetAddr())
	if err != nil {
		return nil, err
	}
	return r.introduce(ctx, conn, node.GetSpec().GetAddr(), clientAddr)
}

// dialTCP connects to a node that is not behind a tunnel.
func (r *Router) dialTCP(ctx context.Context, id, addr string) (net.Conn, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, fault.Unreachable("node %s registered the address %q: expected host:port", id, clip(addr))
	}
	loopback := r.cfg.Loopback(id)
	dial := r.cfg.DialTCP
	if dial == nil {
		dial = safeDialer(loopback).DialContext
	}
	conn, err := dial(ctx, "tcp", addr)
	if err != nil {
		if errors.Is(err, fault.ErrDenied) {
			return nil, err
		}
		return nil, fault.Unreachable("connect to the node at %q: %w", addr, err)
	}
	if err := allowed(conn.RemoteAddr().String(), loopback); err != nil {
		return nil, closeWith(conn, err)
	}
	return conn, nil
}

// introduce tells a node, signed, who the client is.
func (r *Router) introduce(ctx context.Context, conn net.Conn, addr, clientAddr string) (net.Conn, error) {
	deadline, _ := ctx.Deadline()
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return nil, closeWith(conn, err)
	}
	if err := mux.WriteRelayed(conn, clientAddr, mux.PurposeNode, r.cfg.Certificate(), r.cfg.Now()); err != nil {
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
