package mongodb_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/service/db/dbtest"
	"teleport/internal/service/db/mongodb"
)

// conn is a client with one connection: those of drivers come back by themselves, which
// hides how one ends.
type conn struct {
	net.Conn
	t    testing.TB
	db   string
	last int32
}

func opener(t testing.TB) func(ctx context.Context, addr, user, name string) (dbtest.Conn, error) {
	return func(ctx context.Context, addr, user, name string) (dbtest.Conn, error) {
		raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, t: t, db: name}
		_, err = c.run(bson.D{{Key: "hello", Value: 1}, {Key: "saslSupportedMechs", Value: "admin." + user}, {Key: "$db", Value: "admin"}})
		if err == nil {
			_, err = c.run(bson.D{
				{Key: "saslStart", Value: 1},
				{Key: "mechanism", Value: "PLAIN"},
				{Key: "payload", Value: []byte("\x00" + user + "\x00whatever")},
				{Key: "$db", Value: "$external"},
			})
		}
		if err != nil {
			_ = c.Close()
			return nil, err
		}
		return c, nil
	}
}

func (c *conn) run(d bson.D) (bson.D, error) {
	c.last++
	if err := newMessage(c.t, c.last, 0, d).write(c.Conn); err != nil {
		return nil, err
	}
	return c.read()
}

func (c *conn) read() (bson.D, error) {
	m, err := readMessage(c.Conn)
	if err != nil {
		return nil, err
	}
	if m.to != c.last {
		return nil, fmt.Errorf("an answer to %d, want one to %d", m.to, c.last)
	}
	out, err := m.doc()
	if msg := text(out, "errmsg"); err == nil && msg != "" {
		err = errors.New(msg)
	}
	return out, err
}

// Ask runs a command.
func (c *conn) Ask(_ context.Context, text string) (string, error) {
	var d bson.D
	if err := bson.UnmarshalExtJSON([]byte(text), false, &d); err != nil {
		return "", err
	}
	if !has(d, "$db") {
		d = append(d, bson.E{Key: "$db", Value: c.db})
	}
	out, err := c.run(d)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(out), nil
}

const greetings = `{"find": "greetings", "filter": {"text": "hello"}}`

// fill gives the server what is found there.
func (s *server) fill(t testing.TB) {
	t.Helper()
	raw, err := net.Dial("tcp", "127.0.0.1:"+s.ferret.Port)
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{Conn: raw, t: t, db: "shop"}
	defer c.Close()
	if out, err := c.Ask(t.Context(), `{"insert": "greetings", "documents": [{"text": "hello"}]}`); err != nil {
		t.Fatal(out, err)
	}
}

func TestSuite(t *testing.T) {
	server := serve(t)
	server.fill(t)
	dbtest.Suite{
		Engine: mongodb.New(), Database: dbtest.Database("docs", "mongodb", "mongodb://localhost:"+server.port+"/?replicaSet=rs0"),
		User: "alice", Other: "bob", Name: "shop", NameMatters: true, Open: opener(t),
		Hello: greetings, Fails: `{"aggregate": "greetings", "pipeline": [{"$nonsense": {}}], "cursor": {}}`, Slow: `{"sleep": 2}`,
	}.Run(t)
}

type world struct {
	*dbtest.World
	server *server
	alice  *dbtest.Person
	addr   string
}

func start(t testing.TB) *world {
	t.Helper()
	w := &world{server: serve(t)}
	w.server.fill(t)
	w.World = dbtest.Start(t, mongodb.New(), []*typesv1.Database{dbtest.Database("docs", "mongodb", "localhost:"+w.server.port)}, nil)
	w.alice = w.Person(t, "alice", "docs", nil, asUser("alice"))
	w.addr = w.alice.Tunnel(t, "docs")
	return w
}

// asUser ties a certificate to a database user, as tsh db login --db-user does.
func asUser(user string) func(*ca.UserRequest) {
	return func(r *ca.UserRequest) { r.Identity.User.Database.User = user }
}

