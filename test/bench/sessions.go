package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/client"
)

// sessions measures how many can be opened and what an idle one costs.
func sessions(ctx context.Context, b *bench) error {
	if err := b.sessionRate(ctx); err != nil {
		return err
	}
	return b.idleSessions(ctx)
}

// sessionRate opens sessions that run `true`, each on a connection of its own.
func (b *bench) sessionRate(ctx context.Context) error {
	const atOnce = 8
	rows := [][]string{{fmt.Sprintf("sessions that run `true`, %d at once", atOnce), "a second", "median ms", "p99 ms", "CPU ms of daemons"}}
	rates := map[string]float64{}
	for _, w := range b.remote("true", viaTsh, viaJump, viaJumpCurve, viaReverse, viaDirect) {
		before := cpuOf(w.pids...)
		all, took, err := repeat(ctx, atOnce, b.period, func() error { return plain(ctx, w.command) })
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		if err := pause(ctx, settle); err != nil {
			return err
		}
		rates[w.name] = float64(len(all)) / took.Seconds()
		rows = append(rows, sessionRow(w.name, all, took, cpuOf(w.pids...)-before))
	}
	c, err := b.world.client(ctx)
	if err != nil {
		return err
	}
	before := cpuOf(b.world.pids()...)
	all, took, err := repeat(ctx, atOnce, b.period, func() error { return runOn(ctx, c, b.world.Login, nodeName) })
	if err != nil {
		return err
	}
	rows = append(rows, sessionRow("the client of tsh in one process", all, took, cpuOf(b.world.pids()...)-before))
	b.report.table(fmt.Sprintf("New sessions, %s each", b.period), rows...)
	b.report.atLeast("new sessions a second: tsh ssh / ssh ProxyJump", rates[viaTsh]/rates[viaJump], 5, " x")
	b.report.note("For the order of things: / ssh direct, without a bastion, it is %s x.", number(rates[viaTsh]/rates[viaDirect]))
	return nil
}

func sessionRow(name string, all samples, took, cpu time.Duration) []string {
	return []string{
		name, number(float64(len(all)) / took.Seconds()), number(ms(all.median())), number(ms(all.quantile(0.99))),
		number(ms(cpu / time.Duration(len(all)))),
	}
}

// idleSessions opens shells on terminals and reads the memory of who serves them. The
// daemons are fresh ones: what earlier sessions left free would hide what these need.
func (b *bench) idleSessions(ctx context.Context) error {
	w, err := startWorld(ctx, b.bin)
	if err != nil {
		return err
	}
	defer w.Close()
	c, err := w.client(ctx)
	if err != nil {
		return err
	}
	// What the first session needs once is not counted.
	if err := runOn(ctx, c, w.Login, nodeName); err != nil {
		return err
	}
	if err := pause(ctx, b.idle); err != nil {
		return err
	}
	agentBefore, hubBefore, err := w.memory()
	if err != nil {
		return err
	}
	for i := range b.sessions {
		end, err := shell(ctx, c, w.Login)
		if err != nil {
			return fmt.Errorf("session %d: %w", i, err)
		}
		defer end()
	}
	if err := pause(ctx, b.idle); err != nil {
		return err
	}
	agent, hub, err := w.memory()
	if err != nil {
		return err
	}
	agent, hub = agent.minus(agentBefore), hub.minus(hubBefore)
	peer, err := b.idlePeers(ctx)
	if err != nil {
		return err
	}
	n := float64(b.sessions)
	each := func(kib int) string { return number(float64(kib) / n) }
	b.report.table(fmt.Sprintf("Memory for %d idle interactive sessions, KiB per session, the user's shell apart", b.sessions),
		[]string{"", "RSS", "RssAnon or private"},
		[]string{"agent", each(agent.rss), each(agent.anon)},
		[]string{"Auth and Proxy", each(hub.rss), each(hub.anon)},
		[]string{"OpenSSH target, ProxyJump", each(peer.target.rss), each(peer.target.anon)},
		[]string{"OpenSSH bastion, ProxyJump", each(peer.bastion.rss), each(peer.bastion.anon)})
	b.report.atMost("memory per idle session at the agent", float64(agent.rss)/n, 256, " KiB")
	b.report.atMost("memory per idle session at the Proxy", float64(hub.rss)/n, 128, " KiB")
	return nil
}

// memory returns what the agent (with processes of its own that serve sessions) and
// the hub have.
func (w *world) memory() (agent, hub memory, err error) {
	if hub, err = memoryOf(w.hub.PID); err != nil {
		return
	}
	if agent, err = memoryOf(w.agent.PID); err != nil {
		return
	}
	for _, pid := range descendants(w.agent.PID, "teleport") {
		m, merr := memoryOf(pid)
		if merr == nil {
			agent = agent.plus(m)
		}
	}
	return
}

// shell opens a session with a terminal and a shell that waits.
func shell(ctx context.Context, c *client.Client, login string) (func(), error) {
	conn, err := c.SSH(ctx, login, nodeName, 0)
	if err != nil {
		return nil, err
	}
	s, err := conn.NewSession()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	end := func() { _ = conn.Close() }
	// The pipe keeps the shell's input open; what it prints is read away.
	if _, err := s.StdinPipe(); err != nil {
		end()
		return nil, err
	}
	s.Stdout, s.Stderr = io.Discard, io.Discard
	if err := s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err != nil {
		end()
		return nil, err
	}
	if err := s.Shell(); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// peerMemory is what OpenSSH needs; anon is what is private to its processes.
type peerMemory struct{ target, bastion memory }

// idlePeers opens as many shells through the bastion.
func (b *bench) idlePeers(ctx context.Context) (peerMemory, error) {
	var before, after peerMemory
	var err error
	if before, err = b.peer.memory(); err != nil {
		return after, err
	}
	for range b.sessions {
		cmd := exec.CommandContext(ctx, "ssh", "-F", b.peer.config(curve25519()), "-tt", jump)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return after, err
		}
		if err := cmd.Start(); err != nil {
			return after, err
		}
		defer func() {
			_ = stdin.Close()
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
	}
	// Each takes a quarter of a second of both cores to come up.
	if err := pause(ctx, b.idle+time.Duration(b.sessions)*100*time.Millisecond); err != nil {
		return after, err
	}
	if after, err = b.peer.memory(); err != nil {
		return after, err
	}
	return peerMemory{after.target.minus(before.target), after.bastion.minus(before.bastion)}, nil
}

func (o *openSSH) memory() (peerMemory, error) {
	var out peerMemory
	for _, side := range []struct {
		pid  int
		into *memory
	}{{o.target.Process.Pid, &out.target}, {o.bastion.Process.Pid, &out.bastion}} {
		for _, pid := range descendants(side.pid, "sshd") {
			m, err := memoryOf(pid)
			if err != nil {
				continue // it ended meanwhile
			}
			side.into.rss += m.rss
			side.into.anon += private(pid)
		}
	}
	return out, nil
}
