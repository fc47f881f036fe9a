package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
)

const (
	magicCookie  = "MIT-MAGIC-COOKIE-1"
	xauthTimeout = 10 * time.Second
	// setupTimeout bounds how long a program may take to show its cookie.
	setupTimeout = 30 * time.Second
	maxAuthPart  = 4096
)

// Display is a display of this machine that programs on a node may draw on. They get a
// cookie made for the connection, and what they say with it is given the true one.
type Display struct {
	network, addr string
	screen        uint32
	fake, real    []byte
	// until is when untrusted programs may no longer connect; zero is never.
	until time.Time
}

// OpenDisplay finds the display of $DISPLAY and its cookie. Trusted programs may do
// everything on it; others may connect within the timeout (0: without end), and the X
// server keeps them from reading what is not theirs.
func OpenDisplay(ctx context.Context, name string, trusted bool, timeout time.Duration) (*Display, error) {
	if name == "" {
		return nil, fault.Invalid("there is no display to forward: $DISPLAY is not set")
	}
	d, err := parseDisplay(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, xauthTimeout)
	defer cancel()
	if trusted {
		d.real, err = cookieOf(ctx, name)
	} else {
		d.real, err = untrustedCookie(ctx, name, timeout)
		if timeout > 0 {
			d.until = time.Now().Add(timeout)
		}
	}
	if err != nil {
		return nil, err
	}
	d.fake = make([]byte, max(len(d.real), 16))
	_, _ = rand.Read(d.fake)
	return d, nil
}

// parseDisplay reads [host]:number[.screen]; a path before the colon is a socket.
func parseDisplay(name string) (*Display, error) {
	bad := fault.Invalid("$DISPLAY is %q: expected [host]:number[.screen]", name)
	i := strings.LastIndexByte(name, ':')
	if i < 0 {
		return nil, bad
	}
	host := name[:i]
	number, screen, _ := strings.Cut(name[i+1:], ".")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n > 59535 {
		return nil, bad
	}
	d := &Display{}
	if screen != "" {
		s, err := strconv.ParseUint(screen, 10, 16)
		if err != nil {
			return nil, bad
		}
		d.screen = uint32(s)
	}
	switch {
	case strings.HasPrefix(host, "/"):
		d.network, d.addr = "unix", name[:i]
		if _, err := os.Stat(d.addr); err != nil {
			d.addr = name[:i+1+len(number)]
		}
	case host == "" || host == "unix":
		d.network, d.addr = "unix", "/tmp/.X11-unix/X"+number
	default:
		d.network, d.addr = "tcp", net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(6000+int(n)))
	}
	return d, nil
}

// cookieOf asks xauth for the display's cookie. Without one the X server asks for none.
func cookieOf(ctx context.Context, display string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "xauth", "list", xauthName(display)).Output()
	if err != nil {
		return nil, fault.Unsupported("xauth, which knows the cookie of your display, cannot be run: %w", err)
	}
	return parseCookie(out), nil
}

