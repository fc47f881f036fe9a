package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"google.golang.org/protobuf/testing/protocmp"

	proxyv1 "teleport/api/proxy/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/clienttest"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newClient(t *testing.T, c *clienttest.Cluster, creds *client.Credentials) *client.Client {
	t.Helper()
	cl, err := client.New(client.Config{Proxy: c.Addr, Credentials: creds})
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func TestExpiry(t *testing.T) {
	c := clienttest.Start(t)
	creds := c.Credentials("alice", time.Hour, "root")
	for name, tt := range map[string]struct {
		after time.Duration
		want  string
	}{
		"good":    {0, ""},
		"expired": {2 * time.Hour, "your certificate expired at "},
		"early":   {-48 * time.Hour, "not valid before"},
	} {
		t.Run(name, func(t *testing.T) {
			now := func() time.Time { return time.Now().Add(tt.after) }
			_, err := client.New(client.Config{Proxy: c.Addr, Credentials: creds, Now: now})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("New() = %v, want %q", err, tt.want)
			}
			if name == "expired" && !strings.Contains(err.Error(), "tsh login") {
				t.Errorf("the error does not say what to do: %v", err)
			}
		})
	}
	if _, err := client.New(client.Config{Proxy: c.Addr}); fault.Code(err) != client.CodeNotLoggedIn {
		t.Errorf("without credentials: %v", err)
	}
}

func TestAuthAPI(t *testing.T) {
	c := clienttest.Start(t)
	for _, host := range []string{"web-2", "web-1", "db-1"} {
		c.Resources.Put(&typesv1.Server{
			Kind: types.KindNode, Version: "v2", Metadata: &typesv1.Metadata{Name: "id-" + host, Labels: map[string]string{"tier": host[:2]}},
			Spec: &typesv1.ServerSpec{Hostname: host},
		})
	}
	conn, err := newClient(t, c, c.Credentials("alice", time.Hour, "root")).Auth()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for label, want := range map[string][]string{"": {"db-1", "web-1", "web-2"}, "we": {"web-1", "web-2"}, "none": nil} {
		labels := map[string]string{}
		if label != "" {
			labels["tier"] = label
		}
		nodes, err := client.Servers(t.Context(), conn, types.KindNode, labels)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, n := range nodes {
			got = append(got, n.GetSpec().GetHostname())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("tier=%q: %s", label, diff)
		}
	}
}

