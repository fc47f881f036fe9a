// Command demo runs the main job the way a person would, with the built binaries:
// a cluster on embedded storage, an agent that joins by token through the Proxy, a
// user, and a shell command on the agent through its reverse tunnel. It prints each
// step with its command, stays up until Ctrl-C and cleans up after itself. It needs
// no root and no particular port. `make demo` builds and runs it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"teleport/test/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

const (
	hub  = "cluster"
	node = "demo-node"
)

func run(ctx context.Context) error {
	c, err := cluster.New(cluster.Config{Bin: "build", Name: "demo", User: "alice", Out: os.Stdout})
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	for _, step := range []func(context.Context, *cluster.Cluster) error{start, user, agent, ssh} {
		if err := step(ctx, c); err != nil {
			return err
		}
	}
	fmt.Printf("\nReady after %.1f s. From another terminal:\n\n", time.Since(began).Seconds())
	fmt.Printf("  export TELEPORT_HOME=%s\n", c.Home())
	fmt.Printf("  %s ls\n  %s ssh %s@%s\n", c.Tool("tsh"), c.Tool("tsh"), c.Login, node)
	fmt.Printf("  %s -c %s status\n\n", c.Tool("tctl"), c.Path(hub+".yaml"))
	fmt.Printf("Web and everything else: https://%s   Logs: %s/*.log\nCtrl-C ends it and removes %s.\n", c.ProxyAddr, c.Dir, c.Dir)
	<-ctx.Done()
	fmt.Println("\nCleaning up.")
	return nil
}

func start(ctx context.Context, c *cluster.Cluster) error {
	say("1. A cluster: Auth Service and Proxy Service in one process, state in SQLite")
	_, err := c.Launch(ctx, cluster.Services{Name: hub, Host: "demo-cluster", Auth: true, Proxy: true})
	return err
}

func user(ctx context.Context, c *cluster.Cluster) error {
	say("2. A user: invited by tctl, logged in by tsh (password and one-time code)")
	if err := c.Invite(ctx); err != nil {
		return err
	}
	_, err := c.Run(ctx, "tsh", "status")
	return err
}

func agent(ctx context.Context, c *cluster.Cluster) error {
	say("3. An agent: a token good for five minutes, and a process that joins with it through the Proxy")
	join, err := c.Token(ctx, "node", 5*time.Minute)
	if err != nil {
		return err
	}
	_, err = c.Launch(ctx, cluster.Services{Name: "agent", Host: node, SSH: true, Join: join, Labels: map[string]string{"env": "demo"}})
	return err
}

func ssh(ctx context.Context, c *cluster.Cluster) error {
	say("4. A shell command on the agent: tsh, through the Proxy and the agent's reverse tunnel")
	if err := c.WaitListed(ctx, node, 10*time.Second); err != nil {
		return err
	}
	if _, err := c.Run(ctx, "tsh", "ls"); err != nil {
		return err
	}
	_, err := c.Run(ctx, "tsh", "ssh", c.Login+"@"+node, "echo hello from $(hostname), logged in as $(id -un), cluster $SSH_TELEPORT_CLUSTER_NAME")
	return err
}

func say(text string) { fmt.Printf("\n== %s\n\n", text) }
