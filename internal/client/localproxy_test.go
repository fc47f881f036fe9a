package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"teleport/internal/client"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// noted collects what a local proxy tells the user.
type noted struct {
	mu   sync.Mutex
	said []string
}

func (n *noted) note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said = append(n.said, text)
}

func (n *noted) lines() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.said...)
}

// serveLocal runs what serves a listener on any port until the test ends, and returns
// where it is.
func serveLocal(t *testing.T, serve func(context.Context, net.Listener) error) string {
	t.Helper()
	ln, err := client.ListenLocal("127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return ln.Shown
}

// echo is a service that sends everything back, and then the end.
func echo(t *testing.T) func(context.Context) (net.Conn, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
	}
}

func TestLocalProxyCarries(t *testing.T) {
	p := &client.LocalProxy{Dial: echo(t)}
	addr := serveLocal(t, p.Serve)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			want := strings.Repeat(fmt.Sprint(i), 300_000)
			go func() {
				_, _ = io.WriteString(conn, want)
				_ = conn.(*net.TCPConn).CloseWrite()
			}()
			if got, err := io.ReadAll(conn); err != nil || string(got) != want {
				t.Errorf("%d bytes came back of %d: %v", len(got), len(want), err)
			}
		})
	}
	all.Wait()
}

// Ctrl-C closes what is open, and Serve returns.
func TestLocalProxyEnds(t *testing.T) {
	p := &client.LocalProxy{Dial: echo(t)}
	ln, err := client.ListenLocal("127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, ln) }()
	conn, err := net.Dial("tcp", ln.Shown)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
	if _, err := net.Dial("tcp", ln.Shown); err == nil {
		t.Error("the listener is still open")
	}
}

// A real client shows the refusal in its own words, and the user is told once.
func TestRefusalToRealClients(t *testing.T) {
	denied := fault.Denied("access denied: your roles do not allow \"prod\"\nsecret second line")
	for protocol, tt := range map[string]struct {
		program []string
		want    string
	}{
		types.ProtocolPostgres:       {[]string{"psql", "-w", "host=127.0.0.1 port=PORT user=u dbname=d"}, `FATAL:  access denied: your roles do not allow "prod"`},
		types.ProtocolMySQL:          {[]string{"mariadb", "--no-defaults", "--host=127.0.0.1", "--port=PORT", "--user=u", "--connect-timeout=20"}, `access denied: your roles do not allow "prod"`},
		types.ProtocolRedis:          {[]string{"redis-cli", "-h", "127.0.0.1", "-p", "PORT", "ping"}, `NOPERM access denied: your roles do not allow "prod"`},
		types.ProtocolClickHouseHTTP: {[]string{"curl", "-sS", "-i", "http://127.0.0.1:PORT/?query=1"}, "403 Forbidden"},
	} {
		t.Run(protocol, func(t *testing.T) {
			var n noted
			p := &client.LocalProxy{
				Dial: func(context.Context) (net.Conn, error) { return nil, denied }, Refuse: client.Refusal(protocol), Note: n.note,
			}
			_, port, _ := net.SplitHostPort(serveLocal(t, p.Serve))
			for range 2 {
				var args []string
				for _, arg := range tt.program {
					args = append(args, strings.ReplaceAll(arg, "PORT", port))
				}
				cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
				cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
				out, _ := cmd.CombinedOutput()
				if !strings.Contains(string(out), tt.want) || strings.Contains(string(out), "secret") {
					t.Errorf("%v says %q, want %q", args, out, tt.want)
				}
			}
			if got := n.lines(); len(got) != 1 || got[0] != denied.Error() {
				t.Errorf("the user was told %q", got)
			}
		})
	}
}

func TestListenLocal(t *testing.T) {
	for addr, want := range map[string]string{
		"5432": "expected host:port", "127.0.0.1:x": "not a port", "0.0.0.0:0": "--insecure-listen-anywhere", ":0": "expected the address",
		"db.example.com:5432": "expected the address", "unix:x.sock": "absolute path", "127.0.0.1:99999": "not a port",
	} {
		if ln, err := client.ListenLocal(addr, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %q", addr, ln, err, want)
		}
	}
	if ln, err := client.ListenLocal("0.0.0.0:0", true); err != nil {
		t.Error(err)
	} else {
		_ = ln.Close()
	}
	path := filepath.Join(t.TempDir(), "db.sock")
	ln, err := client.ListenLocal("unix:"+path, false)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", info, err)
	}
	if _, err := client.ListenLocal("unix:"+path, false); !errors.Is(err, fault.ErrExists) {
		t.Errorf("a socket in use: %v", err)
	}
	// What a program that was killed leaves behind is in nobody's way.
	ln.Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = ln.Close()
	again, err := client.ListenLocal("unix:"+path, false)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ListenLocal("unix:"+path, false); !errors.Is(err, fault.ErrExists) {
		t.Errorf("a file in the way: %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "mine" {
		t.Error("the file is gone")
	}
}

func TestLocalPort(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	p := client.Profile{Proxy: "proxy.example.com:443", User: "alice", Cluster: "hub"}
	port := func(h *client.Home, p client.Profile, kind, name string) uint16 {
		t.Helper()
		n, err := h.LocalPort(ctx, p, kind, name)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := port(h, p, types.KindDatabase, "of-test-local-port")
	if first < 20000 || first >= 30000 {
		t.Errorf("port %d", first)
	}
	if again := port(h, p, types.KindDatabase, "of-test-local-port"); again != first {
		t.Errorf("port %d, then %d", first, again)
	}
	// The same on another machine, for another user, through another Proxy.
	if other := port(newHome(t), client.Profile{Proxy: "p2:443", User: "bob", Cluster: "hub"}, types.KindDatabase, "of-test-local-port"); other != first {
		t.Errorf("port %d, elsewhere %d", first, other)
	}
	seen := map[uint16]string{first: "of-test-local-port"}
	for _, name := range []string{"a", "b", "c", "d"} {
		for _, kind := range []string{types.KindApp, types.KindDatabase} {
			n := port(h, p, kind, name)
			if seen[n] != "" {
				t.Errorf("%s and %s have the port %d", seen[n], name, n)
			}
			seen[n] = kind + name
		}
	}
	// One that is taken when it is first asked for is passed over, and that is remembered.
	h2 := newHome(t)
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first))
	if err != nil {
		t.Fatal(err)
	}
	second := port(h2, p, types.KindDatabase, "of-test-local-port")
	if second == first {
		t.Errorf("the port %d is taken", first)
	}
	_ = ln.Close()
	if again := port(h2, p, types.KindDatabase, "of-test-local-port"); again != second {
		t.Errorf("port %d, then %d", second, again)
	}
	if _, err := h.LocalPort(ctx, p, types.KindDatabase, "../x"); err == nil {
		t.Error("a name that is a path was taken")
	}
	if err := os.WriteFile(filepath.Join(h.Dir(), "local_ports.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.LocalPort(ctx, p, types.KindDatabase, "of-test-local-port"); err == nil || !strings.Contains(err.Error(), "correct or delete it") {
		t.Errorf("a damaged file: %v", err)
	}
}

// leaf is a certificate of which only the end matters.
// A certificate is renewed when two thirds are over, kept while Auth is away, and a new
// login is taken up.
// Where the other side does not believe the user, a login of meanwhile is tried.
// Whatever is in the file, a section that comes and goes leaves the rest as it was.
// No opening of a program makes a refusal fail or take long.
func FuzzRefusal(f *testing.F) {
	f.Add([]byte{0, 0, 0, 8, 4, 210, 22, 47, 0, 0, 0, 9, 0, 3, 0, 0, 0})
	f.Add([]byte{0x12, 1, 0, 8, 0, 0, 0, 0, 0x10, 1, 0, 8, 0, 0, 0, 0})
	f.Add([]byte{16, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0xdd, 7, 0, 0})
	f.Fuzz(func(t *testing.T, opening []byte) {
		for _, protocol := range types.DatabaseProtocols() {
			refuse := client.Refusal(protocol)
			if refuse == nil {
				continue
			}
			here, there := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				refuse(there, errors.New("no"))
				_ = there.Close()
			}()
			go func() {
				_, _ = here.Write(opening)
				_ = here.SetReadDeadline(time.Now())
				_ = here.Close()
			}()
			_, _ = io.Copy(io.Discard, here)
			<-done
		}
	})
}

