package authapi

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	databasev1 "teleport/api/database/v1"
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

// databaseServerTTL is the life of a database server's certificate when none is asked for.
const databaseServerTTL = 90 * 24 * time.Hour

// DatabaseServer certifies who goes to databases, the agents that log in there for them,
// and the databases.
type DatabaseServer struct {
	databasev1.UnimplementedDatabaseServiceServer
	cfg SigningConfig
}

// NewDatabase returns the handler of DatabaseService.
func NewDatabase(cfg SigningConfig) (*DatabaseServer, error) {
	cfg, err := cfg.checked()
	return &DatabaseServer{cfg: cfg}, err
}

// CertifyUser signs a certificate with which the calling user reaches one database.
func (s *DatabaseServer) CertifyUser(ctx context.Context, req *databasev1.CertifyUserRequest) (*databasev1.CertifyUserResponse, error) {
	caller := rpc.CallerFrom(ctx)
	user := *caller.User()
	fields := map[string]any{
		"user": user.Name, "db_service": clip(req.GetDatabase()), "db_user": clip(req.GetDbUser()), "db_name": clip(req.GetDbName()), "addr.remote": caller.Addr,
	}
	p, err := s.cfg.person(ctx, &user, where{login: req.GetDbUser()})
	if err == nil {
		err = p.pinned()
	}
	var server *typesv1.DatabaseServer
	if err == nil {
		server, err = s.find(ctx, p, req)
	}
	if err != nil {
		return nil, s.cfg.refused(ctx, err, fields)
	}
	ttl, err := s.cfg.routedTTL(p, req.GetTtl(), caller.Identity.Expires)
	if err != nil {
		return nil, err
	}
	protocol := server.GetSpec().GetDatabase().GetSpec().GetProtocol()
	user.Logins, user.Database = nil, &identity.DatabaseRoute{
		Service: req.GetDatabase(), Protocol: protocol, User: req.GetDbUser(), Name: req.GetDbName(), Roles: req.GetDbRoles(),
	}
	fields["db_protocol"], fields["db_roles"] = protocol, req.GetDbRoles()
	cert, err := s.cfg.sign(ctx, &user, req.GetTlsKey(), ttl, fields)
	if err != nil {
		return nil, err
	}
	return &databasev1.CertifyUserResponse{Certificate: cert.Raw, Expires: timestamppb.New(cert.NotAfter), Protocol: protocol}, nil
}

// find returns one of those who serve the database to the person, as whom and in what it
// asks for.
func (s *DatabaseServer) find(ctx context.Context, p *person, req *databasev1.CertifyUserRequest) (*typesv1.DatabaseServer, error) {
	if err := types.ValidDatabaseName(req.GetDatabase()); err != nil {
		return nil, err
	}
	for _, name := range append([]string{req.GetDbUser(), req.GetDbName()}, req.GetDbRoles()...) {
		if name == "" {
			continue
		}
		if err := types.ValidDatabaseUser(name); err != nil {
			return nil, err
		}
	}
	servers, err := store.Below[*typesv1.DatabaseServer](ctx, s.cfg.Store, types.KindDatabaseServer, types.ServerName(req.GetDatabase(), ""), maxServing)
	if err != nil {
		return nil, err
	}
	err = errUnseen("nobody serves it", "there is no database %q, or your roles do not let you use it: see tsh db ls", req.GetDatabase())
	for _, server := range servers {
		if d := p.checker.SeesDatabase(types.DatabaseServerLabels(server)); !d.Allowed {
			continue
		}
		d := p.database(server, access.DatabaseLogin{User: req.GetDbUser(), Name: req.GetDbName(), AnyUser: req.GetDbUser() == "", AnyName: req.GetDbName() == ""})
		auto := p.made(server, req.GetDbUser())
		missing := slices.IndexFunc(req.GetDbRoles(), func(role string) bool { return !slices.Contains(auto.Roles, role) })
		switch {
		case !d.Allowed:
			err = errDatabase(d.Reason, "access denied: your roles do not let you be %s of database %q", asked(req.GetDbUser(), req.GetDbName()), req.GetDatabase())
		case missing >= 0:
			err = errDatabase("no role gives it", "access denied: your roles do not give you the database role %q in database %q", req.GetDbRoles()[missing], req.GetDatabase())
		default:
			return server, nil
		}
	}
	return nil, err
}

