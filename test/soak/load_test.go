package soak

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/pquerna/otp/totp"

	"teleport/test/cluster"
)

const password = "correct horse battery"

// token makes a token and returns its secret and id, or "" if that was not
// acknowledged.
func (w *world) token(ctx context.Context, args ...string) (secret, id string) {
	out, err := w.tctl(ctx, append([]string{"tokens", "add", "--ttl=1h", "--type=node", "--format=json"}, args...)...)
	if err != nil {
		return "", ""
	}
	var made struct{ Token, ID string }
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		w.t.Errorf("tctl tokens add said %q", out)
		return "", ""
	}
	w.ledger.add("token", made.ID)
	w.ledger.event("join_token.create", "name", made.ID)
	return made.Token, made.ID
}

// makeTokens makes tokens and revokes every third.
func (w *world) makeTokens(ctx context.Context, n int) {
	_, id := w.token(ctx, fmt.Sprintf("--labels=n=x%d", n))
	if id == "" || n%3 != 0 {
		return
	}
	w.ledger.doubt("token", id)
	if _, err := w.tctl(ctx, "tokens", "rm", id); err == nil {
		w.ledger.gone("token", id)
		w.ledger.event("join_token.delete", "name", id)
	}
}

var joined = regexp.MustCompile(`msg="joined the cluster".* host_id=([0-9a-f-]{36})`)

// join lets two machines compete for a token with one use. At most one may get in,
// and who got in is known.
func (w *world) join(ctx context.Context, n int) {
	secret, id := w.token(ctx, "--max-uses=1")
	if secret == "" {
		return
	}
	// It is gone from the list when it is used up.
	w.ledger.doubt("token", id)
	invitation := cluster.Invitation{Token: secret, Pin: w.pin}
	var machines []*cluster.Daemon
	for i := range 2 {
		name := fmt.Sprintf("joiner-%d-%d", n, i)
		path, err := w.Configure(cluster.Services{Name: name, SSH: true, Join: invitation, Direct: i == 1})
		if err != nil {
			w.t.Error(err)
			return
		}
		d, _, err := w.Spawn(name, path)
		if err != nil {
			w.t.Error(err)
			return
		}
		machines = append(machines, d)
	}
	hosts := w.watchJoins(ctx, machines)
	if len(hosts) > 1 {
		w.t.Errorf("a token for one use admitted %v", hosts)
	}
	for _, host := range hosts {
		w.ledger.add("instance", host)
		w.ledger.event("instance.join", "host_id", host)
	}
}

// watchJoins waits for a while and returns the hosts that joined.
func (w *world) watchJoins(ctx context.Context, machines []*cluster.Daemon) []string {
	limit, cancel := context.WithTimeout(ctx, 6*time.Second)
	defer cancel()
	var hosts []string
	for {
		hosts = hosts[:0]
		ended := 0
		for _, d := range machines {
			text, err := os.ReadFile(d.Log)
			if err != nil {
				w.t.Error(err)
			}
			if m := joined.FindSubmatch(text); m != nil {
				hosts = append(hosts, string(m[1]))
			}
			if !alive(d.PID) {
				ended++
			}
		}
		if len(hosts)+ended >= len(machines) || limit.Err() != nil {
			break
		}
		pause(limit, 50*time.Millisecond)
	}
	for _, d := range machines {
		_ = syscall.Kill(d.PID, syscall.SIGKILL)
		d.Stop()
	}
	return hosts
}

// invite makes a user, redeems the invitation and logs in by that.
func (w *world) invite(ctx context.Context, n int) {
	pause(ctx, 200*time.Millisecond)
	name := fmt.Sprintf("user-%d", n)
	out, err := w.tctl(ctx, "users", "add", name, "--roles=access", "--logins="+w.Login, "--format=json")
	if err != nil {
		return
	}
	var made struct{ URL string }
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.URL == "" {
		w.t.Errorf("tctl users add said %q", out)
		return
	}
	w.ledger.add("user", name)
	w.ledger.event("user.create", "name", name)
	secret, err := w.redeem(ctx, w.Path("home-"+name), made.URL)
	if err == nil {
		w.ledger.credential(name, secret)
		w.ledger.event("user.password_change", "user", name)
		w.ledger.event("user.login", "user", name)
	}
}

var secretKey = regexp.MustCompile(`^Secret key: ([A-Z2-7]{26,})$`)

// redeem answers the questions of tsh and returns the secret of the second factor.
func (w *world) redeem(ctx context.Context, home, link string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.Tool("tsh"), "login", "--invite="+link)
	cmd.Env = append(os.Environ(), "TELEPORT_HOME="+home)
	cmd.WaitDelay = time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	r, out := io.Pipe()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		_ = out.Close()
		ended <- err
	}()
	_, _ = fmt.Fprintf(stdin, "%s\n%s\n", password, password)
	secret := ""
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if m := secretKey.FindStringSubmatch(lines.Text()); m != nil {
			secret = m[1]
			code, err := totp.GenerateCode(secret, time.Now().Add(-30*time.Second))
			if err != nil {
				return "", err
			}
			_, _ = fmt.Fprintln(stdin, code)
		}
	}
	return secret, <-ended
}

// login logs a user in with password and code.
func (w *world) login(ctx context.Context, name, secret string) (string, error) {
	code, err := totp.GenerateCode(secret, time.Now())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.Tool("tsh"), "login", "--force", "--user="+name, "--proxy="+w.ProxyAddr)
	cmd.Env = append(os.Environ(), "TELEPORT_HOME="+w.Path("home-"+name))
	cmd.Stdin = strings.NewReader(password + "\n" + code + "\n")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// changeRole writes a number into a role: it may never go back.
func (w *world) changeRole(ctx context.Context, n int) {
	text := fmt.Sprintf("kind: role\nversion: v7\nmetadata:\n  name: counter\n  description: %q\nspec: {}\n", fmt.Sprint(n+1))
	path := filepath.Join(w.Dir, "counter.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Error(err)
		return
	}
	w.ledger.trying(n + 1)
	if _, err := w.tctl(ctx, "create", "-f", path); err == nil {
		w.ledger.counted(n + 1)
	}
}

// session runs a command on an agent.
func (w *world) session(ctx context.Context, n int) {
	agent := w.services[2+n%*agents]
	command := fmt.Sprintf("echo soak-%d-%d", n, time.Now().UnixNano())
	began := time.Now()
	out, err := w.tool(ctx, w.Home(), "tsh", "ssh", w.Login+"@"+agent.name, command)
	if err != nil {
		w.ledger.failed()
		// Auth may be away: a session needs only the Proxy and the agent.
		settled := began.Add(-10 * time.Second)
		if proxy := w.services[1]; ctx.Err() == nil && proxy.steadySince(settled) && agent.steadySince(settled) {
			w.t.Errorf("no session on %s although it and the Proxy were there: %v\n%s", agent.name, err, out)
		}
		return
	}
	if want := strings.TrimPrefix(command, "echo "); strings.TrimSpace(out) != want {
		w.t.Errorf("%s printed %q", command, out)
	}
	w.ledger.session(session{agent: agent, command: command, began: began})
}
