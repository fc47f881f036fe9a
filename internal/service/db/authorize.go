package db

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// ruleCertificate is Decision.Rule of what the certificate does not cover.
const ruleCertificate = "certificate"

// usersMatter reports whether the service knows who the user is at the database.
func usersMatter(protocol, dbUser string) bool { return protocol != types.ProtocolTLS || dbUser != "" }

// Authorize decides whether the user may be dbUser in dbName, and records it.
func (h *session) Authorize(ctx context.Context, dbUser, dbName string) error {
	return h.authorize(ctx, dbUser, dbName, false)
}

// AuthorizeUser decides whether the user may be dbUser in some database.
func (h *session) AuthorizeUser(ctx context.Context, dbUser string) error {
	return h.authorize(ctx, dbUser, "", true)
}

// AuthorizeName decides whether the user of the session may be in dbName as well.
func (h *session) AuthorizeName(ctx context.Context, dbName string) error {
	h.mu.Lock()
	authorized, dbUser := h.authorized, h.dbUser
	h.mu.Unlock()
	if !authorized {
		return fault.Denied("nobody is logged in to the database")
	}
	if d, text := h.decide(dbUser, dbName, false); !d.Allowed {
		return h.refuse(ctx, dbUser, dbName, d, text)
	}
	return nil
}

// authorize decides; with anyName in no database in particular.
func (h *session) authorize(ctx context.Context, dbUser, dbName string, anyName bool) error {
	h.mu.Lock()
	if h.authorized {
		defer h.mu.Unlock()
		if h.dbUser == dbUser && h.dbName == dbName {
			return nil
		}
		return fault.Denied("this session is that of database user %q in %q", h.dbUser, h.dbName)
	}
	h.mu.Unlock()
	if err := h.s.cfg.Cache.WaitSynced(ctx); err != nil {
		return err
	}
	d, text := h.decide(dbUser, dbName, anyName)
	if !d.Allowed {
		return h.refuse(ctx, dbUser, dbName, d, text)
	}
	h.mu.Lock()
	h.authorized, h.dbUser, h.dbName = true, dbUser, dbName
	h.mu.Unlock()
	// A lock that came meanwhile looked at a session without a database user.
	if text := h.s.locked(h.user, dbUser); text != "" {
		err := fault.New(fault.ErrDenied, "%s", text).WithCode(access.CodeLocked)
		h.end(err)
		return err
	}
	signal(h.s.live.more)
	h.s.metrics.started.WithLabelValues(h.protocol()).Inc()
	h.s.metrics.active.WithLabelValues(h.protocol()).Inc()
	h.audit.setBase(dbUser, dbName)
	h.audit.start(h.sv.Labels())
	return nil
}

// decide returns the decision, and what the user is told if that is not the usual text.
func (h *session) decide(dbUser, dbName string, anyName bool) (d access.Decision, text string) {
	anyName = anyName || !types.DatabaseNamesMatter(h.protocol())
	if h.precheck != nil {
		return access.Decision{Rule: ruleCertificate, Reason: h.precheck.Error()}, h.precheck.Error()
	}
	if d, refused := h.s.lockRefuses(h.user, dbUser); refused {
		return d, d.Reason
	}
	if err := h.s.optionsOf(h.user).Broken; err != nil {
		return access.Decision{Rule: "options", Reason: err.Error()}, "your roles have an option that this host cannot understand, ask an administrator"
	}
	if text := h.bound(dbUser, dbName, anyName); text != "" {
		return access.Decision{Rule: ruleCertificate, Reason: text}, text
	}
	login := access.DatabaseLogin{User: dbUser, Name: dbName, AnyName: anyName, AnyUser: !usersMatter(h.protocol(), dbUser)}
	for what, name := range map[string]string{"user": dbUser, "name": dbName} {
		if needed := what == "user" && !login.AnyUser || what == "name" && !login.AnyName; name == "" && !needed {
			continue
		}
		if err := types.ValidDatabaseUser(name); err != nil {
			text := fmt.Sprintf("the database %s is not one: %v", what, err)
			return access.Decision{Rule: "allow.db_" + what + "s", Reason: text}, text
		}
	}
	subject := h.s.subject(h.user)
	labels := h.sv.Labels()
	checker := access.NewChecker(subject)
	d = checker.Database(labels, login)
	auto, automatic := h.automatic(dbUser)
	if !d.Allowed && automatic && d.Rule == "allow.db_users" {
		// Who gets a user made for them is that user, and no list has to say so.
		login.AnyUser = true
		d = checker.Database(labels, login)
	}
	if !d.Allowed {
		return d, h.hint(checker, labels, login)
	}
	for _, role := range h.user.User.Database.Roles {
		if !automatic || !slices.Contains(auto.Roles, role) {
			text := fmt.Sprintf("your roles do not give you the database role %q here", role)
			return access.Decision{Rule: "allow.db_roles", Reason: text}, text
		}
	}
	return d, ""
}

