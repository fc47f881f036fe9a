// Package pam has PAM sessions held for the SSH Service. PAM's modules are libraries of
// the C library, which this program is linked without, so a small program does it:
// teleport-pam (cmd/teleport-pam), which stands beside teleport. One is started for each
// session and lives as long as it. The package starts it and speaks with it; what PAM is
// asked, and what is made of its answers, is for others.
//
// The two speak through a socket pair, of which teleport-pam has descriptor 3. A message
// is a length of four bytes and a text. The first one is the request (see Request); then
//
//	teleport-pam                          teleport
//	X code stage asked text  refused      G    run the program
//	P pid  the program waits, as the user S n  signal n to the program and its group
//	O      the session is open, or good
//	E kind value  the program ended
//	F errno       it could not be started
//
// The end of file from teleport closes the session, and hangs up what still runs. Until
// then a program that has ended stays a zombie, so that nobody else has its number.
package pam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

const (
	// Program is the name of the file.
	Program = "teleport-pam"
	// libraryDir is where packages put it.
	libraryDir = "/usr/lib/teleport"
	// protocol is the number that cmd/teleport-pam has too.
	protocol     = "1"
	probeTimeout = 10 * time.Second
	// highFile keeps the number of a file from being one that a child gets.
	highFile = 100
)

// Find returns the path of teleport-pam for the program at self: it stands beside it, or
// where packages put it.
func Find(self string) (string, error) {
	places := []string{filepath.Join(filepath.Dir(self), Program), filepath.Join(libraryDir, Program)}
	for _, path := range places {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fault.NotFound("%s is neither in %s nor in %s: install it there, of the same release as this program", Program, filepath.Dir(self), libraryDir)
}

// Helper is teleport-pam as it was when it was opened: an upgrade that puts another file
// there does not change what this process speaks with.
type Helper struct{ file *os.File }

// Open opens teleport-pam and makes sure that it can be run, that it is of this release,
// and that nobody else can change it.
func Open(ctx context.Context, path string) (*Helper, error) {
	if os.Geteuid() != 0 {
		return nil, fault.Denied("PAM sessions can be opened by root only")
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, highFile)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	h := &Helper{os.NewFile(uintptr(high), path)}
	if err := h.check(ctx); err != nil {
		_ = h.Close()
		return nil, err
	}
	return h, nil
}

func (h *Helper) check(ctx context.Context) error {
	info, err := h.file.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	const others = 0o022
	switch {
	case !ok || !info.Mode().IsRegular():
		return fault.Invalid("%s is no program", h.file.Name())
	case info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0:
		return fault.Denied("%s must not be setuid or setgid: chmod 0755 it", h.file.Name())
	case st.Uid != 0 || info.Mode()&others != 0:
		return fault.Denied("%s runs as root and can be changed by others: make it root's (chown root, chmod 0755)", h.file.Name())
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.path(), "--protocol")
	cmd.Env = []string{}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out[:min(len(out), maxReport)]))
	switch {
	case err != nil && text != "":
		return fault.Unsupported("%s cannot be run (is libpam installed?): %s", h.file.Name(), text)
	case err != nil:
		return fault.Unsupported("%s cannot be run: %w", h.file.Name(), err)
	case text != Program+" "+protocol:
		return fault.Unsupported("%s is of another release than this program: install the one that came with it", h.file.Name())
	}
	return nil
}

// path leads to the very file that was opened.
func (h *Helper) path() string { return fmt.Sprintf("/proc/self/fd/%d", h.file.Fd()) }

// Close closes the file. What was started goes on.
func (h *Helper) Close() error { return h.file.Close() }

// CheckService makes sure that PAM is configured for the service: without that it goes by
// the service "other", which most often lets nobody in.
func CheckService(name string) error {
	places := []string{"/etc/pam.d/" + name, "/usr/etc/pam.d/" + name, "/usr/lib/pam.d/" + name}
	if _, err := os.Stat("/etc/pam.d"); err != nil {
		places = append(places, "/etc/pam.conf") // where there is the directory it is not read
	}
	for _, path := range places {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return fault.NotFound("there is no /etc/pam.d/%s: make it, or name another service", name)
}

// mode is what teleport-pam is to do.
type mode byte

const (
	modeRun   mode = 's'
	modeHold  mode = 'h'
	modeCheck mode = 'c'
)

// Request is what PAM is asked, and what is run in the session.
type Request struct {
	Service, User string
	// TTY is the terminal; RemoteHost and RemoteUser are where the user comes from, and
	// who that is there.
	TTY, RemoteHost, RemoteUser string
	// Authenticate asks for pam_authenticate too; Terminal says that standard input,
	// output and error are a terminal, on which modules may ask.
	Authenticate, Terminal bool
	// Credential is whom the program runs as.
	Credential *syscall.Credential
	// Env is the program's environment; what modules set goes over it. Shared is for
	// modules and for the program, Hidden for modules only.
	Env, Shared, Hidden []string
	Dir, Path           string
	Args                []string
	// Started is called with the number of the program's process before it runs; an error
	// keeps it from running. It may be nil.
	Started func(pid int) error
}

// maxRequest is what teleport-pam reads at most.
const maxRequest = 4 << 20

// encode returns the request as records: a letter, a text, a zero byte.
func (r *Request) encode(m mode) ([]byte, error) {
	b := bytes.NewBuffer(make([]byte, 4))
	var bad error
	put := func(letter byte, texts ...string) {
		for _, text := range texts {
			if strings.IndexByte(text, 0) >= 0 {
				bad = fault.Invalid("a zero byte in what PAM is asked")
			}
			b.WriteByte(letter)
			b.WriteString(text)
			b.WriteByte(0)
		}
	}
	put('v', protocol)
	put('m', string(rune(m)))
	put('S', r.Service)
	put('U', r.User)
	put('t', r.TTY)
	put('r', r.RemoteHost)
	put('R', r.RemoteUser)
	put('E', r.Shared...)
	put('H', r.Hidden...)
	if r.Authenticate {
		put('a', "")
	}
	if m != modeCheck {
		put('u', id(r.Credential.Uid))
		put('g', id(r.Credential.Gid))
		for _, g := range r.Credential.Groups {
			put('G', id(g))
		}
	}
	if m == modeRun {
		if r.Terminal {
			put('i', "")
		}
		put('d', r.Dir)
		put('p', r.Path)
		put('A', r.Args...)
		put('e', r.Env...)
	}
	if n := b.Len() - 4; n > maxRequest {
		return nil, fault.Limit("what is to be run is of %d bytes, no more than %d may be", n, maxRequest)
	}
	return framed(b.Bytes()), bad
}

func id(n uint32) string { return fmt.Sprint(n) }

// framed fills in the length that b has room for at its beginning.
func framed(b []byte) []byte {
	n := uint32(len(b) - 4)
	b[0], b[1], b[2], b[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	return b
}
