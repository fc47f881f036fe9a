package types

import (
	"slices"
	"strings"

	"teleport/internal/fault"
)

// SystemRole is what a process is to the cluster: the service it runs. Its text
// is the spelling of the tables and resources ("Node", "WindowsDesktop").
type SystemRole string

// System roles.
const (
	RoleAuth           SystemRole = "Auth"
	RoleProxy          SystemRole = "Proxy"
	RoleNode           SystemRole = "Node"
	RoleApp            SystemRole = "App"
	RoleDB             SystemRole = "Db"
	RoleKube           SystemRole = "Kube"
	RoleWindowsDesktop SystemRole = "WindowsDesktop"
	RoleDiscovery      SystemRole = "Discovery"
	RoleBot            SystemRole = "Bot"
)

// SystemRoles lists the roles that a join token may carry.
func SystemRoles() []SystemRole {
	return []SystemRole{
		RoleApp, RoleAuth, RoleBot, RoleDB, RoleDiscovery, RoleKube, RoleNode, RoleProxy, RoleWindowsDesktop,
	}
}

// Flag returns the lower-case spelling used on command lines ("windowsdesktop").
func (r SystemRole) Flag() string { return strings.ToLower(string(r)) }

// ParseSystemRole reads a role in any case.
func ParseSystemRole(s string) (SystemRole, error) {
	for _, r := range SystemRoles() {
		if strings.EqualFold(strings.TrimSpace(s), string(r)) {
			return r, nil
		}
	}
	flags := make([]string, 0, len(SystemRoles()))
	for _, r := range SystemRoles() {
		flags = append(flags, r.Flag())
	}
	return "", fault.Invalid("unknown service type %q: use %s", s, strings.Join(flags, ", "))
}

// ParseSystemRoles reads a comma-separated list, drops repetitions and sorts.
func ParseSystemRoles(s string) ([]SystemRole, error) {
	var out []SystemRole
	for part := range strings.SplitSeq(s, ",") {
		r, err := ParseSystemRole(part)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
