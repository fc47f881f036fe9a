package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// tcpPair returns both ends of a loopback connection.
func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// hidden is a TCP connection that the kernel cannot copy for.
type hidden struct{ net.Conn }

func (h hidden) CloseWrite() error { return h.Conn.(*net.TCPConn).CloseWrite() }

func TestJoin(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB: past bulk
	for _, tt := range []struct {
		name string
		wrap func(net.Conn) net.Conn
		send []byte
	}{
		{"plain_tcp", func(c net.Conn) net.Conn { return c }, big},
		{"hidden", func(c net.Conn) net.Conn { return hidden{c} }, big},
		{"bounded", func(c net.Conn) net.Conn { return &boundedConn{Conn: c, leave: func() {}} }, big},
		{"small", func(c net.Conn) net.Conn { return hidden{c} }, []byte("hello")},
		{"nothing", func(c net.Conn) net.Conn { return hidden{c} }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			left, inLeft := tcpPair(t)
			right, inRight := tcpPair(t)
			done := make(chan struct{})
			go func() {
				if err := join(tt.wrap(inLeft), tt.wrap(inRight)); err != nil {
					t.Error(err)
				}
				close(done)
			}()
			go func() { // the right end echoes, and ends when the left has
				_, _ = io.Copy(struct{ io.Writer }{right}, right)
				_ = right.(*net.TCPConn).CloseWrite()
			}()
			go func() {
				_, _ = left.Write(tt.send)
				_ = left.(*net.TCPConn).CloseWrite()
			}()
			got, err := io.ReadAll(left)
			if err != nil || !bytes.Equal(got, tt.send) {
				t.Errorf("got %d bytes (%v), want %d the same", len(got), err, len(tt.send))
			}
			<-done
		})
	}
}

func TestJoinPassesTheEndOn(t *testing.T) {
	left, inLeft := tcpPair(t)
	right, inRight := tcpPair(t)
	go func() { _ = join(inLeft, inRight) }()
	_ = left.(*net.TCPConn).CloseWrite()
	if _, err := right.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("right: Read() = %v, want the end", err)
	}
	// The other direction goes on.
	if _, err := right.Write([]byte("still")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(left, buf); err != nil || string(buf) != "still" {
		t.Fatalf("left read %q, %v", buf, err)
	}
	_ = right.Close()
	if _, err := left.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("left: Read() = %v, want the end", err)
	}
}

func TestJoinEndsWhenOneSideBreaks(t *testing.T) {
	left, inLeft := tcpPair(t)
	_, inRight := tcpPair(t)
	done := make(chan struct{})
	go func() { _ = join(inLeft, inRight); close(done) }()
	_ = left.(*net.TCPConn).SetLinger(0)
	_ = left.Close() // reset
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("join does not end after a reset")
	}
}

// faulty is a connection that panics when it is read from.
type faulty struct{ net.Conn }

func (faulty) Read([]byte) (int, error) { panic("faulty read") }

// TestJoinPanic lets each direction panic: the process goes on, the panic is
// an error with its stack, and both connections are closed.
func TestJoinPanic(t *testing.T) {
	for name, wrap := range map[string]func(a, b net.Conn) (net.Conn, net.Conn){
		"first":  func(a, b net.Conn) (net.Conn, net.Conn) { return a, faulty{b} },
		"second": func(a, b net.Conn) (net.Conn, net.Conn) { return faulty{a}, b },
	} {
		t.Run(name, func(t *testing.T) {
			left, inLeft := tcpPair(t)
			right, inRight := tcpPair(t)
			done := make(chan error, 1)
			go func() { done <- join(wrap(inLeft, inRight)) }()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "faulty read") || !strings.Contains(err.Error(), "faulty.Read") {
					t.Errorf("join = %v, want the panic and its stack", err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("join does not end after a panic")
			}
			for _, c := range []net.Conn{left, right} {
				if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Read() = %v, want a closed connection", err)
				}
			}
		})
	}
}

func TestBoundedListener(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m, err := newMetrics(nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := (&Service{metrics: m}).bounded(ln, 10, 2)
	defer func() { _ = b.Close() }()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial()
	first := <-accepted
	dial()
	<-accepted
	third := dial()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("the third of one source got in")
	}
	_ = first.Close()
	_ = first.Close() // gives its place back once
	dial()
	<-accepted
	fourth := dial()
	if _, err := fourth.Read(make([]byte, 1)); err == nil {
		t.Error("one more than the bound got in after a place became free")
	}
}
