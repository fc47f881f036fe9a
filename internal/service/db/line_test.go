package db_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/service/db/dbtest"
	"teleport/internal/service/db/engine"
)

// lineEngine speaks a protocol of lines: the client says who it is and where, and then asks
// what the server answers. "panic" makes the engine fail as no engine should.
type lineEngine struct{}

// Protocols returns a name that databases may have; the protocol is not that one.
func (lineEngine) Protocols() []string { return []string{"postgres"} }

// StartTLS expects a line before TLS.
func (lineEngine) StartTLS(_ context.Context, _ *typesv1.Database, client net.Conn) (any, error) {
	line, err := readLine(client)
	if err != nil || line != "starttls" {
		return nil, fmt.Errorf("the first line is %q: %w", line, err)
	}
	return line, engine.Unread(client, nil)
}

// Serve passes lines on.
func (lineEngine) Serve(ctx context.Context, s *engine.Session) error {
	hello, err := readLine(s.Client)
	if err != nil {
		return err
	}
	if hello == "panic" {
		panic("as asked")
	}
	user, name, _ := strings.Cut(hello, " ")
	tell := func(err error) error {
		_, _ = fmt.Fprintf(s.Client, "error: %v\n", err)
		return err
	}
	if err := s.Host.Authorize(ctx, user, name); err != nil {
		return tell(err)
	}
	raw, err := s.Host.Dial(ctx, "1")
	if err != nil {
		return tell(err)
	}
	cfg, err := s.Host.TLS(ctx, user)
	if err != nil {
		return tell(err)
	}
	server := tls.Client(raw, cfg)
	if err := server.HandshakeContext(ctx); err != nil {
		return tell(err)
	}
	if _, err := fmt.Fprintln(s.Client, "welcome"); err != nil {
		return err
	}
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		defer func() { _ = server.NetConn().Close() }()
		for {
			line, err := readLine(s.Client)
			if err != nil {
				return
			}
			s.Host.Audit().Query(engine.Query{Text: line})
			if _, err := fmt.Fprintln(server, line); err != nil {
				return
			}
		}
	})
	_, err = io.Copy(s.Client, server)
	if ctx.Err() != nil {
		_ = tell(context.Cause(ctx))
	}
	_ = s.Client.Close()
	return err
}

// readLine reads a line, and nothing after it.
func readLine(r io.Reader) (string, error) {
	var line []byte
	one := make([]byte, 1)
	for len(line) < 1000 {
		if _, err := io.ReadFull(r, one); err != nil {
			return string(line), err
		}
		if one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[0])
	}
	return "", errors.New("a line that is too long")
}

// lineServer answers each line with "<common name of the client>: <line>", and returns its
// port. The certificate is for the hosts.
func lineServer(t testing.TB, hosts ...string) string {
	t.Helper()
	f := dbtest.ServerFiles(t, t.TempDir(), hosts...)
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	t.Cleanup(func() {
		_ = ln.Close()
		work.Wait()
	})
	work.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close()
				lines := bufio.NewScanner(conn)
				for lines.Scan() {
					who := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
					if _, err := fmt.Fprintf(conn, "%s: %s\n", who, lines.Text()); err != nil {
						return
					}
				}
			})
		}
	})
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// lineConn is a client.
type lineConn struct {
	net.Conn
	lines *bufio.Scanner
}

// Ask asks for a line.
func (c *lineConn) Ask(_ context.Context, text string) (string, error) {
	if _, err := fmt.Fprintln(c, text); err != nil {
		return "", err
	}
	return c.line()
}

func (c *lineConn) line() (string, error) {
	if !c.lines.Scan() {
		return "", errors.Join(io.EOF, c.lines.Err())
	}
	line := c.lines.Text()
	if msg, failed := strings.CutPrefix(line, "error: "); failed {
		return "", errors.New(msg)
	}
	return line, nil
}

// openLine connects to a local port.
func openLine(_ context.Context, addr, user, name string) (dbtest.Conn, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &lineConn{conn, bufio.NewScanner(conn)}
	if _, err := c.Ask(context.Background(), user+" "+name); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}
