// Package authz decides who may call what: one table with a row for every RPC of
// the API, and for people the role rules behind it. An RPC without a row is
// refused. It asks package access about roles and does not know what a call does.
//
// A caller that is refused hears that it is, and what to do; which rule refused
// is the cause of the error (see Reason) and goes to the log.
package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// RolesFunc returns the roles of the names, as they are now; a name that does not
// exist is left out.
type RolesFunc func(ctx context.Context, names []string) ([]*typesv1.Role, error)

// UserFunc fails with fault.ErrNotFound if there is no user of the name, as it is now.
type UserFunc func(ctx context.Context, name string) error

// Authorizer decides about callers. It has no state but the roles, users and locks it
// asks for.
type Authorizer struct {
	roles RolesFunc
	user  UserFunc
	locks Locks
	log   *slog.Logger
}

// New returns an Authorizer that takes roles from the function.
func New(roles RolesFunc) *Authorizer {
	return &Authorizer{roles: roles, log: slog.New(slog.DiscardHandler)}
}

// WithLog returns an Authorizer that writes every refusal and its reason to the log.
func (a *Authorizer) WithLog(log *slog.Logger) *Authorizer {
	return &Authorizer{roles: a.roles, user: a.user, locks: a.locks, log: log}
}

// WithUsers returns an Authorizer that asks the function about each user: who was
// deleted is refused, however long the certificate is good.
func (a *Authorizer) WithUsers(user UserFunc) *Authorizer {
	return &Authorizer{roles: a.roles, user: user, locks: a.locks, log: a.log}
}

// Authorize decides whether the caller may make a call of the method, named
// "/package.Service/Method". Where the row names a kind and a verb the caller's
// roles are asked; where it leaves that to the handler, the handler calls Verb or
// Some.
func (a *Authorizer) Authorize(ctx context.Context, caller rpc.Caller, fullMethod string) error {
	r, ok := table[fullMethod]
	if !ok {
		return a.refuse(ctx, caller, fault.Denied("access denied: %s is not open to anybody", fullMethod), "method", fullMethod)
	}
	if err := routed(caller); err != nil {
		return a.refuse(ctx, caller, err, "method", fullMethod)
	}
	if err := r.admits(caller); err != nil {
		return a.refuse(ctx, caller, err, "method", fullMethod)
	}
	if err := a.locked(ctx, r, caller, fullMethod); err != nil {
		return err
	}
	if caller.User() == nil {
		return nil
	}
	if err := a.exists(ctx, caller); err != nil {
		return err
	}
	if err := a.pinned(ctx, caller); err != nil || r.kind == "" {
		return err
	}
	if r.resource {
		_, err := a.Some(ctx, caller, r.kind, r.verb)
		return err
	}
	return a.Verb(ctx, caller, r.kind, r.verb)
}

// routed refuses a certificate that is good for one application or database only: it
// may be in the hands of a Proxy, or in a file that other programs read.
func routed(caller rpc.Caller) error {
	user := caller.User()
	if !user.Routed() {
		return nil
	}
	resource := "an application"
	if user.Database != nil {
		resource = "a database"
	}
	return fault.New(fault.ErrDenied, "access denied: this certificate of user %q is only good for %s: use the one of tsh login", user.Name, resource).
		WithCode("certificate_routed")
}

// pinned refuses a certificate that is bound to another address than the caller's, and
// one that is bound to none where a role wants it to be. A Proxy that passes a connection
// on has signed where it comes from (see package mux).
func (a *Authorizer) pinned(ctx context.Context, caller rpc.Caller) error {
	var from net.Addr
	if ap, err := netip.ParseAddrPort(caller.Addr); err == nil {
		from = net.TCPAddrFromAddrPort(ap)
	}
	if err := caller.Identity.CheckSource(from); err != nil {
		return a.refuse(ctx, caller, fault.New(fault.ErrDenied, "access denied: %w", err).WithCode("source_address"))
	}
	if caller.User().SourceIP != "" {
		return nil
	}
	subject, err := a.Subject(ctx, caller)
	if err != nil {
		return err
	}
	if access.OptionsOf(subject).PinSource {
		err := fault.New(fault.ErrDenied, "access denied: your roles bind certificates to the address of the login, and yours names none: log in again")
		return a.refuse(ctx, caller, err.WithCode("source_address"))
	}
	return nil
}

