package ssh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
)

// X11Config is about displays that lead to clients.
type X11Config struct {
	Enabled bool
	// DisplayOffset is the first display; MaxDisplay the last.
	DisplayOffset, MaxDisplay int
}

const (
	firstX11Port = 6000
	xauthTimeout = 5 * time.Second
)

// displayFor opens a display that leads to the client: a port on the loopback
// addresses, which programs that show the cookie of the user's authority file may use.
func (s *Service) displayFor(ctx context.Context, se *sshd.Session, r sshd.X11) (net.Listener, []string, error) {
	c := se.Conn()
	about := map[string]any{"sid": se.ID()}
	g, err := s.permit(ctx, c, sshaccess.Displays(), about)
	if err != nil {
		return nil, nil, err
	}
	ln, number, err := s.openDisplay(g.cred)
	if err != nil {
		return nil, nil, err
	}
	d := &display{Listener: ln, s: s, g: g, name: fmt.Sprintf("unix:%d.%d", number, r.Screen)}
	// The name must not take us to another line: it is made of numbers, the cookie is hexadecimal.
	if err := d.xauth(ctx, "remove "+d.name+"\nadd "+d.name+" "+r.Protocol+" "+r.Cookie+"\n"); err != nil {
		_ = ln.Close()
		return nil, nil, err
	}
	about["success"], about["display"] = true, number
	if err := s.cfg.Emit(ctx, audit.New(audit.X11Forward, s.fields(c, g.id, about))); err != nil {
		_ = d.Close() //nolint:contextcheck // the cookie goes away however the session ended
		return nil, nil, sshaccess.ErrUnrecorded()
	}
	return d, []string{fmt.Sprintf("DISPLAY=localhost:%d.%d", number, r.Screen)}, nil
}

// openDisplay takes the first display that is free.
func (s *Service) openDisplay(cred *syscall.Credential) (net.Listener, int, error) {
	four := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for n := s.cfg.X11.DisplayOffset; n <= s.cfg.X11.MaxDisplay; n++ {
		ln, err := listenTCP(cred, netip.AddrPortFrom(four, uint16(firstX11Port+n)))
		if err == nil {
			return ln, n, nil
		}
		if !isErrno(err, unix.EADDRINUSE) {
			return nil, 0, fmt.Errorf("open a display: %w", err)
		}
	}
	return nil, 0, fault.Limit("all displays from %d to %d of this host are taken", s.cfg.X11.DisplayOffset, s.cfg.X11.MaxDisplay)
}

// display is a listener whose cookie goes away with it.
type display struct {
	net.Listener
	s    *Service
	g    *guest
	name string
	once sync.Once
}

// Close closes the display and takes the cookie out of the user's file.
func (d *display) Close() error {
	err := net.ErrClosed
	d.once.Do(func() {
		err = d.Listener.Close()
		if errX := d.xauth(context.Background(), "remove "+d.name+"\n"); errX != nil {
			d.s.cfg.Log.Info("cookie of a display could not be removed", "error", errX)
		}
	})
	return err
}

// xauth changes the user's authority file, as the user.
func (d *display) xauth(ctx context.Context, script string) error {
	ctx, cancel := context.WithTimeout(ctx, xauthTimeout)
	defer cancel()
	program := ""
	for _, p := range []string{"/usr/bin/xauth", "/usr/X11R6/bin/xauth", "/usr/local/bin/xauth"} {
		if exists(p) {
			program = p
			break
		}
	}
	if program == "" {
		return fault.Unsupported("X11 forwarding needs the program xauth on this host: ask an administrator to install it")
	}
	cmd := exec.CommandContext(ctx, program, "-q", "-")
	cmd.Env = []string{"HOME=" + d.g.account.home, "USER=" + d.g.account.name, "LOGNAME=" + d.g.account.name, "PATH=" + userPath}
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(script)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: d.g.cred, Setsid: true}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fault.Unsupported("xauth failed on this host: %s", clean(strings.TrimSpace(string(out[:min(len(out), 200)]))))
	}
	if err != nil {
		return fmt.Errorf("run xauth: %w", err)
	}
	return nil
}
