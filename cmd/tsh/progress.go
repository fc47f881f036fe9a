package main

import (
	"fmt"
	"sync"
	"time"

	"teleport/internal/client/screen"
	"teleport/internal/client/transfer"
)

// progressInterval is how often the progress is drawn.
const progressInterval = 200 * time.Millisecond

// progress shows how far a copy is, on a terminal only.
type progress struct {
	app   *app
	begin time.Time
	meter *transfer.Meter

	mu      sync.Mutex
	drawing bool
	done    chan struct{}
	ended   sync.WaitGroup
}

// progress begins to show; stop ends it.
func (a *app) progress(quiet bool) *progress {
	p := &progress{app: a, begin: time.Now(), meter: &transfer.Meter{}, done: make(chan struct{})}
	if quiet || !screen.IsTerminal(a.Err) {
		return p
	}
	p.drawing = true
	p.ended.Go(func() {
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				p.mu.Lock()
				p.draw(now)
				p.mu.Unlock()
			case <-p.done:
				return
			}
		}
	})
	return p
}

// draw writes the line over the one before.
func (p *progress) draw(now time.Time) {
	_, _ = fmt.Fprintf(p.app.Err, "\r%s\x1b[K", p.line(now))
}

// line is what is shown: name, share, bytes, rate and the time that is left.
func (p *progress) line(now time.Time) string {
	done, total := p.meter.Done.Load(), p.meter.Total.Load()
	name := p.meter.Name()
	if r := []rune(name); len(r) > 36 {
		name = string(r[:33]) + "..."
	}
	share := int64(100)
	if total > 0 {
		share = min(100*done/total, 100)
	}
	rate := int64(0)
	if took := now.Sub(p.begin); took > 0 {
		rate = int64(float64(done) / took.Seconds())
	}
	left := ""
	if rate > 0 && total > done {
		left = (time.Duration((total-done)/rate) * time.Second).String() + " left"
	}
	return fmt.Sprintf("%-36s %3d%% %9s %9s/s %s", screen.Escape(name), share, size(done), size(rate), left)
}

// size writes bytes in the unit that fits.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f, unit := float64(n)/1024, 0
	for f >= 1024 && unit < len(units)-1 {
		f /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f%cB", f, units[unit])
}

// say tells something in a line of its own.
func (p *progress) say(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawing {
		_, _ = fmt.Fprint(p.app.Err, "\r\x1b[K")
	}
	p.app.note(text)
}

// stop draws the end.
func (p *progress) stop() {
	if !p.drawing {
		return
	}
	close(p.done)
	p.ended.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.meter.Total.Load() > 0 {
		p.draw(time.Now())
		_, _ = fmt.Fprintln(p.app.Err)
	}
}
