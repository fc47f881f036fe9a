package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newStatus(a *app) *cobra.Command {
	var format string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show who is logged in, where, and until when",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runStatus(cmd.Context(), a, format, verbose) },
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show traits and files too")
	cmd.Flags().Bool("client", false, "accepted; nobody is contacted anyway")
	return cmd
}

// profileStatus is what status says about one profile.
type profileStatus struct {
	ProfileURL string              `json:"profile_url" yaml:"profile_url"`
	Username   string              `json:"username" yaml:"username"`
	Cluster    string              `json:"cluster" yaml:"cluster"`
	Roles      []string            `json:"roles" yaml:"roles"`
	Traits     map[string][]string `json:"traits,omitempty" yaml:"traits,omitempty"`
	Logins     []string            `json:"logins" yaml:"logins"`
	ValidUntil time.Time           `json:"valid_until" yaml:"valid_until"`
	Extensions []string            `json:"extensions,omitempty" yaml:"extensions,omitempty"`
	CAPins     []string            `json:"ca_pins,omitempty" yaml:"ca_pins,omitempty"`
	Databases  []string            `json:"databases,omitempty" yaml:"databases,omitempty"`
	Apps       []string            `json:"apps,omitempty" yaml:"apps,omitempty"`
	// files are where keys and certificates are; shown with --verbose.
	files client.Paths
}

func statusOf(p client.Profile, creds *client.Credentials) (profileStatus, error) {
	id, err := creds.Identity()
	if err != nil {
		return profileStatus{}, err
	}
	st := profileStatus{
		ProfileURL: "https://" + p.Proxy, Username: id.User.Name, Cluster: id.Cluster,
		Roles: id.User.Roles, Traits: id.User.Traits, Logins: id.User.Logins, ValidUntil: creds.Expires().UTC(),
		CAPins: creds.Trust.Pins(),
	}
	if creds.SSHCert != nil {
		names := slices.Sorted(maps.Keys(creds.SSHCert.Extensions))
		st.Extensions = slices.DeleteFunc(names, func(s string) bool { return !strings.HasPrefix(s, "permit-") })
	}
	return st, nil
}

func runStatus(ctx context.Context, a *app, format string, verbose bool) error {
	list, err := a.statuses(ctx)
	if err != nil {
		return err
	}
	switch format {
	case screen.JSON:
		err = screen.WriteJSON(a.Out, map[string]any{"active": list[0], "profiles": list[1:]})
	case screen.YAML:
		err = screen.WriteYAML(a.Out, map[string]any{"active": list[0], "profiles": list[1:]})
	default:
		for i, st := range list {
			if err := a.writeStatus(st, i == 0, verbose); err != nil {
				return err
			}
		}
	}
	if err == nil && a.now().After(list[0].ValidUntil) {
		return fault.Unauthenticated("your certificate expired at %s: run tsh login", list[0].ValidUntil.Format(time.RFC3339))
	}
	return err
}

// statuses returns at least one status, the active one first.
func (a *app) statuses(ctx context.Context) ([]profileStatus, error) {
	active, err := a.session(ctx)
	if err != nil {
		return nil, err
	}
	st, err := statusOf(active.profile, active.credentials)
	if err != nil {
		return nil, err
	}
	out := []profileStatus{st}
	home, err := a.home()
	if err != nil || a.identityFile() != "" {
		return out, err
	}
	out[0].files = home.Paths(active.profile)
	a.addRouted(&out[0], home, active.profile)
	profiles, err := home.Profiles()
	if err != nil {
		return nil, err
	}
	for _, p := range profiles {
		if p == active.profile {
			continue
		}
		creds, err := home.Credentials(ctx, p)
		if errors.Is(err, fault.ErrExists) {
			return nil, err // another tsh holds the lock
		}
		if err != nil {
			continue // damaged or half logged out: not worth failing for
		}
		if st, err := statusOf(p, creds); err == nil {
			st.files = home.Paths(p)
			a.addRouted(&st, home, p)
			out = append(out, st)
		}
	}
	return out, nil
}

// addRouted adds the databases and applications that somebody is logged in to.
func (a *app) addRouted(st *profileStatus, home *client.Home, p client.Profile) {
	names := func(kind string) (out []string) {
		list, _ := home.Routed(p, kind) // what cannot be read is not worth failing for
		for _, r := range list {
			if a.now().Before(r.Expires) {
				out = append(out, r.Name())
			}
		}
		return out
	}
	st.Databases, st.Apps = names(types.KindDatabase), names(types.KindApp)
}

// printStatus writes the status of one profile as text.
func (a *app) printStatus(home *client.Home, p client.Profile, creds *client.Credentials, verbose bool) error {
	st, err := statusOf(p, creds)
	if err != nil {
		return err
	}
	st.files = home.Paths(p)
	a.addRouted(&st, home, p)
	return a.writeStatus(st, true, verbose)
}

func (a *app) writeStatus(st profileStatus, active, verbose bool) error {
	valid := fmt.Sprintf("%s [valid for %s]", st.ValidUntil.Format("2006-01-02 15:04:05 -0700 MST"),
		screen.Duration(st.ValidUntil.Sub(a.now()).Round(time.Minute)))
	if a.now().After(st.ValidUntil) {
		valid = st.ValidUntil.Format("2006-01-02 15:04:05 -0700 MST") + " [EXPIRED]"
	}
	mark := "  "
	if active {
		mark = "> "
	}
	lines := [][2]string{
		{mark + "Profile URL:", st.ProfileURL},
		{"  Logged in as:", st.Username},
		{"  Cluster:", st.Cluster},
		{"  Roles:", strings.Join(st.Roles, ", ")},
		{"  Logins:", strings.Join(st.Logins, ", ")},
		{"  Kubernetes:", "disabled"},
		{"  Valid until:", valid},
		{"  Extensions:", strings.Join(st.Extensions, ", ")},
	}
	if len(st.Databases) > 0 {
		lines = append(lines, [2]string{"  Databases:", strings.Join(st.Databases, ", ")})
	}
	if len(st.Apps) > 0 {
		lines = append(lines, [2]string{"  Applications:", strings.Join(st.Apps, ", ")})
	}
	if verbose {
		for _, name := range slices.Sorted(maps.Keys(st.Traits)) {
			lines = append(lines, [2]string{"  Trait " + screen.Escape(name) + ":", strings.Join(st.Traits[name], ", ")})
		}
		lines = append(lines, [2]string{"  CA pins:", strings.Join(st.CAPins, ", ")})
		if st.files.SSHKey != "" {
			lines = append(lines, [2]string{"  SSH key:", st.files.SSHKey}, [2]string{"  SSH certificate:", st.files.SSHCert},
				[2]string{"  TLS key:", st.files.TLSKey}, [2]string{"  TLS certificate:", st.files.TLSCert})
		}
	}
	return screen.Pairs(a.Out, "", lines...)
}
