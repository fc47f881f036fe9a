package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"teleport/internal/ca"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
)

// minPassword is the least number of characters of a password; Auth enforces it.
const minPassword = 12

type loginOptions struct {
	invite           string
	out, format      string
	overwrite, force bool
	verbose          bool
	pins             []string
	cluster          string
}

func newLogin(a *app) *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:   "login --proxy=HOST --user=NAME [cluster]",
		Short: "Log in to a cluster and get certificates",
		Long: "Log in with password and one-time code and get certificates, for 12 hours unless --ttl says otherwise.\n\n" +
			"With --invite the link of an invitation is redeemed: it sets a password and a second factor, and logs in.\n" +
			"If standard input is not a terminal, the answers are read from its lines: password and code; with --invite\n" +
			"password, password again, code.",
		Args: screen.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.cluster = strings.Join(args, "")
			return runLogin(cmd.Context(), a, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.invite, "invite", "", "link of an invitation or a reset to redeem")
	f.StringVarP(&o.out, "out", "o", "", "write the certificates to this file instead of the profile")
	f.StringVarP(&o.format, "format", "f", client.FormatFile, "format of --out: file or openssh")
	f.BoolVar(&o.overwrite, "overwrite", false, "replace existing files of --out")
	f.BoolVar(&o.force, "force", false, "log in even if the present certificates are still good")
	f.StringSliceVar(&o.pins, "ca-pin", nil, "pin of the cluster's host CA, as tctl status shows it")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show traits and files too")
	loginNotYet(f)
	return cmd
}

func runLogin(ctx context.Context, a *app, o loginOptions) error {
	if o.format == "kubernetes" {
		return screen.Usage("format kubernetes is not supported yet: there is no access to Kubernetes clusters")
	}
	if o.format != client.FormatFile && o.format != client.FormatOpenSSH {
		return screen.Usage("unknown format %q: use %s or %s", o.format, client.FormatFile, client.FormatOpenSSH)
	}
	if a.identityFile() != "" {
		return screen.Usage("an identity file needs no login")
	}
	home, err := a.home()
	if err != nil {
		return err
	}
	cfg := client.ProxyConfig{Addr: a.proxyAddr(), Insecure: a.insecure, Log: screen.Logger(a.debug, a.Err)}
	if cfg.Pins, err = ca.ParsePins(o.pins); err != nil {
		return err
	}
	var invite *client.Invite
	if o.invite != "" {
		if invite, err = client.ParseInvite(o.invite); err != nil {
			return err
		}
		cfg.Addr = invite.Proxy
		cfg.Pins = append(cfg.Pins, invite.Pins...)
	}
	user, done, err := a.whoLogsIn(ctx, home, &cfg, o, invite != nil)
	if err != nil || done {
		return err
	}
	cfg.Known = home.Pins(cfg.Addr)
	proxy, err := client.ConnectProxy(ctx, cfg)
	if err != nil {
		return err
	}
	keys, err := newKeys(o)
	if err != nil {
		return err
	}
	ask := screen.NewPrompter(a.In, a.Err)
	request := client.LoginRequest{User: user, TTL: a.ttl, Keys: keys}
	var creds *client.Credentials
	if invite != nil {
		creds, err = redeem(ctx, ask, proxy, invite.Token, request)
	} else {
		creds, err = logIn(ctx, ask, proxy, request)
	}
	if err != nil {
		return err
	}
	return a.keep(ctx, home, proxy.Addr(), creds, o)
}

// whoLogsIn completes the address and the user from the profile. It is done when
// the certificates at hand are good and nothing else was asked for.
func (a *app) whoLogsIn(ctx context.Context, home *client.Home, cfg *client.ProxyConfig, o loginOptions, invited bool) (user string, done bool, err error) {
	user = a.userName()
	profile, err := home.Find(cfg.Addr, "")
	known := err == nil
	if cfg.Addr == "" {
		if !known {
			return "", false, screen.Usage("tsh login: no Proxy address given: tsh login --proxy=HOST --user=NAME")
		}
		cfg.Addr = profile.Proxy
	}
	if invited {
		return "", false, nil
	}
	if user == "" && known {
		user = profile.User
	}
	if user == "" {
		if user, err = localUser(); err != nil {
			return "", false, err
		}
	}
	if !known || user != profile.User || o.out != "" || o.force || a.ttl != 0 {
		return user, false, nil
	}
	if err := otherCluster(o.cluster, profile.Cluster); err != nil {
		return "", false, err
	}
	creds := a.goodCredentials(ctx, home, profile)
	if creds == nil {
		return user, false, nil
	}
	_, _ = a.Err.Write([]byte("Already logged in; use --force for new certificates.\n"))
	// The address may be that of another profile than the current one.
	if err := home.Save(ctx, profile, creds); err != nil {
		return "", false, err
	}
	return user, true, a.printStatus(home, profile, creds, o.verbose)
}

// otherCluster refuses a cluster that is not the one behind the Proxy.
func otherCluster(asked, cluster string) error {
	if asked == "" || asked == cluster {
		return nil
	}
	return fault.Unsupported("the cluster behind the Proxy is %q, and clusters behind it, such as %q, are not supported yet: log in at that cluster's own Proxy", cluster, asked)
}

