package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/client"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/join/all"
	"teleport/internal/join/token"
	"teleport/internal/retry"
	"teleport/internal/types"
	"teleport/test/cluster"
)

// crowdArg makes this program the machines of a crowd.
const crowdArg = "crowd-of-machines"

// The crowd is so many machines a second for so long, all behind one address.
const (
	crowdTime   = 10 * time.Second
	crowdSource = "127.9.9.9"
	aloneSource = "127.8.8.8"
	// The others: joins from another address, and people's requests.
	aloneRate, peopleRate = 5, 10
	// crowdPatience is how long a machine of the crowd tries.
	crowdPatience = 4 * time.Minute
)

// crowd measures what a crowd of machines does to the others.
func crowd(ctx context.Context, b *bench) error {
	cores, err := twoCores()
	if err != nil {
		return err
	}
	c, err := cluster.New(cluster.Config{Bin: b.bin, Name: "crowd", User: "alice"})
	if err != nil {
		return err
	}
	defer c.Close()
	w := &world{Cluster: c}
	err = cores.onServer(func() (err error) {
		w.hub, err = c.Launch(ctx, cluster.Services{Name: "hub", Auth: true, Proxy: true})
		return err
	})
	if err != nil {
		return err
	}
	// The Proxy may be ready before it is listed, and invitations name it.
	for listed := false; !listed; {
		out, err := c.Tctl(ctx, "get", "proxies")
		if listed = err == nil && strings.Contains(out, c.ProxyAddr); !listed {
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return err
			}
		}
	}
	if err := c.Invite(ctx); err != nil {
		return err
	}
	by, err := c.Token(ctx, "node", time.Hour)
	if err != nil {
		return err
	}
	back, err := cores.aside()
	if err != nil {
		return err
	}
	defer back()
	return w.besideCrowd(ctx, b, by)
}

// others are what is measured beside the crowd.
type others struct{ joins, people pacedSamples }

// pacedSamples are of something that was begun at a fixed rate, whatever became of it.
type pacedSamples struct {
	samples
	failed int
	first  error
}

func (w *world) besideCrowd(ctx context.Context, b *bench, by cluster.Invitation) error {
	quiet, err := w.others(ctx, by, crowdTime)
	if err != nil {
		return err
	}
	machines := int(float64(b.crowd) * crowdTime.Seconds())
	done := make(chan error, 1)
	var result crowdResult
	go func() {
		var err error
		result, err = runCrowd(ctx, w.AuthAddr, by.Token, machines, b.crowd)
		done <- err
	}()
	// As long as the crowd comes, and some of the time that it takes to let it in.
	beside, err := w.others(ctx, by, crowdTime*3/2)
	if cerr := <-done; err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	row := func(name string, s pacedSamples) []string {
		return []string{name, fmt.Sprint(len(s.samples)), fmt.Sprint(s.failed), number(ms(s.median())), number(ms(s.quantile(0.99)))}
	}
	b.report.table(fmt.Sprintf("A crowd of %d machines, %d a second for %s from one address, and the others", machines, b.crowd, crowdTime),
		[]string{"", "done", "failed", "median ms", "p99 ms"},
		row("join from another address, before", quiet.joins), row("join from another address, beside the crowd", beside.joins),
		row("a person's request with a new connection, before", quiet.people), row("a person's request with a new connection, beside the crowd", beside.people))
	b.report.note("%d of %d machines of the crowd were in after %s, after %d attempts: %d times they were told when to come back, and %d times the connection was refused without a time. "+
		"Auth and Proxy have one core, the crowd (at a low priority) and the others the second one.",
		result.In, machines, result.Took.Round(time.Second), result.Attempts, result.Told, result.Untold)
	for why, n := range result.Why {
		if n*20 > result.Untold {
			b.report.note("Refused without a time, %d times: %s.", n, why)
		}
	}
	for _, s := range []pacedSamples{quiet.joins, quiet.people, beside.joins, beside.people} {
		if s.first != nil {
			b.report.note("One of those that failed: %v.", s.first)
			break
		}
	}
	b.report.atLeast("machines of a crowd that are in at the end", float64(result.In)/float64(machines), 1, " x")
	b.report.atMost("joins from another address that fail beside a crowd", float64(beside.joins.failed), 0, "")
	b.report.atMost("requests of people that fail beside a crowd", float64(beside.people.failed), 0, "")
	b.report.atMost("median of a join from another address beside a crowd", ms(beside.joins.median()), 1000, " ms")
	b.report.atMost("median of a person's request beside a crowd", ms(beside.people.median()), 500, " ms")
	return nil
}

