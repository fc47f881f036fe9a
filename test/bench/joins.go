package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"teleport/internal/join"
	"teleport/internal/join/all"
	"teleport/internal/types"
)

// spire is what SPIRE did on the machine of PERF.md: joins a second at 8 at once.
const spire = 305

// joins measures how many machines can join.
func joins(ctx context.Context, b *bench) error {
	by, err := b.world.Token(ctx, "node", time.Hour)
	if err != nil {
		return err
	}
	rows := [][]string{{"joins", "at once", "a second", "median ms", "p99 ms", "CPU ms a join at Auth"}}
	type result struct {
		rate float64
		cpu  time.Duration
	}
	seen := map[int]result{}
	for _, way := range []struct {
		name    string
		direct  bool
		atOnce  int
		counted bool
	}{{"direct to Auth", true, 1, true}, {"direct to Auth", true, 8, true}, {"direct to Auth", true, 64, true}, {"through the Proxy", false, 8, false}} {
		params := join.Params{
			Addr: b.world.ProxyAddr, Direct: way.direct, Token: by.Token, Roles: []types.SystemRole{types.RoleNode},
			Hostname: "joiner", Pins: []string{by.Pin}, Dial: fromAnywhere, Methods: all.Methods(),
		}
		if way.direct {
			params.Addr = b.world.AuthAddr
		}
		before := cpuOf(b.world.hub.PID)
		all, took, err := repeat(ctx, way.atOnce, b.period, func() error {
			_, err := join.Join(ctx, params)
			return err
		})
		if err != nil {
			return err
		}
		r := result{float64(len(all)) / took.Seconds(), (cpuOf(b.world.hub.PID) - before) / time.Duration(len(all))}
		rows = append(rows, []string{way.name, fmt.Sprint(way.atOnce), number(r.rate), number(ms(all.median())), number(ms(all.quantile(0.99))), number(ms(r.cpu))})
		if way.counted {
			seen[way.atOnce] = r
		}
	}
	b.report.table(fmt.Sprintf("Joins with a token, %s each", b.period), rows...)
	b.report.note("The joiners run on the same cores in this program and make their keys there. SPIRE, measured on such a machine for PERF.md: 134 a second at 1, %d at 8 at once, 3.0 ms of CPU and 1.9 ms of its database a join.", spire)
	b.report.atLeast("joins a second / SPIRE's, 8 at once", seen[8].rate/spire, 3, " x")
	b.report.atLeast("joins a second / SPIRE's at 8, 64 at once", seen[64].rate/spire, 3, " x")
	b.report.atMost("CPU a join at Auth, 8 at once", ms(seen[8].cpu), 1.5, " ms")
	return nil
}

// repeat does something again and again, so many at once, until the period is over.
func repeat(ctx context.Context, atOnce int, period time.Duration, do func() error) (samples, time.Duration, error) {
	var mu sync.Mutex
	var all samples
	var problems []error
	var stop atomic.Bool
	var work sync.WaitGroup
	began := time.Now()
	for range atOnce {
		work.Go(func() {
			for ctx.Err() == nil && !stop.Load() && time.Since(began) < period {
				since := time.Now()
				err := do()
				took := time.Since(since)
				mu.Lock()
				if err != nil {
					problems = append(problems, err)
					stop.Store(true)
				} else {
					all = append(all, took)
				}
				mu.Unlock()
			}
		})
	}
	work.Wait()
	took := time.Since(began)
	if len(problems) > 0 {
		return nil, 0, errors.Join(problems[0], ctx.Err())
	}
	if len(all) == 0 {
		return nil, 0, errors.Join(errors.New("nothing was done in time"), ctx.Err())
	}
	return all, took, nil
}
