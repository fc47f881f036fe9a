package tunnel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/tunnel"
	"teleport/internal/types"
)

// held returns both ends of a connection through a tunnel.
func held(t *testing.T) (atProxy, atAgent net.Conn) {
	t.Helper()
	got, release := make(chan net.Conn), make(chan struct{})
	_, p, a := pair(t, func(cfg *tunnel.AgentConfig) {
		cfg.Handle = func(_ context.Context, conn net.Conn, _ tunnel.Request) {
			got <- conn
			<-release
		}
	})
	t.Cleanup(func() { close(release) })
	atProxy = p.dial(t, a.id)
	return atProxy, <-got
}

func roundTrip(t *testing.T, a, b net.Conn) {
	t.Helper()
	if _, err := a.Write([]byte("ping")); err != nil {
		t.Fatalf("Write() = %v", err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(b, buf); err != nil || string(buf) != "ping" {
		t.Fatalf("read %q, %v", buf, err)
	}
}

func TestReadDeadline(t *testing.T) {
	a, b := held(t)
	for range 3 {
		_ = a.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := a.Read(make([]byte, 10)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Read() = %d, %v, want a timeout", n, err)
		}
	}
	_ = a.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := a.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Read() with a past deadline = %v, want a timeout", err)
	}
	// Nothing is lost: what came meanwhile is read afterwards, also without deadline.
	if _, err := b.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	_ = a.SetReadDeadline(time.Time{})
	buf := make([]byte, 4)
	for i := range buf {
		if _, err := io.ReadFull(a, buf[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if string(buf) != "late" {
		t.Errorf("read %q, want late", buf)
	}
	_ = a.SetDeadline(time.Now().Add(time.Minute))
	roundTrip(t, b, a)
	_ = a.SetDeadline(time.Time{})
	roundTrip(t, b, a)
	roundTrip(t, a, b)
}

func TestReadDeadlineMovedWhileReading(t *testing.T) {
	a, _ := held(t)
	_ = a.SetReadDeadline(time.Now().Add(time.Hour))
	got := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		got <- err
	}()
	until(t, "read stopped", func() bool {
		_ = a.SetReadDeadline(time.Now().Add(time.Millisecond))
		select {
		case err := <-got:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read() = %v, want a timeout", err)
			}
			return true
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
}

func TestDeadlineDuringPlainReadEndsConnection(t *testing.T) {
	a, b := held(t)
	ended := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(b)
		ended <- err
	}()
	stopped := make(chan error, 1)
	go func() {
		for {
			_, err := a.Read(make([]byte, 1))
			select {
			case stopped <- err: // the newest reason
			case <-stopped:
				stopped <- err
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
		}
	}()
	until(t, "a plain read hit by a deadline, and the end at the other side", func() bool {
		_ = a.SetReadDeadline(time.Time{})
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("other end: %v, want the end", err)
			}
			return true
		case <-time.After(5 * time.Millisecond): // time for a read to begin
		}
		_ = a.SetReadDeadline(time.Now().Add(-time.Second))
		return false
	})
	if err := <-stopped; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read() = %v, want a timeout", err)
	}
	_ = a.Close()
}

func TestWriteDeadline(t *testing.T) {
	a, _ := held(t)
	_ = a.SetWriteDeadline(time.Now().Add(-time.Second))
	if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Write() with a past deadline = %v, want a timeout", err)
	}
	// Nobody reads: the window fills up.
	big := make([]byte, 16<<20)
	_ = a.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := a.Write(big); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Write() = %v, want a timeout", err)
	}
	_ = a.SetWriteDeadline(time.Time{})
	if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write() after a broken one = %v, want the timeout again", err)
	}
}

func TestCloseEndsReads(t *testing.T) {
	for _, tt := range []struct {
		name     string
		deadline time.Time
	}{{"plain", time.Time{}}, {"with_deadline", time.Now().Add(time.Hour)}} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := held(t)
			_ = a.SetDeadline(tt.deadline)
			got := make(chan error, 1)
			go func() {
				_, err := a.Read(make([]byte, 1))
				got <- err
			}()
			_ = a.Close()
			if err := <-got; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read() = %v, want net.ErrClosed", err)
			}
			if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write() = %v, want net.ErrClosed", err)
			}
			if err := a.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("SetDeadline() = %v, want net.ErrClosed", err)
			}
			if err := a.Close(); err != nil {
				t.Errorf("second Close() = %v", err)
			}
			if _, err := io.ReadAll(b); err != nil {
				t.Errorf("other end: %v, want the end", err)
			}
		})
	}
}

func TestHalfClose(t *testing.T) {
	a, b := held(t)
	if err := a.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); err != nil || len(got) != 0 {
		t.Fatalf("read %q, %v, want the end", got, err)
	}
	roundTrip(t, b, a)
}

// An SSH server inside the tunnel can bound its handshake with a deadline.
func TestSSHHandshakeDeadlineInside(t *testing.T) {
	c := newCluster(t)
	_, hostKey := c.host(t, "0b9d0e9a-8d5b-4b53-9b3c-0f0e0c0a0908", types.RoleNode, 0, types.RoleNode)
	_, b := held(t)
	cfg := &ssh.ServerConfig{NoClientAuth: true}
	cfg.AddHostKey(hostKey)
	_ = b.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, _, _, err := ssh.NewServerConn(b, cfg); err == nil {
		t.Error("handshake with a silent client succeeded")
	}
}
