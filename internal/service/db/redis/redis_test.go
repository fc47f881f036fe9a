package redis_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/service/db/dbtest"
	"teleport/internal/service/db/redis"
)

// conn is a client that sends lines and reads whole answers.
type conn struct {
	net.Conn
	r *bufio.Reader
}

func dial(ctx context.Context, addr string) (*conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReader(c)}, nil
}

// answer reads one answer, of RESP2 without nesting beyond one level.
func (c *conn) answer() (string, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	switch line[0] {
	case '-':
		return "", errors.New(line[1:])
	case '$':
		n, _ := strconv.Atoi(line[1:])
		if n < 0 {
			return "(nil)", nil
		}
		b := make([]byte, n+2)
		_, err := io.ReadFull(c.r, b)
		return string(b[:max(0, len(b)-2)]), err
	case '*', '>', '%':
		n, _ := strconv.Atoi(line[1:])
		if line[0] == '%' {
			n *= 2
		}
		var parts []string
		for range n {
			part, err := c.answer()
			if err != nil {
				return "", err
			}
			parts = append(parts, part)
		}
		return strings.Join(parts, " "), nil
	}
	return line[1:], nil
}

// Ask sends a line.
func (c *conn) Ask(_ context.Context, text string) (string, error) {
	if _, err := io.WriteString(c.Conn, text+"\r\n"); err != nil {
		return "", err
	}
	return c.answer()
}