// Clients that are not installed here get, byte for byte, what the descriptions of
// their protocols say.
func TestRefusalBytes(t *testing.T) {
	reason := fault.Unreachable("away")
	doc := "\x3e\x00\x00\x00\x01ok\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02errmsg\x00\x05\x00\x00\x00away\x00\x10code\x00\x06\x00\x00\x00\x00"
	doc = string(byte(len(doc))) + doc[1:]
	for name, tt := range map[string]struct {
		protocol, opening string
		want              []string
	}{
		"mongo_msg": {
			types.ProtocolMongoDB, "\x15\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00\x00\x00\x00\x00\x00",
			[]string{"\x01\x00\x00\x00\x07\x00\x00\x00\xdd\x07\x00\x00\x00\x00\x00\x00\x00" + doc},
		},
		"mongo_query": {
			types.ProtocolMongoDB, "\x10\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\xd4\x07\x00\x00",
			[]string{"\x01\x00\x00\x00\x09\x00\x00\x00\x01\x00\x00\x00" + strings.Repeat("\x00", 16) + "\x01\x00\x00\x00" + doc},
		},
		"sqlserver": {
			types.ProtocolSQLServer, "\x12\x01\x00\x08\x00\x00\x00\x00" + "\x10\x00\x00\x09\x00\x00\x00\x00x" + "\x10\x01\x00\x08\x00\x00\x00\x00",
			[]string{"\x04\x01\x00\x1a\x00\x00\x01\x00", "\xff", "\xaa\x16\x00\xf6\x42\x00\x00\x01\x0e\x04\x00a\x00w\x00a\x00y\x00\x00\x00\x00\x00\x00\x00\xfd\x02\x00"},
		},
		"redis": {types.ProtocolRedis, "", []string{"-ERR away\r\n"}},
		"mysql": {types.ProtocolMySQL, "", []string{"\x07\x00\x00\x00\xff\x51\x04away"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := &client.LocalProxy{
				Dial: func(context.Context) (net.Conn, error) { return nil, reason }, Refuse: client.Refusal(tt.protocol),
			}
			conn, err := net.Dial("tcp", serveLocal(t, p.Serve))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, tt.opening)
			got, err := io.ReadAll(conn)
			if err != nil {
				t.Fatal(err)
			}
			rest := string(got)
			for _, want := range tt.want {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("%q is not in %q", want, got)
				}
				rest = after
			}
		})
	}
}
