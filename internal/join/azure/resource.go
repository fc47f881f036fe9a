package azure

import (
	"net/url"
	"strings"
	"unicode"

	"teleport/internal/fault"
)

// resource is the id of something in Azure, taken apart.
type resource struct {
	// kind is one of the table, subscription a GUID in lower case.
	kind                resourceKind
	subscription, group string
	// names are those after each part of the type.
	names []string
}

// resourceKind is a type of resource, in lower case, e.g. "microsoft.compute/virtualmachines".
type resourceKind string

// The kinds of resource that have something to do with a machine.
const (
	virtualMachine   resourceKind = "microsoft.compute/virtualmachines"
	scaleSet         resourceKind = "microsoft.compute/virtualmachinescalesets"
	scaleSetInstance resourceKind = "microsoft.compute/virtualmachinescalesets/virtualmachines"
	userAssigned     resourceKind = "microsoft.managedidentity/userassignedidentities"
)

// spelling is how the parts of a type are written in an address.
func (k resourceKind) spelling() (provider string, types []string) {
	switch k {
	case virtualMachine:
		return "Microsoft.Compute", []string{"virtualMachines"}
	case scaleSet:
		return "Microsoft.Compute", []string{"virtualMachineScaleSets"}
	case scaleSetInstance:
		return "Microsoft.Compute", []string{"virtualMachineScaleSets", "virtualMachines"}
	}
	return "Microsoft.ManagedIdentity", []string{"userAssignedIdentities"}
}

// Limits of a resource id.
const (
	maxResourceID = 512
	maxName       = 90
)

// parseResource reads the id of a resource of the table: /subscriptions/ID/resourceGroups/
// NAME/providers/TYPE/NAME, where a type of two parts has a name after each. Azure
// compares all of it without regard to case.
func parseResource(id string) (resource, error) {
	wrong := func() (resource, error) {
		return resource{}, fault.Invalid("%.128q is not the resource id of a virtual machine or of its identity: expected one like /subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.Compute/virtualMachines/NAME", id)
	}
	parts := strings.Split(id, "/")
	if len(id) > maxResourceID || len(parts) < 9 || len(parts) > 11 || len(parts)%2 != 1 || parts[0] != "" ||
		!strings.EqualFold(parts[1], "subscriptions") || !strings.EqualFold(parts[3], "resourceGroups") || !strings.EqualFold(parts[5], "providers") {
		return wrong()
	}
	r := resource{subscription: strings.ToLower(parts[2]), group: parts[4], kind: resourceKind(strings.ToLower(parts[6]))}
	for i := 7; i < len(parts); i += 2 {
		r.kind += resourceKind("/" + strings.ToLower(parts[i]))
		r.names = append(r.names, parts[i+1])
	}
	switch r.kind {
	case virtualMachine, scaleSet, scaleSetInstance, userAssigned:
	default:
		return wrong()
	}
	if !isGUID(r.subscription) || !isName(r.group) {
		return wrong()
	}
	for _, name := range r.names {
		if !isName(name) {
			return wrong()
		}
	}
	return r, nil
}

// isName checks a name as it may stand in an address: what Azure allows in the names of
// groups and machines.
func isName(name string) bool {
	return name != "" && len(name) <= maxName && strings.Trim(name, ".") != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_.()", r) || r == unicode.ReplacementChar
	})
}

// isGUID checks for a GUID in lower case.
func isGUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// String returns the id as Azure writes it.
func (r resource) String() string { return r.path(func(s string) string { return s }) }

// path returns the id with each name as escape writes it.
func (r resource) path(escape func(string) string) string {
	provider, types := r.kind.spelling()
	out := "/subscriptions/" + escape(r.subscription) + "/resourceGroups/" + escape(r.group) + "/providers/" + provider
	for i, name := range r.names {
		out += "/" + types[i] + "/" + escape(name)
	}
	return out
}

// url returns the id as the path of an address.
func (r resource) url() string { return r.path(url.PathEscape) }

func (r resource) equal(other resource) bool { return strings.EqualFold(r.String(), other.String()) }

// machine reports whether this is one machine.
func (r resource) machine() bool { return r.kind == virtualMachine || r.kind == scaleSetInstance }

// owner returns the scale set that an instance belongs to.
func (r resource) owner() (resource, bool) {
	if r.kind != scaleSetInstance {
		return resource{}, false
	}
	return resource{kind: scaleSet, subscription: r.subscription, group: r.group, names: r.names[:1]}, true
}