func (w *world) open(t testing.TB, addr, user string) *conn {
	t.Helper()
	opened, err := opener(t)(t.Context(), addr, user, "shop")
	if err != nil {
		t.Fatal(err)
	}
	c, _ := opened.(*conn)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestHello: the client sees a single server without compression, whatever there is.
func TestHello(t *testing.T) {
	w := start(t)
	raw, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{Conn: raw, t: t}
	defer c.Close()
	for _, name := range []string{"hello", "isMaster", "ismaster"} {
		d, err := c.run(bson.D{{Key: name, Value: 1}, {Key: "compression", Value: bson.A{"zlib"}}, {Key: "$db", Value: "admin"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, hidden := range []string{"setName", "hosts", "me", "topologyVersion", "compression"} {
			if has(d, hidden) {
				t.Errorf("%s = %v, with %s", name, d, hidden)
			}
		}
		if !has(d, map[bool]string{true: "isWritablePrimary", false: "ismaster"}[name == "hello"]) || !has(d, "maxWireVersion") {
			t.Errorf("%s = %v", name, d)
		}
	}
	// The old form, as drivers still begin with.
	body, _ := bson.Marshal(bson.D{{Key: "isMaster", Value: 1}})
	query := append([]byte("\x00\x00\x00\x00admin.$cmd\x00\x00\x00\x00\x00\xff\xff\xff\xff"), body...)
	c.last = 77
	if err := (message{id: 77, op: 2004, payload: query}).write(raw); err != nil {
		t.Fatal(err)
	}
	if d, err := c.read(); err != nil || !has(d, "ismaster") {
		t.Errorf("OP_QUERY = %v, %v", d, err)
	}
	// What is no greeting is refused in the old form.
	body, _ = bson.Marshal(bson.D{{Key: "dropDatabase", Value: 1}})
	c.last = 78
	if err := (message{id: 78, op: 2004, payload: append([]byte("\x00\x00\x00\x00shop.$cmd\x00\x00\x00\x00\x00\xff\xff\xff\xff"), body...)}).write(raw); err != nil {
		t.Fatal(err)
	}
	if d, err := c.read(); err == nil {
		t.Errorf("dropDatabase by OP_QUERY = %v", d)
	}
	w.Events.Wait(t, "TDB06I", nil)
}

// TestNames: each command is decided about by the databases that it reaches.
func TestNames(t *testing.T) {
	w := start(t)
	w.SetRole("shop", func(r *typesv1.RoleSpec) {
		r.Allow = &typesv1.RoleConditions{DbLabels: map[string]*typesv1.Strings{"*": dbtest.Strings("*")}, DbUsers: []string{"alice"}, DbNames: []string{"shop", "stock"}}
	})
	c := w.open(t, w.Person(t, "alice", "docs", []string{"shop"}, asUser("alice")).Tunnel(t, "docs"), "alice")
	for _, cmd := range []string{
		greetings, `{"count": "x", "$db": "stock"}`, `{"ping": 1, "$db": "admin"}`, `{"buildInfo": 1, "$db": "admin"}`, `{"endSessions": [], "$db": "admin"}`,
	} {
		if out, err := c.Ask(t.Context(), cmd); err != nil && strings.Contains(err.Error(), "denied") {
			t.Errorf("%s = %q, %v", cmd, out, err)
		}
	}
	for _, cmd := range []string{
		`{"find": "x", "$db": "payroll"}`, `{"listDatabases": 1, "$db": "admin"}`, `{"dropDatabase": 1, "$db": "payroll"}`,
		`{"aggregate": "greetings", "pipeline": [{"$out": {"db": "payroll", "coll": "x"}}], "cursor": {}}`,
		`{"aggregate": "greetings", "pipeline": [{"$merge": {"into": {"db": "payroll", "coll": "x"}}}], "cursor": {}}`,
		`{"aggregate": "greetings", "pipeline": [{"$facet": {"a": [{"$lookup": {"from": {"db": "payroll", "coll": "x"}}}]}}], "cursor": {}}`,
		`{"explain": {"aggregate": "greetings", "pipeline": [{"$out": {"db": "payroll", "coll": "x"}}], "cursor": {}}}`,
		`{"mapReduce": "greetings", "out": {"replace": "x", "db": "payroll"}}`,
		`{"create": "v", "viewOn": "greetings", "pipeline": [{"$unionWith": {"db": "payroll", "coll": "x"}}]}`,
	} {
		if out, err := c.Ask(t.Context(), cmd); err == nil || !strings.Contains(err.Error(), "denied") {
			t.Errorf("%s = %q, %v, want it denied", cmd, out, err)
		}
	}
	w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool {
		return dbtest.Field(e, "db_name") == "payroll" && strings.Contains(dbtest.Field(e, "db_query"), `{"find": "x"`) && strings.Contains(dbtest.Field(e, "error"), "denied")
	})
	w.Events.Wait(t, "TDB00W", func(e *auditv1.Event) bool {
		return dbtest.Field(e, "db_name") == "payroll" && dbtest.Field(e, "rule") == "allow.db_names"
	})
	// The session goes on, and none of the above is said to be in another database.
	if out, err := c.Ask(t.Context(), greetings); err != nil || !strings.Contains(out, "hello") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestSecrets(t *testing.T) {
	w := start(t)
	c := w.open(t, w.addr, "alice")
	_, _ = c.Ask(t.Context(), `{"createUser": "x", "pwd": "sesame", "roles": []}`)
	w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool {
		return strings.Contains(dbtest.Field(e, "db_query"), `{"createUser": "x", "pwd": "[masked]"`)
	})
	for _, e := range w.Events.All("") {
		if strings.Contains(e.String(), "sesame") {
			t.Errorf("a password is recorded: %s", e)
		}
	}
}

func TestUnreadable(t *testing.T) {
	w := start(t)
	doc, _ := bson.Marshal(bson.D{{Key: "find", Value: "x"}, {Key: "$db", Value: "shop"}})
	body := append([]byte{0}, doc...)
	twice, _ := bson.Marshal(bson.D{{Key: "find", Value: "x"}, {Key: "$db", Value: "shop"}, {Key: "$db", Value: "payroll"}})
	nowhere, _ := bson.Marshal(bson.D{{Key: "find", Value: "x"}})
	for name, m := range map[string]message{
		"compressed":    {op: 2012, payload: make([]byte, 20)},
		"insert":        {op: 2002, payload: make([]byte, 20)},
		"flags":         {op: 2013, payload: append([]byte{4, 0, 0, 0}, body...)},
		"two_bodies":    {op: 2013, payload: append(append([]byte{0, 0, 0, 0}, body...), body...)},
		"no_body":       {op: 2013, payload: make([]byte, 4)},
		"two_databases": {op: 2013, payload: append(make([]byte, 5), twice...)},
		"no_database":   {op: 2013, payload: append(make([]byte, 5), nowhere...)},
		"token":         {op: 2013, payload: append(append([]byte{0, 0, 0, 0}, body...), append([]byte{2}, doc...)...)},
		"long_section":  {op: 2013, payload: append(append([]byte{0, 0, 0, 0}, body...), 1, 0xff, 0xff, 0, 0, 'a', 0)},
		"db_section":    {op: 2013, payload: append(append([]byte{0, 0, 0, 0}, body...), 1, 8, 0, 0, 0, '$', 'd', 'b', 0)},
		"long_twice":    {op: 2013, payload: append(append([]byte{0, 0, 0, 0}, body...), append([]byte{1, 0, 0, 4, 0}, make([]byte, 0x40000+100)...)...)},
	} {
		t.Run(name, func(t *testing.T) {
			c := w.open(t, w.addr, "alice")
			c.last = 9
			m.id = 9
			if err := m.write(c.Conn); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if d, err := c.read(); err == nil {
				t.Errorf("it was answered with %v", d)
			}
			if d, err := readMessage(c.Conn); err == nil {
				t.Errorf("after that there is %v", d)
			}
		})
	}
	w.Events.Wait(t, "TDB06I", nil)
}
