package authapi

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	opensshv1 "teleport/api/openssh/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

const (
	// maxHostKeys bounds the keys of one sshd.
	maxHostKeys = 8
	// maxServerNames bounds the additional names of a server.
	maxServerNames = 32
	// maxLoginSources bounds the addresses that a Proxy says it comes from.
	maxLoginSources = 8
	// loginTTL is how long a Proxy may take from the signature to the end of the login.
	loginTTL = 3 * time.Minute
)

// OpenSSHServer enrols servers that run only OpenSSH, and signs what Proxies need to
// let users in to them.
type OpenSSHServer struct {
	opensshv1.UnimplementedOpenSSHServiceServer
	cfg SigningConfig
}

// NewOpenSSH returns the handler of OpenSSHService.
func NewOpenSSH(cfg SigningConfig) (*OpenSSHServer, error) {
	cfg, err := cfg.checked()
	return &OpenSSHServer{cfg: cfg}, err
}

// EnrollServer makes or renews the calling host as an OpenSSH server. Certificates,
// resource and events are one transaction.
func (s *OpenSSHServer) EnrollServer(ctx context.Context, req *opensshv1.EnrollServerRequest) (*opensshv1.EnrollServerResponse, error) {
	host := rpc.CallerFrom(ctx).Host()
	if !host.Has(types.RoleNode) {
		return nil, fault.Denied("only a host that joined with the role %s is enrolled as an OpenSSH server", types.RoleNode)
	}
	instance, err := store.Get[*typesv1.Instance](ctx, s.cfg.Store, types.KindInstance, host.ID)
	if err != nil {
		return nil, fault.New(fault.ErrDenied, "host %s was removed from the cluster: delete its data directory and join afresh", host.ID).WithCode("host_removed")
	}
	if host.Generation < instance.GetStatus().GetGeneration() {
		return nil, fault.Unauthenticated("this process has a newer certificate of host %s: use that one", host.ID)
	}
	if err := s.checkNames(ctx, instance, req.GetPrincipals()); err != nil {
		return nil, err
	}
	node, ok := types.New(types.KindNode, host.ID).(*typesv1.Server)
	if !ok {
		return nil, fault.Invalid("kind node with another kind's message")
	}
	node.SubKind = types.SubKindOpenSSH
	node.Metadata.Labels = map[string]string{}
	for _, labels := range []map[string]string{req.GetLabels(), instance.GetSpec().GetLabels()} {
		for k, v := range labels { // those of the join token win
			node.Metadata.Labels[k] = v
		}
	}
	node.Spec = &typesv1.ServerSpec{Hostname: host.Name, Addr: req.GetAddr()}
	if err := types.Check(node); err != nil {
		return nil, err
	}
	old, err := store.Get[*typesv1.Server](ctx, s.cfg.Store, types.KindNode, host.ID)
	switch {
	case err == nil && old.GetSubKind() != types.SubKindOpenSSH:
		return nil, fault.Exists("host %s runs the SSH Service of Teleport, and is no OpenSSH server", host.ID)
	case err != nil && !errors.Is(err, fault.ErrNotFound):
		return nil, err
	}
	expires := s.cfg.Now().Add(ca.MaxOpenSSHServerTTL).Truncate(time.Second)
	certs, signed, err := s.signServer(ctx, node, req.GetHostKeys(), req.GetPrincipals(), expires)
	if err != nil {
		return nil, err
	}
	// What cannot be reached any more is not listed for ever.
	node.Metadata.Expires = timestamppb.New(expires)
	kind := audit.NodeCreate
	if old != nil {
		kind = audit.NodeUpdate
	}
	enrolled := event(ctx, kind, nodeFields(node))
	if err := s.cfg.Store.Tx().Upsert(node).Emit(enrolled, signed).Commit(ctx); err != nil {
		return nil, err
	}
	return &opensshv1.EnrollServerResponse{
		Certificates: certs, Expires: timestamppb.New(expires), TrustedKeys: s.cfg.Trust().OpenSSHKeys(),
		HostId: host.ID, Hostname: host.Name, Labels: node.GetMetadata().GetLabels(),
	}, nil
}

// checkNames allows the additional names that the join token lists, if it lists any,
// and none that stand for something else.
func (s *OpenSSHServer) checkNames(ctx context.Context, instance *typesv1.Instance, names []string) error {
	token, err := store.Get[*typesv1.Token](ctx, s.cfg.Store, types.KindToken, instance.GetSpec().GetToken())
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		return err
	}
	patterns := token.GetSpec().GetPrincipals()
	for _, name := range names {
		lower := strings.ToLower(name)
		if len(patterns) > 0 && !slices.ContainsFunc(patterns, func(p string) bool { return types.MatchHostname(strings.ToLower(p), lower) }) {
			return fault.Denied("the join token does not allow the additional name %q (spec.principals: %s)", clip(name), strings.Join(patterns, ", "))
		}
	}
	return s.checkFree(ctx, instance.GetMetadata().GetName(), names)
}

