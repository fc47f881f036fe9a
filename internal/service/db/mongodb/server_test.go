package mongodb_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"teleport/internal/service/db/dbtest"
)

// message is one of MongoDB's protocol.
type message struct {
	id, to, op int32
	payload    []byte
}

func readMessage(r io.Reader) (m message, err error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return m, err
	}
	at := func(i int) int32 { return int32(binary.LittleEndian.Uint32(head[i:])) }
	n := at(0) - 16
	if n < 0 || n > 48_000_000 {
		return m, errors.New("a message that cannot be")
	}
	m = message{at(4), at(8), at(12), make([]byte, n)}
	_, err = io.ReadFull(r, m.payload)
	return m, err
}

func (m message) write(w io.Writer) error {
	var out []byte
	for _, v := range []int32{int32(16 + len(m.payload)), m.id, m.to, m.op} {
		out = binary.LittleEndian.AppendUint32(out, uint32(v))
	}
	_, err := w.Write(append(out, m.payload...))
	return err
}

// doc is the document of a message that has one.
func (m message) doc() (d bson.D, err error) {
	skip := map[int32]int{2013: 5, 1: 20}[m.op]
	if m.op == 2004 {
		skip = 4 + bytes.IndexByte(m.payload[4:], 0) + 1 + 8
	}
	if skip == 0 || len(m.payload) < skip+5 {
		return nil, fmt.Errorf("a message of the kind %d", m.op)
	}
	n := binary.LittleEndian.Uint32(m.payload[skip:])
	if int(n) > len(m.payload)-skip {
		return nil, errors.New("a document that cannot be")
	}
	return d, bson.Unmarshal(m.payload[skip:skip+int(n)], &d)
}

func newMessage(t testing.TB, id, to int32, d bson.D) message {
	t.Helper()
	raw, err := bson.Marshal(d)
	if err != nil {
		t.Error(err)
	}
	return message{id: id, to: to, op: 2013, payload: append(make([]byte, 5), raw...)}
}

// server is FerretDB behind what it lacks of a MongoDB server: TLS with client
// certificates and a login by them (MONGODB-X509), without which nothing is answered. It
// introduces itself as a member of a replica set that compresses.
type server struct {
	port   string
	ferret *dbtest.Server
	t      testing.TB
}

func serve(t testing.TB) *server {
	t.Helper()
	f := dbtest.ServerFiles(t, t.TempDir(), "localhost", "127.0.0.1")
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{ferret: dbtest.FerretDB(t), t: t}
	_, s.port, _ = net.SplitHostPort(ln.Addr().String())
	var work sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		work.Wait()
	})
	work.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				s.serve(c.(*tls.Conn)) //nolint:forcetypeassert // it is that of tls.Listen
			})
		}
	})
	return s
}

// serve carries one connection.
func (s *server) serve(c *tls.Conn) {
	if c.Handshake() != nil {
		return
	}
	user := c.ConnectionState().PeerCertificates[0].Subject.String()
	raw, err := net.Dial("tcp", "127.0.0.1:"+s.ferret.Port)
	if err != nil {
		return
	}
	var mu sync.Mutex
	// FerretDB answers what asks for no answer, which no server does.
	unasked := map[int32]bool{}
	answer := func(to int32, d bson.D) {
		mu.Lock()
		defer mu.Unlock()
		_ = newMessage(s.t, 1, to, d).write(c)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer c.Close()
		for {
			m, err := readMessage(raw)
			if err != nil {
				return
			}
			if d, err := m.doc(); err == nil && has(d, "ismaster") {
				d = append(bson.D{
					{Key: "setName", Value: "rs0"},
					{Key: "hosts", Value: bson.A{"a.internal:27017"}},
					{Key: "me", Value: "a.internal:27017"},
					{Key: "topologyVersion", Value: bson.D{{Key: "counter", Value: int64(1)}}},
					{Key: "compression", Value: bson.A{"zlib"}},
				}, d...)
				m = newMessage(s.t, m.id, m.to, d)
			}
			mu.Lock()
			if !unasked[m.to] {
				err = m.write(c)
			}
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	s.requests(c, raw, user, answer, func(id int32) {
		mu.Lock()
		defer mu.Unlock()
		unasked[id] = true
	})
	_ = raw.Close()
	<-done
}

// requests passes on what is asked by who is logged in.
func (s *server) requests(c, ferret net.Conn, user string, answer func(to int32, d bson.D), silent func(id int32)) {
	in := false
	for {
		m, err := readMessage(c)
		if err != nil {
			return
		}
		d, err := m.doc()
		if err != nil {
			s.t.Errorf("the server got %v", err)
			return
		}
		if m.op == 2013 && m.payload[0]&2 != 0 {
			silent(m.id)
		}
		fail := func(code int32, text string) {
			answer(m.id, bson.D{{Key: "ok", Value: 0.0}, {Key: "errmsg", Value: text}, {Key: "code", Value: code}})
		}
		switch name := d[0].Key; {
		case name == "isMaster" || name == "ismaster" || name == "hello":
			if err := m.write(ferret); err != nil {
				return
			}
		case name == "authenticate":
			if text(d, "mechanism") != "MONGODB-X509" || text(d, "$db") != "$external" || user != "CN=alice" && user != "CN=bob" {
				fail(18, "Authentication failed.")
				continue
			}
			in = true
			answer(m.id, bson.D{{Key: "dbname", Value: "$external"}, {Key: "user", Value: user}, {Key: "ok", Value: 1.0}})
		case !in:
			fail(13, "Command "+name+" requires authentication")
		case name == "saslStart" || name == "saslContinue" || name == "logout":
			s.t.Errorf("the server got %v", d)
			return
		case name == "sleep":
			id := m.id
			time.AfterFunc(2*time.Second, func() { answer(id, bson.D{{Key: "ok", Value: 1.0}}) })
		default:
			if err := m.write(ferret); err != nil {
				return
			}
		}
	}
}

func has(d bson.D, key string) bool {
	for _, e := range d {
		if e.Key == key {
			return true
		}
	}
	return false
}

func text(d bson.D, key string) string {
	for _, e := range d {
		if e.Key == key {
			s, _ := e.Value.(string)
			return s
		}
	}
	return ""
}
