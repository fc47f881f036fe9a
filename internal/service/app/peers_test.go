package app_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	typesv1 "teleport/api/types/v1"
)

// grpcServer is an application that speaks gRPC.
type grpcServer struct {
	testgrpc.UnimplementedTestServiceServer
}

func (grpcServer) UnaryCall(ctx context.Context, in *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if in.GetResponseSize() < 0 {
		return nil, status.Error(codes.FailedPrecondition, "as asked")
	}
	return &testgrpc.SimpleResponse{Username: strings.Join(md.Get("teleport-jwt-assertion"), ","), Payload: &testgrpc.Payload{Body: make([]byte, in.GetResponseSize())}}, nil
}

func (grpcServer) FullDuplexCall(s testgrpc.TestService_FullDuplexCallServer) error {
	for {
		in, err := s.Recv()
		if errors.Is(err, io.EOF) {
			s.SetTrailer(metadata.Pairs("x-end", "yes"))
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&testgrpc.StreamingOutputCallResponse{Payload: in.GetPayload()}); err != nil {
			return err
		}
	}
}

// TestGRPC speaks it with an application with TLS and with one without.
func TestGRPC(t *testing.T) {
	tlsTarget := serveTLS(t, hello)
	for scheme, creds := range map[string]credentials.TransportCredentials{
		"http": insecure.NewCredentials(), "https": credentials.NewServerTLSFromCert(&tlsTarget.TLS.Certificates[0]),
	} {
		t.Run(scheme, func(t *testing.T) {
			ln := must(net.Listen("tcp", "127.0.0.1:0"))
			srv := grpc.NewServer(grpc.Creds(creds))
			testgrpc.RegisterTestServiceServer(srv, grpcServer{})
			go func() { _ = srv.Serve(ln) }()
			t.Cleanup(srv.Stop)
			w := start(t, nil, application(appName, scheme+"://"+ln.Addr().String(), func(s *typesv1.AppSpec) { s.InsecureSkipVerify = scheme == "https" }))
			cc := must(grpc.NewClient("passthrough:///"+w.addr, grpc.WithTransportCredentials(credentials.NewTLS(w.alice(t).tls("h2")))))
			defer cc.Close()
			c := testgrpc.NewTestServiceClient(cc)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			resp, err := c.UnaryCall(metadata.AppendToOutgoingContext(ctx, "teleport-jwt-assertion", "evil"), &testgrpc.SimpleRequest{ResponseSize: 2 << 20})
			if err != nil || resp.GetUsername() != "jwt-for-web-1" || len(resp.GetPayload().GetBody()) != 2<<20 {
				t.Fatalf("call = %q, %d bytes, %v", resp.GetUsername(), len(resp.GetPayload().GetBody()), err)
			}
			if _, err := c.UnaryCall(ctx, &testgrpc.SimpleRequest{ResponseSize: -1}); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("an error became %v", err)
			}
			stream, err := c.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 100 {
				if err := stream.Send(&testgrpc.StreamingOutputCallRequest{Payload: &testgrpc.Payload{Body: []byte{byte(i)}}}); err != nil {
					t.Fatal(err)
				}
				out, err := stream.Recv()
				if err != nil || out.GetPayload().GetBody()[0] != byte(i) {
					t.Fatalf("message %d = %v, %v", i, out, err)
				}
			}
			_ = stream.CloseSend()
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) || stream.Trailer().Get("x-end")[0] != "yes" {
				t.Errorf("end of the stream = %v with %v", err, stream.Trailer())
			}
			// A lock ends a stream in the middle.
			stream, err = c.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w.lock("l", &typesv1.LockTarget{User: "alice"})
			if _, err := stream.Recv(); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("a locked stream ends with %v", err)
			}
		})
	}
}

