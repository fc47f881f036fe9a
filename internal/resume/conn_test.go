package resume_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"teleport/internal/fault"
	"teleport/internal/resume"
)

// It is a net.Conn in all that the library asks of one.
func TestIsConnection(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		r := newRig(t, resume.ServerConfig{})
		c1, c2 = r.offer()
		return c1, c2, func() { _, _ = c1.Close(), c2.Close(); r.work.Wait() }, nil
	})
}

func TestGoesOnAfterCut(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	client, node := r.connect()
	for range 5 {
		r.cut()
		exchange(t, client, node)
	}
	if n := r.server.Stats(); n.Open != 1 || n.Away != 0 {
		t.Errorf("Stats() = %+v, want one connection that has a path", n)
	}
	// Lost and back, in turn.
	events := r.log()
	for i, e := range events {
		if e.Back != (i%2 == 1) || !e.Back && (e.Err == nil || e.Left != resume.DefaultKeep) {
			t.Errorf("event %d is %+v", i, e)
		}
	}
	if len(events) < 10 {
		t.Errorf("%d events after five cuts, want ten", len(events))
	}
	_ = client.Close()
	if _, err := node.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("Read() after the other end closed = %v, want EOF", err)
	}
	_ = node.Close()
	r.work.Wait()
	if n := r.server.Stats(); n != (resume.Stats{}) {
		t.Errorf("Stats() after the end = %+v, want nothing", n)
	}
}

// What is written while there is no path arrives when there is one again; the writer
// waits when there is too much of it, and nothing is lost.
func TestWritesWaitForPath(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	client, node := r.connect()
	r.setDown(true)
	r.cut()
	until(t, "the node noticed", func() bool { return r.server.Stats().Away == 1 })
	data := make([]byte, resume.Window+1<<20)
	_, _ = rand.Read(data)
	written := make(chan error, 1)
	go func() {
		_, err := node.Write(data)
		written <- err
	}()
	until(t, "the window is full", func() bool { return r.server.Stats().Held >= resume.Window })
	select {
	case err := <-written:
		t.Fatalf("Write() = %v with more than the window", err)
	default:
	}
	r.setDown(false)
	got := make([]byte, len(data))
	if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read something else than what was written, %v", err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	// An idle connection holds no memory.
	until(t, "nothing is held", func() bool { return r.server.Stats().Held == 0 })
}

// A connection without a path takes no more when all together hold too much.
func TestMemoryIsBounded(t *testing.T) {
	r := newRig(t, resume.ServerConfig{MaxHeld: 256 << 10})
	client, node := r.connect()
	r.setDown(true)
	r.cut()
	until(t, "the node noticed", func() bool { return r.server.Stats().Away == 1 })
	data := make([]byte, 1<<20)
	written := make(chan error, 1)
	go func() {
		_, err := node.Write(data)
		written <- err
	}()
	until(t, "the bound is reached", func() bool { return r.server.Stats().Held >= 256<<10 })
	_ = node.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	if err := <-written; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Write() = %v, want that it waits", err)
	}
	if held := r.server.Stats().Held; held > 384<<10 {
		t.Errorf("%d bytes are held", held)
	}
	_ = node.SetWriteDeadline(time.Time{})
	r.setDown(false)
	exchange(t, client, io2(node, client, t))
}

// io2 takes off what was written before the deadline.
func io2(node, client net.Conn, t *testing.T) net.Conn {
	t.Helper()
	_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 64<<10)
	for n := 0; n < 256<<10-64<<10; {
		m, err := client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	for {
		_ = client.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := client.Read(buf); err != nil {
			break
		}
	}
	_ = client.SetReadDeadline(time.Time{})
	return node
}

func TestHalfClose(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	client, node := r.connect()
	if _, err := client.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	r.cut()
	if got, err := io.ReadAll(node); string(got) != "last" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := client.Write([]byte("more")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write() after CloseWrite() = %v", err)
	}
	if _, err := node.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	r.cut()
	got := make([]byte, 6)
	if _, err := io.ReadFull(client, got); string(got) != "answer" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

// Who closes says all it wrote, and ends the connection for good.
func TestCloseFlushes(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	client, node := r.connect()
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	var got []byte
	var err error
	var work sync.WaitGroup
	work.Go(func() { got, err = io.ReadAll(node) })
	if _, err := client.Write(data); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	work.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v, want %d", len(got), err, len(data))
	}
	if _, err := node.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write() = %v, want ErrClosedPipe", err)
	}
	if n := r.server.Stats().Open; n != 0 {
		t.Errorf("%d connections are open", n)
	}
}

