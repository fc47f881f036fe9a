package ssh_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/service/ssh"
	"teleport/internal/types"
)

// screen is what a terminal showed.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
	err  error
}

func watch(r io.Reader) *screen {
	s := &screen{more: make(chan struct{})}
	go func() {
		buf := make([]byte, 4<<10)
		for {
			n, err := r.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.err = err
			close(s.more)
			s.more = make(chan struct{})
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// shows waits until the text is there.
func (s *screen) shows(t testing.TB, text string) {
	t.Helper()
	s.until(t, fmt.Sprintf("%q", text), func(shown string, _ error) bool { return strings.Contains(shown, text) })
}

// ends waits until nothing more comes.
func (s *screen) ends(t testing.TB) {
	t.Helper()
	s.until(t, "its end", func(_ string, err error) bool { return err != nil })
}

func (s *screen) until(t testing.TB, what string, is func(string, error) bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		text, err, more := s.text.String(), s.err, s.more
		s.mu.Unlock()
		if is(text, err) {
			return
		}
		if err != nil {
			t.Fatalf("the output ended (%v) before %s:\n%s", err, what, text)
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("no %s after 20 s:\n%s", what, text)
		}
	}
}

// seat is somebody's place in a session.
type seat struct {
	*screen
	in   io.Writer
	conn *gossh.Client
	exit chan error
	// ask sends a request behind what was typed.
	ask func(name string, reply bool, payload []byte) (bool, error)
}

// own begins a shell on a terminal.
func own(t testing.TB, p *person, env ...string) *seat {
	t.Helper()
	c := p.dial(t, p.w.login)
	s := session(t, c)
	in, out := must(s.StdinPipe()), must(s.StdoutPipe())
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		if err := s.Setenv(name, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RequestPty("xterm", 24, 80, gossh.TerminalModes{gossh.ECHO: 0}); err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	s.Stderr = &errs
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	o := &seat{screen: watch(out), in: in, conn: c, exit: make(chan error, 1), ask: s.SendRequest}
	go func() { o.exit <- s.Wait() }()
	return o
}

// sid is the id of the only session that may be joined, when there is one.
func (w *world) sid(t testing.TB) string {
	t.Helper()
	return w.tracked(t, func(*typesv1.SessionTracker) bool { return true }).GetMetadata().GetName()
}

// tracked waits for a session that fits.
func (w *world) tracked(t testing.TB, fits func(*typesv1.SessionTracker) bool) *typesv1.SessionTracker {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		for _, s := range w.svc.Sessions() {
			if fits(s) {
				return s
			}
		}
		select {
		case <-limit:
			t.Fatalf("no such session: %v", w.svc.Sessions())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// attend joins a session; the screen may show why not.
func attend(t testing.TB, p *person, mode, sid string, columns, rows uint32) *seat {
	t.Helper()
	c := p.dial(t, types.LoginJoin)
	ch, reqs, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	exit := make(chan error, 1)
	go func() {
		for r := range reqs {
			if r.Type == "exit-status" && bytes.Equal(r.Payload, []byte{0, 0, 0, 0}) {
				exit <- nil
			} else if r.Type == "exit-status" {
				exit <- fmt.Errorf("exit status %v", r.Payload)
			}
		}
		close(exit)
	}()
	if columns > 0 {
		pty := struct {
			Term                         string
			Columns, Rows, Width, Height uint32
			Modes                        string
		}{"xterm", columns, rows, 0, 0, ""}
		if ok, err := ch.SendRequest("pty-req", true, gossh.Marshal(pty)); err != nil || !ok {
			t.Fatalf("pty-req: %v, %v", ok, err)
		}
	}
	if ok, err := ch.SendRequest("subsystem", true, gossh.Marshal(struct{ Name string }{"join:" + mode + ":" + sid})); err != nil || !ok {
		t.Fatalf("subsystem: %v, %v", ok, err)
	}
	errs := watch(ch.Stderr())
	s := &seat{screen: watch(io.MultiReader(ch)), in: ch, conn: c, exit: exit, ask: ch.SendRequest}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("error output of %s: %s", mode, errs)
		}
	})
	return s
}

// refusedSeat tries to join and returns what was said.
func refusedSeat(t testing.TB, p *person, mode, sid string) string {
	t.Helper()
	c := p.dial(t, types.LoginJoin)
	ch, reqs, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go gossh.DiscardRequests(reqs)
	if ok, err := ch.SendRequest("subsystem", true, gossh.Marshal(struct{ Name string }{"join:" + mode + ":" + sid})); err != nil || !ok {
		t.Fatalf("subsystem: %v, %v", ok, err)
	}
	return string(must(io.ReadAll(ch.Stderr())))
}

func (s *seat) types(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		t.Fatal(err)
	}
}

// delivers types, and returns when the node has it: what others do afterwards, on
// connections of their own, does not overtake it.
func (s *seat) delivers(t testing.TB, text string) {
	t.Helper()
	s.types(t, text)
	if _, err := s.ask("keepalive@openssh.com", true, nil); err != nil {
		t.Fatal(err)
	}
}

// company are people who may join sessions of holders of dev in every mode, and those
// who may see only; role makes the role of the owner.
func withCompany(t testing.TB, policies ...*typesv1.SessionRequirePolicy) (w *world, alice, bob, mia *person) {
	t.Helper()
	w = start(t, nil)
	dev := role("dev", w.login, "root")
	dev.Spec.Allow.RequireSessionJoin = policies
	w.setRole(dev)
	for name, modes := range map[string][]string{"helper": {"observer", "peer"}, "auditor": {"observer", "moderator"}} {
		w.setRole(joins(name, modes...))
	}
	w.cache.Synced(2)
	return w, w.alice(t), w.person(t, "bob", []string{types.LoginJoin}, []string{"helper"}, nil), w.person(t, "mia", []string{types.LoginJoin}, []string{"auditor"}, nil)
}

// joins makes a role that joins sessions of holders of dev.
func joins(name string, modes ...string) *typesv1.Role {
	r := types.New(types.KindRole, name).(*typesv1.Role)
	r.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{JoinSessions: []*typesv1.SessionJoinPolicy{
		{Name: name, Roles: []string{"dev"}, Kinds: []string{"ssh"}, Modes: modes},
	}}}
	return r
}

