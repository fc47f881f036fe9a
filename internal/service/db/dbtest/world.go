// Package dbtest is for the tests of engines: a cluster around a Database Service, as far
// as that needs one; people with certificates and local ports, as tsh gives them; real
// database servers with TLS and client certificates; and one suite that every engine
// passes. Nothing of the product imports it.
package dbtest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	databasev1 "teleport/api/database/v1"
	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/service/db"
	"teleport/internal/service/db/engine"
	"teleport/internal/state"
	"teleport/internal/types"
)

const (
	// HostID is the id of the host that the service runs on.
	HostID = "7c9a2d7e-58a6-4e0e-8f6b-0d3a5e1c2b4f"
	// Cluster is the name of the cluster.
	Cluster = "example.com"
	// Role is a role that allows every user and name of every database.
	Role = "dba"
)

// authorities are made once: RSA keys take their time.
var authorities = sync.OnceValue(func() []*typesv1.CertAuthority {
	var out []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser, ca.TypeDB, ca.TypeDBClient} {
		out = append(out, must(ca.Generate(keystore.Software(), Cluster, typ, time.Now().Add(-time.Hour))))
	}
	return out
})

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// World is a cluster as far as a Database Service needs one.
type World struct {
	Cache   *cache.Cache
	Events  *Events
	Service *db.Service
	// Auth is what signs certificates for databases.
	Auth *Auth
	// Announced are the databases that the service announced, by name of the server.
	Announced *Announced

	signer *ca.Signer
	// protocol is that of the databases.
	protocol string
	holder   *state.Holder
	ctx      context.Context // of the tunnel that connections come by
	stop     func()
}

// Start runs a Database Service with the engine and the databases until the test ends.
// change may alter the configuration before.
func Start(t testing.TB, eng engine.Engine, dbs []*typesv1.Database, change func(*db.Config)) *World {
	t.Helper()
	w := &World{Cache: cache.New(), Events: newEvents(), Auth: &Auth{ttl: time.Hour}, Announced: newAnnounced(), protocol: eng.Protocols()[0]}
	if len(dbs) > 0 {
		w.protocol = dbs[0].GetSpec().GetProtocol()
	}
	w.signer = must(ca.NewSigner(keystore.Software(), authorities()[:2], time.Now))
	w.holder = must(state.NewHolder(w.join(t)))
	w.Cache.Reset()
	for _, a := range authorities() {
		w.Cache.Apply(types.Change{Kind: types.KindCertAuthority, Name: a.GetMetadata().GetName(), Resource: ca.Public(a)})
	}
	w.SetRole(Role, func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"*": Strings("*")}, DbUsers: []string{"*"}, DbNames: []string{"*"}}
	})
	w.Cache.Synced(1)
	w.Cache.Heard(time.Now())
	cfg := db.Config{
		Holder: w.holder, Cache: w.Cache, Emit: w.Events.Emit, Hostname: "db-host", Databases: dbs, Engines: []engine.Engine{eng},
		Announce: w.Announced.announce, Withdraw: w.Announced.withdraw, Auth: func() databasev1.DatabaseServiceClient { return w.Auth },
		Drain: 2 * time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.Service, err = db.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	// The tunnel outlives the service.
	tunnel, hangUp := context.WithCancel(context.Background())
	w.ctx = tunnel
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.Service.Run(ctx, func() { close(ready) }) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		hangUp()
	})
	t.Cleanup(w.stop)
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("Run = %v before it was ready", err)
	}
	for _, d := range dbs {
		w.Announced.Wait(t, d.GetMetadata().GetName(), func(s *typesv1.DatabaseServer) bool { return s != nil })
	}
	return w
}

// Stop stops the service and waits for it.
func (w *World) Stop() { w.stop() }

// Strings makes values of a label.
func Strings(s ...string) *typesv1.Strings { return &typesv1.Strings{Values: s} }

// Database returns a database resource.
func Database(name, protocol, uri string) *typesv1.Database {
	d, _ := types.New(types.KindDatabase, name).(*typesv1.Database)
	d.Metadata.Labels = map[string]string{"env": "test"}
	d.Spec = &typesv1.DatabaseSpec{Protocol: protocol, Uri: uri}
	return d
}

// SetRole makes or replaces a role.
func (w *World) SetRole(name string, change func(*typesv1.RoleSpec)) {
	r, _ := types.New(types.KindRole, name).(*typesv1.Role)
	r.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{}, Deny: &typesv1.RoleConditions{}, Options: &typesv1.RoleOptions{}}
	change(r.Spec)
	w.Cache.Apply(types.Change{Kind: types.KindRole, Name: name, Resource: r})
}

// Lock locks a user, or another target.
func (w *World) Lock(name string, target *typesv1.LockTarget) {
	l, _ := types.New(types.KindLock, name).(*typesv1.Lock)
	l.Spec = &typesv1.LockSpec{Target: target, Message: "ask security"}
	w.Cache.Apply(types.Change{Kind: types.KindLock, Name: name, Resource: l})
}