// untrustedCookie has the X server make a cookie for programs that it does not trust.
func untrustedCookie(ctx context.Context, display string, timeout time.Duration) ([]byte, error) {
	dir, err := os.MkdirTemp("", "tsh-x11-")
	if err != nil {
		return nil, fault.Invalid("make a directory for xauth: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "xauth")
	args := []string{"-f", file, "generate", xauthName(display), magicCookie, "untrusted"}
	if timeout > 0 {
		// A little longer, so that it is us who refuses.
		args = append(args, "timeout", strconv.Itoa(int((timeout + time.Minute).Seconds())))
	}
	failed := "the X server gives no cookie to programs that it should not trust: use -Y if you trust the server that you connect to"
	if err := exec.CommandContext(ctx, "xauth", args...).Run(); err != nil {
		return nil, fault.Unsupported("%s (xauth generate: %w)", failed, err)
	}
	out, err := exec.CommandContext(ctx, "xauth", "-f", file, "list").Output()
	if cookie := parseCookie(out); err == nil && cookie != nil {
		return cookie, nil
	}
	return nil, fault.Unsupported("%s", failed)
}

// xauthName is what xauth calls a display.
func xauthName(display string) string {
	if rest, ok := strings.CutPrefix(display, "localhost:"); ok {
		return "unix:" + rest
	}
	return display
}

// parseCookie reads the first line of xauth list: display, protocol, cookie.
func parseCookie(out []byte) []byte {
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[1] == magicCookie {
			if cookie, err := hex.DecodeString(f[2]); err == nil && len(cookie) > 0 && len(cookie) <= 128 {
				return cookie
			}
		}
	}
	return nil
}

// request is the payload of x11-req.
func (d *Display) request() []byte {
	return ssh.Marshal(struct {
		Single           bool
		Protocol, Cookie string
		Screen           uint32
	}{false, magicCookie, hex.EncodeToString(d.fake), d.screen})
}

// ForwardDisplay serves the node's programs that draw.
func (f *Forwarder) ForwardDisplay(d *Display) {
	f.accept("x11", func(ch ssh.Channel) {
		if err := d.serve(ch); err != nil {
			f.note("X11: " + err.Error())
		}
	})
}

// serve checks the cookie of one program and connects it with the display.
func (d *Display) serve(ch ssh.Channel) error {
	defer func() { _ = ch.Close() }()
	if !d.until.IsZero() && time.Now().After(d.until) {
		return fault.Denied("a program came after the time for untrusted ones was over: connect again")
	}
	limit := time.AfterFunc(setupTimeout, func() { _ = ch.Close() })
	setup, err := d.readSetup(ch)
	limit.Stop()
	if err != nil {
		return err
	}
	conn, err := net.Dial(d.network, d.addr)
	if err != nil {
		return fault.Unreachable("the display does not answer: %w", err)
	}
	if _, err := conn.Write(setup); err != nil {
		_ = conn.Close()
		return fault.Unreachable("the display does not answer: %w", err)
	}
	Splice(ch, conn)
	return nil
}

// readSetup reads the first message of the X protocol, whose cookie must be the one
// that was made up, and returns it with the true one.
func (d *Display) readSetup(r io.Reader) ([]byte, error) {
	var head [12]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fault.Invalid("a program ended before it said who it is")
	}
	var order binary.AppendByteOrder
	var get binary.ByteOrder
	switch head[0] {
	case 'B':
		order, get = binary.BigEndian, binary.BigEndian
	case 'l':
		order, get = binary.LittleEndian, binary.LittleEndian
	default:
		return nil, fault.Invalid("what came is not the X protocol")
	}
	nameLen, dataLen := int(get.Uint16(head[6:])), int(get.Uint16(head[8:]))
	if nameLen > maxAuthPart || dataLen > maxAuthPart {
		return nil, fault.Limit("a cookie of %d bytes", dataLen)
	}
	body := make([]byte, padded(nameLen)+padded(dataLen))
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fault.Invalid("a program ended before it said who it is")
	}
	name, cookie := body[:nameLen], body[padded(nameLen):][:dataLen]
	if string(name) != magicCookie || subtle.ConstantTimeCompare(cookie, d.fake) != 1 {
		return nil, fault.Denied("a program showed a wrong cookie")
	}
	out := bytes.Clone(head[:6])
	if d.real == nil {
		out = order.AppendUint16(order.AppendUint16(out, 0), 0)
		return append(out, head[10:]...), nil
	}
	out = order.AppendUint16(order.AppendUint16(out, uint16(nameLen)), uint16(len(d.real)))
	out = append(out, head[10:]...)
	out = append(out, body[:padded(nameLen)]...)
	out = append(out, d.real...)
	return append(out, make([]byte, padded(len(d.real))-len(d.real))...), nil
}

// padded is the next multiple of four.
func padded(n int) int { return (n + 3) &^ 3 }