func oversight(leave string) *typesv1.SessionRequirePolicy {
	return &typesv1.SessionRequirePolicy{
		Name: "oversight", Filter: `contains(user.spec.roles, "auditor")`, Kinds: []string{"ssh"}, Modes: []string{"moderator"}, Count: 1, OnLeave: leave,
	}
}

func TestSharedSession(t *testing.T) {
	w, alice, bob, mia := withCompany(t)
	owner := own(t, alice, "TELEPORT_SESSION_REASON=the disk\x1b is full", "TELEPORT_SESSION_INVITED=bob,mia")
	owner.types(t, "echo early:$((6*7)); env | grep -c TELEPORT_SESSION\n")
	owner.shows(t, "early:42")
	tracker := w.tracked(t, func(s *typesv1.SessionTracker) bool { return true })
	sid := tracker.GetMetadata().GetName()
	if s := tracker.GetSpec(); s.GetOwner() != "alice" || s.GetState() != "running" || !slices.Equal(s.GetOwnerRoles(), []string{"dev", "ghost"}) ||
		s.GetReason() != "the disk? is full" || !slices.Equal(s.GetInvited(), []string{"bob", "mia"}) || s.GetServerId() != hostID {
		t.Errorf("tracker = %v", tracker)
	}
	if err := types.Check(tracker); err != nil {
		t.Errorf("Check of the tracker: %v", err)
	}

	// Who joins sees what was shown before, and what comes.
	observer := attend(t, bob, "observer", sid, 80, 24)
	observer.shows(t, "early:42")
	owner.shows(t, "Teleport > bob joined as observer")
	observer.shows(t, "Ctrl-C leaves")
	owner.types(t, "echo both:$((6*8))\n")
	observer.shows(t, "both:48")

	// An observer cannot type.
	observer.types(t, "echo observer:$((6*9))\nt\n")
	peer := attend(t, bob, "peer", sid, 80, 24)
	peer.shows(t, "What you type is run there")
	peer.types(t, "echo peer:$((7*7))\n")
	for _, s := range []*seat{owner, observer, peer} {
		s.shows(t, "peer:49")
	}
	if strings.Contains(owner.String(), "54") {
		t.Errorf("an observer typed:\n%s", owner)
	}
	// The shell knows nothing of what is for the node.
	if strings.Contains(owner.String(), "\n1\r") || strings.Contains(owner.String(), "\n2\r") {
		t.Errorf("variables for the node are in the shell:\n%s", owner)
	}
	got := w.tracked(t, func(s *typesv1.SessionTracker) bool { return len(s.GetSpec().GetParticipants()) == 2 })
	if text := types.ParticipantsText(got); text != "bob (observer), bob (peer)" {
		t.Errorf("participants = %s", text)
	}

	// Ctrl-C leaves.
	observer.types(t, "\x03")
	observer.ends(t)
	if err := <-observer.exit; err != nil {
		t.Errorf("an observer that left: %v", err)
	}
	owner.shows(t, "Teleport > bob left (observer)")
	left := w.events.wait(t, "T2003I", func(e *auditv1.Event) bool { return field(e, "mode") == "observer" })
	joined := w.events.wait(t, "T2001I", func(e *auditv1.Event) bool { return field(e, "mode") == "observer" })
	for _, e := range []*auditv1.Event{joined, left} {
		if field(e, "user") != "bob" || field(e, "session_owner") != "alice" || field(e, "sid") != sid || field(e, "login") != w.login {
			t.Errorf("event = %v", e)
		}
	}

	// A moderator ends it.
	moderator := attend(t, mia, "moderator", sid, 80, 24)
	moderator.shows(t, "t ends the session")
	moderator.types(t, "echo x\n") // no t
	moderator.types(t, "t")
	for _, s := range []*seat{owner, peer, moderator} {
		s.shows(t, "the session is ended: mia, who moderates it, ended it")
		s.ends(t)
	}
	end := w.events.wait(t, "T2004I", nil)
	if got := fmt.Sprint(field(end, "participants")); got != "[alice bob mia]" || !strings.Contains(fmt.Sprint(field(end, "reason")), "mia") {
		t.Errorf("participants %s, reason %v", got, field(end, "reason"))
	}
	if left := w.svc.Sessions(); len(left) != 0 {
		t.Errorf("sessions after the end: %v", left)
	}
}

