package clienttest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	appv1 "teleport/api/app/v1"
	databasev1 "teleport/api/database/v1"
	proxyv1 "teleport/api/proxy/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// Agent serves every application and database but "none".
type Agent struct {
	// Serve gets the connections of users, inside TLS with the agent; nil writes the name
	// of the user and of the resource in a line, and then echoes.
	Serve func(conn *tls.Conn, user *identity.User)
	// Native gets those whose TLS a program of the user ends.
	Native func(conn net.Conn, req *proxyv1.DialRequest)
	// Protocols are the ALPN names that it knows.
	Protocols []string
	// TTL is how long the certificates for it last; 0 is an hour.
	TTL time.Duration
	// ID is in its certificate, which is for Role if that is set.
	ID   string
	Role types.SystemRole
	// Silent: it answers nothing.
	Silent bool

	c *Cluster
}

// dial is the Proxy's end and the agent's in one.
func (a *Agent) dial(conn *tls.Conn, req *proxyv1.DialRequest) {
	if req.GetResource() == "none" {
		text := fmt.Sprintf("there is no %s %q that you may use", req.GetService(), req.GetResource())
		_ = rpc.WriteFrame(conn, &proxyv1.DialResponse{Error: text, ErrorKind: fault.ErrNotFound.Error()})
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	role, err := types.ParseSystemRole(req.GetService())
	if err != nil || rpc.WriteFrame(conn, &proxyv1.DialResponse{HostId: AgentID}) != nil {
		return
	}
	switch {
	case a.Silent:
		_, _ = io.Copy(io.Discard, conn)
		return
	case req.GetNative():
		if a.Native != nil {
			a.Native(conn, req)
		}
		return
	case a.Role != "":
		role = a.Role
	}
	cert, _ := a.c.host(role, a.ID, "agent-1")
	conf := ca.ServerTLS(func() *tls.Certificate { return cert }, func() *ca.Trust { return a.c.Trust }, tls.RequireAndVerifyClientCert, a.Protocols...)
	inner := tls.Server(conn, conf)
	if inner.Handshake() != nil {
		return
	}
	id, err := a.c.Trust.Identify(inner.ConnectionState())
	if err != nil || !id.User.Routed() {
		return
	}
	if a.Serve != nil {
		a.Serve(inner, id.User)
		return
	}
	_, _ = fmt.Fprintf(inner, "%s at %s\n", id.User.Name, req.GetResource())
	_, _ = io.Copy(inner, inner)
	_ = inner.CloseWrite()
}

// sign signs the certificate of a user for a resource.
func (c *Cluster) sign(ctx context.Context, key []byte, route func(*identity.User)) ([]byte, time.Time, error) {
	caller := rpc.CallerFrom(ctx).Identity
	if caller == nil || caller.User == nil || caller.User.Routed() {
		return nil, time.Time{}, fault.Denied("only users may ask for certificates")
	}
	user := *caller.User
	user.Logins = nil
	route(&user)
	ttl := c.Agent.TTL
	if ttl == 0 {
		ttl = time.Hour
	}
	der, _, err := c.Signer.User(ca.UserRequest{Identity: identity.Identity{Cluster: Name, User: &user}, TLSKey: key, TTL: ttl, NoLogins: true})
	return der, time.Now().Add(ttl), err
}

type appService struct {
	appv1.UnimplementedAppServiceServer
	c *Cluster
}

// CertifyUser certifies for every application but "none".
func (s appService) CertifyUser(ctx context.Context, req *appv1.CertifyUserRequest) (*appv1.CertifyUserResponse, error) {
	if req.GetApp() == "none" {
		return nil, fault.NotFound("there is no application %q that you may use", req.GetApp())
	}
	der, expires, err := s.c.sign(ctx, req.GetTlsKey(), func(u *identity.User) { u.App = &identity.AppRoute{Name: req.GetApp()} })
	return &appv1.CertifyUserResponse{Certificate: der, Expires: timestamppb.New(expires)}, err
}

type databaseService struct {
	databasev1.UnimplementedDatabaseServiceServer
	c *Cluster
}

// CertifyUser certifies for every database but "none"; one that is no resource speaks
// PostgreSQL's protocol.
func (s databaseService) CertifyUser(ctx context.Context, req *databasev1.CertifyUserRequest) (*databasev1.CertifyUserResponse, error) {
	if req.GetDatabase() == "none" {
		return nil, fault.NotFound("there is no database %q that you may use", req.GetDatabase())
	}
	protocol := types.ProtocolPostgres
	if server, ok := s.c.Resources.Get(types.KindDatabaseServer, types.ServerName(req.GetDatabase(), AgentID)).(*typesv1.DatabaseServer); ok {
		protocol = server.GetSpec().GetDatabase().GetSpec().GetProtocol()
	}
	der, expires, err := s.c.sign(ctx, req.GetTlsKey(), func(u *identity.User) {
		u.Database = &identity.DatabaseRoute{
			Service: req.GetDatabase(), Protocol: protocol, User: req.GetDbUser(), Name: req.GetDbName(), Roles: req.GetDbRoles(),
		}
	})
	return &databasev1.CertifyUserResponse{Certificate: der, Expires: timestamppb.New(expires), Protocol: protocol}, err
}
