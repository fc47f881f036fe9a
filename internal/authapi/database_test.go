package authapi_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	databasev1 "teleport/api/database/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// newDatabaseOffice has alice, who may be app in orders on the databases of the team blue,
// and has users made for her where auto is; and three databases.
func newDatabaseOffice(t *testing.T) *office {
	t.Helper()
	o := newOffice(t)
	o.roleOf("dev", &typesv1.RoleConditions{DbLabels: labels("team", "blue"), DbUsers: []string{"app"}, DbNames: []string{"orders"}}, nil)
	o.roleOf("maker", &typesv1.RoleConditions{DbLabels: labels("auto", "yes"), DbNames: []string{"orders"}, DbRoles: []string{"reader", "writer"}},
		&typesv1.RoleOptions{CreateDbUserMode: types.DatabaseUserKeep})
	o.person("alice", nil, "dev", "maker")
	auto := newDatabase("auto", map[string]string{"auto": "yes"})
	auto.Spec.AdminUser = &typesv1.DatabaseAdminUser{Name: "teleport-admin"}
	mysql := newDatabase("maria", map[string]string{"team": "blue"})
	mysql.Spec.Protocol = types.ProtocolMySQL
	o.put(
		servesDatabase("h1", newDatabase("pg", map[string]string{"team": "blue"})), servesDatabase("h2", newDatabase("pg", map[string]string{"team": "blue"})),
		servesDatabase("h1", newDatabase("vault", map[string]string{"team": "red"})), servesDatabase("h1", auto), servesDatabase("h1", mysql),
	)
	return o
}

