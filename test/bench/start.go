package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"teleport/internal/client"
	"teleport/internal/types"
	"teleport/test/cluster"
)

// startTimes measures how soon a daemon is ready and an agent is there.
func startTimes(ctx context.Context, b *bench) error {
	fresh, again, err := b.startHub(ctx)
	if err != nil {
		return err
	}
	listed, serving, ready, err := b.startAgents(ctx, "token")
	if err != nil {
		return err
	}
	row := func(name string, s samples) []string {
		return []string{name, number(ms(s.median())), number(ms(s.quantile(1)))}
	}
	b.report.table(fmt.Sprintf("Start, %d times each", len(fresh)), []string{"from exec", "median ms", "slowest ms"},
		row("Auth, Proxy and SSH with no configuration but addresses: ready, first start", fresh),
		row("the same: ready, start on existing data", again),
		row("agent with a token, behind the Proxy: listed (API)", listed),
		row("agent: the first command has run on it through the tunnel", serving),
		row("agent: says that it is ready", ready))
	b.report.atMost("daemon start to ready, first start", ms(fresh.median()), 500, " ms")
	b.report.atMost("agent start to listed", ms(listed.median()), 300, " ms")
	b.report.atMost("agent start to serving", ms(serving.median()), 300, " ms")
	return b.startByMethod(ctx)
}

// startByMethod measures agents that prove what they are by something else than a token.
func (b *bench) startByMethod(ctx context.Context) error {
	if err := makeTokens(ctx, b.world.Cluster, b.vouchers); err != nil {
		return err
	}
	rows := [][]string{{"agent, from exec, by join method", "listed: median ms", "slowest ms", "serving: median ms", "slowest ms"}}
	for _, name := range []string{"iam", "kubernetes"} {
		if name == "iam" && b.vouchers.noSTS != nil {
			b.report.note("Not measured: iam, since %v.", b.vouchers.noSTS)
			continue
		}
		listed, serving, _, err := b.startAgents(ctx, name)
		if err != nil {
			return fmt.Errorf("by %s: %w", name, err)
		}
		rows = append(rows, []string{name, number(ms(listed.median())), number(ms(listed.quantile(1))), number(ms(serving.median())), number(ms(serving.quantile(1)))})
		b.report.atMost("agent start to serving, by "+name, ms(serving.median()), 300, " ms")
	}
	b.report.table(fmt.Sprintf("Start of agents by other methods, %d times each", b.startRounds()), rows...)
	return nil
}

// surroundings sets what agents of a join method find around them, until the function
// that it returns is called.
func (b *bench) surroundings(name string) (undo func(), err error) {
	env := b.vouchers.environment(name)
	if name == "kubernetes" {
		path := b.world.Path("pod.token")
		if err := os.WriteFile(path, []byte(b.vouchers.pod(clusterName)), 0o600); err != nil {
			return nil, err
		}
		env = map[string]string{"KUBERNETES_TOKEN_PATH": path}
	}
	for k, v := range env {
		if err := os.Setenv(k, v); err != nil {
			return nil, err
		}
	}
	return func() {
		for k := range env {
			_ = os.Unsetenv(k)
		}
	}, nil
}

// startHub starts a whole cluster, and the same again on its data.
func (b *bench) startHub(ctx context.Context) (fresh, again samples, err error) {
	once := func() error {
		c, err := cluster.New(cluster.Config{Bin: b.bin, Name: "start"})
		if err != nil {
			return err
		}
		defer c.Close()
		for _, into := range []*samples{&fresh, &again} {
			d, err := c.Launch(ctx, cluster.Services{Name: "hub", Auth: true, Proxy: true, SSH: true})
			if err != nil {
				return err
			}
			*into = append(*into, d.Ready.Sub(d.Began))
			d.Stop()
		}
		return nil
	}
	for range b.startRounds() {
		if err := once(); err != nil {
			return nil, nil, err
		}
	}
	return fresh, again, nil
}

func (b *bench) startRounds() int { return min(b.rounds, 10) }

// startAgents starts agents that join by a method, one after the other.
func (b *bench) startAgents(ctx context.Context, method string) (listed, serving, ready samples, err error) {
	c, err := b.world.client(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	for i := range b.startRounds() {
		join, err := b.world.Token(ctx, "node", time.Hour)
		if err != nil {
			return nil, nil, nil, err
		}
		if method != "token" {
			join.Method, join.Token = method, "bench-"+method
		}
		undo, err := b.surroundings(method)
		if err != nil {
			return nil, nil, nil, err
		}
		a := agentStart{world: b.world, client: c, name: fmt.Sprintf("start-%s-%d", method, i)}
		err = a.run(ctx, join)
		undo()
		if err != nil {
			return nil, nil, nil, fmt.Errorf("%s: %w", a.name, err)
		}
		listed, serving, ready = append(listed, a.listed), append(serving, a.serving), append(ready, a.ready)
	}
	return listed, serving, ready, nil
}

// agentStart is one start of an agent.
type agentStart struct {
	world                  *world
	client                 *client.Client
	name                   string
	listed, serving, ready time.Duration
}

func (a *agentStart) run(ctx context.Context, join cluster.Invitation) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	// What asks is connected beforehand: only the agent is measured.
	conn, err := a.client.Auth()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := client.Servers(ctx, conn, types.KindNode, nil); err != nil {
		return err
	}
	config, err := a.world.Configure(cluster.Services{Name: a.name, SSH: true, Join: join})
	if err != nil {
		return err
	}
	d, ready, err := a.world.Spawn(a.name, config)
	if err != nil {
		return err
	}
	defer d.Stop()
	for a.listed == 0 {
		servers, err := client.Servers(ctx, conn, types.KindNode, nil)
		if err != nil {
			return err
		}
		for _, s := range servers {
			if s.GetSpec().GetHostname() == a.name {
				a.listed = time.Since(d.Began)
			}
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
	for a.serving == 0 {
		if err := runOn(ctx, a.client, a.world.Login, a.name); err == nil {
			a.serving = time.Since(d.Began)
		} else if perr := pause(ctx, 2*time.Millisecond); perr != nil {
			return errors.Join(perr, err)
		}
	}
	select {
	case at := <-ready:
		a.ready = at.Sub(d.Began)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// client returns the product's client with what tsh login left.
func (w *world) client(ctx context.Context) (*client.Client, error) {
	home, err := client.OpenHome(w.Home())
	if err != nil {
		return nil, err
	}
	profile, err := home.Find("", "")
	if err != nil {
		return nil, err
	}
	creds, err := home.Credentials(ctx, profile)
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{Proxy: profile.Proxy, Credentials: creds})
}

// runOn runs `true` on a host.
func runOn(ctx context.Context, c *client.Client, login, host string) error {
	conn, err := c.SSH(ctx, login, host, 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := conn.NewSession()
	if err != nil {
		return err
	}
	return s.Run("true")
}
