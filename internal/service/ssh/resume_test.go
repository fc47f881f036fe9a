package ssh_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/resume"
	"teleport/internal/types"
)

// lifeline is a client whose connection can be resumed, and whose paths can be cut.
type lifeline struct {
	w    *world
	conn net.Conn
	ssh  *gossh.Client
	out  *bufio.Reader

	say func(t *testing.T, text string)

	mu   sync.Mutex
	path net.Conn
	from string
	down bool
}

func (l *lifeline) dial(ctx context.Context) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, errors.New("the network is down")
	}
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(l.from)}}).DialContext(ctx, "tcp", l.w.addr)
	l.path = c
	return c, err
}

// interrupt cuts the path and leaves it so until restore.
func (l *lifeline) interrupt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = true
	_ = l.path.Close()
}

func (l *lifeline) restore(from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down, l.from = false, from
}

// connect logs in and starts a command that says what it is told.
func (p *person) connect(t *testing.T) *lifeline {
	t.Helper()
	l := &lifeline{w: p.w, from: "127.0.0.1"}
	offer := must(resume.NewOffer())
	nc := must(l.dial(t.Context()))
	must(nc.Write(offer.Line()))
	l.conn = must(offer.Accept(nc, resume.ClientConfig{Redial: l.dial}))
	if _, ok := l.conn.(*resume.Conn); !ok {
		t.Fatalf("the node made %T of the offer", l.conn)
	}
	c, chans, reqs, err := gossh.NewClientConn(l.conn, node, &gossh.ClientConfig{
		User: p.w.login, Auth: []gossh.AuthMethod{gossh.PublicKeys(p.key)},
		HostKeyCallback: p.w.holder.Trust().HostKeyCallback(types.RoleNode, node), Timeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	l.ssh = gossh.NewClient(c, chans, reqs)
	t.Cleanup(func() { _ = l.ssh.Close() })
	s := session(t, l.ssh)
	in, out := must(s.StdinPipe()), must(s.StdoutPipe())
	if err := s.Start("while read line; do echo got $line; done"); err != nil {
		t.Fatal(err)
	}
	l.out = bufio.NewReader(out)
	l.in(t, in, "one")
	t.Cleanup(func() { _ = in.Close() })
	l.say = func(t *testing.T, text string) { l.in(t, in, text) }
	return l
}

func (l *lifeline) in(t *testing.T, in io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(in, text+"\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := l.out.ReadString('\n'); got != "got "+text+"\n" {
		t.Fatalf("the command said %q, %v", got, err)
	}
}

// ends waits for the end of the connection.
func (l *lifeline) ends(t *testing.T) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- l.ssh.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the connection goes on")
		return nil
	}
}

func TestConnectionIsResumed(t *testing.T) {
	w := start(t, nil)
	l := w.alice(t).connect(t)
	for _, text := range []string{"two", "three"} {
		l.interrupt()
		l.restore("127.0.0.2") // and from another address
		l.say(t, text)
	}
	if got := l.ssh.RemoteAddr().String(); got != w.addr {
		t.Errorf("RemoteAddr() = %s", got)
	}
	w.events.wait(t, "T2010I", func(e *auditv1.Event) bool { return field(e, "user") == "alice" && field(e, "server_id") == hostID })
	w.events.wait(t, "TSR00I", func(e *auditv1.Event) bool {
		return field(e, "resumptions") == 2.0 && strings.HasPrefix(fmt.Sprint(field(e, "addr.remote")), "127.0.0.2:")
	})
	// A session begins after it as before.
	if out, err := session(t, l.ssh).Output("echo new"); string(out) != "new\n" {
		t.Errorf("a new session said %q, %v", out, err)
	}
}

func TestWhoMayNotResume(t *testing.T) {
	yes := true
	for name, tt := range map[string]struct {
		from   string
		change func(w *world)
		person func(w *world, t *testing.T) *person
		want   error
		text   string
	}{
		"locked": {
			change: func(w *world) { w.lock(&typesv1.LockTarget{User: "alice"}) },
			want:   fault.ErrUnreachable, text: "the node has ended it",
		},
		"role_gone": {
			change: func(w *world) { w.setRole(role("dev")) },
			want:   fault.ErrDenied, text: "you may not log in there any more",
		},
		"bound_to_another_address": {
			from: "127.0.0.2",
			person: func(w *world, t *testing.T) *person {
				return w.person(t, "alice", []string{w.login}, []string{"dev"}, func(r *ca.UserRequest) { r.Identity.User.SourceIP = "127.0.0.1" })
			},
			want: fault.ErrDenied, text: "not from this address",
		},
		"expired": {
			change: func(w *world) {
				r := role("dev", w.login)
				r.Spec.Options = &typesv1.RoleOptions{DisconnectExpiredCert: &yes}
				w.setRole(r)
				time.Sleep(4 * time.Second)
			},
			person: func(w *world, t *testing.T) *person {
				return w.person(t, "alice", []string{w.login}, []string{"dev"}, func(r *ca.UserRequest) { r.TTL = 4 * time.Second })
			},
			want: fault.ErrUnreachable, text: "the node has ended it",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, nil)
			var p *person
			if tt.person != nil {
				p = tt.person(w, t)
			} else {
				p = w.alice(t)
			}
			l := p.connect(t)
			l.interrupt()
			if tt.change != nil {
				tt.change(w)
			}
			l.restore("127.0.0.1")
			if tt.from != "" {
				l.restore(tt.from)
			}
			if err := l.ends(t); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("the connection ended with %v, want %v with %q", err, tt.want, tt.text)
			}
			if !errors.Is(tt.want, fault.ErrDenied) {
				return // it ended before anybody came back
			}
			w.events.wait(t, "TSR00W", func(e *auditv1.Event) bool { return field(e, "user") == "alice" && field(e, "reason") != "" })
		})
	}
}

// Where the path broke and the user did not come back yet, a lock ends what runs, at
// once.
func TestLockEndsWhatNobodyWatches(t *testing.T) {
	w := start(t, nil)
	l := w.alice(t).connect(t)
	l.interrupt()
	w.lock(&typesv1.LockTarget{User: "alice"})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := w.svc.EnforceLocks(ctx); err != nil {
		t.Fatalf("EnforceLocks() = %v", err)
	}
	w.events.wait(t, "T2004I", nil)
}

// Programs that wait for the server's identification get it first.
func TestIdentificationComesFirst(t *testing.T) {
	w := start(t, nil)
	c := must(net.Dial("tcp", w.addr))
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if got, err := bufio.NewReader(c).ReadString('\n'); got != "SSH-2.0-Teleport "+resume.Mark+"\r\n" {
		t.Errorf("the server begins with %q, %v", got, err)
	}
	host, port, _ := net.SplitHostPort(w.addr)
	// It gets no key where its version knows no strict key exchange.
	if out, _ := exec.Command("ssh-keyscan", "-c", "-p", port, host).CombinedOutput(); !strings.Contains(string(out), "SSH-2.0-Teleport "+resume.Mark) {
		t.Errorf("ssh-keyscan = %q", out)
	}
}
