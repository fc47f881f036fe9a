// Package backend is the contract of the key-value stores that keep the cluster's
// state: ordered keys, compare-and-set by revision, atomic batches, expiry and a
// watch that resumes from a revision. It stores bytes and knows nothing of what
// they mean. The plugs are the folders below; backendtest is the suite they pass.
package backend

import (
	"context"
	"strings"
	"time"
)

// Item is a stored value.
type Item struct {
	// Key is made by Key: parts joined by "/".
	Key   string
	Value []byte
	// Expires is when the item stops existing; zero means never.
	Expires time.Time
	// Revision is the store-wide revision at which the item was last written.
	Revision uint64
}

// OpType is what an Op does.
type OpType int

// The operations of a batch.
const (
	// OpCreate writes the item if the key does not exist (else fault.ErrExists).
	OpCreate OpType = iota + 1
	// OpPut writes the item whatever was there.
	OpPut
	// OpUpdate writes the item if it exists at Item.Revision (else fault.ErrStale;
	// fault.ErrNotFound if it does not exist).
	OpUpdate
	// OpDelete removes the key. Item.Revision 0 means at any revision, otherwise
	// fault.ErrStale unless it matches; fault.ErrNotFound if it does not exist.
	OpDelete
	// OpCheck changes nothing and fails with fault.ErrStale unless the key is at
	// Item.Revision (0: does not exist).
	OpCheck
)

// Op is one operation of a batch.
type Op struct {
	Type OpType
	Item Item
}

// Event is one change seen by a watcher.
type Event struct {
	// Revision is that of the batch the change was part of.
	Revision uint64
	// Deleted is true when the item was deleted or expired; Item then has the key only.
	Deleted bool
	Item    Item
}

// Watcher delivers changes in order of revision.
type Watcher interface {
	// Events is closed when the watcher ends; Err says why.
	Events() <-chan Event
	// Err is nil until Events is closed, then why it ended: fault.ErrStale when
	// the watcher fell too far behind (read again and watch anew).
	Err() error
	Close()
}

// Backend is a store. Every method returns an error of a fault kind where one
// applies. Expired items are never returned, even before they are removed.
// Writes are durable when the call returns.
type Backend interface {
	// Get returns one item or fault.ErrNotFound.
	Get(ctx context.Context, key string) (Item, error)
	// Range returns items with start <= key < end in ascending order, at most limit
	// (0: no limit), and the revision of the store that the answer reflects. An
	// empty end is no bound. A negative limit asks for the last -limit items, in
	// descending order.
	Range(ctx context.Context, start, end string, limit int) ([]Item, uint64, error)
	// Batch applies all operations or none and returns the revision that all of
	// them got; a batch of checks only gets the current one. A batch names a key at
	// most once. A precondition that fails is a *KeyError. An error of ctx means that
	// nothing was written.
	Batch(ctx context.Context, ops ...Op) (uint64, error)
	// Watch delivers changes to keys with the prefix and a revision greater than
	// after. fault.ErrStale if that history is gone, or if after is not a revision of
	// this store: read again and watch anew. A batch arrives as several events of one
	// revision: who resumes after a break in the middle resumes from the revision
	// before it.
	Watch(ctx context.Context, prefix string, after uint64) (Watcher, error)
	Close() error
}

// Dated is a Backend that knows by itself, without asking a server or a disk, when a
// part of it changed: what was read stays good until then. A Backend that others write
// to as well is none.
type Dated interface {
	// Latest returns a revision after which no key with the prefix was changed by a write
	// that has returned; it moves when one is. Expiry is a change only when the item is
	// removed. It is for few prefixes, which are remembered.
	Latest(prefix string) uint64
}

// Separator stands between the parts of a key and at the end of a prefix.
const Separator = "/"

// Key joins parts to a key. A part must not contain the separator; names are
// checked long before they get here, so a part that does is escaped.
func Key(parts ...string) string {
	escaped := make([]string, len(parts))
	for i, p := range parts {
		escaped[i] = strings.ReplaceAll(strings.ReplaceAll(p, "%", "%25"), Separator, "%2F")
	}
	return strings.Join(escaped, Separator)
}

// Prefix returns the range that holds every key below parts, and nothing else.
func Prefix(parts ...string) (start, end string) {
	start = Key(parts...) + Separator
	return start, End(start)
}

// End returns the smallest string that is greater than every string with the
// prefix, or "" if there is none.
func End(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return ""
}