func asked(dbUser, dbName string) string {
	switch {
	case dbUser == "":
		return "in \"" + dbName + "\""
	case dbName == "":
		return "user \"" + dbUser + "\""
	}
	return "user \"" + dbUser + "\" in \"" + dbName + "\""
}

func errDatabase(reason, format string, args ...any) error {
	err := fault.New(fault.ErrDenied, format, args...).WithCode("access_denied")
	err.Cause = errors.New(reason)
	return err
}

// database decides about a login at a database, as the agent that serves it does.
func (p *person) database(server *typesv1.DatabaseServer, login access.DatabaseLogin) access.Decision {
	if !types.DatabaseNamesMatter(server.GetSpec().GetDatabase().GetSpec().GetProtocol()) {
		login.AnyName = true
	}
	labels := types.DatabaseServerLabels(server)
	d := p.checker.Database(labels, login)
	if !d.Allowed && !login.AnyUser && p.made(server, login.User).Mode != types.DatabaseUserOff {
		// Who gets a user made for them is that user; a denial of it stands.
		login.AnyUser = true
		if made := p.checker.Database(labels, login); made.Allowed && !denied(d) {
			return made
		}
	}
	return d
}

// denied reports whether a role refuses by a deny rule.
func denied(d access.Decision) bool { return strings.HasPrefix(d.Rule, "deny.") }

// made returns what the roles say about the making of the database user for a session;
// it is the user's own name, and the database has somebody who makes it.
func (p *person) made(server *typesv1.DatabaseServer, dbUser string) access.DatabaseUser {
	if server.GetSpec().GetDatabase().GetSpec().GetAdminUser().GetName() == "" || dbUser != "" && dbUser != p.user.Name {
		return access.DatabaseUser{Mode: types.DatabaseUserOff}
	}
	return access.DatabaseUserOf(p.subject, types.DatabaseServerLabels(server))
}

// SignClient signs a certificate with which the calling agent logs in to a database that
// it serves. Somebody who may be that user there has to stand in front of it; the agent
// then keeps the certificate for others whom it lets be the same, and for when Auth is
// away.
func (s *DatabaseServer) SignClient(ctx context.Context, req *databasev1.SignClientRequest) (*databasev1.SignClientResponse, error) {
	host := rpc.CallerFrom(ctx).Host().ID
	server, err := store.Get[*typesv1.DatabaseServer](ctx, s.cfg.Store, types.KindDatabaseServer, types.ServerName(req.GetDatabase(), host))
	if errors.Is(err, fault.ErrNotFound) {
		return nil, fault.Denied("access denied: host %s has announced no database %q", host, clip(req.GetDatabase()))
	}
	if err != nil {
		return nil, err
	}
	id, err := s.cfg.shown(req.GetUserCertificate())
	if err != nil {
		return nil, err
	}
	fields := map[string]any{
		"user": id.User.Name, "db_service": req.GetDatabase(), "db_user": clip(req.GetDbUser()), "server_id": host,
		"db_protocol": server.GetSpec().GetDatabase().GetSpec().GetProtocol(),
	}
	if err := s.mayBe(ctx, id, server, req, host); err != nil {
		return nil, s.cfg.refused(ctx, err, fields)
	}
	ders, err := s.cfg.Signer().DatabaseClient(ca.DatabaseClientRequest{User: req.GetDbUser(), TLSKey: req.GetTlsKey(), TTL: ca.MaxDatabaseClientTTL})
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return nil, err
	}
	fields["cert_type"], fields["admin"] = ca.TypeDBClient, req.GetAdmin()
	if err := s.cfg.issued(ctx, cert, fields); err != nil {
		return nil, err
	}
	return &databasev1.SignClientResponse{Certificates: ders, Expires: timestamppb.New(cert.NotAfter)}, nil
}

