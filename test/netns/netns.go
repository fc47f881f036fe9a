// Package netns runs a test in a network of its own, where it may have any address:
// that of a cloud's metadata service, or port 443 of a name that belongs to somebody
// else. Nothing in there reaches the network of the machine. The test becomes root of
// a user namespace where it is not root already.
package netns

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// marker is the variable by which the second run knows that it is one; its value is
// the name of the test. hostsFile is the variable with the file for /etc/hosts.
const (
	marker    = "TELEPORT_TEST_NETNS"
	hostsFile = "TELEPORT_TEST_NETNS_HOSTS"
)

// Network is what the test finds in there, besides 127.0.0.1.
type Network struct {
	// Addresses of the loopback interface, such as "169.254.169.254".
	Addresses []string
	// Hosts are names and their addresses, in place of /etc/hosts.
	Hosts map[string]string
}

// Run runs f in the network, by running this one test again in a process of its own.
// It is the only thing that the test does, and the test is none of another.
func Run(t *testing.T, n Network, f func(t *testing.T)) {
	t.Helper()
	if os.Getenv(marker) == t.Name() {
		n.enter(t)
		f(t)
		return
	}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n")
	for name, address := range n.Hosts {
		hosts.WriteString(address + " " + name + "\n")
	}
	file := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(file, []byte(hosts.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	// The child ends with the thread that made it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), marker+"="+t.Name(), hostsFile+"="+file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Fatalf("in a network of its own: %v\n%s", err, out)
	}
	if testing.Verbose() {
		t.Logf("in a network of its own:\n%s", out)
	}
}

// enter makes the network, from within.
func (n Network) enter(t *testing.T) {
	t.Helper()
	if err := syscall.Mount(os.Getenv(hostsFile), "/etc/hosts", "", syscall.MS_BIND, ""); err != nil {
		t.Fatalf("own /etc/hosts: %v", err)
	}
	ip := func(args ...string) {
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	ip("link", "set", "lo", "up")
	for _, address := range n.Addresses {
		ip("address", "add", address, "dev", "lo")
	}
}
