package main

import (
	"errors"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// unsupported is a flag that people know from elsewhere and that is not there yet: it
// takes the values that change nothing, and any other is an error that says so.
type unsupported struct {
	harmless []string
	why      string
	value    string
}

// String returns what was given.
func (u *unsupported) String() string { return u.value }

// Set takes a harmless value.
func (u *unsupported) Set(s string) error {
	if !slices.Contains(u.harmless, s) {
		text := "not supported yet: " + u.why
		if len(u.harmless) > 0 && u.harmless[0] != "false" {
			text += "; only " + strings.Join(u.harmless, " and ") + " may be given"
		}
		return errors.New(text)
	}
	u.value = s
	return nil
}

// Type names the flag's value in the help.
func (u *unsupported) Type() string { return "value" }

// notYet adds a flag that is not supported yet, and is not in the help.
func notYet(f *pflag.FlagSet, name, short, why string, harmless ...string) {
	f.VarP(&unsupported{why: why, harmless: harmless}, name, short, "not supported yet: "+why)
	if slices.Contains(harmless, "false") {
		f.Lookup(name).NoOptDefVal = "true"
	}
	f.Lookup(name).Hidden = true
}

// globalNotYet are the global flags.
func globalNotYet(f *pflag.FlagSet) {
	notYet(f, "auth", "", "people log in with password and one-time code", "local")
	notYet(f, "mfa-mode", "", "the second factor is a one-time code", "auto", "otp")
	notYet(f, "add-keys-to-agent", "k", "keys stay in the profile directory; see tsh config", "auto", "no")
	notYet(f, "headless", "", "there is no login through a browser", "false")
	notYet(f, "bind-addr", "", "there is no login through a browser")
	notYet(f, "callback", "", "there is no login through a browser")
	notYet(f, "browser", "", "there is no login through a browser", "none")
	notYet(f, "cert-format", "", "there is one format", "standard")
	notYet(f, "relay", "", "there are no relays", "none", "default")
	notYet(f, "piv-slot", "", "keys are files")
	notYet(f, "mlock", "", "memory is not locked", "off", "auto", "best_effort")
	notYet(f, "os-log", "", "--debug writes to standard error", "false")
	f.Bool("skip-version-check", false, "accepted; versions are not compared")
	f.Lookup("skip-version-check").Hidden = true
}

// loginNotYet are those of tsh login.
func loginNotYet(f *pflag.FlagSet) {
	notYet(f, "kube-cluster", "", "there is no access to Kubernetes clusters")
	notYet(f, "scope", "", "there are no scopes")
	for _, name := range []string{"request-roles", "request-reason", "request-reviewers", "request-id"} {
		notYet(f, name, "", "there are no access requests: ask an administrator for the role")
	}
	notYet(f, "request-nowait", "", "there are no access requests", "false")
}