func TestDatabaseCertifyUser(t *testing.T) {
	o := newDatabaseOffice(t)
	alice := identityOf("alice", "dev", "maker")
	certify := func(id *identity.Identity, req *databasev1.CertifyUserRequest) (*databasev1.CertifyUserResponse, error) {
		req.TlsKey = o.key
		return o.databases.CertifyUser(asID(t, id), req)
	}
	resp, err := certify(alice, &databasev1.CertifyUserRequest{Database: "pg", DbUser: "app", DbName: "orders", Ttl: durationpb.New(time.Hour)})
	check(t, err)
	id := o.read(resp.GetCertificate())
	want1 := *alice.User
	want1.Logins, want1.Database = nil, &identity.DatabaseRoute{Service: "pg", Protocol: "postgres", User: "app", Name: "orders"}
	if d := cmp.Diff(&want1, id.User); d != "" || resp.GetProtocol() != "postgres" || !resp.GetExpires().AsTime().Equal(id.Expires) {
		t.Errorf("certificate (-want +got):\n%s\n%v", d, resp)
	}
	if f := o.last("TC000I"); f["db_service"] != "pg" || f["db_user"] != "app" || f["db_name"] != "orders" || f["db_protocol"] != "postgres" {
		t.Errorf("event %v", f)
	}
	for name, tt := range map[string]struct {
		id   *identity.Identity
		req  *databasev1.CertifyUserRequest
		kind error
		part string
	}{
		"open":             {alice, &databasev1.CertifyUserRequest{Database: "pg"}, nil, ""},
		"user_open":        {alice, &databasev1.CertifyUserRequest{Database: "pg", DbName: "orders"}, nil, ""},
		"name_open":        {alice, &databasev1.CertifyUserRequest{Database: "pg", DbUser: "app"}, nil, ""},
		"other_user":       {alice, &databasev1.CertifyUserRequest{Database: "pg", DbUser: "postgres"}, fault.ErrDenied, `user "postgres"`},
		"other_name":       {alice, &databasev1.CertifyUserRequest{Database: "pg", DbUser: "app", DbName: "hr"}, fault.ErrDenied, `in "hr"`},
		"own_name":         {alice, &databasev1.CertifyUserRequest{Database: "pg", DbUser: "alice"}, fault.ErrDenied, `user "alice"`},
		"names_of_mysql":   {alice, &databasev1.CertifyUserRequest{Database: "maria", DbUser: "app", DbName: "hr"}, nil, ""},
		"made":             {alice, &databasev1.CertifyUserRequest{Database: "auto", DbUser: "alice", DbName: "orders"}, nil, ""},
		"made_other_name":  {alice, &databasev1.CertifyUserRequest{Database: "auto", DbUser: "alice", DbName: "hr"}, fault.ErrDenied, ""},
		"made_for_another": {alice, &databasev1.CertifyUserRequest{Database: "auto", DbUser: "bob"}, fault.ErrDenied, ""},
		"roles":            {alice, &databasev1.CertifyUserRequest{Database: "auto", DbUser: "alice", DbRoles: []string{"reader"}}, nil, ""},
		"more_roles":       {alice, &databasev1.CertifyUserRequest{Database: "auto", DbUser: "alice", DbRoles: []string{"reader", "root"}}, fault.ErrDenied, `"root"`},
		"roles_elsewhere":  {alice, &databasev1.CertifyUserRequest{Database: "pg", DbUser: "app", DbRoles: []string{"reader"}}, fault.ErrDenied, `"reader"`},
		"unseen":           {alice, &databasev1.CertifyUserRequest{Database: "vault", DbUser: "app"}, fault.ErrNotFound, "tsh db ls"},
		"unknown":          {alice, &databasev1.CertifyUserRequest{Database: "nothing"}, fault.ErrNotFound, "tsh db ls"},
		"prefix":           {alice, &databasev1.CertifyUserRequest{Database: "p"}, fault.ErrNotFound, ""},
		"no_name":          {alice, &databasev1.CertifyUserRequest{}, fault.ErrInvalid, ""},
		"newline":          {alice, &databasev1.CertifyUserRequest{Database: "pg", DbUser: "a\nb"}, fault.ErrInvalid, ""},
		"deleted":          {identityOf("bob", "dev"), &databasev1.CertifyUserRequest{Database: "pg"}, fault.ErrDenied, "deleted"},
	} {
		resp, err := certify(tt.id, tt.req)
		if !errors.Is(fault.Kind(err), tt.kind) || !contains(errText(err), tt.part) {
			t.Errorf("%s: %v, want %v with %q", name, err, tt.kind, tt.part)
		}
		if err == nil {
			route := o.read(resp.GetCertificate()).User.Database
			if route.Service != tt.req.GetDatabase() || route.User != tt.req.GetDbUser() || route.Name != tt.req.GetDbName() || !slices.Equal(route.Roles, tt.req.GetDbRoles()) {
				t.Errorf("%s: route %+v", name, route)
			}
		}
	}
	_, err = certify(alice, &databasev1.CertifyUserRequest{Database: "pg", DbUser: "postgres"})
	want(t, err, fault.ErrDenied, "")
	if f := o.last("T3007W"); f["db_user"] != "postgres" || f["reason"] == f["error"] {
		t.Errorf("refusal in the audit log: %v", f)
	}
	o.lockedOut(func() error {
		_, err := certify(alice, &databasev1.CertifyUserRequest{Database: "pg", DbUser: "app"})
		return err
	}, &typesv1.LockTarget{User: "alice"}, &typesv1.LockTarget{Login: "app"}, &typesv1.LockTarget{MfaDevice: "device-1"})
}

