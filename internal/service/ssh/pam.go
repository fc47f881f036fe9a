package ssh

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/pam"
	"teleport/internal/sshd"
)

// PAMConfig has a PAM session opened for each session. The zero value does not.
type PAMConfig struct {
	// Helper is what opens them; the Service closes it.
	Helper *pam.Helper
	// Service is the name that PAM is asked by.
	Service string
	// Authenticate asks PAM to authenticate too.
	Authenticate bool
	// Environment is for modules and for sessions. Values may refer to traits.
	Environment map[string]string
}

const (
	// noTerminal is what PAM is told where there is none: modules know the word from sshd.
	noTerminal = "ssh"
	// refusalHolds is how long PAM is not asked again about a connection that it refused.
	refusalHolds = 10 * time.Second
	// maxTold bounds what modules say where there is no terminal.
	maxTold = 8 << 10
	// toldDrain is how long it is waited for when PAM has decided.
	toldDrain = time.Second
)

// pamWord is what PAM said about a connection.
type pamWord struct {
	mu sync.Mutex
	// known and authenticated say which of its questions PAM has answered with yes.
	known, authenticated bool
	// refusal is why it did not, at that time.
	refusal *pam.Refusal
	at      time.Time
}

// passed notes that PAM let a session begin.
func (w *pamWord) passed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known, w.authenticated, w.refusal = true, true, nil
}

// pamRequest is what PAM is asked about a connection.
func (s *Service) pamRequest(c *sshd.Conn, id *identity.Identity, tty string) (pam.Request, error) {
	host, _ := hostPort(c.RemoteAddr())
	if tty == "" {
		tty = noTerminal
	}
	r := pam.Request{
		Service: s.cfg.PAM.Service, User: c.User(), TTY: tty, RemoteHost: host, RemoteUser: id.User.Name, Authenticate: s.cfg.PAM.Authenticate,
		Hidden: []string{
			"TELEPORT_USERNAME=" + id.User.Name, "TELEPORT_LOGIN=" + c.User(), "TELEPORT_ROLES=" + strings.Join(id.User.Roles, " "),
		},
	}
	traits := s.subject(id).Traits
	for _, name := range slices.Sorted(maps.Keys(s.cfg.PAM.Environment)) {
		values, err := access.Expand(s.cfg.PAM.Environment[name], traits)
		if err != nil {
			return pam.Request{}, err
		}
		if len(values) > 0 {
			r.Shared = append(r.Shared, name+"="+strings.Join(values, " "))
		}
	}
	return r, nil
}

// askPAM asks PAM once for each connection whether its user may be here, for what is no
// session. A session that began has answered it.
func (s *Service) askPAM(ctx context.Context, c *sshd.Conn, id *identity.Identity, authenticate bool) error {
	if s.cfg.PAM.Helper == nil {
		return nil
	}
	own, ok := s.live.Find(c)
	if !ok {
		return fault.Unreachable("the connection is closing")
	}
	r, err := s.pamRequest(c, id, "")
	if err != nil {
		return err
	}
	r.Authenticate = r.Authenticate && authenticate
	w := &own.pam
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.known && (w.authenticated || !r.Authenticate):
		return nil
	case w.refusal != nil && time.Since(w.at) < refusalHolds:
		return w.refusal
	}
	err = s.cfg.PAM.Helper.Check(ctx, r)
	if errors.As(err, &w.refusal) {
		w.at = time.Now()
	}
	if err == nil {
		w.known, w.authenticated, w.refusal = true, w.authenticated || authenticate, nil
	}
	return err
}

// pamLeader leads a session that PAM holds.
type pamLeader struct{ *pam.Run }

// Release ends the PAM session.
func (l pamLeader) Release() (sshd.Exit, error) {
	status, err := l.Result()
	l.Close()
	return sshd.ExitOf(status), err
}

// pamStarter returns what starts the command in a PAM session, or nil without PAM.
func (s *Service) pamStarter(r *record, c sshd.Command, tty string) func([]*os.File) (sshd.Leader, error) {
	if s.cfg.PAM.Helper == nil {
		return nil
	}
	return func(files []*os.File) (sshd.Leader, error) {
		req, err := s.pamRequest(r.Session.Conn(), r.ID, tty)
		if err != nil {
			return nil, err
		}
		req.Terminal = tty != ""
		req.Credential, req.Env, req.Dir, req.Path, req.Args = c.Credential, c.Env, c.Dir, c.Path, c.Args
		req.Started = func(pid int) error {
			s.notePassed(r.Session.Conn())
			return c.Started(pid)
		}
		run, err := s.cfg.PAM.Helper.Start(req, files)
		if err != nil {
			return nil, err
		}
		return pamLeader{run}, nil
	}
}

func (s *Service) notePassed(c *sshd.Conn) {
	if own, ok := s.live.Find(c); ok {
		own.pam.passed()
	}
}

// holdPAM opens a PAM session for what runs in this process; nil without PAM. What
// modules say is said on the error output.
func (s *Service) holdPAM(ctx context.Context, r *record, cred *syscall.Credential) (*pam.Run, error) {
	if s.cfg.PAM.Helper == nil {
		return nil, nil
	}
	se := r.Session
	req, err := s.pamRequest(se.Conn(), r.ID, "")
	if err != nil {
		return nil, err
	}
	req.Credential = cred
	from, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	var told bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&told, io.LimitReader(from, maxTold))
	}()
	run, err := s.cfg.PAM.Helper.Hold(ctx, req, to)
	_ = to.Close()
	_ = from.SetReadDeadline(time.Now().Add(toldDrain))
	<-read
	_ = from.Close()
	if told.Len() > 0 {
		_, _ = io.WriteString(se.Stderr(), clean(told.String()))
	}
	if err != nil {
		return nil, err
	}
	s.notePassed(se.Conn())
	return run, nil
}

// untilClosed returns a context that also ends when nobody holds the PAM session any
// more, and what closes the session. Without a session both are as they were.
func untilClosed(ctx context.Context, run *pam.Run) (context.Context, func()) {
	if run == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		select {
		case <-run.Ended():
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel()
		run.Close()
	}
}

// processOf is the process that the thread of a session has to be like; 0 without PAM.
func processOf(run *pam.Run) int {
	if run == nil {
		return 0
	}
	return run.HelperID()
}
