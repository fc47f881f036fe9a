package types

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// LoginJoin is the user name of SSH connections that join sessions of others, and the
// only principal of certificates whose holders may do nothing else over SSH. It is no
// operating-system user.
const LoginJoin = "join@teleport"

// KindSSH is the kind of sessions that the SSH Service runs. The others of
// SessionKinds may stand in roles.
const KindSSH = "ssh"

// SessionKinds are the kinds of sessions that roles speak of, besides "*".
func SessionKinds() []string { return []string{KindSSH, "k8s", "db", "app", "desktop"} }

// Modes in which somebody takes part in a session of somebody else.
const (
	// ModeObserver sees.
	ModeObserver = "observer"
	// ModePeer sees and types.
	ModePeer = "peer"
	// ModeModerator sees and may end the session.
	ModeModerator = "moderator"
)

// Modes lists them, the one that may do the least first.
func Modes() []string { return []string{ModeObserver, ModePeer, ModeModerator} }

// What happens to a session when somebody leaves who is needed in it.
const (
	OnLeaveTerminate = "terminate"
	OnLeavePause     = "pause"
)

// States of a session.
const (
	SessionPending = "pending"
	SessionRunning = "running"
	SessionPaused  = "paused"
)

const (
	maxPolicies     = 64
	maxPolicyName   = 128
	maxPolicyCount  = 16
	maxParticipants = 64
	maxInvited      = 32
	maxCommand      = 4096
)

func sessionTrackerKind() KindInfo {
	return KindInfo{
		Name: KindSessionTracker, Plural: "session_trackers",
		New:      func() Resource { return &typesv1.SessionTracker{} },
		Defaults: defaults(func(*typesv1.SessionTracker) {}),
		Validate: validate(validateSessionTracker),
		Columns: []Column{
			nameColumn("ID"),
			column("Kind", func(t *typesv1.SessionTracker) string { return t.GetSpec().GetSessionKind() }),
			column("State", func(t *typesv1.SessionTracker) string { return t.GetSpec().GetState() }),
			column("Host", func(t *typesv1.SessionTracker) string { return t.GetSpec().GetHostname() }),
			column("User", func(t *typesv1.SessionTracker) string { return t.GetSpec().GetOwner() }),
			column("Login", func(t *typesv1.SessionTracker) string { return t.GetSpec().GetLogin() }),
			column("Participants", func(t *typesv1.SessionTracker) string { return ParticipantsText(t) }),
		},
		Served:   true,
		versions: []string{"v1"},
		name:     ValidName,
	}
}

// ParticipantsText lists who joined a session, as in `bob (peer), carol (moderator)`.
func ParticipantsText(t *typesv1.SessionTracker) string {
	parts := make([]string, 0, len(t.GetSpec().GetParticipants()))
	for _, p := range t.GetSpec().GetParticipants() {
		parts = append(parts, p.GetUser()+" ("+p.GetMode()+")")
	}
	return strings.Join(parts, ", ")
}

// ValidSessionID refuses what is not the id of a session.
func ValidSessionID(s string) error {
	if id, err := uuid.Parse(s); err != nil || id.String() != s {
		return fault.Invalid("%q is not the id of a session: see `tsh sessions ls`", clip(s))
	}
	return nil
}

func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// ValidMode refuses what is no mode.
func ValidMode(s string) error {
	if slices.Contains(Modes(), s) {
		return nil
	}
	return fault.Invalid("unknown mode %q: use %s", clip(s), strings.Join(Modes(), ", "))
}

func validSessionKind(s string) error {
	if s == Wildcard || slices.Contains(SessionKinds(), s) {
		return nil
	}
	return fault.Invalid("unknown kind of session %q: use %s or '*'", clip(s), strings.Join(SessionKinds(), ", "))
}