// goodCredentials returns those of the profile if they can be used, otherwise nil.
func (a *app) goodCredentials(ctx context.Context, home *client.Home, p client.Profile) *client.Credentials {
	if creds, err := home.Credentials(ctx, p); err == nil && creds.Check(a.now()) == nil {
		return creds
	}
	return nil
}

func newKeys(o loginOptions) (client.Keys, error) {
	if o.out != "" {
		return client.NewSingleKey()
	}
	return client.NewKeys()
}

// logIn asks for password and code.
func logIn(ctx context.Context, ask *screen.Prompter, proxy *client.Proxy, request client.LoginRequest) (*client.Credentials, error) {
	var err error
	if request.Password, err = ask.Secret(ctx, "Enter password for Teleport user "+screen.Escape(request.User)); err != nil {
		return nil, err
	}
	if request.Code, err = ask.Ask(ctx, "Enter the code of your authenticator app"); err != nil {
		return nil, err
	}
	creds, err := proxy.Login(ctx, request)
	if errors.Is(err, fault.ErrUnauthenticated) {
		return nil, fmt.Errorf("%w; a code works once: wait for the next one if it was just used", err)
	}
	return creds, err
}

// redeem leads through an invitation.
func redeem(ctx context.Context, ask *screen.Prompter, proxy *client.Proxy, token string, request client.LoginRequest) (*client.Credentials, error) {
	invitation, err := proxy.Invitation(ctx, token)
	if err != nil {
		return nil, err
	}
	ask.Say("Welcome to %s. This link sets a new password and a second factor for user %s.\n\n",
		screen.Escape(invitation.GetClusterName()), screen.Escape(invitation.GetUser()))
	if request.Password, err = newPassword(ctx, ask); err != nil {
		return nil, err
	}
	ask.Say("\nAdd this account to your authenticator app:\n\n")
	if ask.Terminal() {
		picture, err := screen.QR(invitation.GetTotpUrl())
		if err != nil {
			return nil, err
		}
		ask.Say("%s\n", picture)
	}
	ask.Say("Secret key: %s\n\n", screen.Escape(invitation.GetTotpSecret()))
	request.User = invitation.GetUser()
	for {
		if request.Code, err = ask.Ask(ctx, "Enter the code that the app shows"); err != nil {
			return nil, err
		}
		creds, err := proxy.Redeem(ctx, token, request)
		if ask.Terminal() && errors.Is(err, fault.ErrInvalid) {
			ask.Say("%s\n", screen.Escape(err.Error()))
			continue
		}
		return creds, err
	}
}

// newPassword asks for a new password twice.
func newPassword(ctx context.Context, ask *screen.Prompter) (string, error) {
	for {
		first, err := ask.Secret(ctx, "Choose a password (12 characters or more)")
		if err != nil {
			return "", err
		}
		problem := ""
		if utf8.RuneCountInString(first) < minPassword {
			problem = "the password is too short: 12 characters or more are needed"
		} else {
			second, err := ask.Secret(ctx, "The same password again")
			if err != nil {
				return "", err
			}
			if second == first {
				return first, nil
			}
			problem = "the two passwords are not the same"
		}
		if !ask.Terminal() {
			return "", fault.Invalid("%s", problem)
		}
		ask.Say("%s\n", problem)
	}
}

// keep writes the credentials where they were asked for.
func (a *app) keep(ctx context.Context, home *client.Home, addr string, creds *client.Credentials, o loginOptions) error {
	id, err := creds.Identity()
	if err != nil {
		return err
	}
	if err := otherCluster(o.cluster, id.Cluster); err != nil {
		return err
	}
	if o.out != "" {
		files, err := creds.Export(o.out, o.format, o.overwrite)
		if err != nil {
			return err
		}
		for _, name := range files {
			if err := a.print("The identity has been written to %s\n", screen.Escape(name)); err != nil {
				return err
			}
		}
		return a.print("It is good until %s\n", creds.Expires().UTC().Format(time.RFC3339))
	}
	profile := client.Profile{Proxy: addr, User: id.User.Name, Cluster: id.Cluster}
	if err := home.Save(ctx, profile, creds); err != nil {
		return err
	}
	return a.printStatus(home, profile, creds, o.verbose)
}

func newLogout(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Delete keys and certificates, also those for databases and applications: of all profiles, or of one with --proxy and --user",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runLogout(cmd.Context(), a) },
	}
}

func runLogout(ctx context.Context, a *app) error {
	home, err := a.home()
	if err != nil {
		return err
	}
	var profiles []client.Profile
	if a.proxyAddr() == "" && a.userName() == "" {
		if profiles, err = home.Profiles(); err != nil {
			return err
		}
	} else {
		p, err := home.Find(a.proxyAddr(), a.userName())
		if err != nil {
			return err
		}
		profiles = append(profiles, p)
	}
	if len(profiles) == 0 {
		return a.print("You were not logged in.\n")
	}
	for _, p := range profiles {
		databases, err := home.RemoveAllRouted(ctx, p)
		for _, name := range databases {
			err = errors.Join(err, removeSections(p, name))
		}
		if err := errors.Join(err, home.Remove(ctx, p)); err != nil {
			return err
		}
		if err := a.print("Logged out %s from %s.\n", screen.Escape(p.User), screen.Escape(p.Proxy)); err != nil {
			return err
		}
	}
	return nil
}
