package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"teleport/internal/service/db/dbtest"
	"teleport/test/cluster"
)

// dbUser is the user of every database here, and the name of its database.
const dbUser = "bench"

// served is a cluster with one agent for databases and applications, what they are
// served from, and what people would use instead.
type served struct {
	*cluster.Cluster
	b          *bench
	hub, agent *cluster.Daemon
	// own signs certificates for those who come without Teleport: the database servers
	// believe it as well.
	own *ownCA
	// undo ends what was started, the last first.
	undo []func()
}

// servedTB lets the helpers of dbtest start servers: what they would fail a test for is
// the error of try.
type servedTB struct {
	testing.TB
	s *served
}

// Helper does nothing.
func (t servedTB) Helper() {}

// Cleanup has f called by close.
func (t servedTB) Cleanup(f func()) { t.s.undo = append(t.s.undo, f) }

// Fatal ends try.
func (t servedTB) Fatal(args ...any) { panic(failure{fmt.Sprint(args...)}) }

// Fatalf ends try.
func (t servedTB) Fatalf(format string, args ...any) { panic(failure{fmt.Sprintf(format, args...)}) }

type failure struct{ text string }

// try runs what may call Fatal.
func (s *served) try(f func(t servedTB)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			failed, ok := p.(failure)
			if !ok {
				panic(p)
			}
			err = errors.New(failed.text)
		}
	}()
	f(servedTB{s: s})
	return nil
}

