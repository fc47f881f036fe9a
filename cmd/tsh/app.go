package main

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
)

// app is what all commands share: the global flags and the streams.
type app struct {
	screen.Streams
	now func() time.Time

	proxy, user, login, identity string
	ttl                          time.Duration
	insecure, debug, escapes     bool
	noResume                     bool
}

// run runs one command line and returns the exit code.
func run(args []string, s screen.Streams) int {
	a := &app{Streams: s, now: time.Now}
	return screen.Execute(a.root(), args, s)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "tsh",
		Short: "Access servers, databases and applications through Teleport",
		Long: "tsh logs in to a Teleport cluster and connects to its servers, databases and applications through the Proxy.\n\n" +
			"Exit codes: 0 success, 1 failure, 2 a mistake on the command line; tsh ssh exits with the code of the\n" +
			"remote command, tsh db connect with that of the program that it runs.",
	}
	f := root.PersistentFlags()
	f.StringVar(&a.proxy, "proxy", "", "address of the Proxy, host or host:port [$TELEPORT_PROXY]")
	f.StringVar(&a.user, "user", "", "name of the Teleport user [$TELEPORT_USER]")
	f.StringVarP(&a.login, "login", "l", "", "user to log in as on the server [$TELEPORT_LOGIN]")
	f.Var((*ttlFlag)(&a.ttl), "ttl", "life of the certificates in minutes, or with a unit (8h)")
	f.StringVarP(&a.identity, "identity", "i", "", "identity file to use instead of a login [$TELEPORT_IDENTITY_FILE]")
	f.BoolVar(&a.insecure, "insecure", false, "do not check the certificate of the Proxy when logging in")
	f.BoolVarP(&a.debug, "debug", "d", false, "write what is done to standard error")
	f.BoolVar(&a.escapes, "enable-escape-sequences", true, "~. at the start of a line ends a session")
	globalNotYet(f)
	proxies := newProxy(a)
	proxies.AddCommand(newProxyDB(a), newProxyApp(a))
	screen.Group(root, newLogin(a), newLogout(a), newStatus(a), newLs(a), newSSH(a), newJoin(a), newSessions(a), newScp(a), newSftp(a),
		newApps(a), newDB(a), proxies, newResolve(a), newLatency(a), newClusters(a), newEnv(a), newConfig(a), newVersion(a))
	help := root.RunE
	showVersion := root.Flags().Bool("version", false, "show the version of tsh")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *showVersion {
			return runVersion(cmd.Context(), a, true)
		}
		return help(cmd, args)
	}
	return root
}

// ttlFlag is a duration: a bare number is minutes.
type ttlFlag time.Duration

// String returns the duration, or "" for none.
func (t *ttlFlag) String() string {
	if *t == 0 {
		return ""
	}
	return time.Duration(*t).String()
}

// Set reads minutes or a duration.
func (t *ttlFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	if minutes, merr := strconv.Atoi(s); merr == nil {
		d, err = time.Duration(minutes)*time.Minute, nil
	}
	if err != nil || d < time.Minute || d > 10*365*24*time.Hour {
		return errors.New("expected minutes (720) or a duration (12h) of at least one minute")
	}
	*t = ttlFlag(d)
	return nil
}

// Type names the flag's value in the help.
func (t *ttlFlag) Type() string { return "minutes" }

// or returns the flag's value or that of the environment.
func or(flag, env string) string {
	if flag != "" {
		return flag
	}
	return screen.Env(env)
}

// proxyAddr returns the Proxy's address without https://.
func (a *app) proxyAddr() string {
	return strings.TrimSuffix(strings.TrimPrefix(or(a.proxy, "TELEPORT_PROXY"), "https://"), "/")
}

func (a *app) userName() string     { return or(a.user, "TELEPORT_USER") }
func (a *app) identityFile() string { return or(a.identity, "TELEPORT_IDENTITY_FILE") }

func (a *app) home() (*client.Home, error) { return client.OpenHome(screen.Env("TELEPORT_HOME")) }

