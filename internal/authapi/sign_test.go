package authapi_test

import (
	"context"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/authapi"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keystore"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
)

// authorities are all that a cluster has; RSA keys take a while, so that tests share them.
var authorities = sync.OnceValues(func() ([]*typesv1.CertAuthority, error) {
	var out []*typesv1.CertAuthority
	for _, typ := range ca.Types() {
		a, err := ca.Generate(keystore.Software(), cluster, typ, time.Now())
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
})

// office is an env with the handlers that sign for applications and databases.
type office struct {
	*env
	apps      *authapi.AppServer
	databases *authapi.DatabaseServer
	signs     *ca.Signer
	trusts    *ca.Trust
	key       []byte
	// offset is how far the clock is from the real one.
	offset time.Duration
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{env: newEnv(t)}
	cas, err := authorities()
	check(t, err)
	now := func() time.Time { return time.Now().Add(o.offset) }
	o.signs, err = ca.NewSigner(keystore.Software(), cas, now)
	check(t, err)
	o.trusts, err = ca.NewTrust(cas)
	check(t, err)
	cfg := o.config()
	cfg.Trust, cfg.Now = func() *ca.Trust { return o.trusts }, now
	signing := authapi.SigningConfig{Config: cfg, Signer: func() *ca.Signer { return o.signs }}
	o.apps, err = authapi.NewApp(signing)
	check(t, err)
	o.databases, err = authapi.NewDatabase(signing)
	check(t, err)
	_, o.key = newKey(t)
	return o
}

// person puts a user into the cluster.
func (o *office) person(name string, traits map[string][]string, roles ...string) {
	o.t.Helper()
	u := newUser(name, roles...)
	u.Spec.Traits = map[string]*typesv1.Strings{}
	for k, v := range traits {
		u.Spec.Traits[k] = &typesv1.Strings{Values: v}
	}
	o.put(u)
}

// identityOf returns what the certificate of a login says.
func identityOf(name string, roles ...string) *identity.Identity {
	return &identity.Identity{Cluster: cluster, Expires: time.Now().Add(10 * time.Hour), User: &identity.User{
		Name: name, Roles: roles, Logins: []string{"root"}, Traits: map[string][]string{"team": {"blue"}}, MFADevice: "device-1",
	}}
}

func asID(t *testing.T, id *identity.Identity) context.Context {
	t.Helper()
	return rpc.WithCaller(t.Context(), rpc.Caller{Addr: "192.0.2.1:1", Identity: id})
}

// asService is the context of a service's own calls.
func asService(t *testing.T, id string, role types.SystemRole) context.Context {
	t.Helper()
	return asID(t, &identity.Identity{Cluster: cluster, Host: &identity.Host{ID: id, Name: "name-" + id, Roles: []types.SystemRole{role}, Service: role}})
}

// read returns what a certificate says to those who trust the cluster.
func (o *office) read(der []byte) *identity.Identity {
	o.t.Helper()
	cert, err := x509.ParseCertificate(der)
	check(o.t, err)
	id, err := o.trusts.VerifyTLS([]*x509.Certificate{cert}, time.Now().Add(o.offset))
	check(o.t, err)
	return id
}

// routed signs a certificate for one resource.
func (o *office) routed(id *identity.Identity, change func(*identity.User)) []byte {
	o.t.Helper()
	user := *id.User
	user.Logins = nil
	change(&user)
	der, _, err := o.signs.User(ca.UserRequest{Identity: identity.Identity{Cluster: cluster, User: &user}, TLSKey: o.key, TTL: time.Hour, NoLogins: len(user.Logins) == 0})
	check(o.t, err)
	return der
}

// lock puts a lock into the cluster.
func (o *office) lock(name string, target *typesv1.LockTarget) {
	o.t.Helper()
	l := types.New(types.KindLock, name).(*typesv1.Lock)
	l.Spec = &typesv1.LockSpec{Target: target}
	o.put(l)
}

func (o *office) unlock(name string) {
	o.t.Helper()
	check(o.t, o.store.Tx().Delete(types.KindLock, name, "").Commit(o.t.Context()))
}

// roleOf puts a role into the cluster.
func (o *office) roleOf(name string, allow *typesv1.RoleConditions, options *typesv1.RoleOptions) {
	o.t.Helper()
	r := newRole(name)
	r.Spec = &typesv1.RoleSpec{Allow: allow, Options: options}
	o.put(r)
}

func labels(k, v string) map[string]*typesv1.Strings {
	return map[string]*typesv1.Strings{k: {Values: []string{v}}}
}

// last returns the fields of the last audit event, which has the code.
func (o *office) last(code string) map[string]any {
	o.t.Helper()
	events, _, err := o.store.SearchEvents(o.t.Context(), store.EventQuery{Limit: 1})
	check(o.t, err)
	if len(events) != 1 || events[0].GetCode() != code {
		o.t.Fatalf("last event %v, want one with the code %s", events, code)
	}
	return events[0].GetFields().AsMap()
}

// lockedOut fails unless the call is refused by a lock of each of the targets.
func (o *office) lockedOut(call func() error, targets ...*typesv1.LockTarget) {
	o.t.Helper()
	for _, target := range targets {
		o.lock("l-1", target)
		if err := call(); fault.Code(err) != "locked" {
			o.t.Errorf("locked by %v: %v", target, err)
		}
		o.unlock("l-1")
	}
	check(o.t, call())
}
