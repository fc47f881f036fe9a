package types

import (
	"strings"
	"time"

	typesv1 "teleport/api/types/v1"
)

// Column is one column of the table that lists resources of a kind.
type Column struct {
	Title string
	Value func(Resource) string
}

// KindInfo is what there is to know about a kind: its row in the table.
type KindInfo struct {
	// Name is the kind as resources and role rules spell it; Plural and Aliases are
	// what people may type instead.
	Name    string
	Plural  string
	Aliases []string
	// Singleton kinds have one resource, whose name is that of the kind.
	Singleton bool
	// New returns an empty message of the kind.
	New func() Resource
	// Defaults fills in what was left out and normalises spellings.
	Defaults func(Resource)
	// Validate reports every problem of the kind's own fields, as Problems.
	Validate func(Resource) error
	// Secret returns a copy without what must not leave the Auth Service. Nil means
	// that nothing in the kind is secret.
	Secret func(Resource) Resource
	// Remember is how long the store still knows a resource that expired or was
	// deleted, so that a refusal can say so; counted from its expiry. Zero: not at all.
	Remember time.Duration
	// Columns are those of the text table.
	Columns []Column
	// Writable kinds may be created and edited by people.
	Writable bool
	// Served kinds are reachable through the generic API.
	Served bool

	versions []string // accepted ones, the current one last
	subKinds []string // accepted ones besides ""
	name     func(string) error
}

// Version returns the version that new resources of the kind carry.
func (k KindInfo) Version() string { return k.versions[len(k.versions)-1] }

// kindNames has every kind once, in the order of Kinds.
func kindNames() []string {
	return []string{
		KindClusterName, KindCertAuthority, KindUser, KindCredential, KindUserToken, KindRole, KindToken,
		KindNode, KindProxy, KindAuthServer, KindInstance, KindLedgerEntry, KindLock, KindClusterAlert, KindSessionTracker,
		KindApp, KindAppServer, KindDatabase, KindDatabaseServer, KindWebSession,
	}
}

// row returns the row of the kind of exactly that name.
func row(name string) (KindInfo, bool) {
	switch name {
	case KindClusterName:
		return clusterNameKind(), true
	case KindCertAuthority:
		return certAuthorityKind(), true
	case KindUser:
		return userKind(), true
	case KindCredential:
		return credentialKind(), true
	case KindUserToken:
		return userTokenKind(), true
	case KindRole:
		return roleKind(), true
	case KindToken:
		return tokenKind(), true
	case KindNode:
		return sshNodeKind(), true
	case KindProxy:
		return serverKind(KindProxy, "proxies"), true
	case KindAuthServer:
		return serverKind(KindAuthServer, "auth_servers"), true
	case KindInstance:
		return instanceKind(), true
	case KindLedgerEntry:
		return ledgerEntryKind(), true
	case KindLock:
		return lockKind(), true
	case KindClusterAlert:
		return alertKind(), true
	case KindSessionTracker:
		return sessionTrackerKind(), true
	case KindApp:
		return appKind(), true
	case KindAppServer:
		return appServerKind(), true
	case KindDatabase:
		return databaseKind(), true
	case KindDatabaseServer:
		return databaseServerKind(), true
	case KindWebSession:
		return webSessionKind(), true
	}
	return KindInfo{}, false
}

// Kinds returns the table: a row per kind.
func Kinds() []KindInfo {
	names := kindNames()
	out := make([]KindInfo, 0, len(names))
	for _, n := range names {
		if k, ok := row(n); ok {
			out = append(out, k)
		}
	}
	return out
}

// Kind finds a row by the kind's name, its plural or an alias, in any case.
func Kind(nameOrPluralOrAlias string) (KindInfo, bool) {
	if k, ok := row(nameOrPluralOrAlias); ok {
		return k, true
	}
	s := strings.ToLower(strings.TrimSpace(nameOrPluralOrAlias))
	for _, k := range Kinds() {
		if s == k.Name || s == k.Plural {
			return k, true
		}
		for _, a := range k.Aliases {
			if s == a {
				return k, true
			}
		}
	}
	return KindInfo{}, false
}

// New returns a resource of the kind with kind, version and metadata set. The
// name of a singleton is that of its kind, whatever is passed. It returns nil
// for a kind that is not in the table.
func New(kind, name string) Resource {
	k, ok := row(kind)
	if !ok {
		return nil
	}
	if k.Singleton {
		name = k.Name
	}
	r := k.New()
	setHead(r, kind, k.Version())
	setMetadata(r, &typesv1.Metadata{Name: name})
	return r
}

// setHead sets kind and version, which every resource has as plain fields.
func setHead(r Resource, kind, version string) {
	m := r.ProtoReflect()
	fields := m.Descriptor().Fields()
	m.Set(fields.ByName("kind"), stringValue(kind))
	m.Set(fields.ByName("version"), stringValue(version))
}

func setMetadata(r Resource, md *typesv1.Metadata) {
	m := r.ProtoReflect()
	m.Set(m.Descriptor().Fields().ByName("metadata"), messageValue(md))
}

// nameColumn is the first column of most kinds.
func nameColumn(title string) Column {
	return Column{Title: title, Value: func(r Resource) string { return r.GetMetadata().GetName() }}
}

// column makes a column of a kind's own type.
func column[T Resource](title string, value func(T) string) Column {
	return Column{Title: title, Value: func(r Resource) string {
		if t, ok := r.(T); ok {
			return value(t)
		}
		return ""
	}}
}

// defaults makes a Defaults of a kind's own type.
func defaults[T Resource](f func(T)) func(Resource) {
	return func(r Resource) {
		if t, ok := r.(T); ok {
			f(t)
		}
	}
}

// validate makes a Validate of a kind's own type.
func validate[T Resource](f func(T, *checker)) func(Resource) error {
	return func(r Resource) error {
		c := &checker{}
		if t, ok := r.(T); ok {
			f(t, c)
		} else {
			c.add("", "message %s is not of this kind", r.ProtoReflect().Descriptor().FullName())
		}
		return c.err()
	}
}

// secret makes a Secret of a kind's own type; f clears the secrets of a copy.
func secret[T Resource](f func(T)) func(Resource) Resource {
	return func(r Resource) Resource {
		c := clone(r)
		if t, ok := c.(T); ok {
			f(t)
		}
		return c
	}
}