// bound returns what the certificate says against the names, or "".
func (h *session) bound(dbUser, dbName string, anyName bool) string {
	route := h.user.User.Database
	switch {
	case !h.s.cfg.Now().Before(h.user.Expires):
		return fmt.Sprintf("your certificate expired at %s: log in again", h.user.Expires.UTC())
	case route.Protocol != "" && route.Protocol != h.protocol():
		return fmt.Sprintf("your certificate is for the protocol %s, and this database speaks %s: run tsh db login again", route.Protocol, h.protocol())
	case route.User != "" && route.User != dbUser:
		return fmt.Sprintf("your certificate is for database user %q, not for %q: run tsh db login --db-user=%s", route.User, dbUser, dbUser)
	case route.Name != "" && route.Name != dbName && !anyName:
		return fmt.Sprintf("your certificate is for database name %q, not for %q: run tsh db login --db-name=%s", route.Name, dbName, dbName)
	}
	return ""
}

// shown is how many names a refusal lists.
const shown = 5

// hint tells the user what they may be instead: nothing that lists would not show them.
func (h *session) hint(c *access.Checker, labels map[string]string, login access.DatabaseLogin) string {
	text := "your roles do not allow it, ask an administrator"
	if !c.SeesDatabase(labels).Allowed {
		return text
	}
	list := func(what, name string, names []string, any bool) {
		if any || len(names) == 0 || slices.Contains(names, name) {
			return
		}
		more := ""
		if len(names) > shown {
			names, more = names[:shown], " and others"
		}
		text = fmt.Sprintf("your roles let you be %s %s%s here", what, strings.Join(names, ", "), more)
	}
	if !login.AnyName {
		names, any := c.DatabaseNames(labels)
		list("in database", login.Name, names, any)
	}
	if !login.AnyUser {
		names, any := c.DatabaseUsers(labels)
		list("database user", login.User, names, any)
	}
	return text
}

// refuse records a refusal and returns what the user is told.
func (h *session) refuse(ctx context.Context, dbUser, dbName string, d access.Decision, text string) error {
	h.s.metrics.rejected.WithLabelValues(h.protocol()).Inc()
	if d.Rule != access.RuleLock {
		at := ""
		if dbUser != "" {
			at += fmt.Sprintf(" as %q", dbUser)
		}
		if dbName != "" && types.DatabaseNamesMatter(h.protocol()) {
			at += fmt.Sprintf(" in %q", dbName)
		}
		text = fmt.Sprintf("access to database %q%s denied: %s", h.sv.name(), at, text)
	}
	h.mu.Lock()
	authorized := h.authorized
	h.mu.Unlock()
	if !authorized {
		h.audit.setBase(dbUser, dbName)
	}
	e := h.audit.framed(audit.DatabaseSessionStartFailure, map[string]any{
		"success": false, "error": text, "reason": d.Reason, "role": d.Role, "rule": d.Rule, "db_labels": h.sv.Labels(),
	})
	if authorized {
		e.Fields.Fields["db_name"] = structpb.NewStringValue(dbName)
	}
	e.Time = nil
	if h.s.refusals.Note(e, h.user.User.Name, h.sv.name(), dbUser, dbName, d.Reason) {
		h.s.emitLate(ctx, e)
		h.s.cfg.Log.InfoContext(ctx, "access denied", "event_id", e.GetUid(), "reason", d.Reason)
	}
	err := fault.New(fault.ErrDenied, "%s (audit event %s)", text, e.GetUid())
	if d.Rule == access.RuleLock {
		err = err.WithCode(access.CodeLocked)
	}
	return err
}

// authorities are those of the cluster as Auth last told.
func (s *Service) authorities() []*typesv1.CertAuthority {
	if all := s.cfg.Cache.Authorities(); len(all) > 0 {
		return all
	}
	return s.cfg.Holder.Trust().Authorities()
}
