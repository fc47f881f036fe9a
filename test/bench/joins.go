package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/backend/sqlite"
	"teleport/internal/join"
	"teleport/internal/join/all"
	"teleport/internal/join/kubernetes"
	"teleport/internal/join/token"
	"teleport/internal/store"
	"teleport/internal/types"
	"teleport/test/cluster"
)

// spireAtOnce is what SPIRE did on the machine of PERF.md: joins a second at 8 at once.
const spireAtOnce = 305

// tally is what a number of joins came to.
type tally struct {
	rate float64
	// cpu is that of the server for one join.
	cpu time.Duration
	all samples
}

// room is how many joins a second a core of the server has time for.
func (t tally) room() float64 { return float64(time.Second) / float64(t.cpu) }

// joins measures how many machines an Auth Service of one core can take in.
func joins(ctx context.Context, b *bench) error {
	w, err := startJoinWorld(ctx, b)
	if err != nil {
		return err
	}
	defer w.close()
	back, err := w.cores.aside()
	if err != nil {
		return err
	}
	err = w.measure(ctx)
	back()
	if err != nil {
		return err
	}
	return throughProxy(ctx, b)
}

// joinWorld is an Auth Service on a core of its own, and those who join it.
type joinWorld struct {
	b     *bench
	cores *cores
	*cluster.Cluster
	auth *cluster.Daemon
	by   cluster.Invitation
	// seen is what was measured, by row.
	seen  map[string]tally
	table [][]string
}

func startJoinWorld(ctx context.Context, b *bench) (*joinWorld, error) {
	c, err := twoCores()
	if err != nil {
		return nil, err
	}
	w := &joinWorld{b: b, cores: c, seen: map[string]tally{}}
	if w.Cluster, err = cluster.New(cluster.Config{Bin: b.bin, Name: "joins"}); err != nil {
		return nil, err
	}
	if err := w.start(ctx); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *joinWorld) close() { w.Close() }

// start starts the Auth Service and makes the tokens.
func (w *joinWorld) start(ctx context.Context) error {
	err := w.cores.onServer(func() (err error) {
		w.auth, err = w.Launch(ctx, cluster.Services{Name: "auth", Auth: true})
		return err
	})
	if err != nil {
		return err
	}
	if w.by, err = w.Token(ctx, "node", 12*time.Hour); err != nil {
		return err
	}
	return makeTokens(ctx, w.Cluster, w.b.vouchers)
}

// makeTokens makes the tokens of methods other than token.
func makeTokens(ctx context.Context, c *cluster.Cluster, v *vouchers) error {
	for name, text := range v.tokens() {
		path := c.Path(name + "-token.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		if _, err := c.Tctl(ctx, "create", "-f", path); err != nil {
			return err
		}
	}
	return nil
}

// joiner returns a joiner of a method; n is how many machines there are of those
// that have to be made ahead.
func (w *joinWorld) joiner(name string, n int) (*joiner, error) {
	switch name {
	case "iam":
		j, err := newJoiner(w.AuthAddr, "bench-iam", token.Method())
		if err == nil {
			j.prove = w.b.vouchers.signer()
		}
		return j, err
	case "kubernetes":
		j, err := newJoiner(w.AuthAddr, "bench-kubernetes", kubernetes.Method(nil))
		if err == nil {
			j.prove = w.b.vouchers.podsAhead("joins", n)
		}
		return j, err
	}
	return newJoiner(w.AuthAddr, w.by.Token, token.Method())
}

// row measures something that many do at once, with the server's CPU time for it.
func (w *joinWorld) row(ctx context.Context, name string, atOnce, pid int, do func(context.Context) error) error {
	before := cpuOf(pid)
	all, took, err := repeat(ctx, atOnce, w.b.period, func() error { return do(ctx) })
	if err != nil {
		return fmt.Errorf("%s, %d at once: %w", name, atOnce, err)
	}
	r := tally{float64(len(all)) / took.Seconds(), (cpuOf(pid) - before) / time.Duration(len(all)), all}
	w.seen[fmt.Sprintf("%s %d", name, atOnce)] = r
	w.table = append(w.table, []string{
		name, fmt.Sprint(atOnce), number(r.rate), number(ms(all.median())), number(ms(all.quantile(0.99))), number(ms(r.cpu)), number(r.room()),
	})
	return nil
}