func open(ctx context.Context, addr, user, _ string) (dbtest.Conn, error) {
	c, err := dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if _, err := c.Ask(ctx, "AUTH "+user+" wonder"); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func TestSuite(t *testing.T) {
	server := dbtest.Redis(t, "")
	dbtest.Suite{
		Engine: redis.New(), Database: dbtest.Database("cache", "redis", "localhost:"+server.Port),
		User: "default", Other: "alice", Open: open,
		Hello: "ECHO hello", Fails: "NONSENSE", Slow: "BLPOP nothing 2",
	}.Run(t)
}

type world struct {
	*dbtest.World
	server *dbtest.Server
	alice  *dbtest.Person
	addr   string
}

func start(t testing.TB, lines string) *world {
	t.Helper()
	w := &world{server: dbtest.Redis(t, lines)}
	w.World = dbtest.Start(t, redis.New(), []*typesv1.Database{dbtest.Database("cache", "redis", "localhost:"+w.server.Port)}, nil)
	w.alice = w.Person(t, "alice", "cache", nil, nil)
	w.addr = w.alice.Tunnel(t, "cache")
	return w
}

func (w *world) dial(t testing.TB) *conn {
	t.Helper()
	c, err := dial(t.Context(), w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask expects an answer.
func ask(t testing.TB, c *conn, text, want string) {
	t.Helper()
	got, err := c.Ask(t.Context(), text)
	if err != nil {
		got = "-" + err.Error()
	}
	if !strings.Contains(got, want) {
		t.Errorf("%s = %q, want %q", text, got, want)
	}
}

func TestRedisCLI(t *testing.T) {
	w := start(t, "")
	host, port, _ := net.SplitHostPort(w.addr)
	files := w.alice.Native(t)
	_, direct, _ := net.SplitHostPort(w.alice.Direct(t, "cache"))
	for name, args := range map[string][]string{
		"tunnel": {"-h", host, "-p", port},
		"native": {"-h", "127.0.0.1", "-p", direct, "--tls", "--sni", "db.teleport.cluster.local", "--cacert", files.CA, "--cert", files.Cert, "--key", files.Key},
		"resp3":  {"-h", host, "-p", port, "-3"},
		"user":   {"-h", host, "-p", port, "--no-auth-warning", "--user", "alice", "--pass", "wonder"},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(stdin string, more ...string) string {
				cmd := exec.Command("redis-cli", append(args, more...)...)
				cmd.Stdin = strings.NewReader(stdin)
				out, err := dbtest.Output(cmd)
				if err != nil {
					t.Fatalf("redis-cli %q: %v: %s", more, err, out)
				}
				return out
			}
			big := strings.Repeat("x", 3<<20)
			if out := run(big, "-x", "SET", "big-"+name); out != "OK\n" {
				t.Errorf("SET = %q", out)
			}
			if out := run("", "GET", "big-"+name); strings.TrimSpace(out) != big {
				t.Errorf("GET = %d bytes, want %d", len(out), len(big))
			}
			if out := run("MULTI\nINCR n\nINCR n\nEXEC\n"); !strings.Contains(out, "QUEUED") {
				t.Errorf("MULTI = %q", out)
			}
			if e := w.Events.Query(t, "SET big-"+name); len(dbtest.Field(e, "db_query")) > 20<<10 {
				t.Errorf("the record of a big value has %d bytes", len(dbtest.Field(e, "db_query")))
			}
			w.Events.Query(t, "INCR n")
		})
	}
}

func TestWhoOneIs(t *testing.T) {
	w := start(t, "user bob on >builder ~* +@all\n")
	w.SetRole("some", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"env": dbtest.Strings("test")}, DbUsers: []string{"alice"}}
	})
	w.addr = w.Person(t, "rita", "cache", []string{"some"}, nil).Tunnel(t, "cache")
	for _, first := range []string{"PING", "AUTH bob builder", "AUTH wonder", `"auth" "bob" builder`, `"\x61uth" 'bob' builder`, "HELLO 3 AUTH bob builder", "HELLO 3 SETNAME AUTH AUTH bob builder", "hello 3 auth default x"} {
		c := w.dial(t)
		if got, err := c.Ask(t.Context(), first); err == nil || !strings.Contains(err.Error(), "denied") {
			t.Errorf("%s as nobody or another = %q, %v, want a refusal", first, got, err)
		}
	}
	c := w.dial(t)
	ask(t, c, "AUTH alice wrong", "-WRONGPASS")
	ask(t, c, "GET x", "-NOAUTH")
	ask(t, c, "AUTH alice wonder", "OK")
	ask(t, c, "ACL WHOAMI", "alice")
	ask(t, c, "HELLO 2", "redis")
	ask(t, c, "HELLO 2 SETNAME AUTH", "redis")
	ask(t, c, "AUTH alice wrong", "-WRONGPASS")
	ask(t, c, "ACL WHOAMI", "alice")
	for way, says := range map[string]string{
		"HELLO 3 AUTH alice wonder AUTH bob builder": "more than one AUTH", "HELLO 3 AUTH alice wonder SETNAME x auth bob builder": "more than one AUTH",
		"AUTH bob builder": "this session is that of", "RESET": "denied", "HELLO 2 AUTH bob builder": "this session is that of", "*2\r\n$5\r\nRESET\r\n$1\r\nx": "denied",
	} {
		c := w.dial(t)
		ask(t, c, "AUTH alice wonder", "OK")
		ask(t, c, way, says)
		if got, err := c.Ask(t.Context(), "ACL WHOAMI"); err == nil {
			t.Errorf("after %s the session goes on as %s", way, got)
		}
	}
	for _, e := range w.Events.All("") {
		if text := e.String(); strings.Contains(text, "wonder") || strings.Contains(text, "builder") {
			t.Errorf("a password is recorded: %s", text)
		}
	}
	t.Run("the certificate is enough where the server knows the user", func(t *testing.T) {
		c, err := dial(t.Context(), w.alice.Tunnel(t, "cache"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ask(t, c, "AUTH default anything", "OK")
		ask(t, c, "HELLO 3 AUTH default anything", "redis")
		ask(t, c, "ACL WHOAMI", "default")
	})
}

func TestSecrets(t *testing.T) {
	w := start(t, "")
	c := w.dial(t)
	for _, text := range []string{
		"CONFIG SET maxmemory 0 requirepass sesame", "ACL SETUSER carol on >sesame ~*", "MIGRATE 127.0.0.1 1 k 0 10 AUTH2 alice sesame", "AUTH sesame", "HELLO 3 AUTH default sesame", "CONFIG SET requirepass \"\"",
	} {
		_, _ = c.Ask(t.Context(), text)
	}
	ask(t, c, "ECHO done", "done")
	w.Events.Query(t, "ECHO done")
	w.Events.Query(t, "CONFIG SET maxmemory 0 requirepass [masked]")
	for _, e := range w.Events.All("") {
		if strings.Contains(e.String(), "sesame") {
			t.Errorf("a password is recorded: %s", e)
		}
	}
}

// TestPipeline sends much before it reads anything.
func TestPipeline(t *testing.T) {
	w := start(t, "")
	c := w.dial(t)
	const n = 5000
	go func() {
		out := bufio.NewWriter(c.Conn)
		for i := range n {
			_, _ = fmt.Fprintf(out, "*3\r\n$3\r\nSET\r\n$%d\r\nk%d\r\n$1\r\nv\r\n", len("k"+strconv.Itoa(i)), i)
		}
		_, _ = out.WriteString("NOSUCH\r\nECHO last\r\n")
		_ = out.Flush()
	}()
	for i := range n {
		if got, err := c.answer(); got != "OK" {
			t.Fatalf("answer %d = %q, %v", i, got, err)
		}
	}
	if _, err := c.answer(); err == nil {
		t.Error("NOSUCH worked")
	}
	if got, err := c.answer(); got != "last" {
		t.Errorf("the last = %q, %v", got, err)
	}
	w.Events.Query(t, "ECHO last")
	recorded := 0
	for _, e := range w.Events.All("TDB02I") {
		recorded += strings.Count(dbtest.Field(e, "db_query"), "SET k")
	}
	if recorded != n {
		t.Errorf("%d commands are recorded, want %d", recorded, n)
	}
	w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool { return strings.Contains(dbtest.Field(e, "error"), "unknown command") })
}

