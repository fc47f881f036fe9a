package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/control"
	"teleport/internal/join"
	"teleport/internal/join/all"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/state"
	"teleport/internal/tunnel"
	"teleport/internal/types"
	"teleport/internal/version"
	"teleport/test/cluster"
)

// lightAgent is an agent without its process: a real identity, the real tunnel and
// the real control stream, but many of them in this program.
type lightAgent struct {
	holder *state.Holder
	name   string
	proxy  string
}

// joinAgents makes identities by joining through the Proxy.
func joinAgents(ctx context.Context, proxy string, by cluster.Invitation, n int) ([]*lightAgent, error) {
	out := make([]*lightAgent, n)
	var g errgroup.Group
	g.SetLimit(8)
	for i := range out {
		g.Go(func() error {
			name := fmt.Sprintf("light-%d", i)
			st, err := join.Join(ctx, join.Params{
				Addr: proxy, Token: by.Token, Roles: []types.SystemRole{types.RoleNode}, Hostname: name, Pins: []string{by.Pin},
				Dial: fromAnywhere, Methods: all.Methods(),
			})
			if err != nil {
				return err
			}
			holder, err := state.NewHolder(st)
			out[i] = &lightAgent{holder: holder, name: name, proxy: proxy}
			return err
		})
	}
	return out, g.Wait()
}

// fromAnywhere dials from an address that is chosen anew each time, as machines do:
// the Proxy bounds what one address may ask for.
func fromAnywhere(ctx context.Context, network, addr string) (net.Conn, error) {
	from := &net.TCPAddr{IP: net.IPv4(127, byte(1+rand.N(250)), byte(rand.N(256)), byte(1+rand.N(250)))}
	return (&net.Dialer{LocalAddr: from, Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
}

// quiet is the log of the agents: what fails is seen by its effect.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// tunnel keeps the agent's tunnel until ctx ends.
func (a *lightAgent) tunnel(ctx context.Context, onState func(bool)) error {
	return tunnel.RunAgent(ctx, tunnel.AgentConfig{
		Addr:    a.proxy,
		TLS:     ca.ClientTLS(nil, a.holder.Trust, types.RoleProxy),
		Signer:  func() ssh.Signer { return a.holder.SSHSigner("") },
		HostKey: func() ssh.HostKeyCallback { return a.checkProxy },
		Handle:  func(_ context.Context, conn net.Conn, _ tunnel.Request) { _ = conn.Close() },
		Dial:    fromAnywhere,
		Log:     quiet(),
	}, onState)
}

func (a *lightAgent) checkProxy(_ string, _ net.Addr, key ssh.PublicKey) error {
	cert, ok := key.(*ssh.Certificate)
	if !ok || len(cert.ValidPrincipals) == 0 {
		return fmt.Errorf("the Proxy has no host certificate but %s", key.Type())
	}
	_, err := a.holder.Trust().VerifySSHHost(cert, cert.ValidPrincipals[0], time.Now())
	return err
}

// control keeps the agent's control stream through the Proxy, which announces it as
// a node, until ctx ends.
func (a *lightAgent) control(ctx context.Context, onState func(error)) error {
	config := ca.ClientTLS(func() *tls.Certificate { return a.holder.Certificate("") }, a.holder.Trust, types.RoleAuth)
	config.NextProtos = []string{mux.ALPNAuthPrefix + a.holder.State().Cluster, "h2"}
	conn, err := rpc.NewConn(rpc.DialConfig{Addr: a.proxy, TLS: config, Dial: fromAnywhere})
	if err != nil {
		return err
	}
	defer conn.Close()
	node, _ := types.New(types.KindNode, a.holder.HostID()).(*typesv1.Server)
	node.Spec = &typesv1.ServerSpec{Hostname: a.name, Version: version.Version, UseTunnel: true}
	return control.Run(ctx, control.Config{
		Conn: conn, Cache: cache.New(), OnState: onState, Log: quiet(),
		Servers: func() []types.Resource { return []types.Resource{node} },
	})
}

// together runs something for every agent and waits until it is up for all of them;
// the function that it returns ends them.
type together struct {
	cancel context.CancelFunc
	work   sync.WaitGroup
	// took is how long it was until all were up.
	took time.Duration
}

// upLimit is how long all agents may take to come up.
const upLimit = 2 * time.Minute

func runAll(ctx context.Context, agents []*lightAgent, run func(ctx context.Context, a *lightAgent, up func()) error) (*together, error) {
	ctx, cancel := context.WithCancel(ctx)
	t := &together{cancel: cancel}
	var count atomic.Int64
	all := make(chan struct{})
	failed := make(chan error, len(agents))
	began := time.Now()
	for _, a := range agents {
		up := sync.OnceFunc(func() {
			if count.Add(1) == int64(len(agents)) {
				close(all)
			}
		})
		t.work.Go(func() {
			if err := run(ctx, a, up); err != nil {
				failed <- err
			}
		})
	}
	var err error
	select {
	case <-all:
		t.took = time.Since(began)
		return t, nil
	case err = <-failed:
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(upLimit):
		err = fmt.Errorf("only %d of %d agents came up in %s", count.Load(), len(agents), upLimit)
	}
	t.stop()
	return nil, err
}

func (t *together) stop() {
	t.cancel()
	t.work.Wait()
}
