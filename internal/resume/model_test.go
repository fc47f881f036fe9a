package resume_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"teleport/internal/resume"
)

// fate is what becomes of one path.
type fate struct {
	// Life is how many bytes pass, both ways together, before it breaks.
	Life int
	// Piece is the size of the largest read, Delay the wait before each write.
	Piece int
	Delay time.Duration
	// Half says that the node does not notice: its end stays open and silent.
	Half bool
	// Hold is how long the bytes that resume a connection are held back: other paths
	// overtake this one.
	Hold time.Duration
}

// flaky is an end of a path with a fate.
type flaky struct {
	net.Conn
	fate
	left  *atomic.Int64
	cut   func()
	first sync.Once
}

func (f *flaky) spend(n int) error {
	if f.left.Add(-int64(n)) < 0 {
		f.cut()
		return io.ErrClosedPipe
	}
	return nil
}

func (f *flaky) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b[:min(len(b), f.Piece)])
	if err == nil {
		err = f.spend(n)
	}
	return n, err
}

func (f *flaky) Write(b []byte) (int, error) {
	f.first.Do(func() { time.Sleep(f.Hold) })
	time.Sleep(f.Delay)
	// A part of it may get through.
	if left := int(f.left.Load()); left < len(b) {
		n, _ := f.Conn.Write(b[:max(left, 0)])
		f.cut()
		return n, io.ErrClosedPipe
	}
	_ = f.spend(len(b))
	return f.Conn.Write(b)
}

// Whatever becomes of the paths, both streams arrive whole, once and in order.
func TestStreamsSurviveAnything(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		fates := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) fate {
			return fate{
				Life:  rapid.IntRange(0, 600_000).Draw(rt, "life"),
				Piece: rapid.SampledFrom([]int{1 << 16, 1 << 16, 1 << 16, 4096, 1000, 17}).Draw(rt, "piece"),
				Delay: time.Duration(rapid.IntRange(0, 20).Draw(rt, "delay")) * time.Millisecond,
				Half:  rapid.Bool().Draw(rt, "half"),
				Hold:  time.Duration(rapid.SampledFrom([]int{0, 0, 0, 1, 19, 25}).Draw(rt, "hold")) * time.Second,
			}
		}), 1, 12).Draw(rt, "fates")
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{1, 30, 100, 1023, 2048, 4100, 32_000, 100_000, 700_000}), 1, 20)
		up, down := sizes.Draw(rt, "up"), sizes.Draw(rt, "down")
		synctest.Test(t, func(t *testing.T) { runModel(t, fates, up, down) })
	})
}

func runModel(t *testing.T, fates []fate, up, down []int) {
	r := newRig(t, resume.ServerConfig{Keep: time.Hour})
	client, node := r.connect()
	next := 0
	r.pair = func() (net.Conn, net.Conn) {
		a, b := memory()
		if next >= len(fates) {
			return a, b
		}
		f := fates[next]
		next++
		left := &atomic.Int64{}
		left.Store(int64(f.Life))
		cut := func() {
			_ = a.Close()
			if !f.Half {
				_ = b.Close()
			}
		}
		return &flaky{Conn: a, fate: f, left: left, cut: cut}, &flaky{Conn: b, fate: f, left: left, cut: cut}
	}
	// The first path breaks in the middle of everything.
	time.AfterFunc(3*time.Millisecond, r.cut)
	var work sync.WaitGroup
	send := func(c *resume.Conn, sizes []int, seed byte) {
		source := rand.NewChaCha8([32]byte{seed})
		for i, n := range sizes {
			b := make([]byte, n)
			_, _ = source.Read(b)
			if _, err := c.Write(b); err != nil {
				t.Errorf("Write() = %v", err)
				return
			}
			time.Sleep(time.Duration(i%5) * time.Second)
		}
		if err := c.CloseWrite(); err != nil {
			t.Errorf("CloseWrite() = %v", err)
		}
	}
	receive := func(c *resume.Conn, sizes []int, seed byte) {
		total := 0
		for _, n := range sizes {
			total += n
		}
		want := make([]byte, 0, total)
		source := rand.NewChaCha8([32]byte{seed})
		for _, n := range sizes {
			b := make([]byte, n)
			_, _ = source.Read(b)
			want = append(want, b...)
		}
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, want) {
			at := 0
			for at < min(len(got), len(want)) && got[at] == want[at] {
				at++
			}
			t.Errorf("read %d bytes, %v, want %d; the first %d are right", len(got), err, len(want), at)
		}
	}
	work.Go(func() { send(client, up, 1) })
	work.Go(func() { send(node, down, 2) })
	work.Go(func() { receive(node, up, 1) })
	work.Go(func() { receive(client, down, 2) })
	work.Wait()
	_ = client.Close()
	_ = node.Close()
	r.cut()
	r.work.Wait()
	time.Sleep(time.Minute) // for what is held back on paths that are no more
	if s := r.server.Stats(); s != (resume.Stats{}) {
		t.Errorf("Stats() after the end = %+v, want nothing", s)
	}
}

// tap records what a client says on its paths.
type tap struct {
	net.Conn
	said *bytes.Buffer
}

func (c *tap) Write(b []byte) (int, error) {
	c.said.Write(b)
	return c.Conn.Write(b)
}

func dialTap(r *rig, said *bytes.Buffer) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := r.dial(ctx)
		if err != nil {
			return nil, err
		}
		return &tap{c, said}, nil
	}
}