func TestWhoMayJoin(t *testing.T) {
	w, alice, bob, mia := withCompany(t)
	owner := own(t, alice)
	owner.types(t, "echo go:$((6*7))\n")
	owner.shows(t, "go:42")
	sid := w.sid(t)
	other := "11111111-2222-4333-8444-555555555555"
	for name, tt := range map[string]struct {
		who       *person
		mode, sid string
		says      string
		reason    string
	}{
		"mode":         {bob, "moderator", sid, "there is no session " + sid + " here that you may join as moderator", "join_sessions"},
		"other_mode":   {mia, "peer", sid, "there is no session " + sid + " here that you may join as peer", "join_sessions"},
		"no_session":   {mia, "moderator", other, "there is no session " + other + " here that you may join as moderator", "there is no such session"},
		"own":          {alice, "moderator", sid, "there is no session", "join_sessions"},
		"unknown_mode": {mia, "boss", sid, "unknown mode", ""},
		"bad_id":       {mia, "moderator", "../x", "not the id of a session", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w.events.reset()
			if said := refusedSeat(t, tt.who, tt.mode, tt.sid); !strings.Contains(said, tt.says) {
				t.Errorf("said %q, want %q", said, tt.says)
			}
			if tt.reason == "" {
				return
			}
			w.events.wait(t, "T1006W", func(e *auditv1.Event) bool {
				return strings.Contains(fmt.Sprint(field(e, "reason")), tt.reason) && field(e, "sid") == tt.sid
			})
		})
	}
	// Who may join nothing does not even get a connection; the owner does.
	carol := w.person(t, "carol", []string{types.LoginJoin}, []string{"nobody"}, nil)
	if _, err := carol.tryDial(types.LoginJoin); err == nil {
		t.Error("somebody who may join nothing got a connection")
	}
	again := attend(t, alice, "peer", sid, 80, 24)
	again.shows(t, "What you type is run there")
	// On such a connection there is nothing but sessions to join.
	c := mia.dial(t, types.LoginJoin)
	s := session(t, c)
	if out, err := s.CombinedOutput("echo ran"); err == nil || strings.Contains(string(out), "ran") {
		t.Errorf("a command ran on a connection for joining: %q", out)
	}
	if conn, err := c.Dial("tcp", w.addr); err == nil {
		_ = conn.Close()
		t.Error("a port was forwarded on a connection for joining")
	}
	// Without the audit log nobody joins.
	w.events.refuse()
	if said := refusedSeat(t, mia, "moderator", sid); !strings.Contains(said, "audit log cannot take it") {
		t.Errorf("joined without a record: %q", said)
	}
}

