package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"teleport/test/cluster"
)

// footprint measures the size of the programs and of idle daemons.
func footprint(ctx context.Context, b *bench) error {
	b.sizes()
	return b.idleMemory(ctx)
}

func (b *bench) sizes() {
	rows := [][]string{{"program", "MB"}}
	limits := map[string]float64{"teleport": 45, "tsh": 16, "tctl": 16}
	for _, name := range []string{"teleport", "tsh", "tctl"} {
		info, err := os.Stat(b.world.Tool(name))
		if err != nil {
			continue
		}
		size := float64(info.Size()) / 1e6
		rows = append(rows, []string{name, number(size)})
		defer b.report.atMost("size of "+name, size, limits[name], " MB")
	}
	b.report.table("Size of the stripped programs", rows...)
}

// idleMemory starts daemons that nobody has used yet and reads their memory.
func (b *bench) idleMemory(ctx context.Context) error {
	alone, err := cluster.New(cluster.Config{Bin: b.bin, Name: "alone"})
	if err != nil {
		return err
	}
	defer alone.Close()
	whole, err := alone.Launch(ctx, cluster.Services{Name: "whole", Auth: true, Proxy: true, SSH: true})
	if err != nil {
		return err
	}
	pair, err := cluster.New(cluster.Config{Bin: b.bin, Name: "pair"})
	if err != nil {
		return err
	}
	defer pair.Close()
	hub, err := pair.Launch(ctx, cluster.Services{Name: "hub", Auth: true, Proxy: true})
	if err != nil {
		return err
	}
	join, err := pair.Token(ctx, "node", time.Hour)
	if err != nil {
		return err
	}
	agent, err := pair.Launch(ctx, cluster.Services{Name: "agent", SSH: true, Join: join})
	if err != nil {
		return err
	}
	if err := pause(ctx, b.idle); err != nil {
		return err
	}
	rows := [][]string{{"daemon", "RSS MB", "RssAnon MB"}}
	var seen []float64
	for _, d := range []struct {
		name string
		pid  int
	}{{"agent with SSH, behind the Proxy", agent.PID}, {"Auth and Proxy, one agent", hub.PID}, {"Auth, Proxy and SSH, no configuration", whole.PID}} {
		m, err := memoryOf(d.pid)
		if err != nil {
			return err
		}
		rows = append(rows, []string{d.name, number(megabytes(m.rss)), number(megabytes(m.anon))})
		seen = append(seen, megabytes(m.rss))
	}
	b.report.table(fmt.Sprintf("Memory of idle daemons, %s after they are ready", b.idle), rows...)
	b.report.atMost("RSS of an idle agent with SSH", seen[0], 20, " MB")
	b.report.atMost("RSS of idle Auth, Proxy and SSH", seen[2], 40, " MB")
	return nil
}

// megabytes turns KiB into MB.
func megabytes(kib int) float64 { return float64(kib) * 1024 / 1e6 }
