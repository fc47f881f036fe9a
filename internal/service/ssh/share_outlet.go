package ssh

import (
	"bytes"
	"io"
	"sync"
	"time"
)

const (
	// outletSize bounds what is kept for somebody who does not take it yet.
	outletSize = 64 << 10
	// piece is how much is written at a time: whoever takes one is not stuck.
	piece = 4 << 10
	// ownerPatience is how long the owner of a session may take nothing before the
	// others do not wait any longer.
	ownerPatience = 5 * time.Second
	// parting is how long somebody has to take the last words.
	parting = 2 * time.Second
)

// outlet carries a session's output to one of those who see it. It holds a bounded
// amount; who falls further behind misses output, and is told and shown the present
// screen when they take it again.
type outlet struct {
	mu      sync.Mutex
	changed *sync.Cond
	queue   []byte
	// pieces counts those that were taken.
	pieces int
	// behind says that output was dropped.
	behind bool
	closed bool
	done   chan struct{}
}

func newOutlet() *outlet {
	o := &outlet{done: make(chan struct{})}
	o.changed = sync.NewCond(&o.mu)
	return o
}

// put adds p, or drops it and what was there if that is too much. It never waits.
func (o *outlet) put(p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.putLocked(p)
}

func (o *outlet) putLocked(p []byte) {
	switch {
	case o.closed || o.behind:
		return
	case len(o.queue)+len(p) > outletSize:
		o.queue, o.behind = nil, true
	default:
		o.queue = append(o.queue, p...)
	}
	o.changed.Broadcast()
}

// putPatiently adds p when there is room. It waits as long as something is taken now
// and then, and drops p like put does after nothing was for the time.
func (o *outlet) putPatiently(p []byte, patience time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.closed && !o.behind && len(o.queue) > 0 && len(o.queue)+len(p) > outletSize {
		before, expired := o.pieces, false
		timer := time.AfterFunc(patience, func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			expired = true
			o.changed.Broadcast()
		})
		for !expired && !o.closed && o.pieces == before {
			o.changed.Wait()
		}
		timer.Stop()
		if o.pieces == before {
			break
		}
	}
	o.putLocked(p)
}

// resume goes on with text after output was dropped.
func (o *outlet) resume(text []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue, o.behind = text, false
}

// run writes until the outlet is closed and empty, or writing fails. When output was
// dropped, resync is called, which calls resume.
func (o *outlet) run(w io.Writer, resync func()) {
	defer close(o.done)
	for {
		o.mu.Lock()
		for len(o.queue) == 0 && !o.behind && !o.closed {
			o.changed.Wait()
		}
		if len(o.queue) == 0 && o.closed {
			o.mu.Unlock()
			return
		}
		if o.behind {
			o.mu.Unlock()
			resync()
			continue
		}
		out := o.queue
		o.queue = nil
		o.mu.Unlock()
		for len(out) > 0 {
			n := min(len(out), piece)
			if _, err := w.Write(out[:n]); err != nil {
				o.close()
				return
			}
			out = out[n:]
			if !o.taken() {
				break
			}
		}
	}
}

// taken counts a piece and reports whether the rest is still wanted.
func (o *outlet) taken() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pieces++
	o.changed.Broadcast()
	return !o.behind
}

// close takes nothing more. What was dropped stays dropped.
func (o *outlet) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.behind {
		o.queue, o.behind = nil, false
	}
	o.changed.Broadcast()
}

// flush closes the outlet and waits until everything was taken, for a time.
func (o *outlet) flush(patience time.Duration) {
	o.close()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-o.done:
	case <-limit.C:
	}
}

// pastSize is how much of the output somebody who joins is shown at least, if there was
// so much.
const pastSize = 8 << 10

// past is the end of what a terminal showed.
type past struct {
	buf []byte
	// full says that a program has the whole screen (the alternate one).
	full bool
}

func (h *past) add(p []byte) {
	seam := append(bytes.Clone(h.buf[max(0, len(h.buf)-8):]), p[:min(len(p), 8)]...)
	h.full = fullScreen(p, fullScreen(seam, h.full))
	if len(h.buf)+len(p) > 2*pastSize {
		if len(p) >= pastSize {
			h.buf = append(h.buf[:0], p[len(p)-pastSize:]...)
			return
		}
		h.buf = append(h.buf[:0], h.buf[len(h.buf)-(pastSize-len(p)):]...)
	}
	h.buf = append(h.buf, p...)
}

// fullScreen returns whether a program that wrote p has the whole screen, if it had it
// before or not.
func fullScreen(p []byte, before bool) bool {
	for {
		i := bytes.IndexByte(p, 0x1b)
		if i < 0 {
			return before
		}
		p = p[i:]
		for _, mode := range []string{"\x1b[?1049", "\x1b[?1047", "\x1b[?47"} {
			if n := len(mode); len(p) > n && string(p[:n]) == mode && (p[n] == 'h' || p[n] == 'l') {
				before = p[n] == 'h'
			}
		}
		p = p[1:]
	}
}

// screen returns what brings a terminal near to what others see. A program that has the
// whole screen is to draw it again.
func (h *past) screen() []byte {
	if h.full {
		return []byte("\x1b[?1049h\x1b[0m\x1b[H\x1b[2J")
	}
	shown := h.buf
	if len(shown) > pastSize {
		shown = shown[len(shown)-pastSize:]
	}
	if len(shown) < len(h.buf) || len(h.buf) >= pastSize {
		// Not in the middle of a line, or of a sequence that a terminal acts on.
		if i := bytes.IndexByte(shown, '\n'); i >= 0 {
			shown = shown[i+1:]
		}
	}
	return append([]byte("\x1b[0m"), shown...)
}

// leave returns what gives a terminal back to whoever had it before.
func (h *past) leave() []byte {
	if h.full {
		return []byte("\x1b[?1049l\x1b[?25h\x1b[0m")
	}
	return []byte("\x1b[0m")
}

// typingSize bounds what people typed that the terminal did not take yet.
const typingSize = 4 << 10

// typing carries what people who joined type to the terminal.
type typing struct {
	mu      sync.Mutex
	changed *sync.Cond
	queue   []byte
	closed  bool
}

func newTyping() *typing {
	t := &typing{}
	t.changed = sync.NewCond(&t.mu)
	return t
}

// put adds p when there is room, unless it is closed or gone reports true.
func (t *typing) put(p []byte, gone func() bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for !t.closed && !gone() && len(t.queue)+len(p) > typingSize && len(t.queue) > 0 {
		t.changed.Wait()
	}
	if t.closed || gone() {
		return
	}
	t.queue = append(t.queue, p...)
	t.changed.Broadcast()
}

// wake has those who wait look again.
func (t *typing) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed.Broadcast()
}

func (t *typing) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.changed.Broadcast()
}

// run types until typing is closed or the terminal is. What comes while open reports
// false is dropped.
func (t *typing) run(terminal io.Writer, open func() bool) {
	for {
		t.mu.Lock()
		for len(t.queue) == 0 && !t.closed {
			t.changed.Wait()
		}
		if t.closed {
			t.mu.Unlock()
			return
		}
		p := t.queue
		t.queue = nil
		t.changed.Broadcast()
		t.mu.Unlock()
		if !open() {
			continue
		}
		if _, err := terminal.Write(p); err != nil {
			t.close()
			return
		}
	}
}
