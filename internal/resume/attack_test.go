package resume_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"teleport/internal/fault"
	"teleport/internal/resume"
)

// refusals are the errors of the node so far.
func (r *rig) refusals() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.refused...)
}

// attach plays a client that resumes: it says the line, then the proof, and returns
// what the node answered to the proof.
func attach(r *rig, first, proof []byte) string {
	nc, err := r.dial(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetDeadline(time.Now().Add(time.Second))
	_, _ = nc.Write(first)
	in := bufio.NewReader(nc)
	_, _ = in.ReadString('\n')
	nonce, err := in.ReadString('\n')
	if err != nil || strings.Contains(nonce, " gone") {
		return nonce
	}
	_, _ = nc.Write(proof)
	rest, _ := io.ReadAll(in)
	return string(rest)
}

// Only who has the secret resumes a connection, and only once with each proof.
func TestOnlyTheClientResumes(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	var said bytes.Buffer
	o, err := resume.NewOffer()
	if err != nil {
		t.Fatal(err)
	}
	nc, _ := r.dial(t.Context())
	_, _ = nc.Write(o.Line())
	cfg := r.config()
	cfg.Redial = dialTap(r, &said)
	c, err := o.Accept(nc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	client, node := c.(*resume.Conn), (<-r.nodes).(*resume.Conn)
	node.Keep(resume.Policy{})
	exchange(t, client, node)
	r.cut()
	exchange(t, client, node)

	// Somebody has seen all of it.
	line, rest, _ := strings.Cut(said.String(), "\r\n")
	words := strings.Split(line, " ")
	if len(words) != 5 || words[1] != "again" || len(rest) < 40 {
		t.Fatalf("the client said %q", line)
	}
	proof := []byte(rest[:40])
	other := make([]byte, 16)
	_, _ = rand.Read(other)
	forged := append(bytes.Clone(proof[:8]), make([]byte, 32)...)
	later := strings.Replace(line, " "+words[3]+" ", " 99 ", 1)
	for name, tt := range map[string]struct {
		line  string
		proof []byte
	}{
		"all_of_it_again":       {line, proof},
		"with_a_later_number":   {later, proof},
		"forged":                {later, forged},
		"of_another_connection": {strings.Replace(line, words[2], base64.RawURLEncoding.EncodeToString(other), 1), proof},
	} {
		if got := attach(r, []byte(tt.line+"\r\n"), tt.proof); got != "" && !strings.HasPrefix(got, "teleport-resume/1 gone") {
			t.Errorf("%s: the node answered %q", name, got)
		}
	}
	// The client's own path was not touched.
	before := len(r.log())
	exchange(t, client, node)
	if n := len(r.log()); n != before {
		t.Errorf("the connection was lost in between: %+v", r.log())
	}
	if n := len(r.refusals()); n != 4 {
		t.Errorf("%d refusals, want 4: %v", n, r.refusals())
	}
}

// A proof does not come true later: an attempt that was overtaken is refused.
func TestOvertakenAttempt(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	held := make(chan struct{})
	var once sync.Once
	r.pair = memory
	client, node := r.connect()
	var slow net.Conn
	r.pair = func() (net.Conn, net.Conn) {
		a, b := memory()
		once.Do(func() {
			slow = &holdSecond{Conn: a, release: held}
			a = slow
		})
		return a, b
	}
	r.cut()
	until(t, "the first attempt is under way", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return slow != nil })
	_ = slow.(*holdSecond).SetDeadline(time.Unix(1, 0)) // the client gives it up
	exchange(t, client, node)
	close(held)
	exchange(t, client, node)
	for _, err := range r.refusals() {
		if errors.Is(err, fault.ErrInvalid) {
			t.Errorf("refused with %v", err)
		}
	}
}

// holdSecond holds the second write back, the proof, and sends it after all.
type holdSecond struct {
	net.Conn
	release chan struct{}
	writes  int
}

func (h *holdSecond) Write(b []byte) (int, error) {
	if h.writes++; h.writes == 2 {
		go func() {
			<-h.release
			_ = h.SetDeadline(time.Time{})
			_, _ = h.Conn.Write(b)
		}()
		return len(b), nil
	}
	return h.Conn.Write(b)
}

func (h *holdSecond) Close() error {
	go func() {
		<-h.release
		time.Sleep(50 * time.Millisecond)
		_ = h.Conn.Close()
	}()
	return nil
}

func TestPolicy(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	asked := make(chan net.Addr, 8)
	r.policy = resume.Policy{User: "alice", Check: func(from net.Addr) error {
		asked <- from
		return fault.Denied("dismissed")
	}}
	client, node := r.connect()
	r.cut()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("Read() = %v, want ErrDenied", err)
	}
	if n := len(asked); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	if s := r.server.Stats(); s.Away != 1 {
		t.Errorf("Stats() = %+v: whether it ends is for the service to say", s)
	}
	_ = node.Close()
}

