package ssh

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
	"teleport/internal/sshd"
)

const (
	// dialTimeout bounds connecting for a user, name resolution included.
	dialTimeout = 30 * time.Second
	// addressTimeout bounds one of several addresses.
	addressTimeout = 10 * time.Second
	listenBacklog  = 128
	// unixRetries is how often a socket whose queue is full is tried again.
	unixRetries = 20
	unixPause   = 50 * time.Millisecond
)

// dialTarget connects as the user.
func dialTarget(ctx context.Context, cred *syscall.Credential, to sshd.Target) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if to.Unix() {
		return dialUnix(ctx, cred, to.Path)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", to.Host)
	if err != nil {
		return nil, fault.Unreachable("cannot resolve %s", to.Host)
	}
	// As everywhere: first what the resolver prefers.
	var first error
	for _, addr := range addrs {
		conn, err := dialTCP(ctx, cred, netip.AddrPortFrom(addr.Unmap(), to.Port))
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		return nil, fault.Unreachable("%s has no address", to.Host)
	}
	return nil, fault.Unreachable("cannot connect to %s: %w", to, first)
}

// dialTCP connects to one address: the socket is the user's, waiting is done here.
func dialTCP(ctx context.Context, cred *syscall.Credential, addr netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, addressTimeout)
	defer cancel()
	if cred == nil || cred.Uid == 0 {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr.String())
	}
	domain, to := sockaddr(addr)
	file, err := newSocket(cred, domain, func(fd int) error {
		if err := unix.Connect(fd, to); err != nil && !isErrno(err, unix.EINPROGRESS) {
			return os.NewSyscallError("connect", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := awaitConnect(ctx, file); err != nil {
		_ = file.Close()
		return nil, err
	}
	return connectionOf(file)
}

// awaitConnect waits for the end of a connect that is under way.
func awaitConnect(ctx context.Context, file *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = file.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = rc.Write(func(fd uintptr) bool {
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(polled, 0); err != nil || n == 0 {
			return false
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = syscall.Errno(code)
		}
		if err != nil {
			result = os.NewSyscallError("connect", err)
		}
		return true
	})
	if err != nil {
		return fault.Unreachable("no answer within %s", addressTimeout)
	}
	return result
}

func sockaddr(addr netip.AddrPort) (domain int, sa unix.Sockaddr) {
	if addr.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
}

// dialUnix connects to a socket by what its path is when it is opened, and not
// through links that lead into this process.
func dialUnix(ctx context.Context, cred *syscall.Credential, name string) (net.Conn, error) {
	for try := 0; ; try++ {
		file, err := newSocket(cred, unix.AF_UNIX, func(fd int) error {
			at, err := openHere(name, unix.O_PATH, 0)
			if err != nil {
				return err
			}
			defer func() { _ = at.Close() }()
			return pathError("connect", name, unix.Connect(fd, &unix.SockaddrUnix{Name: link(at)}))
		})
		switch {
		case err == nil:
			return connectionOf(file)
		case !isErrno(err, unix.EAGAIN) || try == unixRetries:
			return nil, fault.Unreachable("cannot connect: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(unixPause):
		}
	}
}

// listenTarget opens a listener as the user. Ports are opened on the loopback
// addresses only, whatever form of "everywhere" or "here" is asked for: other hosts
// reach nothing through this one that its administrator did not open.
func listenTarget(cred *syscall.Credential, at sshd.Target) (net.Listener, error) {
	if at.Unix() {
		return listenUnix(cred, at.Path)
	}
	everywhere := []string{"", "*", "localhost", "0.0.0.0", "::"}
	addr, err := netip.ParseAddr(at.Host)
	switch {
	case slices.Contains(everywhere, at.Host):
		return listenBoth(cred, at.Port)
	case err != nil || !addr.IsLoopback():
		return nil, fault.Denied("%q is not a loopback address: ports of this host are only opened on localhost", at.Host)
	}
	return listenTCP(cred, netip.AddrPortFrom(addr, at.Port))
}

func listenTCP(cred *syscall.Credential, addr netip.AddrPort) (net.Listener, error) {
	domain, sa := sockaddr(addr)
	file, err := newSocket(cred, domain, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if domain == unix.AF_INET6 {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		if err := unix.Bind(fd, sa); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return os.NewSyscallError("listen", unix.Listen(fd, listenBacklog))
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return listenerOf(file)
}

// listenBoth opens a port on both loopback addresses; hosts without the second have
// the first.
func listenBoth(cred *syscall.Credential, port uint16) (net.Listener, error) {
	four, err := listenTCP(cred, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
	if err != nil {
		return nil, err
	}
	tcp, ok := four.Addr().(*net.TCPAddr)
	if !ok {
		return four, nil
	}
	six, err := listenTCP(cred, netip.AddrPortFrom(netip.IPv6Loopback(), uint16(tcp.Port)))
	if err != nil {
		return four, nil //nolint:nilerr // there is no IPv6, or the port is somebody else's there
	}
	return newPair(four, six), nil
}

// pair is two listeners as one.
type pair struct {
	one, two net.Listener
	conns    chan accepted
	done     chan struct{}
	once     sync.Once
	loops    sync.WaitGroup
}

type accepted struct {
	conn net.Conn
	err  error
}

func newPair(one, two net.Listener) *pair {
	p := &pair{one: one, two: two, conns: make(chan accepted), done: make(chan struct{})}
	for _, ln := range []net.Listener{one, two} {
		p.loops.Go(func() { p.loop(ln) })
	}
	return p
}

func (p *pair) loop(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		select {
		case p.conns <- accepted{conn, err}:
		case <-p.done:
			if conn != nil {
				_ = conn.Close()
			}
			return
		}
		if err != nil {
			return
		}
	}
}

// Accept returns the next connection to either.
func (p *pair) Accept() (net.Conn, error) {
	select {
	case a := <-p.conns:
		return a.conn, a.err
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close closes both.
func (p *pair) Close() error {
	err := net.ErrClosed
	p.once.Do(func() {
		close(p.done)
		_ = p.one.Close()
		err = p.two.Close()
		p.loops.Wait()
	})
	return err
}

// Addr is the first's.
func (p *pair) Addr() net.Addr { return p.one.Addr() }

// unixListener removes its socket, and nothing that has taken its place.
type unixListener struct {
	net.Listener
	cred *syscall.Credential
	path string
	// dir is removed too, if it is not empty.
	dir      string
	dev, ino uint64
	once     sync.Once
}

// listenUnix opens a socket that only the user and root may connect to. What is there
// already is left alone.
func listenUnix(cred *syscall.Credential, name string) (*unixListener, error) {
	l := &unixListener{cred: cred, path: name}
	file, err := newSocket(cred, unix.AF_UNIX, func(fd int) error {
		dir, err := openHere(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		short := link(dir) + "/" + path.Base(name)
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: short}); err != nil {
			return pathError("bind", name, err)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), path.Base(name), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("stat", name, err)
		}
		l.dev, l.ino = st.Dev, st.Ino
		// Nobody is listened to before this.
		if err := unix.Fchmodat(int(dir.Fd()), path.Base(name), 0o600, 0); err != nil {
			return pathError("chmod", name, err)
		}
		return os.NewSyscallError("listen", unix.Listen(fd, listenBacklog))
	})
	if err != nil {
		l.remove()
		return nil, err
	}
	if l.Listener, err = listenerOf(file); err != nil {
		l.remove()
		return nil, err
	}
	return l, nil
}

// Close ends the listener and removes its socket.
func (l *unixListener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		err = l.Listener.Close()
		l.remove()
	})
	return err
}

func (l *unixListener) remove() {
	if l.ino == 0 {
		return
	}
	_ = actAs(l.cred, func() error {
		dir, err := openHere(path.Dir(l.path), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		var st unix.Stat_t
		base := path.Base(l.path)
		if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Dev != l.dev || st.Ino != l.ino {
			return err
		}
		if err := unix.Unlinkat(int(dir.Fd()), base, 0); err != nil || l.dir == "" {
			return err
		}
		return unix.Rmdir(l.dir)
	})
}

// listenPrivate opens a socket in a directory of its own that only the user can look
// into.
func listenPrivate(cred *syscall.Credential, name string) (*unixListener, error) {
	dir := path.Join(os.TempDir(), "ssh-"+rand.Text()[:16])
	if err := actAs(cred, func() error { return pathError("mkdir", dir, unix.Mkdir(dir, 0o700)) }); err != nil {
		return nil, err
	}
	l, err := listenUnix(cred, path.Join(dir, name+"."+strconv.Itoa(os.Getpid())))
	if err != nil {
		_ = actAs(cred, func() error { return unix.Rmdir(dir) })
		return nil, err
	}
	l.dir = dir
	return l, nil
}
