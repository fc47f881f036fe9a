package app

import (
	"context"
	"fmt"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/access"
	"teleport/internal/audit"
	"teleport/internal/cache"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

// ruleCertificate is the rule of decisions by the certificate alone.
const ruleCertificate = "certificate"

// ruleLimit is the rule of what is refused because there is too much of it.
const ruleLimit = "limit"

// admit decides about a connection and begins the session that it belongs to. The error is
// for the user. What it returns is to be called at the end in any case.
func (c *connection) admit(ctx context.Context) (leave func(), err error) {
	leave = func() {}
	app := c.id.User.App
	if c.about.Resource != "" && c.about.Resource != app.Name {
		return leave, c.refuse(ctx, "", access.Decision{Rule: ruleCertificate, Reason: fmt.Sprintf("the certificate is for application %q, and %q was asked for", app.Name, c.about.Resource)})
	}
	sv := c.s.find(app.Name)
	if sv == nil {
		return leave, fault.NotFound("application %q is not served by this host (any more): try again", app.Name)
	}
	if d := c.s.decide(c, sv); !d.Allowed {
		text := ""
		if d.Rule == access.RuleLock || d.Rule == ruleCertificate {
			text = d.Reason
		}
		return leave, c.refuse(ctx, text, d)
	}
	if err := c.s.live.take(c); err != nil {
		return leave, c.refuse(ctx, err.Error(), access.Decision{Rule: ruleLimit, Reason: err.Error()})
	}
	c.sv = sv
	session, err := c.s.sessions.join(ctx, c)
	if err != nil {
		return func() { c.s.live.remove(c) }, err
	}
	c.session = session
	c.s.live.add(c)
	c.s.metrics.active.Inc()
	// What has changed meanwhile closed the connections that were known then.
	if reason, _ := c.s.due(c); reason != "" {
		c.end(reason)
	}
	timer := c.watchTime()
	return func() {
		timer.stop()
		c.s.metrics.active.Dec()
		c.s.live.remove(c)
		c.s.sessions.leave(ctx, c)
	}, nil
}

// refuse records that a user may not use the application, and returns what they are told.
func (c *connection) refuse(ctx context.Context, text string, d access.Decision) error {
	app := c.id.User.App
	if text == "" {
		text = fmt.Sprintf("access denied to application %q: your roles do not allow it, ask an administrator", app.Name)
	}
	c.s.metrics.rejected.Inc()
	e := audit.New(audit.AppSessionStartFailure, c.fields(map[string]any{
		"success": false, "error": text, "reason": d.Reason, "role": d.Role, "rule": d.Rule,
	}))
	c.s.report(ctx, e, c.id.User.Name, app.Name, d.Reason)
	kind := fault.ErrDenied
	if d.Rule == ruleLimit {
		kind = fault.ErrLimit
	}
	return fault.New(kind, "%s (audit event %s)", text, e.GetUid())
}

// report records a refusal, but the same one again and again only as a count.
func (s *Service) report(ctx context.Context, e *auditv1.Event, key ...string) {
	if !s.refusals.Note(e, key...) {
		return
	}
	s.emitLate(ctx, e)
	s.cfg.Log.InfoContext(ctx, "access denied", "event_id", e.GetUid(), "event", e.GetEvent(), "about", key)
}

// fields returns those that every event of the connection has, and more.
func (c *connection) fields(more map[string]any) map[string]any {
	app := c.id.User.App
	f := map[string]any{
		"user": c.id.User.Name, "namespace": "default", "server_id": c.s.cfg.Holder.HostID(), "server_hostname": c.s.cfg.Hostname,
		"app_name": app.Name, "app_public_addr": app.PublicAddr, "sid": app.SessionID, "addr.remote": c.about.ClientAddr,
	}
	if sv := c.s.find(app.Name); sv != nil {
		f["app_uri"] = sv.Resource().GetSpec().GetUri()
		f["app_labels"] = sv.Labels()
	}
	for k, v := range more {
		f[k] = v
	}
	return f
}

// decide is asked when a connection comes in and again when something changes.
func (s *Service) decide(c *connection, sv *served) access.Decision {
	id, now := c.id, s.cfg.Now()
	if reason := s.cfg.Cache.LockedOut(); reason != "" {
		return access.Decision{Rule: access.RuleLock, Reason: reason}
	}
	if l := access.FindLock(s.cfg.Cache.Locks(), access.Facts{
		User: id.User.Name, Roles: id.User.Roles, ServerID: s.cfg.Holder.HostID(), MFADevice: id.User.MFADevice,
	}, now); l != nil {
		return access.Decision{Rule: access.RuleLock, Lock: l.GetMetadata().GetName(), Reason: access.LockText(l)}
	}
	roles := s.cfg.Cache.Roles(id.User.Roles)
	if c.session == nil && s.cfg.Cache.Stale(now) && access.StrictLocks(roles) {
		return access.Decision{Rule: access.RuleLock, Reason: fmt.Sprintf(
			"this host has not heard from the Auth Service for more than %s and may have missed locks: your roles do not let you in until it has (options.lock is %s)",
			cache.MaxSilence, types.LockStrict)}
	}
	if !now.Before(id.Expires) {
		return access.Decision{Rule: ruleCertificate, Reason: "your certificate has expired: log in again"}
	}
	if err := id.CheckSource(c.addr); err != nil {
		return access.Decision{Rule: ruleCertificate, Reason: err.Error()}
	}
	subject := s.subject(id)
	o := access.OptionsOf(subject)
	switch {
	case o.Broken != nil:
		return access.Decision{Rule: "options", Reason: o.Broken.Error()}
	case o.PinSource && id.User.SourceIP == "":
		return access.Decision{Rule: ruleCertificate, Reason: "your roles bind certificates to the address of the login, and yours names none: log in again (options.pin_source_ip)"}
	}
	return access.NewChecker(subject).App(sv.Labels())
}

// subject is the user as roles are asked about them.
func (s *Service) subject(id *identity.Identity) access.Subject {
	return access.Subject{User: id.User.Name, Roles: s.cfg.Cache.Roles(id.User.Roles), Traits: id.User.Traits}
}

// due returns why the connection ends now, or when to look again by the clock.
func (s *Service) due(c *connection) (reason string, wait time.Duration) {
	if d := s.decide(c, c.sv); !d.Allowed {
		switch d.Rule {
		case access.RuleLock, ruleCertificate:
			return d.Reason, 0
		}
		s.cfg.Log.Info("a connection to an application ends: access was taken away", "app", c.sv.name, "user", c.id.User.Name, "reason", d.Reason)
		return "your roles do not allow the application any more", 0
	}
	wait = min(c.id.Expires.Sub(s.cfg.Now()), longestLook)
	if idle := access.OptionsOf(s.subject(c.id)).IdleTimeout; idle > 0 {
		left := idle - time.Since(time.Unix(0, c.active.Load()))
		if left <= 0 {
			return fmt.Sprintf("nothing was done on the connection for %s", idle), 0
		}
		wait = min(wait, left)
	}
	return "", wait
}

const (
	// longestLook is the pause between two looks at a connection by the clock.
	longestLook = 5 * time.Minute
	// shortestLook keeps one that is due now from being looked at all the time.
	shortestLook = 50 * time.Millisecond
)

// clock looks at a connection when its time may be over.
type clock struct {
	timer   *time.Timer
	stopped chan struct{}
}

func (k *clock) stop() {
	close(k.stopped)
	k.timer.Stop()
}

// watchTime ends the connection when its certificate expires or it was idle for too long.
func (c *connection) watchTime() *clock {
	k := &clock{stopped: make(chan struct{})}
	started := make(chan struct{})
	k.timer = time.AfterFunc(shortestLook, func() {
		<-started
		select {
		case <-k.stopped:
			return
		default:
		}
		reason, wait := c.s.due(c)
		if reason != "" {
			c.end(reason)
			return
		}
		k.timer.Reset(max(wait, shortestLook))
	})
	close(started)
	return k
}

// followChanges decides about the connections again when roles, locks or labels change,
// until ctx ends.
func (s *Service) followChanges(ctx context.Context) {
	for {
		locks, roles := s.cfg.Cache.Changed(types.KindLock), s.cfg.Cache.Changed(types.KindRole)
		s.endDue()
		select {
		case <-locks:
		case <-roles:
		case <-s.live.again:
		case <-ctx.Done():
			return
		}
	}
}

// endDue ends the connections that may not go on, and returns how many.
func (s *Service) endDue() int {
	n := 0
	for _, c := range s.live.list() {
		if reason, _ := s.due(c); reason != "" {
			c.end(reason)
			n++
		}
	}
	return n
}

// EnforceLocks ends the connections that a lock forbids, and returns when they have ended.
func (s *Service) EnforceLocks(ctx context.Context) error {
	for {
		if s.endDue() == 0 {
			return nil
		}
		select {
		case <-time.After(shortestLook):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
