// Command bench measures the built binaries against what a person would use
// instead, on this machine: OpenSSH through a bastion (ProxyJump) and behind a
// reverse tunnel (ssh -R). Both sides are measured alternately in one run; it
// prints medians and ratios with the goals of the project and writes docs/bench.md.
// A goal that is missed is said and is no error. `make bench` builds and runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"teleport/test/cluster"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == meterArg {
		os.Exit(meterMain(os.Args[2:]))
	}
	if len(os.Args) > 2 && os.Args[1] == crowdArg {
		if err := crowdMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := untilSignal()
	defer stop()
	done, err := withRoom(ctx)
	if err == nil && !done {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	var inner *exec.ExitError
	if errors.As(err, &inner) {
		os.Exit(1) // it said why
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	bin, out, only, congestion string
	spire, chisel, frp         string
	ways, loads                string
	rounds, paced, agents      int
	crowd                      int
	sessions, sizeMiB          int
	period, idle               time.Duration
}

// bench is one run.
type bench struct {
	options
	dir    string
	report *report
	// world is the cluster that most sections use, peer the OpenSSH beside it.
	world *world
	peer  *openSSH
	// vouchers say what machines are.
	vouchers *vouchers
}

// section is one part of the run.
type section struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

func sections() []section {
	return []section{
		{"latency", latency},
		{"start", startTimes},
		{"memory", footprint},
		{"tunnels", tunnels},
		{"joins", joins},
		{"crowd", crowd},
		{"sessions", sessions},
		{"bulk", bulk},
		{"databases", databases},
		{"apps", apps},
	}
}

func parse(args []string) (options, error) {
	var o options
	names := make([]string, 0, len(sections()))
	for _, s := range sections() {
		names = append(names, s.name)
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.bin, "bin", "build", "folder of teleport, tctl and tsh")
	f.StringVar(&o.out, "o", "docs/bench.md", "file to put the figures into, between its marks; empty: none")
	f.StringVar(&o.only, "only", "", "sections to run, comma-separated, of "+strings.Join(names, ", ")+"; then nothing is written")
	f.StringVar(&o.congestion, "congestion", "cubic", "TCP congestion control during the run, as root; empty: the default")
	f.StringVar(&o.spire, "spire", "", "path of spire-server, to be measured beside; empty: none")
	f.StringVar(&o.chisel, "chisel", "", "path of chisel, to be measured beside; empty: none")
	f.StringVar(&o.frp, "frp", "", "folder of frps and frpc, to be measured beside; empty: none")
	f.StringVar(&o.loads, "loads", "", "of databases and apps only the loads whose name contains this; then goals are not held against the figures")
	f.StringVar(&o.ways, "ways", "", "of databases and apps, besides the first, only the ways whose name contains this; then goals are not held against the figures")
	f.IntVar(&o.rounds, "rounds", 15, "measurements of each way; medians are of these")
	f.IntVar(&o.paced, "paced", 1000, "connections at 10 a second")
	f.IntVar(&o.agents, "agents", 500, "idle tunnels")
	f.IntVar(&o.sessions, "sessions", 100, "idle sessions")
	f.IntVar(&o.crowd, "crowd", 1000, "machines a second that join beside others")
	f.IntVar(&o.sizeMiB, "size", 256, "MiB of a copy")
	f.DurationVar(&o.period, "period", 5*time.Second, "how long a rate is measured")
	f.DurationVar(&o.idle, "idle", 10*time.Second, "how long a process idles before its memory is read")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for name := range strings.SplitSeq(o.only, ",") {
		if name != "" && !slices.Contains(names, name) {
			return o, fmt.Errorf("-only: no section %q, only %s", name, strings.Join(names, ", "))
		}
	}
	if min(o.rounds, o.paced, o.agents, o.crowd, o.sessions, o.sizeMiB) < 1 {
		return o, errors.New("every count must be at least 1")
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "teleport-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	room, err := furnish(dir, o.congestion)
	if err != nil {
		return err
	}
	b := &bench{options: o, dir: dir, report: newReport(out)}
	b.report.environment(append(machine(o.bin, args), room...))
	defer b.close()
	if b.vouchers, err = startVouchers(dir); err != nil {
		return err
	}
	if b.peer, err = startOpenSSH(ctx, dir); err != nil {
		return fmt.Errorf("openssh: %w", err)
	}
	if b.world, err = startWorld(ctx, o.bin); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	var problems []error
	for _, s := range sections() {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), s.name) {
			continue
		}
		if err := s.run(ctx, b); err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
			fmt.Fprintln(os.Stderr, "bench:", err)
			problems = append(problems, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	b.report.finish()
	if o.only == "" && o.out != "" && len(problems) == 0 {
		problems = append(problems, b.report.writeTo(o.out))
	}
	return errors.Join(problems...)
}

func (b *bench) close() {
	if b.world != nil {
		b.world.Close()
	}
	if b.peer != nil {
		b.peer.close()
	}
}

// world is a cluster with one agent behind a tunnel and a user who is logged in.
type world struct {
	*cluster.Cluster
	hub, agent *cluster.Daemon
	// sshConfig is a file of `tsh config`, for stock OpenSSH.
	sshConfig string
}

const (
	clusterName = "bench"
	hubName     = "bench-hub"
	nodeName    = "bench-node"
)

func startWorld(ctx context.Context, bin string) (*world, error) {
	c, err := cluster.New(cluster.Config{Bin: bin, Name: clusterName, User: "alice"})
	if err != nil {
		return nil, err
	}
	w := &world{Cluster: c}
	if err := w.populate(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return w, nil
}

func (w *world) populate(ctx context.Context) error {
	var err error
	if w.hub, err = w.Launch(ctx, cluster.Services{Name: hubName, Auth: true, Proxy: true}); err != nil {
		return err
	}
	if err := w.Invite(ctx); err != nil {
		return err
	}
	join, err := w.Token(ctx, "node", time.Hour)
	if err != nil {
		return err
	}
	if w.agent, err = w.Launch(ctx, cluster.Services{Name: nodeName, SSH: true, Join: join}); err != nil {
		return err
	}
	if err := w.WaitListed(ctx, nodeName, 10*time.Second); err != nil {
		return err
	}
	text, err := w.Run(ctx, "tsh", "config")
	if err != nil {
		return err
	}
	w.sshConfig = filepath.Join(w.Dir, "ssh_config")
	return os.WriteFile(w.sshConfig, []byte(text+"Host *\n    LogLevel ERROR\n    UpdateHostKeys no\n"), 0o600)
}

// target is the login and the host for tsh ssh.
func (w *world) target() string { return w.Login + "@" + nodeName }

// stockTarget is the same for stock OpenSSH.
func (w *world) stockTarget() string { return w.target() + "." + clusterName }

// pids are the daemons that have a part in a connection.
func (w *world) pids() []int { return []int{w.hub.PID, w.agent.PID} }
