package ssh_test

import (
	"bytes"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/ca"
	"teleport/internal/cache"
	"teleport/internal/types"
)

// lock makes a lock, and returns its text and what takes it away.
func (w *world) lock(target *typesv1.LockTarget) (text string, unlock func()) {
	l := types.NewLock(target, "ask Eve", "admin", time.Now(), time.Time{})
	w.cache.Apply(types.Change{Kind: types.KindLock, Name: l.GetMetadata().GetName(), Resource: l})
	return access.LockText(l), func() {
		w.cache.Apply(types.Change{Kind: types.KindLock, Name: l.GetMetadata().GetName()})
	}
}

// output is what a program wrote so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// until waits for what others do.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not in time: %s", what)
		}
	}
}

// running is a session of a stock client, which runs until somebody ends it.
type running struct {
	cmd    *exec.Cmd
	out    *output
	ended  chan error
	marker string
}

// run starts a session; with a terminal the program ignores that it is hung up.
func (p *person) run(t testing.TB, marker string, terminal bool) *running {
	t.Helper()
	r := &running{out: &output{}, ended: make(chan error, 1), marker: marker}
	command := "echo started; exec -a " + marker + " sleep 1000"
	args := []string{command}
	if terminal {
		args = []string{"-tt", "trap '' HUP; " + command}
	}
	r.cmd = p.ssh(p.w.login, args...)
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.ended <- r.cmd.Wait() }()
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	until(t, "the session runs", func() bool { return strings.Contains(r.out.String(), "started") })
	return r
}

// over expects that the session ends, its program too, and that its user reads why.
func (r *running) over(t testing.TB, text string) {
	t.Helper()
	select {
	case err := <-r.ended:
		if err == nil {
			t.Error("a session that a lock ended succeeded")
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the session goes on:\n%s", r.out)
	}
	if !strings.Contains(r.out.String(), text) {
		t.Errorf("its user was shown %q, want %q in it", r.out, text)
	}
	gone(t, r.marker)
}

func hasReason(text string) func(*auditv1.Event) bool {
	return func(e *auditv1.Event) bool { return field(e, "reason") == text }
}

// TestLockEndsSessions: a lock ends the live sessions that it is about, with its text
// on the terminal, refuses new ones, and lets everybody in again when it is removed.
func TestLockEndsSessions(t *testing.T) {
	w := start(t, nil)
	w.setRole(role("other", w.login))
	alice := w.person(t, "alice", []string{w.login}, []string{"dev"}, func(r *ca.UserRequest) { r.Identity.User.MFADevice = "m-1" })
	bob := w.person(t, "bob", []string{w.login}, []string{"other"}, nil)
	for _, tt := range []struct {
		name   string
		target *typesv1.LockTarget
		bob    bool // locked as well
	}{
		{"user", &typesv1.LockTarget{User: "alice"}, false},
		{"role", &typesv1.LockTarget{Role: "dev"}, false},
		{"login", &typesv1.LockTarget{Login: w.login}, true},
		{"server", &typesv1.LockTarget{ServerId: hostID}, true},
		{"device", &typesv1.LockTarget{MfaDevice: "m-1"}, false},
		{"user and login", &typesv1.LockTarget{User: "alice", Login: w.login}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.events.reset()
			marker := "tlp-lock-" + strings.ReplaceAll(tt.name, " ", "-")
			plain, onTerminal := alice.run(t, marker+"-a", false), alice.run(t, marker+"-t", true)
			theirs := bob.run(t, marker+"-b", false)
			open := alice.dial(t, w.login)
			text, unlock := w.lock(tt.target)
			defer unlock()
			plain.over(t, text)
			onTerminal.over(t, text)
			if err := open.Wait(); err == nil {
				t.Error("a connection without a session ended well")
			}
			if err := w.svc.EnforceLocks(t.Context()); err != nil {
				t.Error(err)
			}
			w.events.wait(t, "T3006I", hasReason(text))
			w.events.wait(t, "T2004I", hasReason(text))

			r := runCmd(t, alice.ssh(w.login, "true"))
			if r.code == 0 || !strings.Contains(r.err, text) {
				t.Errorf("a new session: exit %d, %q, want %q", r.code, r.err, text)
			}
			w.events.wait(t, "T1006W", hasReason(text))
			if r := runCmd(t, bob.ssh(w.login, "true")); (r.code != 0) != tt.bob {
				t.Errorf("somebody else: exit %d, %q, locked: want %v", r.code, r.err, tt.bob)
			}
			if tt.bob {
				theirs.over(t, text)
			} else {
				select {
				case <-theirs.ended:
					t.Errorf("the session of somebody else ended: %s", theirs.out)
				default:
				}
				_ = theirs.cmd.Process.Kill()
			}
			unlock()
			ok(t, alice.ssh(w.login, "true"))
		})
	}
}

