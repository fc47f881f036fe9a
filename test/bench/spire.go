package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"teleport/test/cluster"
)

// spireServer is a SPIRE server that agents attest to with join tokens, the nearest
// thing to a join that another program does: one TLS connection, a secret that is
// looked up and used up, a P-256 certificate of the agent's key, a record of the agent.
type spireServer struct {
	cmd          *exec.Cmd
	addr, socket string
	csr          []byte
}

// startSpire starts a server with its own SQLite database, the counterpart of ours.
func startSpire(ctx context.Context, bin, dir string) (*spireServer, error) {
	addr, err := cluster.FreeAddr()
	if err != nil {
		return nil, err
	}
	s := &spireServer{addr: addr, socket: filepath.Join(dir, "spire.sock")}
	host, port, _ := strings.Cut(addr, ":")
	config := filepath.Join(dir, "spire.conf")
	err = os.WriteFile(config, fmt.Appendf(nil, `server {
  bind_address = %q
  bind_port = %q
  socket_path = %q
  trust_domain = "bench.example.com"
  data_dir = %q
  log_level = "ERROR"
  ca_ttl = "720h"
  agent_ttl = "168h"
  ca_key_type = "ec-p256"
  ratelimit { attestation = false signing = false }
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = %q } }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
}
`, host, port, s.socket, filepath.Join(dir, "spire"), filepath.Join(dir, "spire.sqlite3")), 0o600)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "spire.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.Command(bin, "run", "-config", config)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		s.close()
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	return s, nil
}

func (s *spireServer) close() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
}

// prepare makes what an agent sends, and waits until the server answers.
func (s *spireServer) prepare(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if s.csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return err
	}
	for range 100 {
		if _, err = s.tokens(ctx, 1); err == nil {
			return nil
		}
		if perr := pause(ctx, 100*time.Millisecond); perr != nil {
			return perr
		}
	}
	return err
}

// The messages of spire.api.server.agent.v1 are few, and written by hand.
func bytesField(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func raw(b []byte) *emptypb.Empty {
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown(b)
	return m
}

// tokens makes join tokens.
func (s *spireServer) tokens(ctx context.Context, n int) ([]string, error) {
	conn, err := grpc.NewClient("unix:"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	out := make([]string, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range out {
		out[i] = rand.Text()
		g.Go(func() error {
			req := bytesField(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 3600), 2, []byte(out[i]))
			return conn.Invoke(ctx, "/spire.api.server.agent.v1.Agent/CreateJoinToken", raw(req), &emptypb.Empty{})
		})
	}
	return out, g.Wait()
}

// attest is what an agent does with a token, over a connection of its own.
func (s *spireServer) attest(ctx context.Context, token string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/spire.api.server.agent.v1.Agent/AttestAgent")
	if err != nil {
		return err
	}
	data := bytesField(bytesField(nil, 1, []byte("join_token")), 2, []byte(token))
	params := bytesField(bytesField(nil, 1, data), 2, bytesField(nil, 1, s.csr))
	if err := stream.SendMsg(raw(bytesField(nil, 1, params))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	result := &emptypb.Empty{}
	if err := stream.RecvMsg(result); err != nil {
		return err
	}
	if len(result.ProtoReflect().GetUnknown()) < 200 {
		return errors.New("spire answered without a certificate")
	}
	return nil
}