func TestSessionWaitsForCompany(t *testing.T) {
	w, alice, bob, mia := withCompany(t, oversight("pause"))
	owner := own(t, alice)
	owner.shows(t, `waits for 1 more moderator ("oversight")`)
	sid := w.sid(t)
	if s := w.tracked(t, func(*typesv1.SessionTracker) bool { return true }).GetSpec(); s.GetState() != "pending" || len(s.GetNeeds()) != 1 {
		t.Errorf("tracker = %v", s)
	}
	// What is typed before does not arrive; company that is not asked for does not help.
	owner.delivers(t, "echo too:early\n")
	peer := attend(t, bob, "peer", sid, 80, 24)
	peer.shows(t, "the session waits for 1 more moderator")
	peer.delivers(t, "echo too:early\n")
	moderator := attend(t, mia, "moderator", sid, 80, 24)
	for _, s := range []*seat{owner, peer, moderator} {
		s.shows(t, "the session begins")
	}
	owner.types(t, "echo now:$((6*7))\n")
	for _, s := range []*seat{owner, peer, moderator} {
		s.shows(t, "now:42")
		if strings.Contains(s.String(), "too:early") {
			t.Errorf("what was typed before the session began arrived:\n%s", s)
		}
	}

	// When the moderator leaves, input and output are held back until one comes again.
	later := filepath.Join(os.TempDir(), "tlp-share-"+sid)
	defer func() { _, _ = os.Remove(later), os.Remove(later+".go") }()
	owner.types(t, "(while [ ! -e "+later+".go ]; do sleep 0.05; done; echo late:$((5*5)); touch "+later+") & echo sent:$((1+1))\n")
	owner.shows(t, "sent:2")
	moderator.types(t, "\x03")
	moderator.ends(t)
	for _, s := range []*seat{owner, peer} {
		s.shows(t, `the session is paused: it waits for 1 more moderator ("oversight")`)
	}
	w.tracked(t, func(s *typesv1.SessionTracker) bool { return s.GetSpec().GetState() == "paused" })
	write(t, later+".go", "")
	if err := os.Chmod(later+".go", 0o666); err != nil {
		t.Fatal(err)
	}
	owner.delivers(t, "echo during:pause\n")
	peer.delivers(t, "echo during:pause\n")
	until(t, "the output that is held back", func() bool { _, err := os.Stat(later); return err == nil })
	if strings.Contains(owner.String(), "late:25") {
		t.Errorf("output came while the session was paused:\n%s", owner)
	}
	moderator = attend(t, mia, "moderator", sid, 80, 24)
	owner.shows(t, "the session goes on")
	owner.shows(t, "late:25")
	owner.types(t, "echo after:$((6*9))\n")
	for _, s := range []*seat{owner, peer, moderator} {
		s.shows(t, "after:54")
		if strings.Contains(s.String(), "during:pause") {
			t.Errorf("input came while the session was paused:\n%s", s)
		}
	}
	owner.types(t, "exit 3\n")
	if err := <-owner.exit; err == nil || !strings.Contains(err.Error(), "status 3") {
		t.Errorf("the owner's shell: %v, want exit status 3", err)
	}
	for _, s := range []*seat{peer, moderator} {
		s.shows(t, "the session has ended")
		s.ends(t)
	}
}

func TestSessionEndsWithoutCompany(t *testing.T) {
	w, alice, _, mia := withCompany(t, oversight(""))
	owner := own(t, alice)
	moderator := attend(t, mia, "moderator", w.sid(t), 80, 24)
	owner.shows(t, "the session begins")
	owner.types(t, "echo go:$((6*7)); sleep 10031\n")
	owner.shows(t, "go:42")
	appear(t, "sleep\x0010031")
	// What a terminal answers when a program asks for its name is not typed by anybody.
	moderator.types(t, "\x1bP>|xterm(379)\x1b\\")
	observer := attend(t, mia, "observer", w.sid(t), 80, 24)
	owner.shows(t, "mia joined as observer")
	_ = observer.conn.Close()
	_ = moderator.conn.Close() // not in an orderly way
	owner.shows(t, `the session is ended: somebody left who is needed in it: 1 more moderator ("oversight")`)
	owner.ends(t)
	gone(t, "sleep\x0010031")
	w.events.wait(t, "T2004I", func(e *auditv1.Event) bool {
		return strings.Contains(fmt.Sprint(field(e, "reason")), "left who is needed")
	})

	// An owner need not wait.
	owner = own(t, alice)
	owner.shows(t, "waits for")
	owner.types(t, "\x03")
	owner.ends(t)
	if len(w.svc.Sessions()) != 0 {
		t.Error("the session that the owner gave up is still listed")
	}
}