// exists refuses a user that was deleted since the certificate was made.
func (a *Authorizer) exists(ctx context.Context, caller rpc.Caller) error {
	if a.user == nil {
		return nil
	}
	err := a.user(ctx, caller.User().Name)
	if errors.Is(err, fault.ErrNotFound) {
		return a.refuse(ctx, caller, fault.Denied("access denied: user %q was deleted", caller.User().Name))
	}
	if err != nil {
		return fmt.Errorf("load user %q: %w", caller.User().Name, err)
	}
	return nil
}

// Verb decides whether the caller may do the verb to each of the resources, which
// are of the kind or stand for one. The local administrator may; a user needs a role
// that allows it; nobody else may. Without resources the question is about all of
// the kind, and a role whose condition asks about the resource does not help.
func (a *Authorizer) Verb(ctx context.Context, caller rpc.Caller, kind, verb string, on ...types.Resource) error {
	checker, err := a.checker(ctx, caller, kind, verb)
	if checker == nil || err != nil {
		return err
	}
	if len(on) == 0 {
		return a.verdict(ctx, caller, checker.Verb(kind, verb), kind, verb)
	}
	for _, r := range on {
		if err := a.verdict(ctx, caller, checker.VerbOn(kind, verb, r), kind, verb); err != nil {
			return err
		}
	}
	return nil
}

// Some decides whether there may be resources of the kind that the caller may do the
// verb to, and returns which: the function is nil if the answer is all of them.
func (a *Authorizer) Some(ctx context.Context, caller rpc.Caller, kind, verb string) (func(types.Resource) bool, error) {
	checker, err := a.checker(ctx, caller, kind, verb)
	if checker == nil || err != nil {
		return nil, err
	}
	if err := a.verdict(ctx, caller, checker.VerbSome(kind, verb), kind, verb); err != nil {
		return nil, err
	}
	if checker.Verb(kind, verb).Allowed {
		return nil, nil
	}
	return func(r types.Resource) bool { return checker.VerbOn(kind, verb, r).Allowed }, nil
}

// checker returns what decides about a user; it is nil for the local administrator,
// who may do everything.
func (a *Authorizer) checker(ctx context.Context, caller rpc.Caller, kind, verb string) (*access.Checker, error) {
	if caller.Local {
		return nil, nil
	}
	if caller.User() == nil {
		err := denied(fmt.Sprintf("%q is no user, and only users act on resources", caller.Name()), "access denied: only users may %s %s", verb, kind)
		if caller.Anonymous() {
			err = unauthenticated()
		}
		return nil, a.refuse(ctx, caller, err, "kind", kind, "verb", verb)
	}
	subject, err := a.Subject(ctx, caller)
	if err != nil {
		return nil, err
	}
	return access.NewChecker(subject), nil
}

// verdict turns a decision into an error, or none.
func (a *Authorizer) verdict(ctx context.Context, caller rpc.Caller, d access.Decision, kind, verb string) error {
	if d.Allowed {
		return nil
	}
	this := ""
	if strings.HasSuffix(d.Rule, ".where") {
		this = "this "
	}
	err := denied(d.Reason, "access denied: your roles do not allow you to %s %s%s", verb, this, kind)
	return a.refuse(ctx, caller, err, "kind", kind, "verb", verb)
}

// Subject returns the caller, a user, with its roles as they are now.
func (a *Authorizer) Subject(ctx context.Context, caller rpc.Caller) (access.Subject, error) {
	user := caller.User()
	if user == nil {
		return access.Subject{}, denied(fmt.Sprintf("%q is no user", caller.Name()), "access denied: log in as a user")
	}
	roles, err := a.roles(ctx, user.Roles)
	if err != nil {
		return access.Subject{}, fmt.Errorf("load roles of user %q: %w", user.Name, err)
	}
	return access.Subject{User: user.Name, Roles: roles, Traits: user.Traits, Locks: a.inForce()}, nil
}

