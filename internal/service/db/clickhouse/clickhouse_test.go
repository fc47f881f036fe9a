package clickhouse_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/service/db/clickhouse"
	"teleport/internal/service/db/dbtest"
)

// conn is a client with one connection, as those that keep theirs have it.
type conn struct {
	http      *http.Client
	url, user string
}

func open(ctx context.Context, addr, user, _ string) (dbtest.Conn, error) {
	var dialled atomic.Bool
	c := &conn{url: "http://" + addr, user: user, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dialled.Swap(true) {
				return nil, errors.New("the connection has ended")
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/ping", nil)
	if err != nil {
		return nil, err
	}
	if _, err := c.do(req); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func (c *conn) do(req *http.Request) (string, error) {
	req.Header.Set("X-ClickHouse-User", c.user)
	req.Header.Set("X-ClickHouse-Key", "anything")
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// Ask sends a query as the body.
func (c *conn) Ask(ctx context.Context, text string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, strings.NewReader(text))
	if err != nil {
		return "", err
	}
	return c.do(req)
}

// Close ends the connection.
func (c *conn) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

func TestSuite(t *testing.T) {
	dbtest.Suite{
		Engine: clickhouse.New(), Database: dbtest.Database("events", "clickhouse-http", "https://localhost:"+serve(t).port),
		User: "alice", Other: "bob", Open: open,
		Hello: "SELECT 'hello'", Fails: "SELECT * FROM nowhere", Slow: "SELECT sleep(2)",
	}.Run(t)
}

type world struct {
	*dbtest.World
	server *server
	alice  *dbtest.Person
	addr   string
}

func start(t testing.TB, change func(*typesv1.DatabaseSpec)) *world {
	t.Helper()
	w := &world{server: serve(t)}
	d := dbtest.Database("events", "clickhouse-http", "localhost:"+w.server.port)
	if change != nil {
		change(d.Spec)
	}
	w.World = dbtest.Start(t, clickhouse.New(), []*typesv1.Database{d}, nil)
	w.alice = w.Person(t, "alice", "events", nil, nil)
	w.addr = w.alice.Tunnel(t, "events")
	return w
}

// curl runs curl, and returns what the server answered.
func curl(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("curl", append([]string{"-sS", "--max-time", "60"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("curl %q: %v: %s%s", args, err, out[:min(len(out), 200)], stderr.String())
	}
	return string(out)
}

func TestCurl(t *testing.T) {
	w := start(t, nil)
	base := "http://" + w.addr + "/"
	files := w.alice.Native(t)
	_, port, _ := net.SplitHostPort(w.alice.Direct(t, "events"))
	const who = "SELECT currentUser(), currentDatabase()"
	native := []string{
		"--connect-to", "db.teleport.cluster.local:443:127.0.0.1:" + port, "--cacert", files.CA, "--cert", files.Cert, "--key", files.Key,
		"https://db.teleport.cluster.local/?user=alice", "-d", who,
	}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"headers":      {[]string{base, "-H", "X-ClickHouse-User: alice", "-H", "X-ClickHouse-Key: secret", "-H", "X-ClickHouse-Database: shop", "-d", who}, "alice\tshop\n"},
		"parameters":   {[]string{base + "?user=alice&password=x&database=shop", "-d", who}, "alice\tshop\n"},
		"basic":        {[]string{"-u", "alice:pass", base + "?database=shop", "-d", who}, "alice\tshop\n"},
		"get":          {[]string{"-G", base, "--data-urlencode", "query=" + who, "-d", "us%65r=alice"}, "alice\t\n"},
		"nobody":       {[]string{base, "-d", who}, "default\t\n"},
		"param":        {[]string{base + "?user=alice&param_n=42", "-d", "SELECT {n:UInt32}"}, "42\n"},
		"semicolon":    {[]string{base + "?user=alice&query=SELECT+'a';", "-d", ""}, "a\n"},
		"ping":         {[]string{base + "ping"}, "Ok.\n"},
		"native":       append1(native),
		"native_http1": append1(append([]string{"--http1.1"}, native...)),
		"stranger":     {[]string{base + "?user=carol", "-d", who}, "Code: 516. DB::Exception: : Authentication failed: there is no user carol. (AUTHENTICATION_FAILED)\n"},
		"two_users":    {[]string{base + "?user=alice", "-H", "X-ClickHouse-User: bob", "-d", who}, "Code: 36. DB::Exception: the request names the users \"alice\" and \"bob\": name one. (BAD_ARGUMENTS)\n"},
		"upgrade":      {[]string{base, "-H", "Upgrade: websocket", "-H", "Connection: Upgrade"}, "Code: 48. DB::Exception: there is no other protocol to upgrade to. (NOT_IMPLEMENTED)\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := curl(t, tc.args...); got != tc.want {
				t.Errorf("curl %q = %q, want %q", tc.args, got, tc.want)
			}
		})
	}
	w.Events.Query(t, who)
	w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool { return dbtest.Field(e, "db_query") == "SELECT 'a';" })
	w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool {
		return dbtest.Field(e, "db_query") == "GET /ping" && dbtest.Field(e, "db_user") == "default"
	})
	w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool {
		return dbtest.Field(e, "db_query") == "SELECT {n:UInt32}" && strings.Contains(e.GetFields().String(), "n=42")
	})
	w.Events.Wait(t, "TDB00I", func(e *auditv1.Event) bool { return dbtest.Field(e, "db_name") == "shop" })
	for _, e := range w.Events.All("") {
		if text := e.String(); strings.Contains(text, "secret") || strings.Contains(text, "password=") {
			t.Errorf("a password is recorded: %s", text)
		}
	}
}