func (w *joinWorld) measure(ctx context.Context) error {
	w.table = [][]string{{"what", "at once", "a second", "median ms", "p99 ms", "CPU ms each, server", "a core has time for, a second"}}
	spire, err := w.startSpire(ctx)
	if err != nil {
		return err
	}
	if spire != nil {
		defer spire.close()
	}
	for _, atOnce := range []int{1, 8, 64} {
		if err := w.methodRow(ctx, "token", atOnce); err != nil {
			return err
		}
		if spire != nil {
			if err := w.spireRow(ctx, spire, atOnce); err != nil {
				return err
			}
		}
	}
	if err := w.methodRow(ctx, "token", 100); err != nil {
		return err
	}
	for _, name := range []string{"iam", "kubernetes"} {
		if name == "iam" && w.b.vouchers.noSTS != nil {
			continue
		}
		for _, atOnce := range []int{8, 100} {
			if err := w.methodRow(ctx, name, atOnce); err != nil {
				return err
			}
		}
	}
	if err := w.machineRow(ctx); err != nil {
		return err
	}
	if err := w.memory(ctx); err != nil {
		return err
	}
	if err := w.crowded(ctx); err != nil {
		return err
	}
	w.report(spire != nil)
	return nil
}

func (w *joinWorld) methodRow(ctx context.Context, name string, atOnce int) error {
	// Three times as many as ever came in.
	j, err := w.joiner(name, int(3*spireAtOnce*w.b.period.Seconds()))
	if err != nil {
		return err
	}
	return w.row(ctx, "join by "+name, atOnce, w.auth.PID, j.join)
}

// machineRow has the whole machine's half: new keys, the result checked, a state made.
func (w *joinWorld) machineRow(ctx context.Context) error {
	params := join.Params{
		Addr: w.AuthAddr, Direct: true, Token: w.by.Token, Roles: []types.SystemRole{types.RoleNode},
		Hostname: "joiner", Pins: []string{w.by.Pin}, Dial: fromAnywhere, Methods: all.Methods(),
	}
	return w.row(ctx, "join by token, with all that a machine does", 8, w.auth.PID, func(ctx context.Context) error {
		_, err := join.Join(ctx, params)
		return err
	})
}