// checkFree refuses additional names of a server that others have, or that only the
// cluster itself may have.
func (s *OpenSSHServer) checkFree(ctx context.Context, id string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if len(names) > maxServerNames {
		return fault.Limit("%d additional names, the most is %d", len(names), maxServerNames)
	}
	taken := map[string]string{}
	for _, kind := range []string{types.KindNode, types.KindProxy, types.KindAuthServer} {
		servers, err := store.All[*typesv1.Server](ctx, s.cfg.Store, kind)
		if err != nil {
			return err
		}
		for _, other := range servers {
			if other.GetMetadata().GetName() == id {
				continue
			}
			for _, addr := range append(slices.Clone(other.GetSpec().GetPublicAddrs()), other.GetSpec().GetHostname()) {
				if host, _, err := net.SplitHostPort(addr); err == nil {
					addr = host
				}
				taken[strings.ToLower(addr)] = kind
			}
		}
	}
	cluster := strings.ToLower(s.cfg.Cluster())
	for _, name := range names {
		lower := strings.ToLower(name)
		kind := taken[strings.TrimSuffix(lower, "."+cluster)]
		if kind == "" {
			kind = taken[lower]
		}
		switch {
		case kind != "":
			return fault.Denied("the additional name %q is that of another %s of the cluster", clip(name), kind)
		case lower == cluster, identity.ReservedName(lower), uuid.Validate(lower) == nil:
			return fault.Denied("the additional name %q is reserved", clip(name))
		}
	}
	return nil
}

// signServer signs certificates for the host keys of a server, and makes the event
// about them.
func (s *OpenSSHServer) signServer(ctx context.Context, node *typesv1.Server, keys [][]byte, names []string, expires time.Time) ([][]byte, *auditv1.Event, error) {
	if len(keys) == 0 || len(keys) > maxHostKeys {
		return nil, nil, fault.Invalid("%d host keys: give 1 to %d", len(keys), maxHostKeys)
	}
	names = slices.Clone(names)
	if address := addressOf(node.GetSpec().GetAddr()); address != "" && !slices.Contains(names, address) {
		names = append(names, address)
	}
	out := make([][]byte, 0, len(keys))
	for _, key := range keys {
		cert, err := s.cfg.Signer().OpenSSHHost(ca.OpenSSHHostRequest{
			ID: node.GetMetadata().GetName(), Name: node.GetSpec().GetHostname(), SSHKey: key, Principals: names, TTL: expires.Sub(s.cfg.Now()),
		})
		if err != nil {
			return nil, nil, err
		}
		out = append(out, cert)
	}
	return out, event(ctx, audit.CertCreate, map[string]any{
		"cert_type": "host", "sub_kind": types.SubKindOpenSSH, "principals": names, "keys": len(keys),
		"identity": map[string]any{"user": node.GetMetadata().GetName(), "expires": expires.UTC().Format(time.RFC3339)},
	}), nil
}

// addressOf returns the address of host:port if a certificate can name it: not loopback,
// which is every machine's, and not a name, which is the server's own or an additional
// one.
func addressOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.IsLoopback() || ip.IsUnspecified() || ip.Zone() != "" {
		return ""
	}
	return host
}

// SignServer signs certificates for a server whose resource somebody made by hand.
func (s *OpenSSHServer) SignServer(ctx context.Context, req *opensshv1.SignServerRequest) (*opensshv1.SignServerResponse, error) {
	node, err := s.findServer(ctx, req.GetServer())
	if err != nil {
		return nil, err
	}
	for _, verb := range []string{types.VerbCreate, types.VerbUpdate} {
		if err := s.cfg.verb(ctx, types.KindNode, verb, node); err != nil {
			return nil, err
		}
	}
	if err := s.checkFree(ctx, node.GetMetadata().GetName(), req.GetPrincipals()); err != nil {
		return nil, err
	}
	ttl := ca.MaxOpenSSHServerTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	if ttl <= 0 || ttl > ca.MaxOpenSSHServerTTL {
		return nil, fault.Invalid("ttl %s: a host certificate of an OpenSSH server is good for at most %s", ttl, ca.MaxOpenSSHServerTTL)
	}
	expires := s.cfg.Now().Add(ttl).Truncate(time.Second)
	certs, signed, err := s.signServer(ctx, node, req.GetHostKeys(), req.GetPrincipals(), expires)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Store.Tx().Emit(signed).Commit(ctx); err != nil {
		return nil, err
	}
	return &opensshv1.SignServerResponse{Certificates: certs, Expires: timestamppb.New(expires), TrustedKeys: s.cfg.Trust().OpenSSHKeys()}, nil
}

