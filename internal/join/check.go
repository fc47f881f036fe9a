package join

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// Limits on what a machine may send before it has proven anything.
const (
	maxTokenID    = 128
	maxRoles      = 16
	maxPrincipals = 32
	maxPrincipal  = 253
	maxKey        = 2048
	maxProof      = 4096
	maxVersion    = 64
	maxClaim      = 512
)

// request is an Init that passed the checks of form.
type request struct {
	init  *joinv1.Init
	roles []types.SystemRole
	addr  string
	via   string
}

// checkInit checks the form of what a stranger sent: sizes, charsets, keys.
func checkInit(init *joinv1.Init, now time.Time) (*request, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.ErrInvalid, format, args...).WithCode(CodeBadRequest)
	}
	switch {
	case init == nil:
		return nil, bad("the first message of a join must be Init")
	case init.GetProtocol() != Protocol:
		return nil, bad("this Auth Service speaks join protocol %d, the machine sent %d: install the same major version on both", Protocol, init.GetProtocol())
	case init.GetTokenId() == "" || len(init.GetTokenId()) > maxTokenID:
		return nil, bad("the token id has %d bytes, expected 1 to %d", len(init.GetTokenId()), maxTokenID)
	case len(init.GetRoles()) == 0 || len(init.GetRoles()) > maxRoles:
		return nil, bad("a join asks for 1 to %d services, this one asks for %d", maxRoles, len(init.GetRoles()))
	case len(init.GetTlsPublicKey()) > maxKey || len(init.GetSshPublicKey()) > maxKey:
		return nil, bad("a public key is longer than %d bytes", maxKey)
	case len(init.GetCurrent().GetCertificate()) > maxProof:
		return nil, bad("the current certificate is longer than %d bytes", maxProof)
	case len(init.GetProcess()) > maxVersion:
		return nil, bad("the name of the process is longer than %d bytes", maxVersion)
	case len(init.GetSoftwareVersion()) > maxVersion:
		return nil, bad("the software version is longer than %d bytes", maxVersion)
	}
	if err := identity.CheckHostname(init.GetHostname()); err != nil {
		return nil, bad("host name: %w", err)
	}
	if _, err := keys.ParsePublicTLS(init.GetTlsPublicKey()); err != nil {
		return nil, bad("TLS public key: %w", err)
	}
	if _, err := keys.ParsePublicSSH(init.GetSshPublicKey()); err != nil {
		return nil, bad("SSH public key: %w", err)
	}
	skew := now.Sub(init.GetClock().AsTime())
	if skew.Abs() > MaxClockSkew {
		direction := "behind"
		if skew < 0 {
			direction = "ahead of"
		}
		return nil, fault.New(fault.ErrInvalid, "the clock of this machine is %s %s the clock of the Auth Service, at most %s is allowed: set the clock (NTP) and start again",
			skew.Abs().Round(time.Second), direction, MaxClockSkew).WithCode(CodeClockSkew)
	}
	r := &request{init: init}
	for _, name := range init.GetRoles() {
		role, err := types.ParseSystemRole(name)
		if err != nil {
			return nil, bad("%w", err)
		}
		if role == types.RoleBot {
			return nil, fault.New(fault.ErrUnsupported, "bots cannot join in this version: use a token for a service").WithCode(CodeRoleNotAllowed)
		}
		r.roles = append(r.roles, role)
	}
	slices.Sort(r.roles)
	r.roles = slices.Compact(r.roles)
	return r, checkPrincipals(r)
}

// checkPrincipals allows extra names only to services that are reached by them.
func checkPrincipals(r *request) error {
	names := r.init.GetPrincipals()
	if len(names) == 0 {
		return nil
	}
	if !slices.Contains(r.roles, types.RoleProxy) && !slices.Contains(r.roles, types.RoleAuth) {
		return fault.New(fault.ErrDenied, "only the Proxy and Auth Services may ask for additional names in their certificates (asked: %s)",
			strings.Join(names[:min(len(names), 3)], ", ")).WithCode(CodePrincipalDenied)
	}
	if len(names) > maxPrincipals {
		return fault.New(fault.ErrInvalid, "a join may ask for %d additional names, this one asks for %d", maxPrincipals, len(names)).WithCode(CodeBadRequest)
	}
	for _, n := range names {
		if len(n) > maxPrincipal {
			return fault.New(fault.ErrInvalid, "an additional name is longer than %d bytes", maxPrincipal).WithCode(CodeBadRequest)
		}
		if net.ParseIP(n) != nil {
			continue
		}
		if err := identity.CheckHostname(n); err != nil {
			return fault.New(fault.ErrInvalid, "additional name: %w", err).WithCode(CodeBadRequest)
		}
	}
	return nil
}

// checkGrantedPrincipals allows only the additional names that the token lists, if it
// lists any; the machine's own name and loopback need no permission.
func checkGrantedPrincipals(r *request, patterns []string) error {
	if len(patterns) == 0 {
		return nil
	}
	own := []string{"localhost", "127.0.0.1", "::1", strings.ToLower(r.init.GetHostname())}
	for _, name := range r.init.GetPrincipals() {
		lower := strings.ToLower(name)
		if slices.Contains(own, lower) || slices.ContainsFunc(patterns, func(p string) bool { return types.MatchHostname(strings.ToLower(p), lower) }) {
			continue
		}
		return fault.New(fault.ErrDenied, "the token does not allow the additional name %q in a certificate (spec.principals: %s)", name, strings.Join(patterns, ", ")).WithCode(CodePrincipalDenied)
	}
	return nil
}

// internalDomain is the zone of the names that services authenticate under.
const internalDomain = "teleport.cluster.local"

// checkReserved refuses names that stand for something else in the cluster.
func checkReserved(r *request, cluster string, proxyHosts []string) error {
	refuse := func(name, what string) error {
		return fault.New(fault.ErrDenied, "the host name %q is %s: set another teleport.nodename", name, what).WithCode(CodeNameReserved)
	}
	serves := slices.Contains(r.roles, types.RoleProxy) || slices.Contains(r.roles, types.RoleAuth)
	// Every host is also called NAME.CLUSTER: "db.prod" in cluster "prod" would be
	// what ssh calls "db" there. The address of a Proxy may well be in the domain
	// that the cluster is named after.
	if (!serves || slices.Contains(r.roles, types.RoleNode)) && strings.HasSuffix(strings.ToLower(r.init.GetHostname()), "."+strings.ToLower(cluster)) {
		return refuse(r.init.GetHostname(), fmt.Sprintf("another machine's name followed by the name of the cluster, %q", cluster))
	}
	for _, name := range append([]string{r.init.GetHostname()}, r.init.GetPrincipals()...) {
		lower := strings.ToLower(name)
		switch {
		case lower == internalDomain || strings.HasSuffix(lower, "."+internalDomain):
			return refuse(name, "reserved for the cluster's own services")
		case uuid.Validate(lower) == nil:
			return refuse(name, "shaped like a host id")
		case !serves && strings.EqualFold(name, cluster):
			return refuse(name, "the name of the cluster")
		case !serves && slices.Contains(proxyHosts, lower):
			return refuse(name, "the address of a Proxy Service")
		}
	}
	return nil
}
