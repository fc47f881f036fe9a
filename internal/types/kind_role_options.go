package types

import (
	"fmt"
	"strings"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// Values of create_host_user_mode.
const (
	HostUserOff          = "off"
	HostUserKeep         = "keep"
	HostUserInsecureDrop = "insecure-drop"
)

const (
	maxExtensions     = 32
	maxExtensionName  = 128
	maxExtensionValue = 1024
	maxSudoersLine    = 1024
	maxSessionsOption = 1 << 20
)

func validateOptions(r *typesv1.Role, c *checker) {
	o := r.GetSpec().GetOptions()
	const at = "spec.options."
	if ttl := o.GetMaxSessionTtl(); ttl != "" {
		_, err := ParseDuration(ttl)
		c.check(at+"max_session_ttl", err)
	}
	_, err := ParseTimeout(o.GetClientIdleTimeout())
	c.check(at+"client_idle_timeout", err)
	c.check(at+"max_sessions", validCount(o.GetMaxSessions()))
	c.check(at+"max_connections", validCount(o.GetMaxConnections()))
	validateExtensions(at+"cert_extensions", o.GetCertExtensions(), c)
	switch mode := o.GetLock(); mode {
	case "", LockStrict, LockBestEffort:
	default:
		c.add(at+"lock", "unknown mode %q: use %s or %s", mode, LockStrict, LockBestEffort)
	}
	switch mode := o.GetCreateHostUserMode(); mode {
	case "", HostUserOff, HostUserKeep, HostUserInsecureDrop:
	default:
		c.add(at+"create_host_user_mode", "unknown mode %q: use %s, %s or %s", mode, HostUserOff, HostUserKeep, HostUserInsecureDrop)
	}
	switch mode := o.GetCreateDbUserMode(); mode {
	case "", DatabaseUserOff, DatabaseUserKeep, DatabaseUserBestEffortDrop:
	default:
		c.add(at+"create_db_user_mode", "unknown mode %q: use %s, %s or %s", mode, DatabaseUserOff, DatabaseUserKeep, DatabaseUserBestEffortDrop)
	}
	if shell := o.GetCreateHostUserDefaultShell(); shell != "" {
		c.check(at+"create_host_user_default_shell", ValidShell(shell))
	}
	for _, path := range []string{specAllow, specDeny} {
		rc := conditionsOf(r)[path]
		c.names(path+".host_groups", rc.GetHostGroups(), func(s string) error {
			if s == Wildcard && path == specDeny {
				return nil
			}
			return checkTemplate(s, ValidHostGroup)
		})
		c.names(path+".host_sudoers", rc.GetHostSudoers(), func(s string) error {
			if s == Wildcard && path == specDeny {
				return nil
			}
			return ValidSudoersLine(s)
		})
	}
}

const (
	specAllow = "spec.allow"
	specDeny  = "spec.deny"
)

func conditionsOf(r *typesv1.Role) map[string]*typesv1.RoleConditions {
	return map[string]*typesv1.RoleConditions{specAllow: r.GetSpec().GetAllow(), specDeny: r.GetSpec().GetDeny()}
}

// ParseTimeout reads a duration that may be none: empty, "0", "0s" or "never".
func ParseTimeout(s string) (time.Duration, error) {
	switch s {
	case "", "0", "0s", "never":
		return 0, nil
	}
	return ParseDuration(s)
}

func validCount(n int64) error {
	if n < 0 || n > maxSessionsOption {
		return fault.Invalid("%d: use a number from 1 to %d, or 0 for no limit", n, maxSessionsOption)
	}
	return nil
}

func validateExtensions(path string, list []*typesv1.CertExtension, c *checker) {
	if len(list) > maxExtensions {
		c.add(path, "%d entries, the most is %d", len(list), maxExtensions)
		return
	}
	for i, e := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		if e.GetType() != "" && e.GetType() != "ssh" {
			c.add(at+".type", "%q: there is only ssh", e.GetType())
		}
		if e.GetMode() != "" && e.GetMode() != "extension" {
			c.add(at+".mode", "%q: there is only extension", e.GetMode())
		}
		c.check(at+".name", ValidCertExtension(e.GetName()))
		if len(e.GetValue()) > maxExtensionValue {
			c.add(at+".value", "%d bytes, the most is %d", len(e.GetValue()), maxExtensionValue)
			continue
		}
		c.check(at+".value", checkTemplate(e.GetValue(), func(s string) error {
			v := &checker{}
			v.text("", s, maxExtensionValue)
			return v.err()
		}))
	}
}

// ValidCertExtension refuses names of SSH certificate extensions that a role may
// not add: those that say what a session may do have options of their own, and
// those that end in @teleport say who the holder is.
func ValidCertExtension(name string) error {
	switch {
	case name == "" || len(name) > maxExtensionName:
		return fault.Invalid("name of %d bytes: use 1 to %d", len(name), maxExtensionName)
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ',' || r == '"' }):
		return fault.Invalid("%q: use printable ASCII without spaces, commas and quotes", name)
	case strings.HasSuffix(name, "@teleport"):
		return fault.Invalid("%q is reserved for the cluster", name)
	case strings.HasPrefix(name, "permit-") || name == "no-touch-required" || name == "force-command" || name == "source-address" || name == "verify-required":
		return fault.Invalid("%q cannot be set here: the other options of the role say what its holders may do", name)
	}
	return nil
}

// ValidHostGroup refuses what cannot be the name of a group of a Linux host.
func ValidHostGroup(s string) error {
	if s == "" || len(s) > 32 {
		return fault.Invalid("group %q: use 1 to 32 characters", s)
	}
	for i, r := range s {
		lower := r >= 'a' && r <= 'z' || r == '_'
		if !lower && (i == 0 || (r < '0' || r > '9') && r != '-') {
			return fault.Invalid("group %q: use lower-case letters, digits, - and _, with a letter or _ first", s)
		}
	}
	return nil
}

// ValidSudoersLine refuses what is more than the part of one sudoers(5) rule that
// follows the user's name.
func ValidSudoersLine(s string) error {
	switch {
	case strings.TrimSpace(s) == "" || len(s) > maxSudoersLine:
		return fault.Invalid("sudoers line of %d bytes: use 1 to %d", len(s), maxSudoersLine)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return fault.Invalid("sudoers line %q: it must be one line of printable text", s)
	case strings.HasSuffix(s, `\`):
		return fault.Invalid("sudoers line %q ends with a backslash", s)
	case strings.Contains(s, "{{"):
		return fault.Invalid("sudoers line %q has a template: write the line out", s)
	case !strings.Contains(s, "="):
		return fault.Invalid("sudoers line %q: write what follows the user's name, such as ALL=(root) NOPASSWD: /usr/bin/systemctl restart nginx", s)
	}
	return nil
}

// ValidShell refuses what cannot be the path of a login shell.
func ValidShell(s string) error {
	if !strings.HasPrefix(s, "/") || len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }) {
		return fault.Invalid("shell %q: write an absolute path such as /bin/bash", s)
	}
	return nil
}
