package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
)

type latencyOptions struct {
	count    uint16
	interval time.Duration
	cluster  string
	format   string
	target   string
}

func newLatency(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "latency", Short: "Measure how long the way is"}, newLatencySSH(a))
}

func newLatencySSH(a *app) *cobra.Command {
	var o latencyOptions
	cmd := &cobra.Command{
		Use:   "ssh [user@]host",
		Short: "Measure round trips to the Proxy and, through it, to a server",
		Long: "Measure round trips: to the Proxy (one TCP connection each time) and to the server (one request on an SSH connection\n" +
			"through the Proxy). Ctrl-C ends it early and prints what was measured.",
		Args: screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.target = args[0]
			return runLatencySSH(cmd.Context(), a, o)
		},
	}
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	f := cmd.Flags()
	f.Uint16VarP(&o.count, "count", "n", 10, "how many round trips to make")
	f.DurationVar(&o.interval, "interval", 200*time.Millisecond, "how long to wait between them")
	f.StringVarP(&o.cluster, "cluster", "c", "", "name of the cluster; must be the one you are logged in to")
	return cmd
}

// trips is what is said of the round trips on one part of the way, in milliseconds.
type trips struct {
	Way   string  `json:"way" yaml:"way"`
	Count int     `json:"count" yaml:"count"`
	Min   float64 `json:"min_ms" yaml:"min_ms"`
	P50   float64 `json:"p50_ms" yaml:"p50_ms"`
	P90   float64 `json:"p90_ms" yaml:"p90_ms"`
	Max   float64 `json:"max_ms" yaml:"max_ms"`
}

func summarize(way string, times []time.Duration) trips {
	slices.Sort(times)
	at := func(share float64) float64 {
		i := min(int(share*float64(len(times))), len(times)-1)
		return float64(times[i].Microseconds()) / 1000
	}
	return trips{Way: way, Count: len(times), Min: at(0), P50: at(0.5), P90: at(0.9), Max: at(1)}
}

func runLatencySSH(ctx context.Context, a *app, o latencyOptions) error {
	if o.count == 0 || o.interval < 0 {
		return screen.Usage("--count must be at least 1, and --interval not negative")
	}
	t, err := parseTarget(o.target, false)
	if err != nil {
		return err
	}
	c, s, err := a.client(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(o.cluster); err != nil {
		return err
	}
	login, err := a.loginFor(t, s)
	if err != nil {
		return err
	}
	hosts, err := a.hosts(ctx, c, t)
	if err != nil {
		return err
	}
	if len(hosts) > 1 {
		return screen.Usage("%s means %d servers: name one", o.target, len(hosts))
	}
	toProxy, toHost, err := measure(ctx, c, login, hosts[0].id, o)
	if err != nil {
		return err
	}
	list := []trips{summarize("client to Proxy", toProxy), summarize("client to "+hosts[0].name, toHost)}
	switch o.format {
	case screen.JSON:
		return screen.WriteJSON(a.Out, list)
	case screen.YAML:
		return screen.WriteYAML(a.Out, list)
	}
	table := screen.NewTable("Round trip (ms)", "Count", "Min", "P50", "P90", "Max")
	for _, l := range list {
		cell := func(f float64) string { return fmt.Sprintf("%.2f", f) }
		table.Row(l.Way, fmt.Sprint(l.Count), cell(l.Min), cell(l.P50), cell(l.P90), cell(l.Max))
	}
	return table.Write(a.Out)
}

// measure makes the round trips; at least one of each unless there is an error.
func measure(ctx context.Context, c *client.Client, login, host string, o latencyOptions) (toProxy, toHost []time.Duration, err error) {
	conn, err := c.SSH(ctx, login, host, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	tick := time.NewTicker(max(o.interval, time.Microsecond))
	defer tick.Stop()
	for i := range int(o.count) {
		if i > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return toProxy, toHost, nil
			}
		}
		d, err := c.Reach(ctx)
		if err == nil {
			toProxy = append(toProxy, d)
			begin := time.Now()
			// A request that nobody knows is answered too, with a refusal.
			if _, _, err = conn.SendRequest("keepalive@openssh.com", true, nil); err == nil {
				toHost = append(toHost, time.Since(begin))
			}
		}
		if err != nil && (ctx.Err() == nil || len(toHost) == 0) {
			return nil, nil, fault.Unreachable("the connection was lost: %w", err)
		}
	}
	return toProxy, toHost, nil
}