// join returns the state of a host with the role Db.
func (w *World) join(t testing.TB) *state.State {
	t.Helper()
	tlsKey, sshKey := must(keys.Generate(keys.ECDSAP256)), must(keys.Generate(keys.Ed25519))
	sshPublic := must(gossh.NewPublicKey(sshKey.Public()))
	roles := []types.SystemRole{types.RoleDB}
	issue := func(service types.SystemRole) *joinv1.ServiceCertificates {
		tlsDER, sshWire, err := w.signer.Host(ca.HostRequest{
			Identity: identity.Identity{Cluster: Cluster, Host: &identity.Host{ID: HostID, Name: "db-host", Roles: roles, Service: service, Generation: 1}},
			TLSKey:   must(keys.PublicDER(tlsKey.Public())), SSHKey: sshPublic.Marshal(),
		})
		if err != nil {
			t.Fatal(err)
		}
		return &joinv1.ServiceCertificates{Tls: tlsDER, Ssh: sshWire}
	}
	process := issue("")
	grant := &joinv1.Grant{
		HostId: HostID, ClusterName: Cluster, Roles: []string{string(types.RoleDB)}, Generation: 1,
		Certificates: &joinv1.HostCertificates{
			Tls: process.GetTls(), Ssh: process.GetSsh(),
			Services: map[string]*joinv1.ServiceCertificates{string(types.RoleDB): issue(types.RoleDB)},
		},
		Authorities: []*typesv1.CertAuthority{ca.Public(authorities()[0]), ca.Public(authorities()[1])},
	}
	return &state.State{
		Cluster: Cluster, HostID: HostID, Hostname: "db-host", Roles: roles, Generation: 1,
		TLSKey: must(keys.MarshalPrivate(tlsKey)), SSHKey: must(keys.MarshalPrivate(sshKey)), Grant: must(proto.Marshal(grant)),
	}
}

// Auth signs certificates for databases, as the Auth Service does.
type Auth struct {
	databasev1.DatabaseServiceClient

	mu     sync.Mutex
	ttl    time.Duration
	away   bool
	signed int
}

// SetTTL sets how long certificates are good.
func (a *Auth) SetTTL(ttl time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ttl = ttl
}

// Away says whether it can be reached.
func (a *Auth) Away(away bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.away = away
}

// Signed is how many certificates it has signed.
func (a *Auth) Signed() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.signed
}

// SignClient signs a certificate for a database user.
func (a *Auth) SignClient(_ context.Context, r *databasev1.SignClientRequest, _ ...grpc.CallOption) (*databasev1.SignClientResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away {
		return nil, fault.Unreachable("the Auth Service is away")
	}
	a.signed++
	public, err := keys.ParsePublicTLS(r.GetTlsKey())
	if err != nil {
		return nil, err
	}
	der, to, err := sign(ca.TypeDBClient, &x509.Certificate{
		Subject: pkix.Name{CommonName: r.GetDbUser()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, public, a.ttl)
	if err != nil {
		return nil, err
	}
	return &databasev1.SignClientResponse{Certificates: [][]byte{der, authorityOf(ca.TypeDBClient).Raw}, Expires: timestamppb.New(to)}, nil
}

func pairOf(typ string) *typesv1.TlsKeyPair {
	for _, a := range authorities() {
		if a.GetSpec().GetType() == typ {
			return a.GetSpec().GetActiveKeys().GetTls()[0]
		}
	}
	panic("no authority " + typ)
}

func authorityOf(typ string) *x509.Certificate {
	block, _ := pem.Decode([]byte(pairOf(typ).GetCert()))
	return must(x509.ParseCertificate(block.Bytes))
}

// sign makes a certificate by an authority of the cluster.
func sign(typ string, template *x509.Certificate, public crypto.PublicKey, ttl time.Duration) (der []byte, to time.Time, err error) {
	template.SerialNumber = must(rand.Int(rand.Reader, big.NewInt(1<<62)))
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(ttl)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err = x509.CreateCertificate(rand.Reader, template, authorityOf(typ), public, must(keystore.Software().Signer(pairOf(typ).GetPrivateKey())))
	return der, template.NotAfter, err
}

// Files are what a database server, or a client that ends TLS itself, is given.
type Files struct {
	// CA is whom to believe, Cert and Key are its own certificate.
	CA, Cert, Key string
}

// ServerFiles makes what a database server for the hosts needs, as `tctl auth sign
// --format=db` does, in the folder.
func ServerFiles(t testing.TB, dir string, hosts ...string) Files {
	t.Helper()
	key := must(keys.Generate(keys.RSA2048))
	template := &x509.Certificate{Subject: pkix.Name{CommonName: hosts[0]}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, _, err := sign(ca.TypeDB, template, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return writeFiles(t, dir, "server", []byte(pairOf(ca.TypeDBClient).GetCert()), key, der)
}

func writeFiles(t testing.TB, dir, name string, caPEM []byte, key crypto.Signer, chain ...[]byte) Files {
	t.Helper()
	f := Files{CA: filepath.Join(dir, name+".cas"), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	var certs []byte
	for _, der := range chain {
		certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	private := must(keys.MarshalPrivate(key))
	for path, data := range map[string][]byte{f.CA: caPEM, f.Cert: certs, f.Key: private} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// serviceTLS is how the local proxy of tsh speaks with the agent.
func (w *World) serviceTLS(cert tls.Certificate) *tls.Config {
	return ca.ClientTLS(func() *tls.Certificate { return &cert }, w.holder.Trust, types.RoleDB)
}

// ClientFiles makes what somebody needs who logs in to the database as dbUser without
// Teleport: the direct way, to compare with.
func ClientFiles(t testing.TB, dbUser string) Files {
	t.Helper()
	key := must(keys.Generate(keys.ECDSAP256))
	der, _, err := sign(ca.TypeDBClient, &x509.Certificate{
		Subject: pkix.Name{CommonName: dbUser}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return writeFiles(t, t.TempDir(), "direct", []byte(pairOf(ca.TypeDB).GetCert()), key, der)
}
