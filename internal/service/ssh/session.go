package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/pam"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
)

// exitRefused is the exit status of a session that did not start.
const exitRefused = 254

// session runs what the client asked for, between the events that record it.
func (s *Service) session(ctx context.Context, se *sshd.Session) sshd.Exit {
	id, err := userOf(se.Conn().Login())
	if err != nil {
		return s.say(se, err)
	}
	if mode, sid, ok := parseJoin(se); ok {
		return s.join(ctx, se, id, mode, sid)
	}
	r := s.newRecord(se, id)
	a, cred, err := s.admit(ctx, se.Conn(), id)
	if err != nil {
		return s.say(se, s.reject(ctx, r, err))
	}
	if err := s.mayBeAlone(ctx, r); err != nil {
		return s.say(se, err)
	}
	err = r.MayCopy(ctx, func(p sshaccess.Privilege) (text, reason string) { return s.mayNot(se.Conn(), id, p) })
	if err != nil {
		return s.say(se, err)
	}
	if err := r.Start(ctx, s.labelMap()); err != nil {
		return s.say(se, err)
	}
	s.metrics.started.WithLabelValues(string(se.Kind())).Inc()
	s.metrics.active.Inc()
	defer s.metrics.active.Dec()
	exit := sshd.Exit{Code: exitRefused}
	defer func() { r.end(ctx, exit, err) }()
	if se.Kind() == sshd.KindSubsystem {
		exit, err = s.sftp(ctx, r, a, cred)
	} else {
		exit, err = s.shell(ctx, r, a, cred)
	}
	if err != nil {
		exit = s.say(se, err)
	}
	return exit
}

// deniedError keeps the reason from the user.
type deniedError struct{ text, reason string }

// Error returns what the user may know.
func (e *deniedError) Error() string { return e.text }

// Unwrap says what kind of error it is.
func (e *deniedError) Unwrap() error { return fault.ErrDenied }

// admit decides again, since roles and time went on since the login, and looks the
// local user up.
func (s *Service) admit(ctx context.Context, c *sshd.Conn, id *identity.Identity) (*account, *syscall.Credential, error) {
	login := c.User()
	if d := s.decide(id, login); !d.Allowed {
		return nil, nil, &deniedError{text: s.told(login, d), reason: sshaccess.ReasonOf(d)}
	}
	if own, ok := s.live.Find(c); ok {
		if err := own.ensureUser(ctx); err != nil {
			return nil, nil, err
		}
	}
	a, err := s.hosts.find(ctx, login)
	if errors.Is(err, fault.ErrNotFound) && s.cfg.PAM.Helper != nil {
		// Some modules are there to make the user.
		if err := s.askPAM(ctx, c, id, false); err != nil {
			return nil, nil, err
		}
		a, err = s.hosts.find(ctx, login)
	}
	if err != nil {
		return nil, nil, err
	}
	cred, err := credential(a, os.Geteuid())
	if err != nil {
		return nil, nil, err
	}
	if err := s.hosts.closed(a, s.cfg.Now()); err != nil {
		return nil, nil, err
	}
	return a, cred, nil
}

// reject records why a session does not start and returns what its user is told.
func (s *Service) reject(ctx context.Context, r *record, err error) error {
	reason := reasonOf(err)
	e := r.Event(audit.SessionRejected, map[string]any{"reason": reason, "success": false})
	return s.refuse(ctx, e, r.ID, err.Error(), reason)
}

// reasonOf is why something is refused, in words for the audit log.
func reasonOf(err error) string {
	var hidden *deniedError
	if errors.As(err, &hidden) {
		return hidden.reason
	}
	var refusal *pam.Refusal
	if errors.As(err, &refusal) {
		return refusal.Reason()
	}
	return err.Error()
}

// say tells the user on the error output.
func (s *Service) say(se *sshd.Session, err error) sshd.Exit {
	line := "\n"
	if se.Interactive() {
		line = "\r\n"
	}
	_, _ = io.WriteString(se.Stderr(), clean(err.Error())+line)
	return sshd.Exit{Code: exitRefused}
}

// clean makes text from elsewhere safe for a terminal; lines are kept.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if (r < ' ' && r != '\n' && r != '\t') || (r >= 0x7f && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}

// shell runs the user's shell, alone or with a command.
func (s *Service) shell(ctx context.Context, r *record, a *account, cred *syscall.Credential) (sshd.Exit, error) {
	se := r.Session
	t, err := se.Terminal()
	if err != nil {
		return sshd.Exit{}, err
	}
	tty := ""
	if t != nil {
		tty = t.Name
		if err := giveTerminal(t.File(), a, cred); err != nil {
			return sshd.Exit{}, err
		}
	}
	if se.Interactive() {
		for _, note := range se.Notes() {
			_, _ = io.WriteString(se.Stderr(), clean(note)+"\r\n")
		}
	}
	var company io.ReadWriter
	if t != nil {
		var p *party
		p, ctx = s.gather(ctx, r, t)
		defer p.cancel(nil)
		defer p.finish()
		if err := p.await(ctx); err != nil {
			return sshd.Exit{}, err
		}
		company = p
	}
	var visit atomic.Pointer[loginRecord]
	defer func() { visit.Load().end() }()
	command := sshd.Command{
		Path:       a.shell,
		Args:       arguments(se, a),
		Env:        s.environment(se, r.ID, a, tty),
		Dir:        a.home,
		Credential: cred,
		Between:    company,
		Started: func(pid int) error {
			// Modules of PAM may add groups.
			if err := verifyCredential(pid, cred, s.cfg.PAM.Helper != nil); err != nil {
				return err
			}
			if cred != nil && t != nil {
				visit.Store(s.book.begin(pid, tty, a, se.Conn().RemoteAddr()))
			}
			return nil
		},
	}
	command.Start = s.pamStarter(r, command, tty)
	exit, err := se.Run(ctx, command)
	var refusal *pam.Refusal
	if errors.As(err, &refusal) {
		return sshd.Exit{}, s.reject(ctx, r, err)
	}
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "session could not be started", "error", err, "login", a.name)
		return sshd.Exit{}, fmt.Errorf("cannot start the session: %w", err)
	}
	return exit, nil
}

// giveTerminal makes the terminal the user's, writable by the group that write(1)
// runs as.
func giveTerminal(f *os.File, a *account, cred *syscall.Credential) error {
	if cred == nil {
		return nil
	}
	group, mode := a.gid, fs.FileMode(0o600)
	if line, err := findLine("/etc/group", "tty"); err == nil && line != "" {
		if f := strings.Split(line, ":"); len(f) == 4 {
			if g, err := parseID(f[2]); err == nil {
				group, mode = g, 0o620
			}
		}
	}
	if err := f.Chown(int(a.uid), int(group)); err != nil {
		return fmt.Errorf("give the terminal to its user: %w", err)
	}
	if err := f.Chmod(mode); err != nil {
		return fmt.Errorf("set the mode of the terminal: %w", err)
	}
	return nil
}

// mayTransfer says whether the account may use sftp: one whose shell turns people
// away may not get in this way either.
func mayTransfer(a *account) error {
	switch path.Base(a.shell) {
	case "nologin", "false":
		return fault.Denied("the account of user %q on this host does not allow logins", a.name)
	}
	if err := unix.Access(a.shell, unix.X_OK); err != nil {
		return fault.Denied("the shell of user %q on this host, %s, cannot be run: %w", a.name, a.shell, err)
	}
	return nil
}