func TestDialNode(t *testing.T) {
	c, other := clienttest.Start(t), clienttest.Start(t)
	good := c.Credentials("alice", time.Hour, "root")
	for name, tt := range map[string]struct {
		host  string
		creds *client.Credentials
		lie   string
		want  error
	}{
		"by_name":             {clienttest.NodeName, good, "", nil},
		"by_name_and_cluster": {clienttest.NodeName + "." + clienttest.Name, good, "", nil},
		"by_id":               {clienttest.NodeID, good, "", nil},
		"in_capitals":         {strings.ToUpper(clienttest.NodeName), good, "", fault.ErrNotFound},
		"unknown":             {"web-9", good, "", fault.ErrNotFound},
		"another_node":        {clienttest.NodeName, good, "db-1", fault.ErrUnauthenticated},
		"other_cluster":       {clienttest.NodeName, other.Credentials("alice", time.Hour, "root"), "", fault.ErrUnauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			c.HostName = tt.lie
			conn, err := newClient(t, c, tt.creds).DialNode(t.Context(), tt.host, 0)
			if !errors.Is(err, tt.want) {
				t.Fatalf("DialNode(%q) = %v, want %v", tt.host, err, tt.want)
			}
			if err == nil {
				if conn.HostID != clienttest.NodeID || conn.HostName != clienttest.NodeName {
					t.Errorf("connected to %s, %s", conn.HostID, conn.HostName)
				}
				_ = conn.Close()
			}
		})
	}
	want := &proxyv1.DialRequest{Host: "web-9", Port: 7, Cluster: clienttest.Name}
	c.HostName = ""
	_, _ = newClient(t, c, good).DialNode(t.Context(), "web-9", 7)
	requests := c.Node.Requests()
	if diff := cmp.Diff(want, requests[len(requests)-1], protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// Who answers has to prove that it is the node that the user asked for and the one
// that the Proxy named: the Proxy is not believed.
func TestHostKeyIsChecked(t *testing.T) {
	const other = "0e0e4c1c-5a3c-4d6c-9a47-6f4a1f0f9b11"
	type cert struct {
		role     types.SystemRole
		id, name string
	}
	good := cert{types.RoleNode, clienttest.NodeID, clienttest.NodeName}
	for name, tt := range map[string]struct {
		asked            string
		hostName, hostID string
		shows            cert
		want             error
	}{
		"by_name":                     {clienttest.NodeName, "", "", good, nil},
		"by_name_and_cluster":         {clienttest.NodeName + "." + clienttest.Name, "", "", good, nil},
		"by_id":                       {clienttest.NodeID, "", "", good, nil},
		"by_id_and_cluster":           {clienttest.NodeID + "." + clienttest.Name, "", "", good, nil},
		"other_name":                  {clienttest.NodeName, "db-1", "", good, fault.ErrUnauthenticated},
		"other_node_by_name":          {clienttest.NodeName, "", "", cert{types.RoleNode, other, "db-1"}, fault.ErrUnauthenticated},
		"other_node_by_id":            {clienttest.NodeID, "db-1", clienttest.NodeID, cert{types.RoleNode, other, "db-1"}, fault.ErrUnauthenticated},
		"other_node_of_that_name":     {clienttest.NodeName, "", "", cert{types.RoleNode, other, clienttest.NodeName}, fault.ErrUnauthenticated},
		"the_proxy_itself_by_id":      {clienttest.NodeID, "proxy-1", clienttest.NodeID, cert{types.RoleProxy, other, "proxy-1"}, fault.ErrUnauthenticated},
		"a_proxy_of_that_name":        {clienttest.NodeName, clienttest.NodeName, other, cert{types.RoleProxy, other, clienttest.NodeName}, fault.ErrUnauthenticated},
		"another_service_of_the_node": {clienttest.NodeID, "", "", cert{types.RoleApp, clienttest.NodeID, clienttest.NodeName}, fault.ErrUnauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			c := clienttest.Start(t)
			c.HostName, c.HostID = tt.hostName, tt.hostID
			c.Impostor(tt.shows.role, tt.shows.id, tt.shows.name)
			conn, err := newClient(t, c, c.Credentials("alice", time.Hour, "root")).SSH(t.Context(), "root", tt.asked, 0)
			if !errors.Is(err, tt.want) {
				t.Errorf("SSH(%q) = %v, want %v", tt.asked, err, tt.want)
			}
			if err == nil {
				_ = conn.Close()
			}
		})
	}
}

