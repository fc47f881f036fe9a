// Package sshauth is the conformance suite of SSH authentication: every way into a
// server, and on each of them every attack. An offered key is never proof, and what a
// certificate or a role forbids is forbidden whichever way somebody comes. Auth, Proxy
// and agent run in this process as the daemon has them, beside a stock sshd; attacks
// that no client makes are written packet by packet.
package sshauth

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"

	opensshv1 "teleport/api/openssh/v1"
	resourcev1 "teleport/api/resource/v1"
	statusv1 "teleport/api/status/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/backend/sqlite"
	"teleport/internal/ca"
	"teleport/internal/config"
	"teleport/internal/keys"
	"teleport/internal/process"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
	"teleport/test/e2e/ownhome"
)

func TestMain(m *testing.M) { os.Exit(ownhome.Run(m.Run)) }

const (
	token       = "00112233445566778899aabbccddeeff"
	clusterName = "suite"
	// Servers: one that listens, one behind a tunnel, one that runs only OpenSSH.
	directNode = "hub"
	tunnelNode = "web"
	stockNode  = "stock"
	stockID    = "11111111-1111-4111-8111-111111111111"
	// Roles: one that lets do everything, and one that forbids what it can.
	freeRole, strictRole = "free", "strict"
)

// site is a cluster with a server of each kind.
type site struct {
	t     *testing.T
	dir   string
	login string
	// Addresses of the Proxy, of the server that listens and of the stock sshd.
	proxy, node, sshd string
	admin             *grpc.ClientConn
	// The authorities with their private keys, and what users trust.
	cas    map[string]*typesv1.CertAuthority
	signer *ca.Signer
	trust  *ca.Trust
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

func newSite(t *testing.T) *site {
	t.Helper()
	me, err := user.Current()
	must(t, err)
	s := &site{t: t, dir: t.TempDir(), login: me.Username, proxy: freeAddr(t), node: freeAddr(t), sshd: freeAddr(t)}
	auth := freeAddr(t)
	hub := fmt.Sprintf(`version: v3
teleport: {nodename: %s, data_dir: %s}
auth_service: {enabled: yes, cluster_name: %s, listen_addr: "%s", tokens: ["node:%s"]}
proxy_service: {enabled: yes, web_listen_addr: "%s", public_addr: "%s"}
ssh_service: {enabled: yes, listen_addr: "%s", x11: {enabled: yes}}
`, directNode, s.path("hub"), clusterName, auth, token, s.proxy, s.proxy, s.node)
	cfg, stop := s.run("hub", hub)
	stop()
	s.readAuthorities(cfg.DatabaseFile())
	s.run("hub", hub)
	s.admin, err = rpc.DialLocal(cfg.LocalSocket())
	must(t, err)
	t.Cleanup(func() { _ = s.admin.Close() })
	status, err := statusv1.NewStatusServiceClient(s.admin).GetStatus(t.Context(), &statusv1.GetStatusRequest{})
	must(t, err)
	s.run(tunnelNode, fmt.Sprintf(`version: v3
teleport: {nodename: %s, data_dir: %s, proxy_server: "%s", ca_pin: "%s", auth_token: %s}
auth_service: {enabled: no}
proxy_service: {enabled: no}
ssh_service: {enabled: yes, x11: {enabled: yes}}
`, tunnelNode, s.path(tunnelNode), s.proxy, status.GetCaPins()[0], token))
	s.addPeople()
	s.addStock()
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// run starts a process and waits until it serves.
func (s *site) run(name, text string) (*config.Config, func()) {
	s.t.Helper()
	cfg, err := config.Parse(name+".yaml", []byte(text))
	must(s.t, err)
	log := &journal{}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- process.Run(ctx, process.Options{
			Config: cfg, Log: slog.New(slog.NewTextHandler(log, nil)), OnReady: func(process.Addrs) { close(ready) },
		})
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("%s ended with %v\n%s", name, err, log)
		}
		if strings.Contains(log.String(), "panic") {
			s.t.Errorf("%s panicked:\n%s", name, log)
		}
	})
	s.t.Cleanup(stop)
	select {
	case <-ready:
	case <-time.After(time.Minute):
		s.t.Fatalf("%s is not ready after a minute:\n%s", name, log)
	}
	return cfg, stop
}

// journal collects what a process logs.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write collects.
func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

// String returns all of it.
func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// readAuthorities takes the authorities, private keys and all, from the database of an
// Auth Service that does not run.
func (s *site) readAuthorities(file string) {
	s.t.Helper()
	b, err := sqlite.Open(s.t.Context(), sqlite.Config{Path: file})
	must(s.t, err)
	defer func() { _ = b.Close() }()
	st := store.New(store.Config{Backend: b})
	st.SetCluster(clusterName)
	list, err := store.All[*typesv1.CertAuthority](s.t.Context(), st, types.KindCertAuthority)
	must(s.t, err)
	s.cas = map[string]*typesv1.CertAuthority{}
	for _, a := range list {
		s.cas[a.GetSpec().GetType()] = a
	}
	s.signer, err = ca.NewSigner(softwareKeys, list, time.Now)
	must(s.t, err)
	s.trust, err = ca.NewTrust(list)
	must(s.t, err)
}