// nginx runs one in front of a folder, of a web socket and of gRPC, with TLS (HTTP/2) and
// without, and returns both addresses.
func nginx(t testing.TB, socket, rpc string) (plain, secure string) {
	t.Helper()
	path, err := exec.LookPath("nginx")
	if err != nil {
		if path = "/usr/sbin/nginx"; exec.Command(path, "-v").Run() != nil {
			t.Fatal("nginx is missing: apt-get install nginx-light")
		}
	}
	//nolint:usetesting // the directories above t.TempDir are closed to the workers of nginx
	dir := must(os.MkdirTemp("", "nginx-"))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	donor := serveTLS(t, hello)
	key := must(x509.MarshalPKCS8PrivateKey(donor.TLS.Certificates[0].PrivateKey))
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: donor.Certificate().Raw}, "key.pem": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file.txt"), []byte("0123456789"), 0o644); err != nil {
		t.Fatal(err)
	}
	a, b := must(net.Listen("tcp", "127.0.0.1:0")), must(net.Listen("tcp", "127.0.0.1:0"))
	plain, secure = a.Addr().String(), b.Addr().String()
	_, _ = a.Close(), b.Close()
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	config := fmt.Sprintf(`daemon off; master_process off; %s pid %[2]s/pid; error_log %[2]s/error.log;
events { worker_connections 512; }
http {
	access_log off; client_max_body_size 0; client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/f; uwsgi_temp_path %[2]s/u; scgi_temp_path %[2]s/s;
	client_body_in_file_only clean;
	server {
		listen %[3]s; listen %[4]s ssl http2; ssl_certificate %[2]s/cert.pem; ssl_certificate_key %[2]s/key.pem;
		root %[2]s; underscores_in_headers on;
		location /who { return 200 "$http_teleport_jwt_assertion|$host|$server_protocol|$request_uri"; }
		location /upload { proxy_pass http://%[5]s; proxy_request_buffering off; }
		location /socket { proxy_pass http://%[5]s; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }
		location /grpc.testing. { grpc_pass grpc://%[6]s; }
	}
}
`, user, dir, plain, secure, socket, rpc)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-c", filepath.Join(dir, "nginx.conf"), "-p", dir, "-e", filepath.Join(dir, "error.log"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Logf("nginx: %s", b)
		}
	})
	for limit := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", secure)
		if err == nil {
			_ = c.Close()
			return plain, secure
		}
		if time.Now().After(limit) {
			t.Fatalf("nginx does not listen: %v", err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestNginx is a real application, with all that applications do.
func TestNginx(t *testing.T) {
	ws := websocket.Server{Handler: func(c *websocket.Conn) {
		var msg string
		for websocket.Message.Receive(c, &msg) == nil && websocket.Message.Send(c, msg) == nil {
		}
	}}
	behind := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/socket" {
			ws.ServeHTTP(w, r)
			return
		}
		_, _ = io.WriteString(w, sum(t, r.Body))
	})
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	srv := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(srv, grpcServer{})
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(srv.Stop)
	plain, secure := nginx(t, strings.TrimPrefix(behind.URL, "http://"), ln.Addr().String())
	for scheme, addr := range map[string]string{"http": plain, "https": secure} {
		t.Run(scheme, func(t *testing.T) {
			w := start(t, nil, application(appName, scheme+"://"+addr, func(s *typesv1.AppSpec) { s.InsecureSkipVerify = scheme == "https" }))
			alice := w.alice(t)
			both(t, func(t *testing.T, h2 bool) {
				c := alice.http(t, h2)
				r := must(http.NewRequest(http.MethodGet, site+"/who/../%2e/x?y", nil))
				r.URL.Opaque = "/who/%2e/x"
				r.Header["teleport_jwt_assertion"] = []string{"evil"}
				want := "jwt-for-web-1|127.0.0.1|HTTP/1.1|/who/%2e/x?y"
				if scheme == "https" {
					want = strings.Replace(want, "HTTP/1.1", "HTTP/2.0", 1)
				}
				if a := do(t, c, r); a.body != want {
					t.Errorf("nginx sees %q, want %q", a.body, want)
				}
				r = must(http.NewRequest(http.MethodGet, site+"/file.txt", nil))
				r.Header.Set("Range", "bytes=3-5")
				if a := do(t, c, r); a.body != "345" || a.StatusCode != http.StatusPartialContent {
					t.Errorf("range = %s %q", a.Status, a.body)
				}
				const size = 20 << 20
				up := must(http.NewRequest(http.MethodPost, site+"/upload", io.NopCloser(&pattern{n: size})))
				up.ContentLength = size
				if a := do(t, c, up); a.body != sum(t, &pattern{n: size}) {
					t.Errorf("upload = %s %q", a.Status, a.body)
				}
			})
			cfg := must(websocket.NewConfig("wss://"+publicAddr+"/socket", site))
			conn, err := websocket.NewClient(cfg, alice.dial(t, "http/1.1"))
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{1, 200_000} {
				var got string
				msg := strings.Repeat("w", size)
				if err := errors.Join(websocket.Message.Send(conn, msg), websocket.Message.Receive(conn, &got)); err != nil || got != msg {
					t.Fatalf("web socket: %d bytes back, %v", len(got), err)
				}
			}
			if scheme == "https" {
				cc := must(grpc.NewClient("passthrough:///"+w.addr, grpc.WithTransportCredentials(credentials.NewTLS(alice.tls("h2")))))
				defer cc.Close()
				resp, err := testgrpc.NewTestServiceClient(cc).UnaryCall(t.Context(), &testgrpc.SimpleRequest{ResponseSize: 10})
				if err != nil || resp.GetUsername() != "jwt-for-web-1" {
					t.Errorf("gRPC = %v, %v", resp, err)
				}
			}
		})
	}
}