// Before the user has logged in nothing is kept.
func TestEndsWithItsPathUntilKept(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	client, node := r.offer()
	exchange(t, client, node)
	dials := r.dials
	r.cut()
	for _, c := range []net.Conn{client, node} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("Read() of a connection whose path is gone succeeded")
		}
	}
	if n := r.server.Stats(); n != (resume.Stats{}) || r.dials != dials {
		t.Errorf("Stats() = %+v after %d more dials, want nothing", n, r.dials-dials)
	}
}

func TestWindowEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, resume.ServerConfig{})
		client, node := r.connect()
		r.setDown(true)
		r.cut()
		began := time.Now()
		for end, c := range map[string]net.Conn{"client": client, "node": node} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, fault.ErrUnreachable) {
				t.Errorf("Read() at the %s = %v, want ErrUnreachable", end, err)
			}
			if _, err := c.Write([]byte("x")); !errors.Is(err, fault.ErrUnreachable) {
				t.Errorf("Write() at the %s = %v, want ErrUnreachable", end, err)
			}
		}
		if d := time.Since(began); d != resume.DefaultKeep {
			t.Errorf("ended after %s, want %s", d, resume.DefaultKeep)
		}
		if n := r.server.Stats(); n != (resume.Stats{}) {
			t.Errorf("Stats() = %+v, want nothing", n)
		}
		// It was tried often, but not all the time.
		if r.dials < 100 || r.dials > 400 {
			t.Errorf("dialled %d times in %s", r.dials, resume.DefaultKeep)
		}
	})
}

// A path that leads nowhere is noticed, by either end.
func TestDeadPathIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, resume.ServerConfig{})
		holes := make(chan *hole, 8)
		r.pair = func() (net.Conn, net.Conn) {
			a, b := memory()
			h := &hole{Conn: a, swallow: make(chan struct{})}
			holes <- h
			return h, b
		}
		client, node := r.connect()
		time.Sleep(time.Hour)
		if len(r.log()) != 0 {
			t.Fatalf("an idle connection was lost: %+v", r.log())
		}
		began := time.Now()
		close((<-holes).swallow)
		synctest.Wait()
		for len(r.log()) < 2 {
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(began); d > 31*time.Second {
			t.Errorf("noticed after %s", d)
		}
		exchange(t, client, node)
		_, _ = client.Close(), node.Close()
	})
}

// hole is a connection that at some time swallows everything and answers nothing.
type hole struct {
	net.Conn
	swallow chan struct{}
}

func (h *hole) Write(b []byte) (int, error) {
	select {
	case <-h.swallow:
		return len(b), nil
	default:
		return h.Conn.Write(b)
	}
}

func (h *hole) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	select {
	case <-h.swallow:
		if err == nil {
			return h.Read(b)
		}
	default:
	}
	return n, err
}

// Who has not logged in cannot fill the memory of a node that does not listen to it.
func TestEarlyBytesAreBounded(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	client, node := r.offer()
	go func() { _, _ = client.Write(make([]byte, resume.Window)) }()
	until(t, "something came", func() bool { return r.server.Stats().Held >= 64<<10 })
	// What is under way arrives, and more would.
	time.Sleep(50 * time.Millisecond)
	if held := r.server.Stats().Held; held > 192<<10 {
		t.Errorf("%d bytes are held for somebody unknown", held)
	}
	if n, err := io.ReadFull(node, make([]byte, resume.Window)); err != nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	_, _ = client.Close(), node.Close()
}

// An idle connection is small.
func TestIdleMemory(t *testing.T) {
	const n = 200
	r := newRig(t, resume.ServerConfig{})
	r.pair = func() (net.Conn, net.Conn) { return net.Pipe() }
	use := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := use()
	var conns []net.Conn
	for range n {
		client, node := r.connect()
		conns = append(conns, client, node)
	}
	until(t, "all is acknowledged", func() bool { return r.server.Stats().Held == 0 })
	if each := (use() - before) / (2 * n); each > 24<<10 {
		t.Errorf("an end of an idle connection takes %d bytes", each)
	} else {
		t.Logf("an end of an idle connection takes %d bytes", each)
	}
	for _, c := range conns {
		_ = c.Close()
	}
}