// TestLockThatIsAboutOthers leaves everybody alone.
func TestLockThatIsAboutOthers(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	r := alice.run(t, "tlp-lock-others", false)
	for _, target := range []*typesv1.LockTarget{
		{User: "bob"},
		{Role: "other"},
		{Login: "nobody"},
		{ServerId: "another"},
		{JoinToken: "tok"},
		{MfaDevice: "m-1"},
		{User: "alice", ServerId: "another"},
		{User: "alice", Login: "nobody"},
	} {
		w.lock(target)
	}
	if err := w.svc.EnforceLocks(t.Context()); err != nil {
		t.Error(err)
	}
	ok(t, alice.ssh(w.login, "true"))
	select {
	case <-r.ended:
		t.Errorf("the session ended: %s", r.out)
	default:
	}
}

// TestLockedAtOnce: a login after the lock is refused, and one after its end is not.
func TestLockedAtOnce(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	text, unlock := w.lock(&typesv1.LockTarget{User: "alice"})
	if _, err := alice.tryDial(w.login); err == nil {
		t.Error("a locked user logged in")
	}
	w.events.wait(t, "T1006W", hasReason(text))
	unlock()
	alice.dial(t, w.login)
}

// TestLockedOut: while Auth refuses this host nobody is served, whatever the locks say.
func TestLockedOut(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	r := alice.run(t, "tlp-locked-out", true)
	const text = `lock targeting JoinToken:"tok" is in force: leaked`
	w.cache.Lockout(text)
	r.over(t, text)
	if r := runCmd(t, alice.ssh(w.login, "true")); r.code == 0 || !strings.Contains(r.err, text) {
		t.Errorf("a new session: exit %d, %q, want %q", r.code, r.err, text)
	}
	w.cache.Lockout("")
	ok(t, alice.ssh(w.login, "true"))
}

// TestStrictLocks: who has a strict role is let in only while the host hears from Auth.
func TestStrictLocks(t *testing.T) {
	w := start(t, nil)
	strict := role("strict", w.login)
	strict.Spec.Options = &typesv1.RoleOptions{Lock: types.LockStrict}
	lax := role("lax", w.login)
	lax.Spec.Options = &typesv1.RoleOptions{Lock: types.LockBestEffort}
	w.setRole(strict)
	w.setRole(lax)
	careful := w.person(t, "careful", []string{w.login}, []string{"lax", "strict"}, nil)
	easy := w.person(t, "easy", []string{w.login}, []string{"lax"}, nil)

	w.cache.Heard(time.Now())
	r := careful.run(t, "tlp-strict", false)
	w.cache.Heard(time.Now().Add(-cache.MaxSilence - time.Minute))
	if r := runCmd(t, careful.ssh(w.login, "true")); r.code == 0 || !strings.Contains(r.err, "may have missed locks") {
		t.Errorf("strict, without Auth: exit %d, %q, want a refusal that says why", r.code, r.err)
	}
	w.events.wait(t, "T1006W", func(e *auditv1.Event) bool { return field(e, "user") == "careful" })
	ok(t, easy.ssh(w.login, "true"))
	select {
	case <-r.ended:
		t.Errorf("a session that was open ended: %s", r.out)
	default:
	}
	w.cache.Heard(time.Now())
	ok(t, careful.ssh(w.login, "true"))
}

// TestLockAgainstLogins: whenever the lock comes, nobody who logs in at that moment
// stays.
func TestLockAgainstLogins(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	for range 10 {
		dialled := make(chan *gossh.Client, 5)
		var dialling sync.WaitGroup
		for range cap(dialled) {
			dialling.Go(func() {
				if c, err := alice.tryDial(w.login); err == nil {
					dialled <- c
				}
			})
		}
		_, unlock := w.lock(&typesv1.LockTarget{User: "alice"})
		dialling.Wait()
		close(dialled)
		for c := range dialled {
			ended := make(chan error, 1)
			go func() { ended <- c.Wait() }()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Error("a connection outlived the lock")
			}
			_ = c.Close()
		}
		unlock()
	}
	if err := w.svc.EnforceLocks(t.Context()); err != nil {
		t.Error(err)
	}
}