func TestNothingIsDoneAlone(t *testing.T) {
	w, alice, _, mia := withCompany(t, oversight(""))
	c := alice.dial(t, w.login)
	s := session(t, c)
	var errs bytes.Buffer
	s.Stderr = &errs
	if err := s.Run("echo ran"); err == nil || !strings.Contains(errs.String(), "a command without a terminal cannot be followed: use a terminal, as in tsh ssh -t") {
		t.Errorf("a command without a terminal: %v, %q", err, &errs)
	}
	w.events.wait(t, "T1006W", func(e *auditv1.Event) bool {
		return strings.Contains(fmt.Sprint(field(e, "reason")), `role "dev" asks for company`)
	})
	if _, err := c.Dial("tcp", w.addr); err == nil || !strings.Contains(err.Error(), "could not follow") {
		t.Errorf("a port was forwarded: %v", err)
	}
	if ln, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		_ = ln.Close()
		t.Error("a port was forwarded back")
	}
	s = session(t, c)
	s.Stderr = &errs
	out := must(s.StdoutPipe())
	if err := s.RequestSubsystem("sftp"); err == nil {
		b, _ := io.ReadAll(out)
		if len(b) > 0 {
			t.Errorf("sftp answers %q", b)
		}
	}
	// A command on a terminal waits like a shell.
	s = session(t, c)
	tty := must(s.StdoutPipe())
	if err := s.RequestPty("xterm", 24, 80, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Start("echo ran:$((6*7))"); err != nil {
		t.Fatal(err)
	}
	shown := watch(tty)
	shown.shows(t, "waits for")
	if got := w.tracked(t, func(*typesv1.SessionTracker) bool { return true }).GetSpec().GetCommand(); got != "echo ran:$((6*7))" {
		t.Errorf("command of the session = %q", got)
	}
	attend(t, mia, "moderator", w.sid(t), 0, 0)
	shown.shows(t, "ran:42")
}

// Somebody who takes nothing holds nobody up, and is brought up to date later.
func TestStalledObserver(t *testing.T) {
	w, alice, bob, _ := withCompany(t)
	owner := own(t, alice)
	owner.types(t, "echo go:$((6*7))\n")
	owner.shows(t, "go:42")
	stalled := newStalled(t, bob, w.sid(t))
	owner.shows(t, "bob joined as observer")
	// More than the window of a channel (2 MiB here) and the queue together.
	owner.types(t, "head -c 6000000 /dev/zero | tr '\\0' x | fold -w 70; echo don''e:1\n")
	owner.shows(t, "done:1")
	shown := watch(stalled)
	shown.shows(t, "some of it was left out")
	shown.shows(t, "done:1")
	owner.types(t, "echo live:$((6*8))\n")
	shown.shows(t, "live:48")
}

// newStalled joins as an observer that reads nothing.
func newStalled(t testing.TB, p *person, sid string) io.Reader {
	t.Helper()
	ch, reqs, err := p.dial(t, types.LoginJoin).OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go gossh.DiscardRequests(reqs)
	if ok, err := ch.SendRequest("subsystem", true, gossh.Marshal(struct{ Name string }{"join:observer:" + sid})); err != nil || !ok {
		t.Fatalf("subsystem: %v, %v", ok, err)
	}
	return ch
}

