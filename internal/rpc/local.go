package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"teleport/internal/fault"
)

// maxSocketPath is the longest path that an address of a unix socket holds.
const maxSocketPath = 100

// ListenLocal makes the local socket of a service at path, for its own user only,
// and returns the listener for ServeLocal. A socket that nobody serves any longer
// is replaced; one that is served is fault.ErrExists.
func ListenLocal(ctx context.Context, path string) (net.Listener, error) {
	if conn, err := dialUnix(ctx, path); err == nil {
		_ = conn.Close()
		return nil, fault.Exists("local socket %s: another process serves it", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fault.Invalid("local socket %s: there is something else at this path: move it away", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("local socket: %w", err)
	}
	short, release, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer release()
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", short)
	if err != nil {
		return nil, fmt.Errorf("local socket %s: %w", path, err)
	}
	unixLn, ok := ln.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fault.Unsupported("local socket %s: no unix sockets here", path), ln.Close())
	}
	// The short path may be gone by the time the listener closes: what is left
	// behind is replaced at the next start.
	unixLn.SetUnlinkOnClose(short == path)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("local socket: %w", err), unixLn.Close())
	}
	return unixLn, nil
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	short, release, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer release()
	return (&net.Dialer{Timeout: dialTimeout, KeepAlive: -time.Second}).DialContext(ctx, "unix", short)
}

// shortPath returns a path to the same file that fits into an address: a long one
// goes by way of the open folder.
func shortPath(path string) (short string, release func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, fmt.Errorf("local socket: %w", err)
	}
	short = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	if _, err := os.Stat(filepath.Dir(short)); err != nil || len(short) > maxSocketPath {
		return "", nil, errors.Join(fault.Invalid("local socket %s: the path has %d bytes, at most %d are possible here: use a shorter data_dir", path, len(path), maxSocketPath), dir.Close())
	}
	return short, func() { _ = dir.Close() }, nil
}