// startServed starts the cluster, without its agent.
func startServed(ctx context.Context, b *bench) (*served, error) {
	c, err := cluster.New(cluster.Config{Bin: b.bin, Name: clusterName, User: "alice", UserFlags: []string{"--db-users=" + dbUser + ",default", "--db-names=" + dbUser}})
	if err != nil {
		return nil, err
	}
	s := &served{Cluster: c, b: b, undo: []func(){c.Close}}
	if s.own, err = newOwnCA(c.Dir); err == nil {
		if s.hub, err = c.Launch(ctx, cluster.Services{Name: hubName, Auth: true, Proxy: true}); err == nil {
			err = c.Invite(ctx)
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// serve starts the agent with lines of services, which tokens of the kind let in, and
// waits until a command lists the name.
func (s *served) serve(ctx context.Context, kind, lines, name string, list ...string) error {
	join, err := s.Token(ctx, kind, time.Hour)
	if err != nil {
		return err
	}
	if s.agent, err = s.Launch(ctx, cluster.Services{Name: "bench-" + kind, Join: join, More: lines}); err != nil {
		return err
	}
	var out string
	for range 200 {
		if out, err = s.Quiet(ctx, list[0], list[1:]...); err == nil && strings.Contains(out, name) {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s is not listed: %s", name, out)
}

func (s *served) close() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
}

// run starts a program that is there until close, and waits until it listens.
func (s *served) run(ctx context.Context, addr string, args ...string) (pid int, err error) {
	var out bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = s.Env()
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	s.undo = append(s.undo, func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
	})
	if err := waitForPort(ctx, addr); err != nil {
		s.undo[len(s.undo)-1]()
		return 0, fmt.Errorf("%q: %w: %s", args, err, out.String())
	}
	return cmd.Process.Pid, nil
}

// sshL forwards a free port by ssh -L to an address: through the bastion to the target,
// or from the bastion itself.
func (s *served) sshL(ctx context.Context, host, to string) (addr string, pids []int, err error) {
	if addr, err = cluster.FreeAddr(); err != nil {
		return "", nil, err
	}
	peer := s.b.peer
	pid, err := s.run(ctx, addr, "ssh", "-F", peer.config(aesGCM()), "-N", "-o", "ExitOnForwardFailure=yes", "-L", addr+":"+to, host)
	return addr, append(peer.ends(), pid), err
}

// chisel forwards a free port by chisel, if there is one.
func (s *served) chisel(ctx context.Context, to string) (addr string, pids []int, err error) {
	if s.b.chisel == "" {
		return "", nil, nil
	}
	hub, err := cluster.FreeAddr()
	if err != nil {
		return "", nil, err
	}
	if addr, err = cluster.FreeAddr(); err != nil {
		return "", nil, err
	}
	host, port, _ := net.SplitHostPort(hub)
	server, err := s.run(ctx, hub, s.b.chisel, "server", "--host", host, "-p", port)
	if err != nil {
		return "", nil, err
	}
	client, err := s.run(ctx, addr, s.b.chisel, "client", "http://"+hub, addr+":"+to)
	return addr, []int{server, client}, err
}

// frp publishes an address at a free port of frps, if there is one.
func (s *served) frp(ctx context.Context, to string) (addr string, pids []int, err error) {
	if s.b.frp == "" {
		return "", nil, nil
	}
	hub, err := cluster.FreeAddr()
	if err != nil {
		return "", nil, err
	}
	if addr, err = cluster.FreeAddr(); err != nil {
		return "", nil, err
	}
	_, hubPort, _ := net.SplitHostPort(hub)
	_, port, _ := net.SplitHostPort(addr)
	host, toPort, _ := net.SplitHostPort(to)
	conf := map[string]string{
		"frps-" + port + ".toml": "bindAddr = \"127.0.0.1\"\nbindPort = " + hubPort + "\n",
		"frpc-" + port + ".toml": "serverAddr = \"127.0.0.1\"\nserverPort = " + hubPort + "\n[[proxies]]\nname = \"bench\"\ntype = \"tcp\"\nlocalIP = \"" + host +
			"\"\nlocalPort = " + toPort + "\nremotePort = " + port + "\n",
	}
	for name, text := range conf {
		if err := os.WriteFile(s.Path(name), []byte(text), 0o600); err != nil {
			return "", nil, err
		}
	}
	server, err := s.run(ctx, hub, filepath.Join(s.b.frp, "frps"), "-c", s.Path("frps-"+port+".toml"))
	if err != nil {
		return "", nil, err
	}
	client, err := s.run(ctx, addr, filepath.Join(s.b.frp, "frpc"), "-c", s.Path("frpc-"+port+".toml"))
	return addr, []int{server, client}, err
}

// tunnel runs `tsh proxy` with the arguments and a port.
func (s *served) tunnel(ctx context.Context, args ...string) (addr string, pids []int, err error) {
	if addr, err = cluster.FreeAddr(); err != nil {
		return "", nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	pid, err := s.run(ctx, addr, append([]string{s.Tool("tsh"), "proxy", "--port", port}, args...)...)
	return addr, []int{s.hub.PID, s.agent.PID, pid}, err
}

// files makes what a database server needs, in its folder and its own: what tctl signs,
// and the authorities of clients, with the one of ours.
func (s *served) files(ctx context.Context, server *dbtest.Server, t servedTB) dbtest.Files {
	base := s.Path(filepath.Base(server.Dir))
	if _, err := s.Tctl(ctx, "auth", "sign", "--format=db", "--host=localhost,127.0.0.1", "--out="+base, "--ttl=12h"); err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	return dbtest.Files{
		CA:   server.Write(t, "server.cas", read(base+".cas")+read(s.own.files.CA)),
		Cert: server.Write(t, "server.crt", read(base+".crt")),
		Key:  server.Write(t, "server.key", read(base+".key")),
	}
}

// ownCA is an authority, and the certificate that it signed for dbUser.
type ownCA struct {
	// files are those of a client; CA is the authority itself.
	files dbtest.Files
}

func newOwnCA(dir string) (*ownCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: dbUser}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	c := &ownCA{dbtest.Files{CA: filepath.Join(dir, "cacert.pem"), Cert: filepath.Join(dir, "client-cert.pem"), Key: filepath.Join(dir, "client-key.pem")}}
	for path, block := range map[string]*pem.Block{
		c.files.CA: {Type: "CERTIFICATE", Bytes: rootDER}, c.files.Cert: {Type: "CERTIFICATE", Bytes: leafDER}, c.files.Key: {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, err
		}
	}
	return c, nil
}