func TestMessages(t *testing.T) {
	w := start(t, "")
	sub, pub := w.dial(t), w.dial(t)
	ask(t, sub, "SUBSCRIBE news", "subscribe news 1")
	ask(t, pub, "PUBLISH news hello", "1")
	if got, err := sub.answer(); got != "message news hello" {
		t.Errorf("message = %q, %v", got, err)
	}
	mon := w.dial(t)
	ask(t, mon, "MONITOR", "OK")
	ask(t, pub, "ECHO watched", "watched")
	if got, err := mon.answer(); !strings.Contains(got, "watched") {
		t.Errorf("MONITOR = %q, %v", got, err)
	}
}

func TestGarbage(t *testing.T) {
	w := start(t, "")
	for _, bad := range []string{"*1\r\n:1\r\n", "*2\r\n$4\r\nPINGxx\r\n", "*99999999999\r\n", "*1\r\n$-5\r\n", "*1\r\n$999999999999\r\n", "GET \"x\r\n", strings.Repeat("a", 70<<10) + "\r\n", "*1\r\n$300\r\n" + strings.Repeat("a", 300) + "\r\n"} {
		c := w.dial(t)
		_, _ = io.WriteString(c.Conn, bad)
		if got, err := c.answer(); err == nil {
			t.Errorf("%q = %q, want an error", bad[:min(len(bad), 30)], got)
		}
	}
	w.Events.Wait(t, "TDB06I", nil)
	ask(t, w.dial(t), "PING", "PONG")
	ask(t, w.dial(t), "\r\n*0\r\n*-1\r\nPING", "PONG")
}

func TestBenchmarkTool(t *testing.T) {
	w := start(t, "")
	w.Events.Discard()
	host, port, _ := net.SplitHostPort(w.addr)
	var out bytes.Buffer
	cmd := exec.Command("redis-benchmark", "-h", host, "-p", port, "-n", "2000", "-c", "10", "-P", "16", "-q", "-t", "set,get,incr,lpush,mset")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), "MSET") {
		t.Errorf("redis-benchmark: %v: %s", err, out.String())
	}
	if w.Events.Count() == 0 {
		t.Error("nothing was recorded")
	}
}