// curl runs the stock program with the certificate of a person.
func (p *person) curl(t testing.TB, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	key := must(x509.MarshalPKCS8PrivateKey(p.cert.PrivateKey))
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: p.cert.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Inside of a session the name of the agent's certificate is not that of the application.
	args = append([]string{
		"-sS", "--max-time", "30", "-k", "--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem"),
		"--connect-to", "::" + p.w.addr,
	}, args...)
	out, err := exec.Command("curl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %v: %v: %s", args, err, out)
	}
	return string(out)
}

func TestCurl(t *testing.T) {
	tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Method+" "+r.RequestURI+" "+r.Header.Get("Expect")+" "+sum(t, r.Body))
	})
	w := start(t, nil, application(appName, tg.URL, nil))
	alice := w.alice(t)
	file := filepath.Join(t.TempDir(), "big")
	const size = 8 << 20
	if err := os.WriteFile(file, must(io.ReadAll(&pattern{n: size})), 0o600); err != nil {
		t.Fatal(err)
	}
	want := sum(t, &pattern{n: size})
	for _, version := range []string{"--http1.1", "--http2", "--http1.0"} {
		t.Run(version[2:], func(t *testing.T) {
			if got := alice.curl(t, version, "--path-as-is", site+"/a/../b%2f?c"); !strings.HasPrefix(got, "GET /a/../b%2f?c ") {
				t.Errorf("curl prints %q", got)
			}
			if got := alice.curl(t, version, "-T", file, site+"/up"); !strings.HasPrefix(got, "PUT /up ") || !strings.HasSuffix(got, want) {
				t.Errorf("curl -T prints %q", got)
			}
			if version != "--http1.0" {
				if got := alice.curl(t, version, "-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue", "--data-binary", "@"+file, site+"/up"); !strings.HasSuffix(got, want) {
					t.Errorf("curl, chunked, prints %q", got)
				}
			}
			if got := alice.curl(t, version, "-I", site+"/"); !strings.Contains(got, " 200") {
				t.Errorf("curl -I prints %q", got)
			}
		})
	}
}
