package main

import (
	"math"
	"slices"
	"time"
)

// samples are durations of the same thing.
type samples []time.Duration

// median returns the middle, zero of nothing.
func (s samples) median() time.Duration { return s.quantile(0.5) }

// quantile returns the smallest sample that at least q of all do not exceed; for an
// even number the median is the mean of both in the middle.
func (s samples) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	if q == 0.5 && len(s)%2 == 0 {
		return (sorted[len(s)/2-1] + sorted[len(s)/2]) / 2
	}
	i := int(math.Ceil(q*float64(len(s)))) - 1
	return sorted[min(max(i, 0), len(s)-1)]
}

// ms returns milliseconds.
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// rate returns MiB per second.
func rate(mib int, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(mib) / d.Seconds()
}
