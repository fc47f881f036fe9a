package ssh

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loginBook are the files of login records; those that do not exist are not made.
type loginBook struct {
	utmp, wtmp, lastlog string

	// mu keeps the sessions of this process apart, the lock of the file others.
	mu sync.Mutex
}

func systemBook() *loginBook {
	return &loginBook{utmp: "/var/run/utmp", wtmp: "/var/log/wtmp", lastlog: "/var/log/lastlog"}
}

// Types of utmp records.
const (
	userProcess = 7
	deadProcess = 8
)

// loginRecord is a login as who(1), w(1) and last(1) know it. All of it is best
// effort: these files belong to the system, not to us.
type loginRecord struct {
	book *loginBook
	pid  int
	tty  string
	user string
	host string
	ip   netip.Addr
}

// begin writes the login into utmp, wtmp and lastlog.
func (b *loginBook) begin(pid int, tty string, a *account, remote net.Addr) *loginRecord {
	host, _ := hostPort(remote)
	ip, _ := netip.ParseAddr(host)
	l := &loginRecord{book: b, pid: pid, tty: strings.TrimPrefix(tty, "/dev/"), user: a.name, host: host, ip: ip}
	now := time.Now()
	rec := l.utmp(userProcess, now)
	b.mu.Lock()
	defer b.mu.Unlock()
	putUtmp(b.utmp, rec)
	appendTo(b.wtmp, rec)
	putLastlog(b.lastlog, a.uid, l.lastlog(now))
	return l
}

// end writes the logout.
func (l *loginRecord) end() {
	if l == nil {
		return
	}
	out := loginRecord{pid: l.pid, tty: l.tty}
	rec := out.utmp(deadProcess, time.Now())
	l.book.mu.Lock()
	defer l.book.mu.Unlock()
	putUtmp(l.book.utmp, rec)
	appendTo(l.book.wtmp, rec)
}

// Offsets inside struct utmp of the C library.
const (
	utLine = 8
	utID   = 40
	utUser = 44
	utHost = 76
	utExit = 332
	utSid  = 336
)

// wideUtmp reports whether session and time are 64 bits wide here: they are where
// there never was a 32-bit C library to stay compatible with.
func wideUtmp() bool {
	return runtime.GOARCH == "arm64" || runtime.GOARCH == "riscv64" || runtime.GOARCH == "loong64"
}

func utmpSize() int {
	if wideUtmp() {
		return 400
	}
	return 384
}

// utmp returns the record in the form of the C library.
func (l *loginRecord) utmp(kind int16, now time.Time) []byte {
	b := make([]byte, utmpSize())
	e := binary.NativeEndian
	e.PutUint16(b, uint16(kind))
	e.PutUint32(b[4:], uint32(l.pid))
	copy(b[utLine:utID], l.tty)
	copy(b[utID:utUser], l.id())
	copy(b[utUser:utHost], l.user)
	copy(b[utHost:utExit], l.host)
	addr := utSid + 12
	if wideUtmp() {
		addr = utSid + 24
		e.PutUint64(b[utSid:], uint64(l.pid))
		e.PutUint64(b[utSid+8:], uint64(now.Unix()))
		e.PutUint64(b[utSid+16:], uint64(now.Nanosecond()/1000))
	} else {
		e.PutUint32(b[utSid:], uint32(l.pid))
		e.PutUint32(b[utSid+4:], uint32(now.Unix()))
		e.PutUint32(b[utSid+8:], uint32(now.Nanosecond()/1000))
	}
	if ip := l.ip.Unmap(); ip.IsValid() {
		copy(b[addr:], ip.AsSlice())
	}
	return b
}

// id is what tells the records of terminals apart: the end of the name.
func (l *loginRecord) id() string {
	name := strings.TrimPrefix(strings.TrimPrefix(l.tty, "pts"), "tty")
	return name[max(0, len(name)-4):]
}

// lastlog returns the record of lastlog(8).
func (l *loginRecord) lastlog(now time.Time) []byte {
	b := make([]byte, 4+32+256)
	binary.NativeEndian.PutUint32(b, uint32(now.Unix()))
	copy(b[4:36], l.tty)
	copy(b[36:], l.host)
	return b
}

// putUtmp replaces the record of the same terminal or adds one.
func putUtmp(path string, rec []byte) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	if !lock(f) {
		return
	}
	at, ok := findUtmp(f, rec)
	if !ok {
		return
	}
	_, _ = f.WriteAt(rec, at)
}

// maxUtmp bounds how much of the file is looked through.
const maxUtmp = 4 << 20

// findUtmp returns where the record of the same terminal is, or the end.
func findUtmp(f io.ReaderAt, rec []byte) (int64, bool) {
	old := make([]byte, len(rec))
	for at := int64(0); at < maxUtmp; at += int64(len(rec)) {
		n, err := f.ReadAt(old, at)
		if n < len(old) {
			return at, err == io.EOF
		}
		kind := binary.NativeEndian.Uint16(old)
		if kind >= 5 && kind <= deadProcess && string(old[utID:utUser]) == string(rec[utID:utUser]) {
			return at, true
		}
	}
	return 0, false
}

func appendTo(path string, rec []byte) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	if lock(f) {
		_, _ = f.Write(rec)
	}
}

// putLastlog writes the record at the place of the user id.
func putLastlog(path string, uid uint32, rec []byte) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	_, _ = f.WriteAt(rec, int64(uid)*int64(len(rec)))
}

// lock takes the lock that the C library takes. Whoever may read the file can hold
// it for ever, so it is not waited for long.
func lock(f *os.File) bool {
	rc, err := f.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	_ = rc.Control(func(fd uintptr) {
		l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
		ok = unix.FcntlFlock(fd, unix.F_OFD_SETLK, &l) == nil
	})
	return ok
}
