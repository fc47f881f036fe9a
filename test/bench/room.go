package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideVar tells the program that it runs in the room already.
const insideVar = "TELEPORT_BENCH_INSIDE"

// startupFiles are what shells read from the home of whom a session runs as. Both
// sides would pay for what is in them, and the ratios would be about that.
var startupFiles = [...]string{".bashrc", ".bash_profile", ".bash_login", ".profile", ".zshenv", ".zshrc", ".zprofile"}

// withRoom runs the program again as root in namespaces of its own: a loopback whose
// TCP settings are nobody else's, and a home without startup files. Nothing on the
// machine changes, and there is nothing to put back. It reports whether it did.
func withRoom(ctx context.Context) (bool, error) {
	if os.Getuid() != 0 || os.Getenv(insideVar) != "" {
		return false, nil
	}
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Start(); errors.Is(err, unix.EPERM) {
		return false, nil // a container that does not allow it
	} else if err != nil {
		return false, err
	}
	return true, cmd.Wait()
}

// furnish prepares the room from within and says how it is.
func furnish(dir, congestion string) ([]string, error) {
	if os.Getenv(insideVar) == "" {
		return []string{
			"TCP congestion control: " + inForce() + ", as it is set on this machine",
			"Startup files of the login's shell: read, on both sides (only root can do without)",
		}, nil
	}
	if err := loopbackUp(); err != nil {
		return nil, fmt.Errorf("loopback: %w", err)
	}
	outside := inForce()
	if congestion != "" {
		if err := os.WriteFile(congestionFile, []byte(congestion), 0o644); err != nil {
			return nil, fmt.Errorf("-congestion: %w", err)
		}
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		return nil, err
	}
	for _, name := range startupFiles {
		err := unix.Mount(empty, filepath.Join(me.HomeDir, name), "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("hide ~/%s: %w", name, err)
		}
	}
	return []string{
		"TCP congestion control: " + inForce() + " (" + outside + " by default), for both sides, in a network namespace",
		"Startup files of the login's shell: hidden from both sides",
	}, nil
}

const congestionFile = "/proc/sys/net/ipv4/tcp_congestion_control"

// inForce returns the TCP congestion control of this namespace.
func inForce() string {
	text, err := os.ReadFile(congestionFile)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// untilSignal is a context that ends with Ctrl-C.
func untilSignal() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
}

// loopbackAddress gives the loopback interface another address.
func loopbackAddress(addr string) error {
	if out, err := exec.Command("ip", "address", "add", addr+"/32", "dev", "lo").CombinedOutput(); err != nil {
		return fmt.Errorf("ip address add %s: %w: %s", addr, err, out)
	}
	return nil
}