func TestSignClient(t *testing.T) {
	o := newDatabaseOffice(t)
	alice := identityOf("alice", "dev", "maker")
	cert := func(change func(*identity.DatabaseRoute)) []byte {
		return o.routed(alice, func(u *identity.User) {
			u.Database = &identity.DatabaseRoute{Service: "pg", Protocol: "postgres"}
			if change != nil {
				change(u.Database)
			}
		})
	}
	forAuto := func(d *identity.DatabaseRoute) { d.Service = "auto" }
	sign := func(host string, req *databasev1.SignClientRequest) (*databasev1.SignClientResponse, error) {
		req.TlsKey = o.key
		return o.databases.SignClient(asService(t, host, types.RoleDB), req)
	}
	resp, err := sign("h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(nil), DbUser: "app"})
	check(t, err)
	leaf, err := x509.ParseCertificate(resp.GetCertificates()[0])
	check(t, err)
	pool := x509.NewCertPool()
	for _, c := range o.trusts.DatabaseClientCertificates() {
		pool.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	check(t, err)
	if left := time.Until(leaf.NotAfter); leaf.Subject.String() != "CN=app" || len(resp.GetCertificates()) != 2 || left < 11*time.Hour || left > 12*time.Hour {
		t.Errorf("certificate of %q for %s, with %d in the chain", leaf.Subject, left, len(resp.GetCertificates()))
	}
	if f := o.last("TC000I"); f["cert_type"] != "db_client" || f["db_user"] != "app" || f["user"] != "alice" || f["server_id"] != "h1" {
		t.Errorf("event %v", f)
	}
	for name, tt := range map[string]struct {
		host string
		req  *databasev1.SignClientRequest
		kind error
	}{
		"user_of_route":     {"h2", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(func(d *identity.DatabaseRoute) { d.User, d.Name = "app", "orders" }), DbUser: "app"}, nil},
		"not_the_route":     {"h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(func(d *identity.DatabaseRoute) { d.User = "app" }), DbUser: "postgres"}, fault.ErrDenied},
		"not_the_roles":     {"h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(nil), DbUser: "postgres"}, fault.ErrDenied},
		"not_the_name":      {"h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(func(d *identity.DatabaseRoute) { d.Name = "hr" }), DbUser: "app"}, fault.ErrDenied},
		"no_user":           {"h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(nil)}, fault.ErrDenied},
		"not_served":        {"h3", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(nil), DbUser: "app"}, fault.ErrDenied},
		"other_database":    {"h1", &databasev1.SignClientRequest{Database: "vault", UserCertificate: cert(nil), DbUser: "app"}, fault.ErrDenied},
		"other_protocol":    {"h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(func(d *identity.DatabaseRoute) { d.Protocol = "mysql" }), DbUser: "app"}, fault.ErrDenied},
		"roles_refuse":      {"h1", &databasev1.SignClientRequest{Database: "vault", UserCertificate: cert(func(d *identity.DatabaseRoute) { d.Service = "vault" }), DbUser: "app"}, fault.ErrDenied},
		"login_certificate": {"h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: o.routed(alice, func(u *identity.User) { u.Logins = []string{"root"} }), DbUser: "app"}, fault.ErrDenied},
		"app_certificate":   {"h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: o.routed(alice, func(u *identity.User) { u.App = &identity.AppRoute{Name: "pg"} }), DbUser: "app"}, fault.ErrDenied},
		"no_certificate":    {"h1", &databasev1.SignClientRequest{Database: "pg", DbUser: "app"}, fault.ErrInvalid},
		"made":              {"h1", &databasev1.SignClientRequest{Database: "auto", UserCertificate: cert(forAuto), DbUser: "alice"}, nil},
		"made_for_another":  {"h1", &databasev1.SignClientRequest{Database: "auto", UserCertificate: cert(forAuto), DbUser: "bob"}, fault.ErrDenied},
		"admin":             {"h1", &databasev1.SignClientRequest{Database: "auto", UserCertificate: cert(forAuto), DbUser: "teleport-admin", Admin: true}, nil},
		"admin_not_asked":   {"h1", &databasev1.SignClientRequest{Database: "auto", UserCertificate: cert(forAuto), DbUser: "teleport-admin"}, fault.ErrDenied},
		"other_admin":       {"h1", &databasev1.SignClientRequest{Database: "auto", UserCertificate: cert(forAuto), DbUser: "postgres", Admin: true}, fault.ErrDenied},
		"no_admin":          {"h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(nil), DbUser: "app", Admin: true}, fault.ErrDenied},
		"admin_for_app": {"h1", &databasev1.SignClientRequest{
			Database: "auto", UserCertificate: cert(func(d *identity.DatabaseRoute) { d.Service, d.User = "auto", "app" }), DbUser: "teleport-admin", Admin: true,
		}, fault.ErrDenied},
	} {
		if _, err := sign(tt.host, tt.req); !errors.Is(fault.Kind(err), tt.kind) {
			t.Errorf("%s: %v, want %v", name, err, tt.kind)
		}
	}
	// A denial of the user's own name stands, even where the user would be made.
	denies := newRole("denies")
	denies.Spec = &typesv1.RoleSpec{Deny: &typesv1.RoleConditions{DbUsers: []string{"alice"}}}
	o.put(denies)
	refused := identityOf("alice", "dev", "maker", "denies")
	_, err = sign("h1", &databasev1.SignClientRequest{
		Database: "auto", DbUser: "alice",
		UserCertificate: o.routed(refused, func(u *identity.User) { u.Database = &identity.DatabaseRoute{Service: "auto", Protocol: "postgres"} }),
	})
	want(t, err, fault.ErrDenied, "")

	instance := types.New(types.KindInstance, "h1").(*typesv1.Instance)
	instance.Spec = &typesv1.InstanceSpec{Hostname: "one", Token: "token-1"}
	o.put(instance)
	o.lockedOut(func() error {
		_, err := sign("h1", &databasev1.SignClientRequest{Database: "pg", UserCertificate: cert(nil), DbUser: "app"})
		return err
	}, &typesv1.LockTarget{User: "alice"}, &typesv1.LockTarget{Login: "app"}, &typesv1.LockTarget{User: "alice", ServerId: "h1"}, &typesv1.LockTarget{JoinToken: "token-1"})
}

func TestSignDatabaseServer(t *testing.T) {
	o := newOffice(t)
	ctx := rpc.WithCaller(t.Context(), rpc.Caller{Local: true})
	resp, err := o.databases.SignServer(ctx, &databasev1.SignServerRequest{TlsKey: o.key, Hosts: []string{"db.example.com", "10.0.0.1"}, Ttl: durationpb.New(2190 * time.Hour)})
	check(t, err)
	cert, err := x509.ParseCertificate(resp.GetCertificate())
	check(t, err)
	servers, clients := x509.NewCertPool(), x509.NewCertPool()
	if !servers.AppendCertsFromPEM([]byte(resp.GetAuthorities())) || !clients.AppendCertsFromPEM([]byte(resp.GetClientAuthorities())) {
		t.Fatal("the answer has no authorities")
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: servers, DNSName: "db.example.com"})
	check(t, err)
	if _, err = cert.Verify(x509.VerifyOptions{Roots: clients}); err == nil {
		t.Error("what clients are to be is what servers are")
	}
	if block, rest := pem.Decode([]byte(resp.GetClientAuthorities())); block == nil || len(rest) != 0 {
		t.Errorf("client authorities %q", resp.GetClientAuthorities())
	}
	if f := o.last("TC000I"); f["cert_type"] != "db" || f["user"] != "local administrator" {
		t.Errorf("event %v", f)
	}
	resp, err = o.databases.SignServer(ctx, &databasev1.SignServerRequest{TlsKey: o.key, Hosts: []string{"a"}})
	check(t, err)
	if left := time.Until(resp.GetExpires().AsTime()); left > 90*24*time.Hour || left < 89*24*time.Hour {
		t.Errorf("good for %s unless asked otherwise", left)
	}
	for name, req := range map[string]*databasev1.SignServerRequest{
		"no_hosts": {TlsKey: o.key}, "no_key": {Hosts: []string{"a"}}, "no_ttl": {TlsKey: o.key, Hosts: []string{"a"}, Ttl: durationpb.New(0)},
		"long": {TlsKey: o.key, Hosts: []string{"a"}, Ttl: durationpb.New(9000 * time.Hour)},
	} {
		if _, err := o.databases.SignServer(ctx, req); !errors.Is(fault.Kind(err), fault.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	list, err := o.databases.SignRevocations(ctx, &databasev1.SignRevocationsRequest{Authority: "db_client"})
	check(t, err)
	crl, err := x509.ParseRevocationList(list.GetList())
	check(t, err)
	check(t, crl.CheckSignatureFrom(o.trusts.DatabaseClientCertificates()[0]))
	_, err = o.databases.SignRevocations(ctx, &databasev1.SignRevocationsRequest{Authority: "jwt"})
	want(t, err, fault.ErrInvalid, "db_client")
}