// findServer finds an OpenSSH server by its id or its host name.
func (s *OpenSSHServer) findServer(ctx context.Context, name string) (*typesv1.Server, error) {
	node, err := s.server(ctx, name)
	if !errors.Is(err, fault.ErrNotFound) {
		return node, err
	}
	nodes, err := store.All[*typesv1.Server](ctx, s.cfg.Store, types.KindNode)
	if err != nil {
		return nil, err
	}
	var found *typesv1.Server
	for _, n := range nodes {
		if n.GetSubKind() != types.SubKindOpenSSH || !strings.EqualFold(n.GetSpec().GetHostname(), name) {
			continue
		}
		if found != nil {
			return nil, fault.Invalid("several OpenSSH servers are called %q: give the id, as `tctl nodes ls -v` shows it", clip(name))
		}
		found = n
	}
	if found == nil {
		return nil, fault.NotFound("there is no OpenSSH server %q: create its resource first, of kind node and sub_kind %s", clip(name), types.SubKindOpenSSH)
	}
	return found, nil
}

// server returns the resource of an OpenSSH server that is in the cluster now.
func (s *OpenSSHServer) server(ctx context.Context, id string) (*typesv1.Server, error) {
	node, err := store.Get[*typesv1.Server](ctx, s.cfg.Store, types.KindNode, id)
	if err != nil {
		return nil, err
	}
	if node.GetSubKind() != types.SubKindOpenSSH {
		return nil, fault.Denied("node %s is no OpenSSH server: nobody else answers for it, or logs in to it", id)
	}
	return node, nil
}

// SignProxy lets the calling Proxy answer for a server, for an hour. It does so for no
// node but those that are OpenSSH servers in what Auth knows.
func (s *OpenSSHServer) SignProxy(ctx context.Context, req *opensshv1.SignProxyRequest) (*opensshv1.SignProxyResponse, error) {
	node, err := s.server(ctx, req.GetServerId())
	if err != nil {
		return nil, err
	}
	cert, err := s.cfg.Signer().OpenSSHHost(ca.OpenSSHHostRequest{
		ID: node.GetMetadata().GetName(), Name: node.GetSpec().GetHostname(), Proxy: rpc.CallerFrom(ctx).Host().ID,
		SSHKey: req.GetPublicKey(), TTL: ca.MaxOpenSSHProxyTTL,
	})
	if err != nil {
		return nil, err
	}
	return &opensshv1.SignProxyResponse{Certificate: cert}, nil
}