// session is who works where.
type session struct {
	profile     client.Profile
	credentials *client.Credentials
}

// session reads the identity file or the profile; neither was checked for expiry.
func (a *app) session(ctx context.Context) (*session, error) {
	if path := a.identityFile(); path != "" {
		if a.proxyAddr() == "" {
			return nil, screen.Usage("an identity file does not say where the cluster is: give --proxy=HOST too")
		}
		creds, err := client.ReadIdentity(path)
		if err != nil {
			return nil, err
		}
		id, err := creds.Identity()
		if err != nil {
			return nil, err
		}
		return &session{client.Profile{Proxy: a.proxyAddr(), User: id.User.Name, Cluster: id.Cluster}, creds}, nil
	}
	home, err := a.home()
	if err != nil {
		return nil, err
	}
	profile, err := home.Find(a.proxyAddr(), a.userName())
	if err != nil {
		return nil, err
	}
	creds, err := home.Credentials(ctx, profile)
	if err != nil {
		return nil, err
	}
	return &session{profile, creds}, nil
}

// client returns a client of whoever is logged in.
func (a *app) client(ctx context.Context) (*client.Client, *session, error) {
	s, err := a.session(ctx)
	if err != nil {
		return nil, nil, err
	}
	c, err := a.clientOf(s)
	return c, s, err
}

// clientOf returns a client of a session.
func (a *app) clientOf(s *session) (*client.Client, error) {
	return client.New(client.Config{
		Proxy: s.profile.Proxy, Credentials: s.credentials, Now: a.now, Log: screen.Logger(a.debug, a.Err),
		Resume: a.resumption(), Banner: a.banner,
	})
}

// banner shows what a server has to say to those whom it lets in.
func (a *app) banner(text string) {
	text = strings.TrimRight(strings.ReplaceAll(text, "\r", ""), "\n")
	_, _ = fmt.Fprintln(a.Err, screen.EscapeLines(text))
}

// localUser returns the name of the user that runs tsh.
func localUser() (string, error) {
	if name := screen.Env("USER", "LOGNAME"); name != "" {
		return name, nil
	}
	u, err := user.Current()
	if err != nil {
		return "", fault.Invalid("cannot tell who you are (%w): give a login", err)
	}
	return u.Username, nil
}

// target is [user@]host[:port] of a command line.
type target struct {
	login, host string
	port        uint32
}

func parseTarget(s string, withPort bool) (target, error) {
	t := target{host: s}
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		t.login, t.host = s[:i], s[i+1:]
		if t.login == "" {
			return t, screen.Usage("%q has no user before the @", s)
		}
	}
	if i := strings.LastIndexByte(t.host, ':'); withPort && i >= 0 {
		port, err := strconv.ParseUint(t.host[i+1:], 10, 16)
		if err != nil {
			return t, screen.Usage("%q: expected user@host:port", s)
		}
		t.host, t.port = t.host[:i], uint32(port)
	}
	if t.host == "" || strings.HasPrefix(t.host, "-") || strings.ContainsAny(t.host, " \t/") {
		return t, screen.Usage("%q: expected [user@]host", s)
	}
	return t, nil
}

// loginFor chooses the user on the server and refuses one that the certificate is
// not good for, before anything is dialled.
func (a *app) loginFor(t target, s *session) (string, error) {
	login := t.login
	if login == "" {
		login = or(a.login, "TELEPORT_LOGIN")
	}
	if login == "" {
		name, err := localUser()
		if err != nil {
			return "", err
		}
		login = name
	}
	id, err := s.credentials.Identity()
	if err != nil {
		return "", err
	}
	for _, allowed := range id.User.Logins {
		if allowed == login {
			return login, nil
		}
	}
	if len(id.User.Logins) == 0 {
		return "", fault.Denied("access denied: your roles allow no logins on servers")
	}
	return "", fault.Denied("access denied: your roles do not allow login %q: use one of %s, as in tsh ssh %s@%s",
		login, strings.Join(id.User.Logins, ", "), id.User.Logins[0], t.host)
}

func (a *app) print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.Out, format, args...)
	return err
}