func TestSizeOfSharedTerminal(t *testing.T) {
	w, alice, bob, _ := withCompany(t)
	owner := own(t, alice)
	size := func(n int) string {
		owner.types(t, fmt.Sprintf("echo size%d:$(stty size | tr ' ' x):\n", n))
		mark := fmt.Sprintf("size%d:", n)
		got := ""
		owner.until(t, "a size", func(text string, _ error) bool {
			_, after, _ := strings.Cut(text, mark)
			var done bool
			got, _, done = strings.Cut(after, ":")
			return done
		})
		return got
	}
	if got := size(1); got != "24x80" {
		t.Errorf("size = %s", got)
	}
	sid := w.sid(t)
	observer := attend(t, bob, "observer", sid, 20, 5)
	observer.shows(t, "yours is smaller")
	if got := size(2); got != "24x80" {
		t.Errorf("size with a small observer = %s", got)
	}
	peer := attend(t, bob, "peer", sid, 60, 100)
	peer.shows(t, "What you type")
	until(t, "the size of who types", func() bool { return size(int(time.Now().UnixNano())) == "24x60" })
	tiny := attend(t, bob, "peer", sid, 1, 1)
	tiny.shows(t, "What you type")
	until(t, "the size of who types", func() bool { return size(int(time.Now().UnixNano())) == "10x40" })
	_, _ = peer.conn.Close(), tiny.conn.Close()
	until(t, "the size of who types", func() bool { return size(int(time.Now().UnixNano())) == "24x80" })
}

// A lock on somebody who joined takes only them away.
func TestLockOfSomebodyWhoJoined(t *testing.T) {
	w, alice, bob, mia := withCompany(t)
	owner := own(t, alice)
	owner.types(t, "echo go:$((6*7))\n")
	owner.shows(t, "go:42")
	sid := w.sid(t)
	peer, moderator := attend(t, bob, "peer", sid, 80, 24), attend(t, mia, "moderator", sid, 80, 24)
	owner.shows(t, "mia joined as moderator")
	w.lock(&typesv1.LockTarget{User: "bob"})
	peer.ends(t)
	owner.shows(t, "bob left (peer)")
	moderator.shows(t, "bob left (peer)")
	owner.types(t, "echo still:$((6*8))\n")
	owner.shows(t, "still:48")
	moderator.shows(t, "still:48")
	if _, err := bob.tryDial(types.LoginJoin); err == nil {
		t.Error("somebody who is locked got a connection")
	}
	left := w.events.wait(t, "T2003I", func(e *auditv1.Event) bool { return field(e, "user") == "bob" })
	if !strings.Contains(fmt.Sprint(field(left, "reason")), "lock targeting") {
		t.Errorf("reason = %v", field(left, "reason"))
	}
}

func TestSessionsOfAStoppedService(t *testing.T) {
	changes := make(chan struct{}, 100)
	w := start(t, func(c *ssh.Config) { c.SessionsChanged = func() { changes <- struct{}{} } })
	owner := own(t, w.alice(t))
	owner.types(t, "echo go:$((6*7))\n")
	owner.shows(t, "go:42")
	<-changes
	w.stop()
	owner.ends(t)
	<-changes
	if left := w.svc.Sessions(); len(left) != 0 {
		t.Errorf("sessions after the stop: %v", left)
	}
}

// Stock OpenSSH joins by asking for the subsystem.
func TestStockClientJoins(t *testing.T) {
	w, alice, bob, _ := withCompany(t)
	owner := own(t, alice)
	owner.types(t, "echo go:$((6*7))\n")
	owner.shows(t, "go:42")
	cmd := bob.ssh(types.LoginJoin, "join:peer:"+w.sid(t))
	cmd.Args = append([]string{"ssh", "-tt", "-s"}, cmd.Args[1:]...)
	in, out := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	shown := watch(out)
	shown.shows(t, "What you type is run there")
	if _, err := io.WriteString(in, "echo stock:$((6*8))\n"); err != nil {
		t.Fatal(err)
	}
	owner.shows(t, "stock:48")
	owner.types(t, "exit\n")
	shown.ends(t)
	if err := cmd.Wait(); err != nil {
		t.Errorf("ssh: %v", err)
	}
}

// A program that fills the screen is asked to draw it again for who joins, and leaves
// their terminal as it was.
func TestFullScreen(t *testing.T) {
	w, alice, bob, _ := withCompany(t)
	owner := own(t, alice)
	// In a shell of its own: of an interactive one, only the job in front is told.
	owner.types(t, `bash -c 'trap "printf drawn:%s \$((n=n+1))" WINCH; printf "\033[?1049hfull:%s" $((6*7)); while :; do sleep 0.05; done'`+"\n")
	owner.shows(t, "full:42")
	observer := attend(t, bob, "observer", w.sid(t), 80, 24)
	observer.shows(t, "\x1b[?1049h")
	observer.shows(t, "drawn:")
	observer.types(t, "\x03")
	observer.ends(t)
	observer.shows(t, "\x1b[?1049l")
}
