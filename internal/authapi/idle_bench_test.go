package authapi_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	agentv1 "teleport/api/agent/v1"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

const idleStreams = 1000

// idleClients is what the other process needs to open the streams.
type idleClients struct {
	Addr  string
	Certs [][2][]byte // certificate DER, key PKCS#8
}

const idleEnv = "AUTHAPI_IDLE_CLIENTS"

// BenchmarkIdleStreams shows what an idle agent costs Auth: a TLS connection with a
// control stream. The agents are in a process of their own.
//
//	go test -run '^$' -bench IdleStreams -benchtime 1x ./internal/authapi
func BenchmarkIdleStreams(b *testing.B) {
	e := newEnv(b)
	clients := idleClients{Addr: e.addr}
	for i := range idleStreams {
		cert := e.host(fmt.Sprintf("h%d", i), "", types.RoleNode)
		key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		check(b, err)
		clients.Certs = append(clients.Certs, [2][]byte{cert.Certificate[0], key})
	}
	raw, err := json.Marshal(clients)
	check(b, err)
	file := filepath.Join(b.TempDir(), "clients")
	check(b, os.WriteFile(file, raw, 0o600))
	clients = idleClients{}
	for b.Loop() {
		before := inUse()
		begin := time.Now()
		cmd := exec.Command(os.Args[0], "-test.run=^TestIdleClients$")
		cmd.Env = append(os.Environ(), idleEnv+"="+file)
		cmd.Stderr = os.Stderr
		stop, err := cmd.StdinPipe()
		check(b, err)
		out, err := cmd.StdoutPipe()
		check(b, err)
		check(b, cmd.Start())
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			b.Fatalf("clients said %q, %v", line, err)
		}
		if n := e.agents.Connected(); n != idleStreams {
			b.Fatalf("%d streams, want %d", n, idleStreams)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s-to-connect")
		b.ReportMetric(float64(inUse()-before)/idleStreams/1024, "KiB/stream")
		b.ReportMetric(float64(runtime.NumGoroutine())/idleStreams, "goroutines/stream")
		check(b, stop.Close())
		check(b, cmd.Wait())
	}
}

// inUse returns what the Go heap and the stacks take.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TestIdleClients is the other process of BenchmarkIdleStreams.
func TestIdleClients(t *testing.T) {
	file := os.Getenv(idleEnv)
	if file == "" {
		return
	}
	raw, err := os.ReadFile(file)
	check(t, err)
	var clients idleClients
	check(t, json.Unmarshal(raw, &clients))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, c := range clients.Certs {
		key, err := x509.ParsePKCS8PrivateKey(c[1])
		check(t, err)
		conn, err := rpc.Dial(rpc.DialConfig{Addr: clients.Addr, TLS: &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{c[0]}, PrivateKey: key}},
		}})
		check(t, err)
		defer func() { _ = conn.Close() }()
		st, err := agentv1.NewAgentServiceClient(conn).Control(ctx)
		check(t, err)
		check(t, st.Send(&agentv1.ControlRequest{Payload: &agentv1.ControlRequest_Hello{Hello: &agentv1.Hello{}}}))
		for {
			m, err := st.Recv()
			check(t, err)
			if m.GetSynced() != nil {
				break
			}
		}
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	check(t, err)
}