// append1 is a case of a native client.
func append1(args []string) (tc struct {
	args []string
	want string
},
) {
	tc.args, tc.want = args, "alice\t\n"
	return tc
}

// TestUsers: one connection is one user's, whatever its later requests say.
func TestUsers(t *testing.T) {
	w := start(t, nil)
	c, err := open(t.Context(), w.addr, "alice", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client, _ := c.(*conn)
	if out, err := c.Ask(t.Context(), "SELECT 'hello'"); err != nil || out != "hello\n" {
		t.Fatalf("%q, %v", out, err)
	}
	client.user = "bob"
	if out, err := c.Ask(t.Context(), "SELECT 'hello'"); err == nil || !strings.Contains(err.Error(), `"alice", and a request on it wants to be "bob"`) {
		t.Errorf("as another user: %q, %v", out, err)
	}
}

// TestDatabases: another database on one connection is recorded with the query.
func TestDatabases(t *testing.T) {
	w := start(t, nil)
	base := "http://" + w.addr + "/"
	got := curl(t, base+"?user=alice&database=one", "-d", "SELECT currentUser(), currentDatabase()",
		"--next", "-sS", base+"?user=alice&database=two", "-d", "SELECT currentUser(), currentDatabase()")
	if got != "alice\tone\nalice\ttwo\n" {
		t.Errorf("curl = %q", got)
	}
	second := w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool { return dbtest.Field(e, "db_name") == "two" })
	if n := len(w.Events.All("TDB00I")); n != 1 {
		t.Errorf("%d sessions, want 1: curl keeps its connection; %v", n, second)
	}
}

func TestStreams(t *testing.T) {
	w := start(t, nil)
	base := "http://" + w.addr + "/?user=alice"
	const size = 64 << 20
	path := filepath.Join(t.TempDir(), "rows")
	if err := os.WriteFile(path, bytes.Repeat([]byte("1,2,3\n"), size/6), 0o600); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	if got := curl(t, base+"&query=INSERT+INTO+t+FORMAT+CSV", "-T", path); got != "" {
		t.Errorf("insert = %q", got)
	}
	if got := w.server.inserted.Load(); got != size/6*6 {
		t.Errorf("%d bytes were inserted, want %d", got, size/6*6)
	}
	if got := curl(t, base, "-d", fmt.Sprintf("SELECT repeat('x', %d)", size), "-o", os.DevNull, "-w", "%{size_download}"); got != fmt.Sprint(size) {
		t.Errorf("%s bytes came back, want %d", got, size)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB for a stream", grown>>20)
	}
	insert := w.Events.Query(t, "INSERT INTO t FORMAT CSV\n1,2,3\n")
	if n := len(dbtest.Field(insert, "db_query")); n > 17<<10 {
		t.Errorf("%d bytes of an insert are recorded", n)
	}
	// What comes is there before all has come.
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, base, strings.NewReader("SELECT a row at a time"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 6)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first\n" {
		t.Errorf("%q, %v", first, err)
	}
	close(w.server.release)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "last\n" {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestErrors(t *testing.T) {
	w := start(t, nil)
	base := "http://" + w.addr + "/?user=alice"
	if got := curl(t, base, "-d", "SELECT * FROM nowhere"); !strings.HasPrefix(got, "Code: 60.") {
		t.Errorf("curl = %q", got)
	}
	failed := w.Events.Wait(t, "TDB02W", nil)
	if text := dbtest.Field(failed, "error"); !strings.Contains(text, "exception 60") || !strings.Contains(text, "UNKNOWN_TABLE") || dbtest.Field(failed, "db_query") != "SELECT * FROM nowhere" {
		t.Errorf("TDB02W = %v", failed)
	}
	cmd := exec.Command("curl", "-sS", base, "-d", "SELECT throwIf(number = 100000) FROM numbers(1000000)")
	if out, err := cmd.Output(); err == nil || len(out) < 100_000 {
		t.Errorf("curl got %d bytes of an answer that broke off, %v", len(out), err)
	}
	w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool { return strings.Contains(dbtest.Field(e, "error"), "broke off") })
}

func TestCompressed(t *testing.T) {
	w := start(t, nil)
	strict := start(t, func(s *typesv1.DatabaseSpec) { s.RefuseUnknownMessages = true })
	var body bytes.Buffer
	z := gzip.NewWriter(&body)
	_, _ = io.WriteString(z, "SELECT 'zipped'")
	_ = z.Close()
	path := filepath.Join(t.TempDir(), "q.gz")
	if err := os.WriteFile(path, body.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, w := range []*world{w, strict} {
		if got := curl(t, "http://"+w.addr+"/?user=alice", "-H", "Content-Encoding: gzip", "--data-binary", "@"+path); got != "zipped\n" {
			t.Errorf("curl = %q", got)
		}
		w.Events.Query(t, "SELECT 'zipped'")
	}
	_ = curl(t, "http://"+w.addr+"/?user=alice&decompress=1", "-d", "binary")
	w.Events.Query(t, "[a body that is compressed by ClickHouse's own compression]")
	for _, more := range [][]string{{"http://" + strict.addr + "/?user=alice&decompress=1"}, {"http://" + strict.addr + "/?user=alice&Decompress=1"}, {"http://" + strict.addr + "/?user=alice", "-H", "Content-Encoding: zstd"}} {
		if got := curl(t, append(more, "-d", "binary")...); !strings.Contains(got, "NOT_IMPLEMENTED") {
			t.Errorf("curl %q = %q, want it refused", more, got)
		}
	}
}
