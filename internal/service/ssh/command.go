package ssh

import (
	"net"
	"os"
	"path"
	"strings"

	"teleport/internal/identity"
	"teleport/internal/sshd"
)

// Search paths of a fresh login.
const (
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	userPath = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
)

// acceptEnv is the allow-list of variables a client may set. Anything else could
// change what programs do (LD_PRELOAD, BASH_ENV, ...).
func acceptEnv(name string) bool {
	if name == "LANG" || name == "COLORTERM" || name == envReason || name == envInvited || name == envVerbose {
		return true
	}
	rest, ok := strings.CutPrefix(name, "LC_")
	return ok && rest != "" && !strings.ContainsFunc(rest, func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_'
	})
}

// environment is that of a fresh login; nothing of this process' own is in it but
// the time zone.
func (s *Service) environment(se *sshd.Session, id *identity.Identity, a *account, tty string) []string {
	c := se.Conn()
	search := userPath
	if a.uid == 0 {
		search = rootPath
	}
	remoteIP, remotePort := hostPort(c.RemoteAddr())
	localIP, localPort := hostPort(c.LocalAddr())
	env := append(withoutSession(se.Env()),
		"HOME="+a.home, "SHELL="+a.shell, "USER="+a.name, "LOGNAME="+a.name, "PATH="+search,
		"SSH_CLIENT="+remoteIP+" "+remotePort+" "+localPort,
		"SSH_CONNECTION="+remoteIP+" "+remotePort+" "+localIP+" "+localPort,
		"SSH_SESSION_ID="+se.ID(),
		"SSH_TELEPORT_USER="+id.User.Name,
		"SSH_TELEPORT_HOST_UUID="+s.cfg.Holder.HostID(),
		"SSH_TELEPORT_CLUSTER_NAME="+id.Cluster,
	)
	if mail := "/var/mail/" + a.name; exists(mail) {
		env = append(env, "MAIL="+mail)
	}
	if tz := os.Getenv("TZ"); tz != "" {
		env = append(env, "TZ="+tz)
	}
	if tty != "" {
		env = append(env, "SSH_TTY="+tty)
	}
	if term := se.Term(); term != "" {
		env = append(env, "TERM="+term)
	}
	return append(env, se.ForwardEnv()...)
}

// hostPort splits an address; what it has not is "UNKNOWN" and 0, as with other
// servers.
func hostPort(a net.Addr) (host, port string) {
	if a == nil {
		return "UNKNOWN", "0"
	}
	host, port, err := net.SplitHostPort(a.String())
	if err != nil || host == "" || strings.ContainsAny(host+port, " \n") {
		return "UNKNOWN", "0"
	}
	return host, port
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// arguments are those of the shell: a login shell sees itself with a dash first.
func arguments(se *sshd.Session, a *account) []string {
	shell := path.Base(a.shell)
	if se.Kind() == sshd.KindExec {
		return []string{shell, "-c", se.Command()}
	}
	return []string{"-" + shell}
}