// A restarted node, and one that ended the connection, end it at the client at once.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, resume.ServerConfig{})
		client, node := r.connect()
		r.setDown(true)
		r.cut()
		time.Sleep(time.Second)
		_ = node.Close()
		r.setDown(false)
		began := time.Now()
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, fault.ErrUnreachable) || !strings.Contains(err.Error(), "started again") {
			t.Errorf("Read() = %v", err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("noticed after %s", d)
		}
		// An error of dialling that stays is one too.
		client, node = r.connect()
		defer func() { _ = node.Close() }()
		r.setDown(true)
		r.cut()
		time.Sleep(time.Second)
		_ = client.Close()
	})
}

func TestFinalError(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	o, _ := resume.NewOffer()
	nc, _ := r.dial(t.Context())
	_, _ = nc.Write(o.Line())
	cfg := r.config()
	cfg.Redial = func(context.Context) (net.Conn, error) { return nil, fault.Denied("locked") }
	cfg.Final = func(err error) bool { return errors.Is(err, fault.ErrDenied) }
	client, err := o.Accept(nc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	node := (<-r.nodes).(*resume.Conn)
	node.Keep(resume.Policy{})
	exchange(t, client, node)
	r.cut()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("Read() = %v, want the error of dialling", err)
	}
}

// Those that wait longest make room, of the user's own first.
func TestLimitsOfThoseAway(t *testing.T) {
	r := newRig(t, resume.ServerConfig{MaxAway: 3, MaxPerUser: 2})
	connect := func(user string) *resume.Conn {
		o, _ := resume.NewOffer()
		nc, _ := r.dial(t.Context())
		_, _ = nc.Write(o.Line())
		client, err := o.Accept(nc, resume.ClientConfig{Redial: func(context.Context) (net.Conn, error) { return nil, errDown }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		node := (<-r.nodes).(*resume.Conn)
		node.Keep(resume.Policy{User: user})
		exchange(t, client, node)
		r.cut()
		return node
	}
	var nodes []*resume.Conn
	for _, user := range []string{"alice", "bob", "alice"} {
		nodes = append(nodes, connect(user))
		until(t, "it is away", func() bool { return r.server.Stats().Away == len(nodes) })
	}
	nodes = append(nodes, connect("alice"))
	if _, err := nodes[0].Read(make([]byte, 1)); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("alice's oldest: %v, want ErrLimit", err)
	}
	three := func() bool { s := r.server.Stats(); return s.Open == 3 && s.Away == 3 }
	until(t, "three are left", three)
	connect("carol")
	if _, err := nodes[1].Read(make([]byte, 1)); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("the oldest of all: %v, want ErrLimit", err)
	}
	until(t, "three are left again", three)
}

// Plain SSH passes unchanged, whoever speaks first and in whatever pieces.
func TestPlainPasses(t *testing.T) {
	r := newRig(t, resume.ServerConfig{})
	for _, first := range []string{"SSH-2.0-OpenSSH_9.2\r\n", "telephone, please\r\n", "\x00\x01"} {
		nc, _ := r.dial(t.Context())
		in := bufio.NewReader(nc)
		if got, err := in.ReadString('\n'); got != greeting+"\r\n" {
			t.Fatalf("the node begins with %q, %v", got, err)
		}
		go func() {
			for _, b := range []byte(first + "more") {
				_, _ = nc.Write([]byte{b})
			}
		}()
		node := <-r.nodes
		got := make([]byte, len(first)+4)
		if _, err := io.ReadFull(node, got); string(got) != first+"more" {
			t.Errorf("the node got %q, %v", got, err)
		}
		// It begins with its identification, which was sent already.
		if _, err := node.Write([]byte(greeting + "\r\nkex")); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 3)
		if _, err := io.ReadFull(in, answer); string(answer) != "kex" {
			t.Errorf("the client got %q, %v", answer, err)
		}
		_, _ = nc.Close(), node.Close()
	}
}

