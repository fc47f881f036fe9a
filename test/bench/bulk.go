package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"
)

// bulk measures copies of one big file, both ways.
func bulk(ctx context.Context, b *bench) error {
	names := []string{viaTsh, viaJumpAES, viaReverseAES, viaStock}
	latencies, err := alternate(ctx, 3, b.remote("true", names...))
	if err != nil {
		return err
	}
	// A file of holes: reading it costs next to nothing.
	file := filepath.Join(b.dir, "zeros")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(file, int64(b.sizeMiB)<<20); err != nil {
		return err
	}
	up := b.remote("cat >/dev/null", names...)
	for i := range up {
		up[i].stdin = file
	}
	down := b.remote(fmt.Sprintf("head -c %d /dev/zero", b.sizeMiB<<20), names...)
	for i := range down {
		w, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer w.Close()
		down[i].stdout = w
	}
	rounds := max(3, b.rounds/3)
	rows := [][]string{{fmt.Sprintf("%d MiB, one stream", b.sizeMiB), "up MiB/s", "down MiB/s", "up CPU s/GiB", "down CPU s/GiB"}}
	var rates, costs [2]map[string]float64
	for i, ways := range [][]way{up, down} {
		got, err := alternate(ctx, rounds, ways)
		if err != nil {
			return err
		}
		rates[i], costs[i] = map[string]float64{}, map[string]float64{}
		for _, name := range names {
			rates[i][name] = rate(b.sizeMiB, got[name].elapsed.median()-latencies[name].elapsed.median())
			costs[i][name] = (got[name].cpu - latencies[name].cpu).Seconds() * 1024 / float64(b.sizeMiB)
		}
	}
	for _, name := range names {
		rows = append(rows, []string{name, number(rates[0][name]), number(rates[1][name]), number(costs[0][name]), number(costs[1][name])})
	}
	b.report.table(fmt.Sprintf("Bulk copies, %d rounds in turn", rounds), rows...)
	b.report.note("Without the time that `true` takes the same way. CPU is of all processes together, `cat` and `head` too. OpenSSH uses aes128-gcm, its fastest, on every leg.")
	for i, direction := range []string{"up", "down"} {
		best := max(rates[i][viaJumpAES], rates[i][viaReverseAES])
		b.report.atLeast("copy "+direction+": tsh ssh / the better of ProxyJump and ssh -R", rates[i][viaTsh]/best, 1, " x")
		b.report.atLeast("copy "+direction+": stock ssh / the better of ProxyJump and ssh -R", rates[i][viaStock]/best, 1, " x")
		b.report.atMost("copy "+direction+": CPU per GiB, tsh ssh / the better of both", costs[i][viaTsh]/min(costs[i][viaJumpAES], costs[i][viaReverseAES]), 1, " x")
	}
	if err := b.parallelCopies(ctx, rates[0][viaTsh]); err != nil {
		return err
	}
	return b.keystrokes(ctx)
}

// parallelCopies copies to the same agent over many sessions at once. As for the one
// copy, what it takes to connect is taken off: so many times `true`, at once too.
func (b *bench) parallelCopies(ctx context.Context, one float64) error {
	const copies = 50
	size := max(1, 4*b.sizeMiB/copies)
	file := filepath.Join(b.dir, "part")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(file, int64(size)<<20); err != nil {
		return err
	}
	connect, err := atOnce(ctx, copies, b.remote("true", viaTsh)[0].command)
	if err != nil {
		return err
	}
	w := b.remote("cat >/dev/null", viaTsh)[0]
	w.stdin = file
	took, err := atOnce(ctx, copies, w.command)
	if err != nil {
		return err
	}
	seen := rate(size*copies, took-connect)
	b.report.note("%d copies up at once, %d MiB each: %s MiB/s in all, without the %s s that %d times `true` take at once.",
		copies, size, number(seen), number(connect.Seconds()), copies)
	b.report.atLeast(fmt.Sprintf("%d copies at once / one copy", copies), seen/one, 1, " x")
	return nil
}

// atOnce runs a command so many times at once and returns how long all of them took.
func atOnce(ctx context.Context, n int, c command) (time.Duration, error) {
	var g errgroup.Group
	began := time.Now()
	for range n {
		g.Go(func() error { return plain(ctx, c) })
	}
	err := g.Wait()
	return time.Since(began), err
}

// keystrokes measures how soon a character comes back from a terminal while a copy
// fills the same tunnel.
func (b *bench) keystrokes(ctx context.Context) error {
	calm, err := b.echoes(ctx, 100)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := b.remote("cat /dev/zero", viaTsh)[0]
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	w.stdout = null
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = measure(ctx, w.command) // ends when it is killed
	}()
	defer func() { cancel(); <-ended }()
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	busy, err := b.echoes(ctx, 200)
	if err != nil {
		return err
	}
	b.report.table("Echo of a keystroke through the tunnel", []string{"", "median ms", "p99 ms"},
		[]string{"nothing else", number(ms(calm.median())), number(ms(calm.quantile(0.99)))},
		[]string{"while a copy fills the tunnel", number(ms(busy.median())), number(ms(busy.quantile(0.99)))})
	b.report.atMost("p99 of a keystroke while a copy fills the tunnel", ms(busy.quantile(0.99)), 20, " ms")
	return nil
}

// echoes types characters at a terminal on which cat runs, one by one.
func (b *bench) echoes(ctx context.Context, n int) (samples, error) {
	c, err := b.world.client(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := c.SSH(ctx, b.world.Login, nodeName, 0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	s, err := conn.NewSession()
	if err != nil {
		return nil, err
	}
	stdin, err := s.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := s.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err != nil {
		return nil, err
	}
	if err := s.Start("cat"); err != nil {
		return nil, err
	}
	var out samples
	one := make([]byte, 1)
	for range n {
		since := time.Now()
		if _, err := stdin.Write([]byte("x")); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(stdout, one); err != nil {
			return nil, err
		}
		out = append(out, time.Since(since))
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return out, nil
}
