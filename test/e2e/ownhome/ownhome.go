// Package ownhome gives tests that run as root an empty home directory. Sessions of
// the SSH Service are login sessions: they run what stands in the home directory that
// /etc/passwd names, and what stands in the real one of root is slow, or waits for
// locks that a killed session left behind. It is for the tests that run the built
// programs; without root, or where the system does not allow it, nothing changes.
package ownhome

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// marker is the variable by which the second run knows that it is one; its value is
// the folder with the changed file and the new home.
const marker = "TELEPORT_TEST_OWN_HOME"

// Run runs the tests in a mount namespace where root's home directory is an empty one,
// by running this program again there, and returns the exit code.
func Run(tests func() int) int {
	if dir := os.Getenv(marker); dir != "" {
		if err := syscall.Mount(filepath.Join(dir, "passwd"), "/etc/passwd", "", syscall.MS_BIND, ""); err != nil {
			fmt.Fprintln(os.Stderr, "root keeps its home directory:", err)
		}
		return tests()
	}
	if os.Geteuid() != 0 {
		return tests()
	}
	dir, err := prepare()
	if err != nil {
		fmt.Fprintln(os.Stderr, "root keeps its home directory:", err)
		return tests()
	}
	defer os.RemoveAll(dir)
	code, err := again(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "root keeps its home directory:", err)
		return tests()
	}
	return code
}

// prepare makes the folder.
func prepare() (string, error) {
	dir, err := os.MkdirTemp("", "teleport-root-")
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return "", err
	}
	lines := strings.SplitAfter(string(text), "\n")
	for i, line := range lines {
		if fields := strings.Split(line, ":"); len(fields) == 7 && fields[0] == "root" {
			fields[5] = filepath.Join(dir, "root")
			lines[i] = strings.Join(fields, ":")
		}
	}
	return dir, errors.Join(os.Mkdir(filepath.Join(dir, "root"), 0o700),
		os.WriteFile(filepath.Join(dir, "passwd"), []byte(strings.Join(lines, "")), 0o644))
}

// again runs this program again in a namespace of its own.
func again(dir string) (int, error) {
	// The child ends with the thread that made it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), marker+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	}
	return 0, err
}