// A node of before goes on with plain SSH on the same connection; one that takes
// offence is dialled again.
func TestNodesThatDoNotSpeakIt(t *testing.T) {
	for name, tt := range map[string]struct {
		says  string
		plain bool
		err   error
	}{
		"old_node":      {"SSH-2.0-Teleport\r\n", true, nil},
		"library":       {"SSH-2.0-Go\r\n", true, nil},
		"later_version": {greeting + "\r\nteleport-resume/1 refused\r\n", true, nil},
		"openssh":       {"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", false, resume.ErrNotOffered},
		"nonsense":      {greeting + "\r\nteleport-resume/1 what\r\n", false, fault.ErrInvalid},
		"bad_key":       {greeting + "\r\nteleport-resume/1 new AAAA\r\n", false, fault.ErrInvalid},
		"weak_key":      {greeting + "\r\nteleport-resume/1 new " + strings.Repeat("A", 43) + "\r\n", false, fault.ErrInvalid},
		"long_line":     {"SSH-2.0-" + strings.Repeat("x", 300) + "\r\n", false, fault.ErrInvalid},
		"silence":       {"", false, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := memory()
			o, err := resume.NewOffer()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = b.Write([]byte(tt.says + "rest"))
			if tt.says == "" {
				_ = b.Close()
				a, b = memory()
				_ = b.Close()
			}
			conn, err := o.Accept(a, resume.ClientConfig{})
			if !errors.Is(err, tt.err) {
				t.Fatalf("Accept() = %v, want %v", err, tt.err)
			}
			if !tt.plain {
				return
			}
			banner, _, _ := strings.Cut(tt.says, "\n")
			got := make([]byte, len(banner)+1+4)
			if _, err := io.ReadFull(conn, got); string(got) != banner+"\nrest" {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

// What a client may send in place of frames ends its path, and nothing else.
func TestBadFrames(t *testing.T) {
	frame := func(kind byte, size int, taken uint64, payload int) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(kind)<<24|uint32(size))
		return append(binary.BigEndian.AppendUint64(b, taken), make([]byte, payload)...)
	}
	for name, bad := range map[string][]byte{
		"unknown_kind":      frame(99, 0, 0, 0),
		"taken_too_much":    frame(2, 0, 1, 0),
		"empty_data":        frame(1, 0, 0, 0),
		"huge_data":         frame(1, 1<<24-1, 0, 0),
		"ping_with_payload": frame(3, 5, 0, 5),
		"keep_of_a_client":  frame(7, 4, 0, 4),
		"data_after_fin":    append(frame(5, 0, 0, 0), frame(1, 1, 0, 1)...),
		"too_much":          bytes.Repeat(frame(1, 60000, 0, 60000), resume.Window/60000+1),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, resume.ServerConfig{})
			o, _ := resume.NewOffer()
			nc, _ := r.dial(t.Context())
			_, _ = nc.Write(o.Line())
			in := bufio.NewReader(nc)
			_, _ = in.ReadString('\n')
			_, _ = in.ReadString('\n')
			node := (<-r.nodes).(*resume.Conn)
			go func() { _, _ = nc.Write(bad) }()
			if _, err := io.Copy(io.Discard, in); err != nil {
				t.Errorf("the path ended with %v", err)
			}
			until(t, "nothing is kept", func() bool { return r.server.Stats().Open == 0 })
			_ = node.Close()
			if held := r.server.Stats().Held; held != 0 {
				t.Errorf("%d bytes are held", held)
			}
		})
	}
}

// Whatever comes first, the node neither panics nor waits longer than it may.
func FuzzAccept(f *testing.F) {
	for _, s := range []string{
		"SSH-2.0-x\r\n", "teleport-resume/1 new\r\n", "teleport-resume/1 new " + strings.Repeat("B", 43) + "\r\n\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00x",
		"teleport-resume/2 new x\r\n", "teleport-resume/1 again AAAAAAAAAAAAAAAAAAAAAA 1 " + strings.Repeat("A", 43) + "\r\n", "t",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRig(t, resume.ServerConfig{Handshake: time.Second})
		nc, _ := r.dial(t.Context())
		go func() {
			_, _ = nc.Write(b)
			_ = nc.Close()
		}()
		go func() { _, _ = io.Copy(io.Discard, nc) }()
		done := make(chan struct{})
		go func() { r.work.Wait(); close(done) }()
		select {
		case node := <-r.nodes:
			_, _ = io.Copy(io.Discard, node)
			_ = node.Close()
			<-done
		case <-done:
		}
		if s := r.server.Stats(); s != (resume.Stats{}) {
			t.Errorf("Stats() = %+v, want nothing", s)
		}
	})
}

// A client believes no node more than it has to.
func FuzzClient(f *testing.F) {
	for _, s := range []string{
		greeting + "\r\nteleport-resume/1 new " + strings.Repeat("B", 43) + "\r\n\x07\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff",
		greeting + "\r\n", "SSH-2.0-Go\r\n", "\n\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, node := memory()
		go func() {
			_, _ = node.Write(b)
			_ = node.Close()
		}()
		go func() { _, _ = io.Copy(io.Discard, node) }()
		o, err := resume.NewOffer()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := o.Accept(a, resume.ClientConfig{
			Redial: func(context.Context) (net.Conn, error) { return nil, errDown },
			Final:  func(error) bool { return true },
		})
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, conn)
		if n > int64(len(b))+1 { // a line may get the end that SSH wants
			t.Errorf("%d bytes came out of %d", n, len(b))
		}
		_ = conn.Close()
	})
}