func validateSessionTracker(t *typesv1.SessionTracker, c *checker) {
	s := t.GetSpec()
	if !slices.Contains(SessionKinds(), s.GetSessionKind()) {
		c.add("spec.session_kind", "unknown kind of session %q", clip(s.GetSessionKind()))
	}
	if !slices.Contains([]string{SessionPending, SessionRunning, SessionPaused}, s.GetState()) {
		c.add("spec.state", "unknown state %q", clip(s.GetState()))
	}
	c.time("spec.created", s.GetCreated())
	c.check("spec.hostname", ValidHostname(s.GetHostname()))
	c.check("spec.server_id", ValidName(s.GetServerId()))
	c.check("spec.login", ValidLogin(s.GetLogin()))
	c.check("spec.owner", ValidName(s.GetOwner()))
	c.names("spec.owner_roles", s.GetOwnerRoles(), ValidName)
	c.names("spec.invited", s.GetInvited(), ValidName)
	c.text("spec.reason", s.GetReason(), maxDescription)
	c.text("spec.command", s.GetCommand(), maxCommand)
	for name, n := range map[string]int{
		"spec.participants": len(s.GetParticipants()), "spec.needs": len(s.GetNeeds()), "spec.invited": len(s.GetInvited()),
	} {
		if n > maxParticipants {
			c.add(name, "%d entries, the most is %d", n, maxParticipants)
		}
	}
	for i, p := range s.GetParticipants() {
		at := fmt.Sprintf("spec.participants[%d].", i)
		c.check(at+"user", ValidName(p.GetUser()))
		c.check(at+"mode", ValidMode(p.GetMode()))
		c.time(at+"joined", p.GetJoined())
	}
	for i, text := range s.GetNeeds() {
		c.text(fmt.Sprintf("spec.needs[%d]", i), text, maxDescription)
	}
}

// ValidInvitation refuses more names, or other ones, than a session's owner may
// invite.
func ValidInvitation(names []string) error {
	if len(names) > maxInvited {
		return fault.Invalid("%d people are invited, the most is %d", len(names), maxInvited)
	}
	for _, n := range names {
		if err := ValidName(n); err != nil {
			return err
		}
	}
	return nil
}

// validateJoining checks what a role says about sessions with several people.
func validateJoining(path string, rc *typesv1.RoleConditions, c *checker) {
	if path == specDeny && len(rc.GetRequireSessionJoin()) > 0 {
		c.add(path+".require_session_join", "has no meaning under deny: write it under allow, and what it asks for applies to the holders of the role")
	}
	if len(rc.GetRequireSessionJoin()) > maxPolicies || len(rc.GetJoinSessions()) > maxPolicies {
		c.add(path, "%d entries of require_session_join and %d of join_sessions, the most is %d of each",
			len(rc.GetRequireSessionJoin()), len(rc.GetJoinSessions()), maxPolicies)
		return
	}
	for i, p := range rc.GetRequireSessionJoin() {
		at := fmt.Sprintf("%s.require_session_join[%d]", path, i)
		validatePolicy(at, p.GetName(), p.GetKinds(), p.GetModes(), c)
		if p.GetFilter() == "" {
			c.add(at+".filter", `missing: say who counts, such as contains(user.spec.roles, "auditor")`)
		}
		if n := p.GetCount(); n < 1 || n > maxPolicyCount {
			c.add(at+".count", "%d: say how many people are needed, 1 to %d", n, maxPolicyCount)
		}
		switch mode := p.GetOnLeave(); mode {
		case "", OnLeaveTerminate, OnLeavePause:
		default:
			c.add(at+".on_leave", "unknown action %q: use %s or %s", clip(mode), OnLeaveTerminate, OnLeavePause)
		}
	}
	for i, p := range rc.GetJoinSessions() {
		at := fmt.Sprintf("%s.join_sessions[%d]", path, i)
		validatePolicy(at, p.GetName(), p.GetKinds(), p.GetModes(), c)
		if len(p.GetRoles()) == 0 {
			c.add(at+".roles", "missing: name the roles whose holders' sessions may be joined, or '*'")
		}
		c.names(at+".roles", p.GetRoles(), func(s string) error {
			return ValidName(strings.ReplaceAll(s, Wildcard, "x"))
		})
	}
}

func validatePolicy(at, name string, kinds, modes []string, c *checker) {
	if name == "" {
		c.add(at+".name", "missing: people see it when they wait, and auditors when somebody was refused")
	}
	c.text(at+".name", name, maxPolicyName)
	if strings.ContainsAny(name, "\n\t") {
		c.add(at+".name", "must be one line without tabs")
	}
	if len(kinds) == 0 {
		c.add(at+".kinds", "missing: name the kinds of sessions, such as ssh, or '*'")
	}
	c.names(at+".kinds", kinds, validSessionKind)
	if len(modes) == 0 {
		c.add(at+".modes", "missing: use %s", strings.Join(Modes(), ", "))
	}
	c.names(at+".modes", modes, ValidMode)
}
