package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"teleport/internal/fault"
)

const (
	// maxLocal is how many connections a local proxy carries at the same time.
	maxLocal = 4096
	// refusalTime bounds telling a program why it is not served.
	refusalTime = 5 * time.Second
)

// LocalProxy leads what programs on this machine send to its listener to one resource.
type LocalProxy struct {
	// Dial connects to the resource.
	Dial func(ctx context.Context) (net.Conn, error)
	// Refuse tells a program that connected, in the words of its protocol, why it is
	// not served; see Refusal. Nil only closes the connection.
	Refuse func(conn net.Conn, err error)
	// Note tells the user something in one line.
	Note func(string)

	notes notes
}

// Serve leads connections on until ctx ends or the listener fails; then it closes what
// is open and waits for it. That ctx ends is no error.
func (p *LocalProxy) Serve(ctx context.Context, ln net.Listener) error {
	var open sync.WaitGroup
	defer open.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	slots := make(chan struct{}, maxLocal)
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case temporary(err):
			p.notes.tell(p.Note, "too many files are open on this machine: connections have to wait")
			if !sleep(ctx, 100*time.Millisecond) {
				return nil
			}
			continue
		case err != nil:
			return fault.Unreachable("listen on %s: %w", ln.Addr(), err)
		}
		select {
		case slots <- struct{}{}:
		default:
			p.notes.tell(p.Note, "a connection was refused: "+strconv.Itoa(maxLocal)+" are open, which is the most")
			_ = conn.Close()
			continue
		}
		open.Go(func() {
			defer func() { <-slots }()
			p.carry(ctx, conn)
		})
	}
}

// carry leads one connection on.
func (p *LocalProxy) carry(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	peer, err := p.Dial(ctx)
	if err != nil {
		if ctx.Err() == nil {
			p.notes.tell(p.Note, err.Error())
			if p.Refuse != nil && conn.SetDeadline(time.Now().Add(refusalTime)) == nil {
				p.Refuse(conn, err)
			}
		}
		_ = conn.Close()
		return
	}
	defer context.AfterFunc(ctx, func() { _ = peer.Close() })()
	Splice(conn, peer)
}

// temporary reports whether an error of Accept goes by.
func temporary(err error) bool {
	var e interface{ Temporary() bool }
	return errors.As(err, &e) && e.Temporary()
}

// sleep waits and reports whether ctx is still there.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// noteInterval is how long the same note is not told again: programs try again and
// again, often many times a second.
const noteInterval = 10 * time.Second

// notes keeps the same thing from being told over and over.
type notes struct {
	mu   sync.Mutex
	last string
	at   time.Time
}

func (n *notes) tell(to func(string), text string) {
	if to == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if text == n.last && now.Sub(n.at) < noteInterval {
		return
	}
	n.last, n.at = text, now
	to(text)
}

// Listener is where a local proxy listens.
type Listener struct {
	net.Listener
	// Shown is how people write it: host:port, or the path of a Unix socket.
	Shown string
	// Host and Port are empty for a socket, Path for anything else.
	Host string
	Port uint16
	Path string
}

// ListenLocal listens on unix:/path, or on host:port. Other machines cannot reach it
// unless anywhere says that they may.
func ListenLocal(addr string, anywhere bool) (*Listener, error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return listenSocket(path)
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fault.Invalid("%q: expected host:port or unix:/path", addr)
	}
	if _, err := strconv.ParseUint(portText, 10, 16); err != nil {
		return nil, fault.Invalid("%q: %q is not a port", addr, portText)
	}
	ip := net.ParseIP(host)
	if host == "localhost" {
		ip = net.IPv4(127, 0, 0, 1)
	}
	switch {
	case host == "" && anywhere:
		ip = net.IPv6unspecified
	case ip == nil:
		return nil, fault.Invalid("%q: expected the address of this machine, such as 127.0.0.1", addr)
	case !ip.IsLoopback() && !anywhere:
		return nil, fault.Invalid("%q: whoever can reach this address could use the resource in your name, without a password: "+
			"listen on 127.0.0.1, or give --insecure-listen-anywhere", addr)
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(ip.String(), portText))
	if err != nil {
		return nil, fault.Invalid("cannot listen on %s: %w", addr, err)
	}
	at := ln.Addr().(*net.TCPAddr)
	return &Listener{Listener: ln, Shown: at.String(), Host: at.IP.String(), Port: uint16(at.Port)}, nil
}

// listenSocket listens on a socket that only this user can open. One that a program
// left behind is replaced; one that is in use, or a file, is not.
func listenSocket(path string) (*Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, fault.Invalid("unix:%s: expected an absolute path", path)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fault.Exists("%s is there and is no socket: give another path", path)
		}
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = conn.Close()
			return nil, fault.Exists("a program listens on %s: end it, or give another path", path)
		}
		_ = os.Remove(path)
	}
	listeners, err := listenHere(Endpoint{Path: path})
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: listeners[0], Shown: path, Path: path}, nil
}

const (
	// The ports of local proxies lie below those that systems hand out by themselves
	// (from 32768) and that Kubernetes gives to services (from 30000).
	firstLocalPort = 20000
	localPorts     = 10000
	// portTries is how many ports are tried for a resource that has none yet.
	portTries = 100
)

// portOf returns the port that a resource has if nothing is in the way: the same on
// every machine.
func portOf(key string) uint16 {
	sum := sha256.Sum256([]byte(key))
	return firstLocalPort + uint16((uint32(sum[0])<<16|uint32(sum[1])<<8|uint32(sum[2]))%localPorts)
}
