package sshd

import (
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Terminal is a pseudo terminal.
type Terminal struct {
	// Name is the path of the slave, e.g. /dev/pts/3.
	Name   string
	master *os.File
	slave  *os.File
	once   sync.Once
}

// openTerminal makes a terminal with the size and modes of the request. The slave
// is opened through the master, never by its path.
func openTerminal(req *ptyRequest) (*Terminal, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	t := &Terminal{master: os.NewFile(uintptr(fd), "/dev/ptmx")}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.close()
		return nil, fmt.Errorf("unlock terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.close()
		return nil, fmt.Errorf("number of terminal: %w", err)
	}
	t.Name = "/dev/pts/" + strconv.Itoa(n)
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, flags)
	peer := int(r)
	if errno != 0 {
		// Kernels before 4.13, and some sandboxes, lack that request.
		peer, err = unix.Open(t.Name, flags, 0)
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("open terminal %s: %w", t.Name, err)
	}
	t.slave = os.NewFile(uintptr(peer), t.Name)
	if err := setModes(peer, req.Modes); err != nil {
		t.close()
		return nil, fmt.Errorf("set terminal modes: %w", err)
	}
	if err := t.resize(req.Size); err != nil {
		t.close()
		return nil, fmt.Errorf("set terminal size: %w", err)
	}
	return t, nil
}

// control runs an ioctl on the master if it is still open.
func (t *Terminal) control(f func(fd int) error) error {
	rc, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func (t *Terminal) resize(s Size) error {
	return t.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{
			Row: uint16(s.Rows), Col: uint16(s.Columns), Xpixel: uint16(s.Width), Ypixel: uint16(s.Height),
		})
	})
}

// sendBreak sends a break on the line.
func (t *Terminal) sendBreak() error {
	return t.control(func(fd int) error { return unix.IoctlSetInt(fd, unix.TCSBRK, 0) })
}

// foreground is the process group in front, or 0.
func (t *Terminal) foreground() int {
	pgrp := 0
	_ = t.control(func(fd int) (err error) {
		pgrp, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	return max(pgrp, 0)
}

func (t *Terminal) close() {
	t.once.Do(func() {
		t.closeSlave()
		_ = t.master.Close()
	})
}

// closeSlave closes our copy: once the processes closed theirs, reading from the
// master ends.
func (t *Terminal) closeSlave() {
	if t.slave != nil {
		_ = t.slave.Close()
	}
}
