// Package integration runs Auth, Proxy and agents in one process, each with
// process.Run as the daemon has it, over loopback. What one of them leaves behind when
// it stops, or collects while others come and go, shows here; the race detector sees
// all of them at once.
package integration

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
	"golang.org/x/crypto/ssh"

	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/ca"
	"teleport/internal/client"
	"teleport/internal/config"
	"teleport/internal/process"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

const token = "00112233445566778899aabbccddeeff"

// site is a cluster of processes that can be stopped and started one by one.
type site struct {
	t           *testing.T
	dir         string
	auth, proxy string
	pin         string
}

// running is one process.
type running struct {
	name string
	log  *journal
	stop func()
}

// journal collects what a process logs.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func newSite(t *testing.T) *site {
	t.Helper()
	return &site{t: t, dir: t.TempDir(), auth: freeAddr(t), proxy: freeAddr(t)}
}

// run starts a process and waits until it serves.
func (s *site) run(name, text string) *running {
	s.t.Helper()
	r, ready := s.launch(name, text)
	select {
	case <-ready:
	case <-time.After(time.Minute):
		s.t.Fatalf("%s is not ready after a minute:\n%s", name, r.log)
	}
	return r
}

// launch starts a process; the channel is closed when it serves or has failed.
func (s *site) launch(name, text string) (*running, <-chan struct{}) {
	s.t.Helper()
	cfg, err := config.Parse(name+".yaml", []byte(text))
	must(s.t, err)
	r := &running{name: name, log: &journal{}}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan struct{})
	var once sync.Once
	go func() {
		defer close(done)
		defer once.Do(func() { close(ready) })
		err := process.Run(ctx, process.Options{
			Config: cfg, Log: slog.New(slog.NewTextHandler(r.log, nil)),
			OnReady: func(process.Addrs) { once.Do(func() { close(ready) }) },
		})
		if err != nil {
			s.t.Errorf("%s ended with %v\n%s", name, err, r.log)
		}
	}()
	var stopped sync.Once
	r.stop = func() { stopped.Do(func() { cancel(); <-done }) }
	s.t.Cleanup(r.stop)
	return r, ready
}

func (s *site) runAuth() *running {
	return s.run("auth", fmt.Sprintf(`version: v3
teleport: {nodename: auth, data_dir: %s}
auth_service: {enabled: yes, cluster_name: site, listen_addr: "%s", tokens: ["node,proxy:%s"]}
proxy_service: {enabled: no}
ssh_service: {enabled: no}
`, s.path("auth"), s.auth, token))
}

func (s *site) runProxy() *running {
	return s.run("proxy", fmt.Sprintf(`version: v3
teleport: {nodename: proxy, data_dir: %s, auth_server: "%s", ca_pin: "%s", auth_token: %s}
auth_service: {enabled: no}
proxy_service: {enabled: yes, web_listen_addr: "%s", public_addr: "%s"}
ssh_service: {enabled: no}
`, s.path("proxy"), s.auth, s.pin, token, s.proxy, s.proxy))
}

func (s *site) agentConfig(name string) string {
	return fmt.Sprintf(`version: v3
teleport: {nodename: %s, data_dir: %s, proxy_server: "%s", ca_pin: "%s", auth_token: %s}
auth_service: {enabled: no}
proxy_service: {enabled: no}
ssh_service: {enabled: yes, labels: {name: %s}}
`, name, s.path(name), s.proxy, s.pin, token, name)
}

func (s *site) runAgent(name string) *running { return s.run(name, s.agentConfig(name)) }

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// invite makes a user on Auth's host and redeems the invitation as that user.
func (s *site) invite(name string) *client.Client {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	conn, err := rpc.DialLocal(filepath.Join(s.path("auth"), "auth.sock"))
	must(s.t, err)
	defer conn.Close()
	user := types.New(types.KindUser, name).(*typesv1.User)
	user.Spec = &typesv1.UserSpec{Roles: []string{types.PresetAccess}, Traits: map[string]*typesv1.Strings{"logins": {Values: []string{self(s.t)}}}}
	made, err := userv1.NewUserServiceClient(conn).CreateUser(ctx, &userv1.CreateUserRequest{User: user})
	must(s.t, err)
	invite, err := client.ParseInvite(made.GetInvitation().GetUrl())
	must(s.t, err)
	proxy, err := client.ConnectProxy(ctx, client.ProxyConfig{Addr: s.proxy, Pins: invite.Pins, Log: slog.New(slog.DiscardHandler)})
	must(s.t, err)
	invitation, err := proxy.Invitation(ctx, invite.Token)
	must(s.t, err)
	code, err := totp.GenerateCode(invitation.GetTotpSecret(), time.Now())
	must(s.t, err)
	keys, err := client.NewKeys()
	must(s.t, err)
	creds, err := proxy.Redeem(ctx, invite.Token, client.LoginRequest{User: name, Password: "correct horse battery", Code: code, Keys: keys})
	must(s.t, err)
	c, err := client.New(client.Config{Proxy: s.proxy, Credentials: creds, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	must(s.t, err)
	return c
}

// say runs echo on a server and returns what it printed.
func say(ctx context.Context, c *client.Client, login, host, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	conn, err := c.SSH(ctx, login, host, 0)
	if err != nil {
		return "", err
	}
	defer func(conn *ssh.Client) { _ = conn.Close() }(conn)
	session, err := conn.NewSession()
	if err != nil {
		return "", err
	}
	defer func() { _ = session.Close() }()
	out, err := session.Output("echo " + text)
	return strings.TrimSpace(string(out)), err
}

// reach opens sessions until one works.
func (s *site) reach(c *client.Client, host string) {
	s.t.Helper()
	text := "hello from " + host
	s.within(15*time.Second, "a session on "+host, func() error {
		got, err := say(s.t.Context(), c, self(s.t), host, text)
		if err == nil && got != text {
			err = fmt.Errorf("printed %q", got)
		}
		return err
	})
}

// within waits until f succeeds.
func (s *site) within(limit time.Duration, what string, f func() error) {
	s.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: still %v after %s", what, err, limit)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// learnPin asks Auth on its own host for the pin of the cluster.
func (s *site) learnPin() {
	s.t.Helper()
	conn, err := rpc.DialLocal(filepath.Join(s.path("auth"), "auth.sock"))
	must(s.t, err)
	defer conn.Close()
	pins := clusterPins(s.t, conn)
	if _, err := ca.ParsePins(pins); err != nil || len(pins) != 1 {
		s.t.Fatalf("pins = %q, %v", pins, err)
	}
	s.pin = pins[0]
}

// ours are the goroutines of the product and of what it serves with.
var ours = regexp.MustCompile(`teleport/internal/|google\.golang\.org/grpc|golang\.org/x/crypto/ssh|database/sql|net/http`)

// goroutines returns the stacks of those.
func goroutines() []string {
	buf := make([]byte, 16<<20)
	var out []string
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if ours.MatchString(stack) && !strings.Contains(stack, "teleport/test/integration.") {
			out = append(out, stack)
		}
	}
	return out
}

// descriptors counts open files.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
