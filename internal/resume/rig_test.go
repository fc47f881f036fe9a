package resume_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"teleport/internal/resume"
)

const greeting = "SSH-2.0-Teleport " + resume.Mark

// rig is a node, and a network to it on which paths can be cut.
type rig struct {
	t      testing.TB
	server *resume.Server
	policy resume.Policy
	// pair makes the two ends of a path; it is memory unless a test says otherwise.
	pair func() (client, node net.Conn)

	mu    sync.Mutex
	paths []*cable
	dials int
	// down makes dialling fail.
	down   bool
	events []resume.Event
	// refused are the errors of the node.
	refused []error

	nodes chan net.Conn
	work  sync.WaitGroup
}

// memory returns a connection in memory that takes some bytes before anybody reads.
func memory() (client, node net.Conn) {
	ln := bufconn.Listen(32 << 10)
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := ln.Accept()
		accepted <- c
	}()
	client, err := ln.Dial()
	if err != nil {
		panic(err)
	}
	return client, <-accepted
}

// cable is the client's end of a path, with the node's end in sight.
type cable struct {
	net.Conn
	node net.Conn
}

func (c *cable) cut() {
	_ = c.Close()
	_ = c.node.Close()
}

func newRig(t testing.TB, cfg resume.ServerConfig) *rig {
	t.Helper()
	cfg.Greeting = greeting
	s, err := resume.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, server: s, nodes: make(chan net.Conn, 64), pair: memory}
}

// dial opens a path, whose other end the node handles.
func (r *rig) dial(context.Context) (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dials++
	if r.down {
		return nil, errDown
	}
	client, node := r.pair()
	c := &cable{client, node}
	r.paths = append(r.paths, c)
	r.work.Go(func() {
		conn, over, err := r.server.Accept(node)
		switch {
		case err != nil:
			r.mu.Lock()
			r.refused = append(r.refused, err)
			r.mu.Unlock()
			_ = node.Close()
		case conn == nil:
			<-over
		default:
			r.nodes <- conn
		}
	})
	return c, nil
}

var errDown = errors.New("the network is down")

func (r *rig) notify(e resume.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *rig) config() resume.ClientConfig {
	return resume.ClientConfig{Redial: r.dial, Notify: r.notify}
}

// offer connects with an offer and returns both ends.
func (r *rig) offer() (client, node net.Conn) {
	r.t.Helper()
	o, err := resume.NewOffer()
	if err != nil {
		r.t.Fatal(err)
	}
	nc, err := r.dial(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.work.Go(func() { _, _ = nc.Write(o.Line()) })
	client, err = o.Accept(nc, r.config())
	if err != nil {
		r.t.Fatal(err)
	}
	return client, <-r.nodes
}

// connect returns both ends of a connection that is kept.
func (r *rig) connect() (client, node *resume.Conn) {
	r.t.Helper()
	c, n := r.offer()
	client, node = c.(*resume.Conn), n.(*resume.Conn)
	node.Keep(r.policy)
	exchange(r.t, client, node)
	return client, node
}

// exchange sends something both ways.
func exchange(t testing.TB, a, b net.Conn) {
	t.Helper()
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		want := []byte("hello")
		if _, err := pair[0].Write(want); err != nil {
			t.Fatalf("Write() = %v", err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(pair[1], got); err != nil || !slices.Equal(got, want) {
			t.Fatalf("read %q, %v, want %q", got, err, want)
		}
	}
}

// cut ends all paths.
func (r *rig) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.paths {
		p.cut()
	}
	r.paths = nil
}

func (r *rig) setDown(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

func (r *rig) log() []resume.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// until waits for something to become true.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 20 s", what)
		}
	}
}