// SignLogin signs a certificate for one login of a user to a server, if the user may
// log in there as things are now: the Proxy has decided the same before, and is not
// believed.
func (s *OpenSSHServer) SignLogin(ctx context.Context, req *opensshv1.SignLoginRequest) (*opensshv1.SignLoginResponse, error) {
	node, err := s.server(ctx, req.GetServerId())
	if err != nil {
		return nil, err
	}
	cert, err := ca.ParseSSHCertificate(req.GetUserCertificate())
	if err != nil {
		return nil, err
	}
	from, _ := netip.ParseAddrPort(req.GetClientAddr()) // one that is none satisfies no rule
	id, err := s.cfg.Trust().VerifySSHUserFrom(cert, req.GetLogin(), from, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	proxy := rpc.CallerFrom(ctx).Host().ID
	fields := map[string]any{
		"user": id.User.Name, "login": req.GetLogin(), "server_id": node.GetMetadata().GetName(), "server_hostname": node.GetSpec().GetHostname(),
		"proxy_id": proxy, "addr.remote": clip(req.GetClientAddr()),
	}
	options, err := s.mayLogin(ctx, id, cert.CriticalOptions, req.GetLogin(), node)
	if err != nil {
		fields["success"], fields["error"] = false, err.Error()
		if eerr := s.cfg.Store.Tx().Emit(audit.New(audit.AuthAttemptFailure, fields)).Commit(ctx); eerr != nil {
			s.cfg.Log.ErrorContext(ctx, "a refused login is not in the audit log", "error", eerr)
		}
		return nil, err
	}
	sources, err := parseSources(req.GetSources())
	if err != nil {
		return nil, err
	}
	has := func(extension string) bool { _, ok := cert.Extensions[extension]; return ok }
	ttl := min(loginTTL, id.Expires.Sub(s.cfg.Now()))
	wire, err := s.cfg.Signer().OpenSSHLogin(ca.OpenSSHLoginRequest{
		User: id.User.Name, Login: req.GetLogin(), SSHKey: req.GetPublicKey(), Sources: sources, TTL: ttl,
		PermitPTY:             has("permit-pty"),
		PermitPortForwarding:  has("permit-port-forwarding") && (options.LocalForward || options.RemoteForward),
		PermitAgentForwarding: has("permit-agent-forwarding") && options.ForwardAgent,
		PermitX11Forwarding:   has("permit-X11-forwarding") && options.X11,
	})
	if err != nil {
		return nil, err
	}
	fields["success"], fields["cert_type"], fields["sub_kind"] = true, "user", types.SubKindOpenSSH
	fields["expires"] = s.cfg.Now().Add(ttl).UTC().Format(time.RFC3339)
	if err := s.cfg.Store.Tx().Emit(audit.New(audit.CertCreate, fields)).Commit(ctx); err != nil {
		return nil, err
	}
	return &opensshv1.SignLoginResponse{Certificate: wire}, nil
}

// mayLogin decides about a login as the SSH Service of an agent does, and returns the
// options of the user's roles.
func (s *OpenSSHServer) mayLogin(ctx context.Context, id *identity.Identity, critical map[string]string, login string, node *typesv1.Server) (access.Options, error) {
	var none access.Options
	p, err := s.cfg.person(ctx, id.User, where{login: login, host: node.GetMetadata().GetName()})
	if err != nil {
		return none, err
	}
	if !p.checker.Login(login, types.ServerLabels(node)).Allowed {
		return none, fault.Denied("access denied to %s connecting to %s: your roles do not allow it, ask an administrator", login, node.GetSpec().GetHostname())
	}
	if _, pinned := critical["source-address"]; p.options.PinSource && !pinned {
		return none, errNotPinned()
	}
	return p.options, nil
}

func parseSources(list []string) ([]netip.Addr, error) {
	if len(list) > maxLoginSources {
		return nil, fault.Limit("a login comes from at most %d addresses", maxLoginSources)
	}
	out := make([]netip.Addr, 0, len(list))
	for _, text := range list {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fault.Invalid("source %q is no IP address", clip(text))
		}
		out = append(out, addr)
	}
	return out, nil
}

// nameNode settles what a node that a person makes is called: by an id, never by a name
// that a host may have.
func nameNode(_ context.Context, _ *ResourceServer, r types.Resource, _ bool) error {
	if err := uuid.Validate(r.GetMetadata().GetName()); err != nil || len(r.GetMetadata().GetName()) != 36 {
		return fault.Invalid("metadata.name: %q is no host id: write a UUID, as `uuidgen` prints it; spec.hostname is the name", clip(r.GetMetadata().GetName()))
	}
	return nil
}

// completeNode keeps what people write off the resources that agents keep.
func completeNode(ctx context.Context, s *ResourceServer, _ *store.Tx, r, old types.Resource) error {
	node, ok := r.(*typesv1.Server)
	if !ok {
		return fault.Invalid("kind node with another kind's message")
	}
	if before, ok := old.(*typesv1.Server); ok && before.GetSubKind() != types.SubKindOpenSSH || node.GetSubKind() != types.SubKindOpenSSH {
		return fault.Unsupported("node %q is kept by the agent that runs there: people write only nodes of sub_kind %s", clip(node.GetMetadata().GetName()), types.SubKindOpenSSH)
	}
	if old == nil {
		// The id of a host that joined is that host's.
		if _, err := s.cfg.Store.Get(ctx, types.KindInstance, node.GetMetadata().GetName()); !errors.Is(err, fault.ErrNotFound) {
			if err != nil {
				return err
			}
			return fault.Exists("%q is the id of a host that joined: take another one", node.GetMetadata().GetName())
		}
	}
	name, cluster := strings.ToLower(node.GetSpec().GetHostname()), strings.ToLower(s.cfg.Cluster())
	if name == cluster || strings.HasSuffix(name, "."+cluster) || identity.ReservedName(name) || uuid.Validate(name) == nil {
		return fault.Invalid("spec.hostname: %q is reserved", clip(node.GetSpec().GetHostname()))
	}
	return identity.CheckHostname(node.GetSpec().GetHostname())
}

func nodeFields(r types.Resource) map[string]any {
	fields := nameField(r)
	if node, ok := r.(*typesv1.Server); ok {
		fields["hostname"], fields["addr"], fields["sub_kind"] = node.GetSpec().GetHostname(), node.GetSpec().GetAddr(), node.GetSubKind()
	}
	return fields
}