func (w *joinWorld) startSpire(ctx context.Context) (s *spireServer, err error) {
	if w.b.spire == "" {
		return nil, nil //nolint:nilnil // none is wanted
	}
	dir := w.Path("spire")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	err = w.cores.onServer(func() (err error) {
		s, err = startSpire(ctx, w.b.spire, dir)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("spire: %w", err)
	}
	return s, nil
}

const spireName = "SPIRE, attestation by join token"

func (w *joinWorld) spireRow(ctx context.Context, s *spireServer, atOnce int) error {
	tokens, err := s.tokens(ctx, int(2*spireAtOnce*w.b.period.Seconds()))
	if err != nil {
		return fmt.Errorf("tokens of spire: %w", err)
	}
	var next atomic.Int64
	return w.row(ctx, spireName, atOnce, s.cmd.Process.Pid, func(ctx context.Context) error {
		n := int(next.Add(1)) - 1
		if n >= len(tokens) {
			return errNoPods
		}
		return s.attest(ctx, tokens[n])
	})
}

// joinsKept is how many joins should leave no trace in memory.
const joinsKept = 5000

// memory is that of Auth before and after many joins.
func (w *joinWorld) memory(ctx context.Context) error {
	j, err := w.joiner("token", 0)
	if err != nil {
		return err
	}
	many := func() (memory, error) {
		var left atomic.Int64
		left.Store(joinsKept)
		_, _, err := repeat(ctx, 8, time.Hour, func() error {
			if left.Add(-1) < 0 {
				return errNoPods
			}
			return j.join(ctx)
		})
		if err == nil {
			err = pause(ctx, w.b.idle)
		}
		if err != nil {
			return memory{}, err
		}
		return memoryOf(w.auth.PID)
	}
	// The first ones fill what is kept of recent changes, which has a bound.
	before, err := many()
	if err != nil {
		return err
	}
	after, err := many()
	if err != nil {
		return err
	}
	w.b.report.table(fmt.Sprintf("Memory of Auth before and after %d joins", joinsKept),
		[]string{"", "RSS MB", "RssAnon MB"},
		[]string{"before", number(float64(before.rss) / 1000), number(float64(before.anon) / 1000)},
		[]string{"after", number(float64(after.rss) / 1000), number(float64(after.anon) / 1000)})
	w.b.report.atMost(fmt.Sprintf("RSS of Auth after %d joins / before", joinsKept), float64(after.rss)/float64(before.rss), 1.1, " x")
	w.b.report.note("That is %s KiB for each machine, which the Auth Service keeps a record of.", number(float64(after.rss-before.rss)/joinsKept))
	return nil
}

// A cluster with this much in it takes machines in as fast as an empty one.
const manyNodes, manyLocks = 10_000, 1000

// crowded measures a join among many nodes and locks, and without them just before.
func (w *joinWorld) crowded(ctx context.Context) error {
	for _, name := range []string{emptyName, crowdedName} {
		w.auth.Stop()
		if name == crowdedName {
			if err := w.fill(ctx); err != nil {
				return fmt.Errorf("fill the store: %w", err)
			}
		}
		err := w.cores.onServer(func() (err error) {
			w.auth, err = w.Launch(ctx, cluster.Services{Name: "auth", Auth: true})
			return err
		})
		if err != nil {
			return err
		}
		j, err := w.joiner("token", 0)
		if err != nil {
			return err
		}
		if err := w.row(ctx, name, 8, w.auth.PID, j.join); err != nil {
			return err
		}
	}
	return nil
}

const emptyName = "join by token, after a restart"

var crowdedName = fmt.Sprintf("the same, beside %d nodes and %d locks", manyNodes, manyLocks)

// fill writes nodes and locks where the Auth Service keeps them.
func (w *joinWorld) fill(ctx context.Context) error {
	paths, err := filepath.Glob(filepath.Join(w.Path("auth"), "*", "sqlite.db"))
	if err != nil || len(paths) != 1 {
		return fmt.Errorf("databases %v, %w", paths, err)
	}
	db, err := sqlite.Open(ctx, sqlite.Config{Path: paths[0]})
	if err != nil {
		return err
	}
	s := store.New(store.Config{Backend: db})
	now := time.Now()
	tx := s.Tx()
	for i := range manyNodes {
		node, _ := types.New(types.KindNode, fmt.Sprintf("node-%d", i)).(*typesv1.Server)
		node.Metadata.Expires = timestamppb.New(now.Add(time.Hour))
		node.Spec = &typesv1.ServerSpec{Hostname: fmt.Sprintf("node-%d", i), Addr: "127.0.0.1:3022"}
		tx.Upsert(node)
		if i < manyLocks {
			tx.Create(types.NewLock(&typesv1.LockTarget{ServerId: fmt.Sprintf("host-%d", i)}, "", "bench", now, now.Add(time.Hour)))
		}
		if i%250 == 249 {
			if err := tx.Commit(ctx); err != nil {
				return errors.Join(err, db.Close())
			}
			tx = s.Tx()
		}
	}
	return db.Close()
}

// report prints what was measured, and holds it against the goals.
func (w *joinWorld) report(withSpire bool) {
	r := w.b.report
	r.table(fmt.Sprintf("Joins with Auth on one core and those who join on another, %s each", w.b.period), w.table...)
	r.note("The joiners are in this program, with keys and tokens made ahead, and check nothing, but for the row that says so; the STS is there too, and verifies signatures. " +
		"A core has time for as many as its CPU time for one goes into a second.")
	if err := w.b.vouchers.noSTS; err != nil {
		r.note("Not measured: iam, since %v.", err)
	}
	seen := func(name string, atOnce int) tally { return w.seen[fmt.Sprintf("%s %d", name, atOnce)] }
	for _, atOnce := range []int{8, 64} {
		rate, what := float64(spireAtOnce), "joins a second / SPIRE's 305 of PERF.md"
		if withSpire {
			rate, what = seen(spireName, atOnce).rate, "joins a second / SPIRE's"
		}
		r.atLeast(fmt.Sprintf("%s, %d at once", what, atOnce), seen("join by token", atOnce).rate/rate, 3, " x")
		if withSpire {
			r.atLeast(fmt.Sprintf("joins that a core has time for / SPIRE's, %d at once", atOnce), seen("join by token", atOnce).room()/seen(spireName, atOnce).room(), 3, " x")
		}
	}
	r.atMost("CPU a join at Auth, 8 at once", ms(seen("join by token", 8).cpu), 1.5, " ms")
	r.atMost("CPU a join beside 10,000 nodes and 1,000 locks / without", float64(seen(crowdedName, 8).cpu)/float64(seen(emptyName, 8).cpu), 1.2, " x")
	if !withSpire {
		r.note("SPIRE was not there to be measured (flag -spire); on the machine of PERF.md: 134 a second at 1, %d at 8 at once, 3.0 ms of CPU and 1.9 ms of its database a join.", spireAtOnce)
	}
}

// throughProxy measures joins on the way that most take; Auth and Proxy are one
// process, with all cores.
func throughProxy(ctx context.Context, b *bench) error {
	by, err := b.world.Token(ctx, "node", time.Hour)
	if err != nil {
		return err
	}
	j, err := newJoiner(b.world.ProxyAddr, by.Token, token.Method())
	if err != nil {
		return err
	}
	before := cpuOf(b.world.hub.PID)
	all, took, err := repeat(ctx, 8, b.period, func() error { return j.join(ctx) })
	if err != nil {
		return fmt.Errorf("through the Proxy: %w", err)
	}
	b.report.note("Through the Proxy, in one process with Auth on all cores, 8 at once: %s joins a second by token, median %s ms, p99 %s ms, %s ms of CPU of both services.",
		number(float64(len(all))/took.Seconds()), number(ms(all.median())), number(ms(all.quantile(0.99))), number(ms((cpuOf(b.world.hub.PID)-before)/time.Duration(len(all)))))
	return nil
}

// repeat does something again and again, so many at once, until the period is over or
// there are no more who could do it.
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
				switch {
				case errors.Is(err, errNoPods):
					stop.Store(true)
				case err != nil:
					problems = append(problems, err)
					stop.Store(true)
				default:
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