// mayBe decides whether the user of the certificate may be the database user, or have a
// user made by the database's admin.
func (s *DatabaseServer) mayBe(ctx context.Context, id *identity.Identity, server *typesv1.DatabaseServer, req *databasev1.SignClientRequest, host string) error {
	route := id.User.Database
	spec := server.GetSpec().GetDatabase().GetSpec()
	switch {
	case route == nil || route.Service != req.GetDatabase():
		return fault.Denied("access denied: the certificate of %q is not for database %q", id.User.Name, req.GetDatabase())
	case route.Protocol != spec.GetProtocol():
		return fault.Denied("access denied: the certificate of %q is for the protocol %s, and database %q speaks %s", id.User.Name, route.Protocol, req.GetDatabase(), spec.GetProtocol())
	case !req.GetAdmin() && route.User != "" && route.User != req.GetDbUser():
		return fault.Denied("access denied: the certificate of %q is for database user %q, not for %q", id.User.Name, route.User, clip(req.GetDbUser()))
	}
	at := where{login: req.GetDbUser(), host: host}
	if req.GetAdmin() {
		at.login = id.User.Name
	}
	p, err := s.cfg.person(ctx, id.User, at)
	if err != nil {
		return err
	}
	if err := p.pinned(); err != nil {
		return err
	}
	login := access.DatabaseLogin{User: req.GetDbUser(), Name: route.Name, AnyName: route.Name == ""}
	if req.GetAdmin() {
		if spec.GetAdminUser().GetName() == "" || spec.GetAdminUser().GetName() != req.GetDbUser() || p.made(server, route.User).Mode == types.DatabaseUserOff {
			return errDatabase("no role makes users there", "access denied: the roles of %q make no user in database %q by %q", id.User.Name, req.GetDatabase(), clip(req.GetDbUser()))
		}
		login.User = id.User.Name
	}
	if d := p.database(server, login); !d.Allowed {
		return errDatabase(d.Reason, "access denied: the roles of %q do not allow %s of database %q", id.User.Name, asked(login.User, login.Name), req.GetDatabase())
	}
	return nil
}

// SignServer signs the certificate of a database server.
func (s *DatabaseServer) SignServer(ctx context.Context, req *databasev1.SignServerRequest) (*databasev1.SignServerResponse, error) {
	ttl := databaseServerTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	ders, err := s.cfg.Signer().DatabaseServer(ca.DatabaseServerRequest{Hosts: req.GetHosts(), TLSKey: req.GetTlsKey(), TTL: ttl})
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return nil, err
	}
	signed := event(ctx, audit.CertCreate, map[string]any{
		"cert_type": ca.TypeDB, "hosts": req.GetHosts(), "expires": cert.NotAfter, "serial": cert.SerialNumber.Text(16),
	})
	if err := s.cfg.Store.Tx().Emit(signed).Commit(ctx); err != nil {
		return nil, err
	}
	trust := s.cfg.Trust()
	return &databasev1.SignServerResponse{
		Certificate: ders[0], Expires: timestamppb.New(cert.NotAfter),
		ClientAuthorities: certificatesPEM(trust.DatabaseClientCertificates()), Authorities: certificatesPEM(trust.DatabaseCertificates()),
	}, nil
}

func certificatesPEM(certs []*x509.Certificate) string {
	var out strings.Builder
	for _, c := range certs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return out.String()
}

// SignRevocations signs an empty list of revoked certificates.
func (s *DatabaseServer) SignRevocations(_ context.Context, req *databasev1.SignRevocationsRequest) (*databasev1.SignRevocationsResponse, error) {
	list, err := s.cfg.Signer().RevocationList(req.GetAuthority())
	if err != nil {
		return nil, err
	}
	return &databasev1.SignRevocationsResponse{List: list}, nil
}
