package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// The ways to run a command on a host.
const (
	viaTsh          = "tsh ssh, through Proxy and tunnel"
	viaStock        = "ssh with ProxyCommand tsh proxy ssh"
	viaJump         = "ssh, ProxyJump over a bastion"
	viaJumpCurve    = "ssh, ProxyJump, curve25519"
	viaJumpAES      = "ssh, ProxyJump, aes128-gcm"
	viaReverse      = "ssh to a target behind ssh -R"
	viaReverseCurve = "ssh behind ssh -R, curve25519"
	viaReverseAES   = "ssh behind ssh -R, aes128-gcm"
	viaDirect       = "ssh, direct"
)

// remote makes the ways named, to run a command line on a host.
func (b *bench) remote(commandLine string, names ...string) []way {
	stock := func(f flavour, host string) command { return command{args: b.peer.args(f, host, commandLine)} }
	tunnelled := b.world.pids()
	var out []way
	for _, name := range names {
		w := way{name: name}
		switch name {
		case viaTsh:
			w.command, w.pids = command{args: []string{b.world.Tool("tsh"), "ssh", b.world.target(), commandLine}, env: b.world.Env()}, tunnelled
		case viaStock:
			w.command, w.pids = command{args: []string{"ssh", "-F", b.world.sshConfig, b.world.stockTarget(), commandLine}}, tunnelled
		case viaJump:
			w.command, w.pids = stock(stockDefault(), jump), b.peer.ends()
		case viaJumpCurve:
			w.command, w.pids = stock(curve25519(), jump), b.peer.ends()
		case viaJumpAES:
			w.command, w.pids = stock(aesGCM(), jump), b.peer.ends()
		case viaReverse:
			w.command, w.pids = stock(stockDefault(), reverse), b.peer.pids()
		case viaReverseCurve:
			w.command, w.pids = stock(curve25519(), reverse), b.peer.pids()
		case viaReverseAES:
			w.command, w.pids = stock(aesGCM(), reverse), b.peer.pids()
		case viaDirect:
			w.command, w.pids = stock(stockDefault(), direct), b.peer.ends()
		}
		out = append(out, w)
	}
	return out
}

// latency measures connections that run `true`.
func latency(ctx context.Context, b *bench) error {
	ways := b.remote("true", viaTsh, viaJump, viaJumpCurve, viaStock, viaReverse, viaReverseCurve, viaDirect)
	got, err := alternate(ctx, b.rounds, ways)
	if err != nil {
		return err
	}
	base := got[viaJump].elapsed.median()
	rows := [][]string{{"run `true` on a host", "median ms", "p90 ms", "CPU ms", "x ProxyJump"}}
	for _, w := range ways {
		s := got[w.name]
		rows = append(rows, []string{
			w.name, number(ms(s.elapsed.median())), number(ms(s.elapsed.quantile(0.9))), number(ms(s.cpu)),
			number(ratio(s.elapsed.median(), base)),
		})
	}
	b.report.table(fmt.Sprintf("Connection latency, %d rounds in turn", b.rounds), rows...)
	b.report.note("CPU is of all processes together: client, Proxy or bastion, agent or target. Without a remark OpenSSH uses its default key exchange.")
	of := func(name, peer string) float64 { return ratio(got[name].elapsed.median(), got[peer].elapsed.median()) }
	b.report.atMost("tsh ssh / ProxyJump, default key exchange", of(viaTsh, viaJump), 0.12, " x")
	b.report.atMost("tsh ssh / ProxyJump, curve25519", of(viaTsh, viaJumpCurve), 0.2, " x")
	b.report.atMost("stock ssh with tsh proxy ssh / ProxyJump", of(viaStock, viaJump), 0.5, " x")
	if err := b.starts(ctx); err != nil {
		return err
	}
	return b.pacedConnections(ctx)
}

func ratio(a, b time.Duration) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

const hello = `package main

import "os"

func main() { os.Stdout.WriteString("hello\n") }
`

// hello is the path of the program that starts builds.
func (b *bench) hello() string { return filepath.Join(b.dir, "hello") }

// starts measures the start of tsh against that of a Go program that does nothing.
func (b *bench) starts(ctx context.Context) error {
	source, program := filepath.Join(b.dir, "hello.go"), b.hello()
	if err := os.WriteFile(source, []byte(hello), 0o600); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build a Go hello: %w: %s", err, out)
	}
	tsh := b.world.Tool("tsh")
	nobody := []string{"TELEPORT_HOME=" + filepath.Join(b.dir, "nobody")}
	ways := []way{
		{name: "a Go hello", command: command{args: []string{program}}},
		{name: "tsh version, not logged in", command: command{args: []string{tsh, "version"}, env: nobody}},
		{name: "tsh version, logged in (asks the Proxy)", command: command{args: []string{tsh, "version"}, env: b.world.Env()}, pids: b.world.pids()},
	}
	got, err := alternate(ctx, max(b.rounds, 40), ways)
	if err != nil {
		return err
	}
	base := got[ways[0].name].elapsed.median()
	rows := [][]string{{"start of a process", "median ms", "CPU ms", "x Go hello"}}
	for _, w := range ways {
		s := got[w.name]
		rows = append(rows, []string{w.name, number(ms(s.elapsed.median())), number(ms(s.cpu)), number(ratio(s.elapsed.median(), base))})
	}
	b.report.table("Start of tsh", rows...)
	b.report.atMost("tsh version / a Go hello", ratio(got[ways[1].name].elapsed.median(), base), 1.5, " x")
	return nil
}

// pacedConnections opens connections at 10 a second whether or not earlier ones are
// done, and between them starts a program that does nothing: its worst times are the
// machine's own, and those of the connections are no better.
func (b *bench) pacedConnections(ctx context.Context) error {
	const interval = time.Second / 10
	ways := []way{b.remote("true", viaTsh)[0], {name: "a Go hello", command: command{args: []string{b.hello()}}}}
	var mu sync.Mutex
	all := make([]samples, len(ways))
	var failed []error
	var running sync.WaitGroup
	began := time.Now()
	for i := range b.paced * len(ways) {
		due := began.Add(time.Duration(i) * interval / time.Duration(len(ways)))
		if err := pause(ctx, time.Until(due)); err != nil {
			return err
		}
		which := i % len(ways)
		running.Go(func() {
			// From when it was due: a stall counts for all that it delays.
			late := time.Since(due)
			r, err := measure(ctx, ways[which].command)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
				return
			}
			all[which] = append(all[which], late+r.Elapsed)
		})
	}
	running.Wait()
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d connections failed, the first: %w", len(failed), b.paced, failed[0])
	}
	rows := [][]string{{"", "median ms", "p90 ms", "p99 ms", "slowest ms"}}
	for i, w := range ways {
		s := all[i]
		rows = append(rows, []string{
			w.name, number(ms(s.median())), number(ms(s.quantile(0.9))), number(ms(s.quantile(0.99))), number(ms(s.quantile(1))),
		})
	}
	b.report.table(fmt.Sprintf("%d connections at 10 a second", b.paced), rows...)
	b.report.atMost("p99 / median of connections at 10 a second", ratio(all[0].quantile(0.99), all[0].median()), 2, " x")
	return nil
}
