// Package types is the vocabulary: every kind of resource with its defaults and
// validation, and the YAML form that people write. One list, Kinds, has a row
// per kind; store, API, tctl and docs derive from it. It does not store, sign or
// decide anything.
package types

import (
	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
)

// Resource is any kind's message.
type Resource interface {
	proto.Message
	GetKind() string
	GetSubKind() string
	GetVersion() string
	GetMetadata() *typesv1.Metadata
}

// Names of the kinds.
const (
	KindClusterName    = "cluster_name"
	KindCertAuthority  = "cert_authority"
	KindUser           = "user"
	KindCredential     = "credential"
	KindUserToken      = "user_token"
	KindRole           = "role"
	KindToken          = "token"
	KindNode           = "node"
	KindProxy          = "proxy"
	KindAuthServer     = "auth_server"
	KindInstance       = "instance"
	KindLedgerEntry    = "ledger_entry"
	KindLock           = "lock"
	KindClusterAlert   = "cluster_alert"
	KindSessionTracker = "session_tracker"
	KindApp            = "app"
	KindAppServer      = "app_server"
	KindDatabase       = "db"
	KindDatabaseServer = "db_server"
	KindWebSession     = "web_session"
	// KindEvent and KindSession are not resources but may be named in role rules.
	KindEvent   = "event"
	KindSession = "session"
)

// Verbs of role rules.
const (
	VerbList   = "list"
	VerbCreate = "create"
	VerbRead   = "read"
	VerbUpdate = "update"
	VerbDelete = "delete"
)

// Change is one step of a resource stream: Resource is nil when it was deleted.
type Change struct {
	Revision uint64
	Kind     string
	Name     string
	Resource Resource
}
