package main

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// load is what a program does as fast as it can, in several ways.
type load struct {
	name string
	// rate and count find in what the program prints how many it did a second, and in
	// all; with fixed, count is not looked for.
	rate, count *regexp.Regexp
	fixed       float64
	// closed says that one thing is done after the other: the way's own time for one is
	// worth telling.
	closed bool
	// healthy refuses what a run printed, if it is not as it should be; may be nil.
	healthy func(out []byte) error
}

// pace is what was measured of one way.
type pace struct {
	rates []float64
	// cpu is the CPU time of all processes together for one operation.
	cpu time.Duration
}

// rate is the median, a second.
func (p pace) rate() float64 {
	if len(p.rates) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(p.rates))
	return sorted[len(sorted)/2]
}

// each is how long one operation takes where one is done after the other.
func (p pace) each() float64 { return 1e3 / p.rate() }

// treeCPU is the CPU time of processes and all below them.
func treeCPU(pids ...int) time.Duration {
	all := slices.Clone(pids)
	for _, pid := range pids {
		all = append(all, descendants(pid, "")...)
	}
	return cpuOf(all...)
}

// drive runs a load in all ways in turn.
func (b *bench) drive(ctx context.Context, l load, ways []way) (map[string]pace, error) {
	out := map[string]pace{}
	ops, spent := map[string]float64{}, map[string]time.Duration{}
	for range max(3, b.rounds/5) {
		for _, w := range ways {
			var printed bytes.Buffer
			w.stdout = &printed
			before := treeCPU(w.pids...)
			r, err := measure(ctx, w.command)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w\n%s", l.name, w.name, err, printed.String())
			}
			if err := pause(ctx, settle); err != nil {
				return nil, err
			}
			if l.healthy != nil {
				if err := l.healthy(printed.Bytes()); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", l.name, w.name, err)
				}
			}
			rate, err := match(l.rate, printed.Bytes())
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", l.name, w.name, err)
			}
			count := l.fixed
			if l.count != nil {
				if count, err = match(l.count, printed.Bytes()); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", l.name, w.name, err)
				}
			}
			ops[w.name] += count
			spent[w.name] += r.CPU + treeCPU(w.pids...) - before
			p := out[w.name]
			p.rates = append(p.rates, rate)
			out[w.name] = p
		}
	}
	for name, p := range out {
		p.cpu = time.Duration(float64(spent[name]) / ops[name])
		out[name] = p
	}
	return out, nil
}

func match(re *regexp.Regexp, text []byte) (float64, error) {
	m := re.FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("no %q in %q", re, text)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// compare drives a load and prints its table; the first way is what the others are
// compared with.
func (b *bench) compare(ctx context.Context, l load, ways []way) (map[string]pace, error) {
	if !strings.Contains(l.name, b.loads) {
		return nil, nil
	}
	ways = slices.DeleteFunc(slices.Clone(ways), func(w way) bool { return w.name != ways[0].name && !strings.Contains(w.name, b.ways) })
	got, err := b.drive(ctx, l, ways)
	if err != nil {
		return nil, err
	}
	first := got[ways[0].name]
	head := []string{l.name, "a second", "x " + ways[0].name, "CPU µs each", "of which added"}
	if l.closed {
		head = append(head, "ms each", "added ms")
	}
	rows := [][]string{head}
	for _, w := range ways {
		p := got[w.name]
		row := []string{w.name, number(p.rate()), number(p.rate() / first.rate()), number(us(p.cpu)), number(us(p.cpu - first.cpu))}
		if l.closed {
			row = append(row, number(p.each()), number(p.each()-first.each()))
		}
		rows = append(rows, row)
	}
	b.report.table(l.name, rows...)
	return got, nil
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
