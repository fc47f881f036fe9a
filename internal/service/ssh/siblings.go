package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
	"teleport/internal/mux"
)

// After an upgrade without a restart two processes of one host serve: the old one
// keeps what is open. A client that comes back may reach either, so each passes on what
// is the other's, through a socket in a directory that only they can enter.

const (
	siblingSocket = "resume-*.sock"
	// maxSiblings bounds how many are asked: as many upgrades as there are sessions that
	// were there before.
	maxSiblings    = 16
	siblingTimeout = 5 * time.Second
	// maxSiblingAddr bounds the line that says who the client is.
	maxSiblingAddr = 128
)

// serveSiblings takes the connections that other processes pass on, until ctx ends.
func (s *Service) serveSiblings(ctx context.Context) {
	path := s.siblingPath()
	ln, err := listenSibling(path)
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "connections cannot be resumed after an upgrade", "error", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	_ = mux.Accept(ctx, ln, s.cfg.Log, func(nc net.Conn) {
		conns.Go(func() {
			defer nc.Close()
			if err := s.serveSibling(ctx, nc); err != nil {
				s.cfg.Log.DebugContext(ctx, "connection of another process not served", "error", err)
			}
		})
	})
}

// siblingPath is the socket of this process.
func (s *Service) siblingPath() string {
	return filepath.Join(s.cfg.Siblings, fmt.Sprintf("resume-%d.sock", os.Getpid()))
}

// listenSibling listens on a socket that belongs to this user alone.
func listenSibling(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}

// serveSibling handles one connection: a line with the address of the client, then
// what the client said; or somebody who joins a session.
func (s *Service) serveSibling(ctx context.Context, nc net.Conn) error {
	if err := ownProcess(nc); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	if err := nc.SetDeadline(time.Now().Add(siblingTimeout)); err != nil {
		return err
	}
	first, err := firstOf(nc)
	if err != nil {
		return err
	}
	if strings.HasPrefix(first, joinVerb) {
		return s.serveJoin(ctx, nc, first)
	}
	//nolint:contextcheck // the connection outlives the call, and ends by Close
	over, err := s.arrivals.resume.Resume(fromClient(nc, first))
	if err != nil {
		return err
	}
	s.cfg.Log.InfoContext(ctx, "ssh connection resumed through another process", "remote", first)
	<-over
	return nil
}

// firstOf reads the first line, and not a byte more: an address, or somebody who joins.
func firstOf(nc net.Conn) (string, error) {
	var line []byte
	for one := make([]byte, 1); ; line = append(line, one[0]) {
		_, err := io.ReadFull(nc, one)
		switch {
		case err != nil:
			return "", fault.Invalid("another process did not say who the client is: %w", err)
		case one[0] == '\n':
			return string(line), nil
		case len(line) > maxJoinLine, len(line) > maxSiblingAddr && !bytes.HasPrefix(line, []byte(joinVerb)):
			return "", fault.Limit("another process said too much")
		}
	}
}

// ownProcess refuses a connection that is not from a process of this user.
func ownProcess(nc net.Conn) error {
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return fault.Invalid("a connection of another process is through a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if peerErr != nil || peer.Uid != uint32(os.Geteuid()) {
		return fault.Denied("a process of another user")
	}
	return nil
}

// siblings opens connections to the other processes of this host, one after the other,
// for a client at the address that comes back.
func (s *Service) siblings(from net.Addr) iter.Seq[net.Conn] {
	return s.dialSiblings(from.String() + "\n")
}

// dialSiblings opens connections to the other processes of this host, one after the
// other, and says the first line.
func (s *Service) dialSiblings(first string) iter.Seq[net.Conn] {
	return func(yield func(net.Conn) bool) {
		if s.cfg.Siblings == "" {
			return
		}
		paths, err := filepath.Glob(filepath.Join(s.cfg.Siblings, siblingSocket))
		if err != nil {
			return
		}
		for i, path := range paths {
			if path == s.siblingPath() || i > maxSiblings {
				continue
			}
			nc, err := net.DialTimeout("unix", path, siblingTimeout)
			if err != nil {
				if errors.Is(err, unix.ECONNREFUSED) {
					_ = os.Remove(path) // of a process that was killed
				}
				continue
			}
			_ = nc.SetDeadline(time.Now().Add(siblingTimeout))
			if _, err := io.WriteString(nc, first); err != nil {
				_ = nc.Close()
				continue
			}
			if !yield(nc) {
				return
			}
		}
	}
}
