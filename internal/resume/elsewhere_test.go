package resume_test

import (
	"errors"
	"io"
	"iter"
	"net"
	"strings"
	"testing"

	"teleport/internal/fault"
	"teleport/internal/resume"
)

// A client that comes back to another process of the node finds its connection through
// that one; the others that are asked do not have it.
func TestElsewhere(t *testing.T) {
	old, strange := newRig(t, resume.ServerConfig{}), newRig(t, resume.ServerConfig{})
	// ask passes a path on to a server, as a process does for another.
	ask := func(r *rig) net.Conn {
		a, b := memory()
		r.work.Go(func() {
			over, err := r.server.Resume(b)
			if err != nil {
				_ = b.Close()
				return
			}
			<-over
		})
		return a
	}
	recent := newRig(t, resume.ServerConfig{Elsewhere: func(net.Addr) iter.Seq[net.Conn] {
		return func(yield func(net.Conn) bool) { _ = yield(ask(strange)) && yield(ask(old)) }
	}})
	o, err := resume.NewOffer()
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := old.dial(t.Context())
	_, _ = nc.Write(o.Line())
	cfg := recent.config()
	conn, err := o.Accept(nc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	client, node := conn.(*resume.Conn), (<-old.nodes).(*resume.Conn)
	node.Keep(resume.Policy{})
	exchange(t, client, node)
	old.cut()
	exchange(t, client, node)
	recent.cut()
	exchange(t, client, node)
	// When nobody has it, it is over.
	_ = node.Close()
	recent.cut()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("Read() = %v, want that it ended", err)
	}
	recent.work.Wait()
	// Nothing but a connection from before is taken from another process.
	a, b := memory()
	_, _ = a.Write(o.Line())
	if over, err := old.server.Resume(b); !errors.Is(err, fault.ErrInvalid) || over != nil {
		t.Errorf("Resume() of a new connection = %v", err)
	}
	if _, err := a.Write([]byte(strings.Repeat("x", 1000))); err != nil {
		t.Fatal(err)
	}
	if _, err := old.server.Resume(b); err == nil {
		t.Error("Resume() of nonsense succeeded")
	}
}
