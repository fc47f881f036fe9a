package access

import (
	"fmt"
	"slices"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// Options is what the roles of a subject, taken together, say about SSH sessions.
type Options struct {
	// Granted if any role grants it. Ports may be forwarded if a role does not say.
	ForwardAgent  bool
	LocalForward  bool
	RemoteForward bool
	X11           bool
	// Granted if no role refuses it; a role that does not say grants it.
	FileCopy bool
	// The smallest of those that the roles give; 0 is no limit.
	MaxSessions    int64
	MaxConnections int64
	IdleTimeout    time.Duration
	// In force if any role asks for it.
	DisconnectExpired bool
	PinSource         bool
	// Extensions are added to SSH certificates: those of all roles. Of two values for
	// one name the first in the order of the alphabet is taken.
	Extensions map[string]string
	// Broken says which option cannot be understood: then nothing may be begun.
	Broken error
}

// OptionsOf combines the options of the subject's roles. All roles count, also those
// that do not match the node: an option is about the holder.
func OptionsOf(s Subject) Options {
	out := Options{FileCopy: true}
	for _, r := range s.Roles {
		if r == nil {
			continue
		}
		o := r.GetSpec().GetOptions()
		out.ForwardAgent = out.ForwardAgent || o.GetForwardAgent()
		out.LocalForward = out.LocalForward || forwards(o, o.GetSshPortForwarding().GetLocal())
		out.RemoteForward = out.RemoteForward || forwards(o, o.GetSshPortForwarding().GetRemote())
		out.X11 = out.X11 || o.GetPermitX11Forwarding()
		out.FileCopy = out.FileCopy && (o == nil || o.SshFileCopy == nil || o.GetSshFileCopy())
		out.MaxSessions = smallest(out.MaxSessions, o.GetMaxSessions())
		out.MaxConnections = smallest(out.MaxConnections, o.GetMaxConnections())
		out.DisconnectExpired = out.DisconnectExpired || o.GetDisconnectExpiredCert()
		out.PinSource = out.PinSource || o.GetPinSourceIp()
		idle, err := idleTimeout(o)
		if err == nil {
			out.IdleTimeout = smallest(out.IdleTimeout, idle)
			err = out.extend(o, s.Traits)
		}
		if err != nil && out.Broken == nil {
			out.Broken = fmt.Errorf("role %q: %w", r.GetMetadata().GetName(), err)
		}
	}
	return out
}

// forwards returns what a role says about one direction: its own field, else the one
// for both, else yes.
func forwards(o *typesv1.RoleOptions, way *typesv1.SSHForwarding) bool {
	switch {
	case way != nil && way.Enabled != nil:
		return way.GetEnabled()
	case o != nil && o.PortForwarding != nil:
		return o.GetPortForwarding()
	}
	return true
}

// smallest returns the smaller of two limits; what is not positive is none.
func smallest[N int64 | time.Duration](a, b N) N {
	switch {
	case b <= 0:
		return a
	case a <= 0:
		return b
	}
	return min(a, b)
}

func idleTimeout(o *typesv1.RoleOptions) (time.Duration, error) {
	d, err := types.ParseTimeout(o.GetClientIdleTimeout())
	if err != nil {
		return 0, fmt.Errorf("client_idle_timeout: %w", err)
	}
	return d, nil
}

// extend adds the certificate extensions of a role. A value whose template has no
// value is left out.
func (out *Options) extend(o *typesv1.RoleOptions, traits map[string][]string) error {
	for _, e := range o.GetCertExtensions() {
		t, err := parseTemplate(e.GetValue())
		if err == nil {
			err = types.ValidCertExtension(e.GetName())
		}
		if err != nil {
			return fmt.Errorf("cert_extensions: %w", err)
		}
		for _, value := range t.expand(traits) {
			if out.Extensions == nil {
				out.Extensions = map[string]string{}
			}
			if old, ok := out.Extensions[e.GetName()]; !ok || value < old {
				out.Extensions[e.GetName()] = value
			}
		}
	}
	return nil
}

// HostUser says whether a local user may be made for a login, and how.
type HostUser struct {
	// Mode is types.HostUserOff, HostUserKeep or HostUserInsecureDrop.
	Mode string
	// Role is the role that turned it off, or "".
	Role string
	// Shell is the login shell, or "" for the host's usual one.
	Shell string
	// Groups and Sudoers are sorted, without duplicates.
	Groups, Sudoers []string
}

// HostUserOf decides about the making of local users on a node with the labels. Every
// role that allows the node must ask for it; it is kept if one of them says so. Groups
// and sudoers lines are those of the roles that allow the node without those that a
// role denies there.
func HostUserOf(s Subject, labels map[string]string) HostUser {
	out := HostUser{Mode: types.HostUserOff}
	matching := 0
	off := false
	for _, r := range s.Roles {
		allow := r.GetSpec().GetAllow()
		if !compileSelector(allow.GetNodeLabels(), s.Traits).allows(labels) {
			continue
		}
		matching++
		o := r.GetSpec().GetOptions()
		switch mode := o.GetCreateHostUserMode(); {
		case mode != types.HostUserKeep && mode != types.HostUserInsecureDrop:
			if !off || r.GetMetadata().GetName() < out.Role {
				out.Role = r.GetMetadata().GetName()
			}
			off = true
		case mode == types.HostUserKeep || out.Mode == types.HostUserOff:
			out.Mode = mode
		}
		if shell := o.GetCreateHostUserDefaultShell(); shell != "" && (out.Shell == "" || shell < out.Shell) {
			out.Shell = shell
		}
		for _, g := range allow.GetHostGroups() {
			if t, err := parseTemplate(g); err == nil {
				out.Groups = append(out.Groups, t.expand(s.Traits)...)
			}
		}
		out.Sudoers = append(out.Sudoers, allow.GetHostSudoers()...)
	}
	if off || matching == 0 {
		return HostUser{Mode: types.HostUserOff, Role: out.Role}
	}
	for _, r := range s.Roles {
		deny := r.GetSpec().GetDeny()
		if len(deny.GetHostGroups())+len(deny.GetHostSudoers()) == 0 || !deniesHere(deny, s.Traits, labels) {
			continue
		}
		out.Groups = without(out.Groups, deny.GetHostGroups(), s.Traits)
		out.Sudoers = without(out.Sudoers, deny.GetHostSudoers(), s.Traits)
	}
	out.Groups = slices.DeleteFunc(out.Groups, func(g string) bool { return types.ValidHostGroup(g) != nil })
	out.Groups, out.Sudoers = sorted(out.Groups), sorted(out.Sudoers)
	return out
}

// deniesHere reports whether what a role denies counts on a node: everywhere if it
// names no labels.
func deniesHere(deny *typesv1.RoleConditions, traits map[string][]string, labels map[string]string) bool {
	return len(deny.GetNodeLabels()) == 0 || compileSelector(deny.GetNodeLabels(), traits).denies(labels)
}

// without takes the denied values off a list. A denied value that cannot be understood
// takes all.
func without(list, denied []string, traits map[string][]string) []string {
	for _, text := range denied {
		t, err := parseTemplate(text)
		if err != nil || text == wildcard {
			return nil
		}
		for _, value := range t.expand(traits) {
			list = slices.DeleteFunc(list, func(s string) bool { return s == value })
		}
	}
	return list
}

func sorted(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}