// A connection costs one TCP and one TLS connection and nothing else.
func TestSSHDialsOnce(t *testing.T) {
	c := clienttest.Start(t)
	var dials atomic.Int32
	cl, err := client.New(client.Config{
		Proxy: c.Addr, Credentials: c.Credentials("alice", time.Hour, "root"),
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := cl.SSH(t.Context(), "root", clienttest.NodeName, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if dials.Load() != 1 {
		t.Errorf("%d connections were made, want 1", dials.Load())
	}
	if _, err := cl.SSH(t.Context(), "nobody", clienttest.NodeName, 0); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("login that the certificate does not have: %v, want ErrDenied", err)
	}
}

// A Proxy that accepts and then says nothing does not hang the client.
func TestSilentProxy(t *testing.T) {
	c := clienttest.Start(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	cl, err := client.New(client.Config{Proxy: ln.Addr().String(), Credentials: c.Credentials("alice", time.Hour, "root")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := cl.DialNode(ctx, "web-1", 0); !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("DialNode() = %v, want ErrUnreachable", err)
	}
}

// A refused client certificate reads as such: with TLS 1.3 it comes after the
// handshake.
func TestRefusedCertificate(t *testing.T) {
	c := clienttest.Start(t)
	creds := c.Credentials("alice", time.Hour, "root")
	c.Trust = clienttest.Start(t).Trust // the user CA was replaced
	_, err := newClient(t, c, creds).DialNode(t.Context(), "web-1", 0)
	if !errors.Is(err, fault.ErrUnauthenticated) || !strings.Contains(err.Error(), "tsh login") {
		t.Errorf("DialNode() = %v, want ErrUnauthenticated and what to do", err)
	}
}

func TestSession(t *testing.T) {
	c := clienttest.Start(t)
	for name, tt := range map[string]struct {
		command, stdin string
		code           int
		stdout, stderr string
		wantErr        error
	}{
		"success":   {command: "true"},
		"exit_code": {command: "exit 42", code: 42},
		"output":    {command: "hello world", stdout: "hello world\n"},
		"stderr":    {command: "errout oh no", stderr: "oh no\n"},
		"stdin":     {command: "cat", stdin: strings.Repeat("0123456789abcdef", 1<<16), stdout: strings.Repeat("0123456789abcdef", 1<<16)},
		"lost":      {command: "drop", wantErr: fault.ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := newClient(t, c, c.Credentials("alice", time.Hour, "root")).SSH(t.Context(), "root", clienttest.NodeName, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			var out, errOut bytes.Buffer
			s := client.Session{Command: tt.command, Stdin: strings.NewReader(tt.stdin), Stdout: &out, Stderr: &errOut}
			code, err := s.Run(t.Context(), conn)
			if !errors.Is(err, tt.wantErr) || code != tt.code {
				t.Errorf("Run() = %d, %v, want %d, %v", code, err, tt.code, tt.wantErr)
			}
			if out.String() != tt.stdout || errOut.String() != tt.stderr {
				t.Errorf("output %d bytes %.40q, %.40q", out.Len(), out.String(), errOut.String())
			}
		})
	}
}

// A signal to this process goes to the command, and the command's end by a signal
// is its exit code.
func TestSessionSignal(t *testing.T) {
	c := clienttest.Start(t)
	conn, err := newClient(t, c, c.Credentials("alice", time.Hour, "root")).SSH(t.Context(), "root", clienttest.NodeName, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	in, feed := io.Pipe()
	defer func() { _ = feed.Close() }()
	out := &watched{want: "ready", seen: make(chan struct{})}
	s := client.Session{Command: "signal", Stdin: in, Stdout: out, Stderr: io.Discard}
	go func() {
		<-out.seen
		_ = unix.Kill(os.Getpid(), unix.SIGUSR1)
	}()
	code, err := s.Run(t.Context(), conn)
	if err != nil || code != 128+int(unix.SIGUSR1) {
		t.Errorf("Run() = %d, %v, want %d", code, err, 128+int(unix.SIGUSR1))
	}
}

// A node that does not answer, or whose command does not end, does not keep this process
// from being ended.
func TestSessionIsTerminated(t *testing.T) {
	for _, command := range []string{"cat", "silence"} {
		t.Run(command, func(t *testing.T) {
			c := clienttest.Start(t)
			conn, err := newClient(t, c, c.Credentials("alice", time.Hour, "root")).SSH(t.Context(), "root", clienttest.NodeName, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			in, feed := io.Pipe()
			defer func() { _ = feed.Close() }()
			out := &watched{want: "ready", seen: make(chan struct{})}
			s := client.Session{Command: command, Stdin: in, Stdout: out, Stderr: io.Discard}
			s.SetPatience(100 * time.Millisecond)
			// Until Run listens, the signal is this test's.
			signals := make(chan os.Signal, 100)
			signal.Notify(signals, unix.SIGTERM)
			defer signal.Stop(signals)
			ended := make(chan struct{})
			go func() {
				if command == "cat" {
					_, _ = io.WriteString(feed, "ready")
					<-out.seen
					_ = unix.Kill(os.Getpid(), unix.SIGTERM)
					return
				}
				for tick := time.NewTicker(20 * time.Millisecond); ; {
					select {
					case <-ended:
						tick.Stop()
						return
					case <-tick.C:
						_ = unix.Kill(os.Getpid(), unix.SIGTERM)
					}
				}
			}()
			code, err := s.Run(t.Context(), conn)
			close(ended)
			if err != nil || code != 128+int(unix.SIGTERM) {
				t.Errorf("Run() = %d, %v, want %d", code, err, 128+int(unix.SIGTERM))
			}
		})
	}
}

// watched tells when a text was written.
type watched struct {
	buf  bytes.Buffer
	want string
	seen chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	before := strings.Contains(w.buf.String(), w.want)
	w.buf.Write(p)
	if !before && strings.Contains(w.buf.String(), w.want) {
		close(w.seen)
	}
	return len(p), nil
}

// With a terminal, its size goes to the node, also when it changes, and raw mode
// is undone at the end.
func TestSessionTerminal(t *testing.T) {
	c := clienttest.Start(t)
	conn, err := newClient(t, c, c.Credentials("alice", time.Hour, "root")).SSH(t.Context(), "root", clienttest.NodeName, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = master.Close(), tty.Close() }()
	if err := pty.Setsize(tty, &pty.Winsize{Cols: 101, Rows: 33}); err != nil {
		t.Fatal(err)
	}
	before, err := term.GetState(int(tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	first := &watched{want: "pty vt100 101x33", seen: make(chan struct{})}
	second := &watched{want: "size 55x22", seen: make(chan struct{})}
	s := client.Session{PTY: true, Term: "vt100", Stdin: tty, Stdout: io.MultiWriter(first, second), Stderr: io.Discard}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-first.seen
		_ = pty.Setsize(tty, &pty.Winsize{Cols: 55, Rows: 22})
		_ = unix.Kill(os.Getpid(), unix.SIGWINCH)
		<-second.seen
		cancel()
	}()
	if _, err := s.Run(ctx, conn); !errors.Is(err, context.Canceled) {
		t.Errorf("Run() = %v, want the end of the context", err)
	}
	after, err := term.GetState(int(tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fmt.Sprint(before), fmt.Sprint(after)); diff != "" {
		t.Error("the terminal was left in raw mode: ", diff)
	}
}

// On a terminal, ~. ends a session that does not end by itself.
func TestSessionHangUp(t *testing.T) {
	c := clienttest.Start(t)
	conn, err := newClient(t, c, c.Credentials("alice", time.Hour, "root")).SSH(t.Context(), "root", clienttest.NodeName, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = master.Close(), tty.Close() }()
	out := &watched{want: "pty", seen: make(chan struct{})}
	go func() {
		<-out.seen
		_, _ = master.Write([]byte("\r~."))
	}()
	s := client.Session{PTY: true, Stdin: tty, Stdout: out, Stderr: io.Discard}
	if code, err := s.Run(t.Context(), conn); err != nil || code != 128+int(unix.SIGHUP) {
		t.Errorf("Run() = %d, %v, want %d", code, err, 128+int(unix.SIGHUP))
	}
}

// Relay passes bytes both ways and the end of standard input.
func TestRelay(t *testing.T) {
	server, raw := tlsPair(t)
	node := &client.NodeConn{Conn: raw}
	go func() {
		_, _ = io.Copy(server, server)
		_ = server.Close()
	}()
	var out bytes.Buffer
	text := strings.Repeat("x", 1<<20)
	if err := node.Relay(strings.NewReader(text), &out); err != nil {
		t.Fatal(err)
	}
	if out.String() != text {
		t.Errorf("%d bytes came back, want %d", out.Len(), len(text))
	}
}

// tlsPair returns two ends of a TLS connection over loopback.
func tlsPair(t *testing.T) (server, cl *tls.Conn) {
	t.Helper()
	c := clienttest.Start(t)
	creds := c.Credentials("x", time.Hour)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- conn
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{creds.TLSCert.Raw}, PrivateKey: creds.TLS}
	server = tls.Server(<-accepted, &tls.Config{Certificates: []tls.Certificate{cert}})
	cl = tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	t.Cleanup(func() { _, _ = server.Close(), cl.Close() })
	return server, cl
}
