package main

import (
	"context"
	"fmt"
	"time"
)

// way is one of several ways to do the same thing.
type way struct {
	name string
	command
	// pids are the daemons whose CPU time counts as well.
	pids []int
}

// seen is what was measured of one way.
type seen struct {
	elapsed samples
	// cpu is the mean of all processes together: the kernel counts that of others in
	// steps of 10 ms, which only a mean gets over.
	cpu time.Duration
}

// settle is the time that daemons get to reap what served a connection.
const settle = 30 * time.Millisecond

// alternate measures the ways in turn, so many rounds, after one that does not count.
func alternate(ctx context.Context, rounds int, ways []way) (map[string]seen, error) {
	out := make(map[string]seen, len(ways))
	total := make(map[string]time.Duration, len(ways))
	for round := range rounds + 1 {
		for _, w := range ways {
			before := cpuOf(w.pids...)
			r, err := measure(ctx, w.command)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
			if err := pause(ctx, settle); err != nil {
				return nil, err
			}
			if round == 0 {
				continue
			}
			total[w.name] += r.CPU + cpuOf(w.pids...) - before
			s := out[w.name]
			s.elapsed = append(s.elapsed, r.Elapsed)
			out[w.name] = s
		}
	}
	for name, s := range out {
		s.cpu = total[name] / time.Duration(rounds)
		out[name] = s
	}
	return out, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