// others measures joins from another address and requests of people for a while.
func (w *world) others(ctx context.Context, by cluster.Invitation, period time.Duration) (others, error) {
	c, err := w.client(ctx)
	if err != nil {
		return others{}, err
	}
	params := join.Params{
		Addr: w.AuthAddr, Direct: true, Token: by.Token, Roles: []types.SystemRole{types.RoleNode}, Hostname: "alone", Pins: []string{by.Pin},
		Dial: from(aloneSource), Methods: all.Methods(),
	}
	var out others
	var work sync.WaitGroup
	work.Go(func() {
		out.joins = atRate(ctx, aloneRate, period, func(ctx context.Context) error {
			_, err := join.Join(ctx, params)
			return err
		})
	})
	work.Go(func() {
		out.people = atRate(ctx, peopleRate, period, func(ctx context.Context) error {
			conn, err := c.Auth()
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = client.Servers(ctx, conn, types.KindProxy, nil)
			return err
		})
	})
	work.Wait()
	return out, ctx.Err()
}

// atRate begins something so many times a second, whether the last one is done or not.
func atRate(ctx context.Context, perSecond int, period time.Duration, do func(context.Context) error) pacedSamples {
	var mu sync.Mutex
	var out pacedSamples
	var work sync.WaitGroup
	every := time.NewTicker(time.Second / time.Duration(perSecond))
	defer every.Stop()
	for range int(float64(perSecond) * period.Seconds()) {
		select {
		case <-every.C:
		case <-ctx.Done():
			work.Wait()
			return out
		}
		work.Go(func() {
			began := time.Now()
			err := do(ctx)
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				out.failed++
				if out.first == nil {
					out.first = err
				}
				return
			}
			out.samples = append(out.samples, took)
		})
	}
	work.Wait()
	return out
}

// from dials from an address of this machine.
func from(source string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 10 * time.Second}
	return d.DialContext
}

// crowdResult is what became of a crowd.
type crowdResult struct {
	In, Attempts, Told, Untold int
	// Took is until the last one was in.
	Took time.Duration
	// Why counts the refusals without a time, by their text.
	Why map[string]int
}

// runCrowd runs the machines in a process of their own, that leaves the core to
// those who are measured on it.
func runCrowd(ctx context.Context, addr, secret string, machines, perSecond int) (crowdResult, error) {
	self, err := os.Executable()
	if err != nil {
		return crowdResult{}, err
	}
	cmd := exec.CommandContext(ctx, self, crowdArg, "-addr", addr, "-machines", fmt.Sprint(machines), "-rate", fmt.Sprint(perSecond))
	cmd.Stdin = bytes.NewBufferString(secret)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		return crowdResult{}, fmt.Errorf("crowd: %w", err)
	}
	var r crowdResult
	return r, json.Unmarshal(out, &r)
}

// noPorts makes the errors of many connections the same.
var noPorts = regexp.MustCompile(`:\d+`)

// crowdMain is the process of the machines. Each joins, and comes back when it is told to.
func crowdMain(args []string) error {
	f := flag.NewFlagSet(crowdArg, flag.ContinueOnError)
	addr := f.String("addr", "", "Auth Service")
	machines := f.Int("machines", 0, "how many")
	perSecond := f.Int("rate", 0, "how many a second")
	if err := f.Parse(args); err != nil {
		return err
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 10); err != nil {
		return err
	}
	var secret bytes.Buffer
	if _, err := secret.ReadFrom(os.Stdin); err != nil {
		return err
	}
	j, err := newJoiner(*addr, secret.String(), token.Method())
	if err != nil {
		return err
	}
	j.dial = from(crowdSource)
	ctx, cancel := context.WithTimeout(context.Background(), crowdPatience)
	defer cancel()
	var mu sync.Mutex
	r := crowdResult{Why: map[string]int{}}
	began := time.Now()
	// As the machines of the product do.
	atRate(ctx, *perSecond, time.Duration(float64(*machines)/float64(*perSecond)*float64(time.Second)), func(ctx context.Context) error {
		backoff := retry.Backoff{Min: time.Second, Max: 30 * time.Second}
		for {
			err := j.join(ctx)
			mu.Lock()
			r.Attempts++
			wait := fault.RetryAfter(err)
			switch {
			case err == nil:
				r.In++
				r.Took = time.Since(began)
			case wait > 0:
				r.Told++
			default:
				r.Untold++
				r.Why[noPorts.ReplaceAllString(err.Error(), ":PORT")]++
				wait = backoff.Next()
			}
			mu.Unlock()
			if err == nil {
				return nil
			}
			if err := pause(ctx, wait); err != nil {
				return err
			}
		}
	})
	return json.NewEncoder(os.Stdout).Encode(r)
}
