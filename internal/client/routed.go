package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	appv1 "teleport/api/app/v1"
	databasev1 "teleport/api/database/v1"
	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// Apps returns who serves the applications of a choice (of types.KindAppServer), in order
// of the names of the applications; several agents may serve one.
func (c *Client) Apps(ctx context.Context, choice Choice) ([]*typesv1.AppServer, error) {
	return serving[*typesv1.AppServer](ctx, c, choice)
}

// Databases returns who serves the databases of a choice (of types.KindDatabaseServer), in
// order of the names of the databases.
func (c *Client) Databases(ctx context.Context, choice Choice) ([]*typesv1.DatabaseServer, error) {
	return serving[*typesv1.DatabaseServer](ctx, c, choice)
}

func serving[T types.Resource](ctx context.Context, c *Client, choice Choice) ([]T, error) {
	conn, err := c.Auth()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return Serving[T](ctx, conn, choice)
}

// Serving returns who serves what is chosen, by a connection to the Auth Service; T is the
// type of the kind of the choice.
func Serving[T types.Resource](ctx context.Context, conn grpc.ClientConnInterface, choice Choice) ([]T, error) {
	found, err := list(ctx, conn, &resourcev1.ListResourcesRequest{Kind: choice.kind, Usable: choice.Usable, Query: choice.text})
	if err != nil {
		return nil, err
	}
	out := chosen[T](choice, found)
	slices.SortFunc(out, func(x, y T) int {
		a, hostA, _ := types.SplitServerName(x.GetMetadata().GetName())
		b, hostB, _ := types.SplitServerName(y.GetMetadata().GetName())
		return cmp.Or(cmp.Compare(a, b), cmp.Compare(hostA, hostB))
	})
	return out, nil
}

// CertifyApp gets a certificate, over a key of its own, with which the user reaches one
// application. It lasts as long as the login. See DialRouted.
func (c *Client) CertifyApp(ctx context.Context, app string) (tls.Certificate, error) {
	return c.certify(func(api *certifier) ([]byte, error) {
		resp, err := appv1.NewAppServiceClient(api.conn).CertifyUser(ctx, &appv1.CertifyUserRequest{App: app, TlsKey: api.public})
		return resp.GetCertificate(), err
	}, func(u *identity.User) bool { return u.App != nil && u.App.Name == app }, app)
}

// DatabaseLogin is what a certificate for a database is tied to; what is empty is left open.
type DatabaseLogin struct {
	// Database is the name of the resource.
	Database string
	// User is the database user, Name the database of the server, and Roles those that a
	// user gets who is made for the session.
	User, Name string
	Roles      []string
}

// CertifyDatabase gets a certificate, over a key of its own, with which the user reaches
// one database. It lasts as long as the login. See DialRouted.
func (c *Client) CertifyDatabase(ctx context.Context, login DatabaseLogin) (tls.Certificate, error) {
	return c.certify(func(api *certifier) ([]byte, error) {
		resp, err := databasev1.NewDatabaseServiceClient(api.conn).CertifyUser(ctx, &databasev1.CertifyUserRequest{
			Database: login.Database, TlsKey: api.public, DbUser: login.User, DbName: login.Name, DbRoles: login.Roles,
		})
		return resp.GetCertificate(), err
	}, func(u *identity.User) bool {
		d := u.Database
		return d != nil && d.Service == login.Database && d.User == login.User && d.Name == login.Name
	}, login.Database)
}

// certifier is what a certificate is asked for with.
type certifier struct {
	conn   *grpc.ClientConn
	public []byte
}

// certify has a new key certified, and checks that the certificate is the one asked for.
func (c *Client) certify(sign func(*certifier) ([]byte, error), fits func(*identity.User) bool, name string) (tls.Certificate, error) {
	var none tls.Certificate
	key, err := keys.Generate(keys.ECDSAP256)
	if err != nil {
		return none, fmt.Errorf("make a key for %q: %w", name, err)
	}
	public, err := keys.PublicDER(key.Public())
	if err != nil {
		return none, fmt.Errorf("encode the key for %q: %w", name, err)
	}
	conn, err := c.Auth()
	if err != nil {
		return none, err
	}
	defer func() { _ = conn.Close() }()
	der, err := sign(&certifier{conn, public})
	if err != nil {
		return none, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return none, fault.Invalid("the cluster sent a certificate for %q that cannot be read: %w", name, err)
	}
	certified, err := keys.PublicDER(leaf.PublicKey)
	if err != nil || !bytes.Equal(certified, public) {
		return none, fault.Invalid("the cluster sent a certificate for %q that is for another key", name)
	}
	id, err := identity.FromTLS(leaf)
	if err != nil || id.User == nil || !fits(id.User) {
		return none, fault.Invalid("the cluster sent a certificate for something else than %q", name)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