// refuse logs a refusal and returns it.
func (a *Authorizer) refuse(ctx context.Context, caller rpc.Caller, err error, attrs ...any) error {
	attrs = append(attrs, "caller", caller.Name(), "addr", caller.Addr, "via", caller.Via, "reason", Reason(err))
	a.log.InfoContext(ctx, "call refused", attrs...)
	return err
}

// Reason returns what led to a refusal, for the log and the audit, where it is
// more than what the caller is told; otherwise the error's message.
func Reason(err error) string {
	var e *fault.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e) && e.Cause != nil:
		return e.Cause.Error()
	}
	return err.Error()
}

func denied(reason, format string, args ...any) error {
	return &fault.Error{Kind: fault.ErrDenied, Code: "access_denied", Msg: fmt.Sprintf(format, args...), Cause: errors.New(reason)}
}

func unauthenticated() error {
	return fault.New(fault.ErrUnauthenticated, "not logged in: log in with tsh login").WithCode("not_logged_in")
}

// MayEmit decides whether the caller may send the event to the audit log: a host,
// and only events that its services make. A service's certificate speaks for that
// service, a process-level certificate for all services of the process. An event
// of an agent that names a server must name the caller.
func MayEmit(caller rpc.Caller, event *auditv1.Event) error {
	host := caller.Host()
	if host == nil {
		return denied(fmt.Sprintf("%q is no host", caller.Name()), "access denied: only services of the cluster send audit events")
	}
	kind, ok := audit.KindOf(event)
	if !ok {
		return fault.Invalid("unknown audit event %q with code %q: the service may be newer than the Auth Service", event.GetEvent(), event.GetCode())
	}
	refused := fault.Denied("access denied: a host with the roles %v may not send %q events", services(host), kind.Type)
	for _, role := range services(host) {
		if !slices.Contains(emits[role], kind) {
			continue
		}
		err := mayName(role, host, kind, event.GetFields().GetFields())
		if err == nil {
			return nil
		}
		refused = err
	}
	return refused
}

// mayName holds an event against the host that sends it. An agent speaks of itself. What
// a Proxy says of a server says who says it, and sessions are always some server's.
func mayName(role types.SystemRole, host *identity.Host, kind audit.Kind, fields map[string]*structpb.Value) error {
	server := fields["server_id"]
	switch {
	case role != types.RoleProxy && server != nil && server.GetStringValue() != host.ID:
		return fault.Denied("access denied: host %s sent an event about another server", host.ID)
	case role == types.RoleProxy && server == nil && Carried(kind):
		return fault.Denied("access denied: Proxy %s sent a %q event that names no server", host.ID, kind.Type)
	case role == types.RoleProxy && server != nil && fields["proxy_id"].GetStringValue() != host.ID:
		return fault.Denied("access denied: Proxy %s sent an event about a server without its own id in proxy_id", host.ID)
	}
	return nil
}

// Carried reports whether a Proxy sends events of the kind only about sessions that it
// carries to OpenSSH servers.
func Carried(kind audit.Kind) bool {
	switch kind {
	case audit.SessionRejected, audit.AuthAttemptFailure, audit.ClientDisconnect:
		return false
	}
	return slices.Contains(emits[types.RoleProxy], kind)
}

// MayAnnounce decides whether the caller may announce a server of the kind and of the
// name: itself (node, proxy, auth_server), whose name is its host id, or that it serves a
// resource (app_server, db_server), whose name ends in it.
func MayAnnounce(caller rpc.Caller, kind, name string) error {
	host := caller.Host()
	if host == nil {
		return denied(fmt.Sprintf("%q is no host", caller.Name()), "access denied: only services of the cluster announce themselves")
	}
	id := name
	if kind == types.KindAppServer || kind == types.KindDatabaseServer {
		_, id, _ = types.SplitServerName(name)
	}
	if id != host.ID {
		return fault.Denied("access denied: host %s announced a server of the name %q", host.ID, name)
	}
	for _, role := range services(host) {
		if announces[role] == kind && kind != "" {
			return nil
		}
	}
	return fault.Denied("access denied: a host with the roles %v may not announce a server of kind %q", services(host), kind)
}

// services returns the system roles that a certificate speaks for.
func services(h *identity.Host) []types.SystemRole {
	if h.Service != "" {
		return []types.SystemRole{h.Service}
	}
	return h.Roles
}
