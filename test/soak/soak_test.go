// Package soak runs a cluster of real processes under load while they are killed at
// random with SIGKILL, and keeps a ledger of everything that the cluster
// acknowledged. When the killing is over everything has to serve again without help,
// and nothing in the ledger may be missing: not from the store, not from the audit
// log, not from the lines on disk.
//
// It is part of every test run, for seconds; `make soak` runs it for as long as one
// likes. TELEPORT_BIN names a folder with teleport, tctl and tsh to run instead of
// building them.
package soak

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"teleport/test/cluster"
	"teleport/test/e2e/ownhome"
)

var (
	duration = flag.Duration("soak", 10*time.Second, "how long to kill services under load")
	agents   = flag.Int("agents", 2, "how many agents serve")
	seed     = flag.Uint64("seed", 0, "seed of what is killed when (default: the time)")
)

// binaries is the folder of the programs under test.
var binaries string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(ownhome.Run(func() int { return run(m) }))
}

func run(m *testing.M) int {
	if binaries = os.Getenv("TELEPORT_BIN"); binaries != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "teleport-soak")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir, "teleport/cmd/teleport", "teleport/cmd/tctl", "teleport/cmd/tsh")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	binaries = dir
	return m.Run()
}

// world is the cluster under test.
type world struct {
	*cluster.Cluster
	t      *testing.T
	ledger *ledger
	// authFile is the configuration that tctl reads.
	authFile string
	pin      string
	services []*service
}

// tctl runs tctl on Auth's host.
func (w *world) tctl(ctx context.Context, args ...string) (string, error) {
	return w.tool(ctx, w.Home(), "tctl", append([]string{"-c", w.authFile}, args...)...)
}

// tool runs a program with a profile folder and gives up after a while.
func (w *world) tool(ctx context.Context, home, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.Tool(name), args...)
	cmd.Env = append(os.Environ(), "TELEPORT_HOME="+home)
	// One that hangs says where.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGABRT) }
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// newWorld starts Auth, Proxy and agents, each a process, and makes a user.
func newWorld(t *testing.T) *world {
	t.Helper()
	ctx := t.Context()
	c, err := cluster.New(cluster.Config{Bin: binaries, Name: "soak", User: "alice"})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs and data are kept in %s", keep(c))
		}
		c.Close()
	})
	w := &world{Cluster: c, t: t, ledger: newLedger()}
	auth, err := c.Launch(ctx, cluster.Services{Name: "auth", Auth: true})
	must(t, err)
	w.authFile = c.Path("auth.yaml")
	w.services = append(w.services, &service{name: "auth", daemon: auth})
	invitation, err := c.Token(ctx, "node,proxy", time.Hour)
	must(t, err)
	w.pin = invitation.Pin
	proxy, err := c.Launch(ctx, cluster.Services{Name: "proxy", Proxy: true, Direct: true, Join: invitation})
	must(t, err)
	w.services = append(w.services, &service{name: "proxy", daemon: proxy})
	for i := range *agents {
		name := fmt.Sprintf("agent-%d", i)
		agent, err := c.Launch(ctx, cluster.Services{Name: name, SSH: true, Join: invitation})
		must(t, err)
		w.services = append(w.services, &service{name: name, daemon: agent})
	}
	must(t, c.Invite(ctx))
	for i := range *agents {
		must(t, c.WaitListed(ctx, fmt.Sprintf("agent-%d", i), 20*time.Second))
	}
	return w
}

// keep copies what the cluster left on disk out of the way of its cleaning up.
func keep(c *cluster.Cluster) string {
	dir := fmt.Sprintf("%s-failed", c.Dir)
	if out, err := exec.Command("cp", "-a", c.Dir, dir).CombinedOutput(); err != nil {
		return fmt.Sprintf("%s, but for %s", dir, out)
	}
	return dir
}

func TestSoak(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), *duration)
	defer cancel()
	var wg sync.WaitGroup
	for _, work := range []func(context.Context, int){w.makeTokens, w.join, w.invite, w.changeRole, w.session, w.session} {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				work(ctx, n)
				pause(ctx, 50*time.Millisecond)
			}
		})
	}
	wg.Go(func() { w.chaos(ctx) })
	wg.Wait()

	w.recover()
	w.compare()
	// What was acknowledged is not only in memory.
	w.restartAll()
	w.compare()
	w.checkDisk()
	t.Log(w.ledger.summary(w.services))
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