// put stores a resource as an administrator.
func (s *site) put(r types.Resource) {
	s.t.Helper()
	packed, err := types.ToAny(r)
	must(s.t, err)
	_, err = resourcev1.NewResourceServiceClient(s.admin).UpsertResource(s.t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed})
	must(s.t, err)
}

// remove deletes a resource.
func (s *site) remove(kind, name string) {
	s.t.Helper()
	_, err := resourcev1.NewResourceServiceClient(s.admin).DeleteResource(s.t.Context(), &resourcev1.DeleteResourceRequest{Kind: kind, Name: name})
	must(s.t, err)
}

// addPeople makes the roles, and the user who has them: servers that run only OpenSSH
// ask Auth about users.
func (s *site) addPeople() {
	s.t.Helper()
	yes, no := true, false
	everything := []string{"*"}
	conditions := func() *typesv1.RoleConditions {
		return &typesv1.RoleConditions{
			Logins: []string{s.login}, NodeLabels: map[string]*typesv1.Strings{"*": {Values: everything}},
			JoinSessions: []*typesv1.SessionJoinPolicy{{
				Name: "all", Roles: everything, Kinds: []string{types.KindSSH}, Modes: []string{types.ModeObserver, types.ModePeer},
			}},
		}
	}
	free := types.New(types.KindRole, freeRole).(*typesv1.Role)
	free.Spec = &typesv1.RoleSpec{Allow: conditions(), Options: &typesv1.RoleOptions{ForwardAgent: &yes, PermitX11Forwarding: &yes}}
	strict := types.New(types.KindRole, strictRole).(*typesv1.Role)
	strict.Spec = &typesv1.RoleSpec{Allow: conditions(), Options: &typesv1.RoleOptions{
		ForwardAgent: &no, PermitX11Forwarding: &no, PortForwarding: &no, SshFileCopy: &no, MaxSessions: 1, DisconnectExpiredCert: &yes,
	}}
	s.put(free)
	s.put(strict)
	for _, name := range []string{"alice", "bob"} {
		person := types.New(types.KindUser, name).(*typesv1.User)
		person.Spec = &typesv1.UserSpec{Roles: []string{freeRole}, Traits: map[string]*typesv1.Strings{"logins": {Values: []string{s.login}}}}
		_, err := userv1.NewUserServiceClient(s.admin).CreateUser(s.t.Context(), &userv1.CreateUserRequest{User: person})
		must(s.t, err)
	}
}

// addStock starts a stock sshd and enrols it.
func (s *site) addStock() {
	s.t.Helper()
	n := types.New(types.KindNode, stockID).(*typesv1.Server)
	n.SubKind = types.SubKindOpenSSH
	n.Metadata.Labels = map[string]string{"env": "stock"}
	n.Spec = &typesv1.ServerSpec{Hostname: stockNode, Addr: s.sshd}
	s.put(n)
	key, err := keys.Generate(keys.Ed25519)
	must(s.t, err)
	public, err := ssh.NewPublicKey(key.Public())
	must(s.t, err)
	s.writeKey("host_key", key)
	signed, err := opensshv1.NewOpenSSHServiceClient(s.admin).SignServer(s.t.Context(), &opensshv1.SignServerRequest{
		Server: stockNode, HostKeys: [][]byte{public.Marshal()},
	})
	must(s.t, err)
	cert, err := ca.ParseSSHCertificate(signed.GetCertificates()[0])
	must(s.t, err)
	s.write("host_key-cert.pub", string(ssh.MarshalAuthorizedKey(cert)))
	s.write("trusted", strings.Join(signed.GetTrustedKeys(), "\n")+"\n")
	host, port, err := net.SplitHostPort(s.sshd)
	must(s.t, err)
	s.write("sshd_config", fmt.Sprintf(`ListenAddress %s
Port %s
HostKey %s
HostCertificate %s
TrustedUserCAKeys %s
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowAgentForwarding yes
X11Forwarding yes
Subsystem sftp internal-sftp
`, host, port, s.path("host_key"), s.path("host_key-cert.pub"), s.path("trusted")))
	var log bytes.Buffer
	if os.Geteuid() == 0 {
		must(s.t, os.MkdirAll("/run/sshd", 0o755))
	}
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", s.path("sshd_config"))
	cmd.Stdout, cmd.Stderr = &log, &log
	must(s.t, cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("sshd:\n%s", &log)
		}
	})
}

func (s *site) write(name, text string) {
	s.t.Helper()
	must(s.t, os.WriteFile(s.path(name), []byte(text), 0o600))
}

// within tries until it works.
func within(t testing.TB, limit time.Duration, what string, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatalf("%s within %s: %v", what, limit, err)
}
