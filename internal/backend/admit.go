package backend

import (
	"errors"
	"time"

	"teleport/internal/fault"
)

// Limits that every plug enforces.
const (
	MaxKey   = 2048
	MaxValue = 8 << 20
	MaxOps   = 1024
)

// KeyError says which key of a batch was refused; it is of the kind of Err.
type KeyError struct {
	Key string
	Err error
}

// Error names the key.
func (e *KeyError) Error() string { return "key " + quote(e.Key) + ": " + e.Err.Error() }

// Unwrap makes errors.Is find the kind.
func (e *KeyError) Unwrap() error { return e.Err }

// NotFound is the error of Get for a key that does not exist.
func NotFound(key string) error { return &KeyError{Key: key, Err: fault.ErrNotFound} }

// CheckBatch refuses, with fault.ErrInvalid, a batch that no plug accepts: none
// or too many operations, a key named twice, keys or values out of bounds.
func CheckBatch(ops []Op) error {
	if len(ops) == 0 {
		return fault.Invalid("a batch needs an operation")
	}
	if len(ops) > MaxOps {
		return fault.Invalid("a batch of %d operations, the most is %d", len(ops), MaxOps)
	}
	seen := make(map[string]struct{}, len(ops))
	size := 0
	for _, op := range ops {
		key := op.Item.Key
		if key == "" || len(key) > MaxKey {
			return fault.Invalid("a key of %d bytes, it must have 1 to %d", len(key), MaxKey)
		}
		if _, twice := seen[key]; twice {
			return fault.Invalid("key %s is twice in one batch", quote(key))
		}
		seen[key] = struct{}{}
		if op.Type < OpCreate || op.Type > OpCheck {
			return fault.Invalid("key %s: unknown operation %d", quote(key), op.Type)
		}
		if size += len(op.Item.Value); len(op.Item.Value) > MaxValue || size > 2*MaxValue {
			return fault.New(fault.ErrLimit, "key %s: too many bytes, a value has at most %d and a batch %d", quote(key), MaxValue, 2*MaxValue)
		}
	}
	return nil
}

// Admit decides whether op may be applied to a key that exists (unexpired) at
// the revision, or does not exist. The error is a *KeyError of kind
// fault.ErrExists, fault.ErrNotFound or fault.ErrStale.
func Admit(op Op, exists bool, revision uint64) error {
	refuse := func(kind error) error { return &KeyError{Key: op.Item.Key, Err: kind} }
	same := exists && revision == op.Item.Revision
	switch op.Type {
	case OpCreate:
		if exists {
			return refuse(fault.ErrExists)
		}
	case OpUpdate, OpDelete:
		if !exists {
			return refuse(fault.ErrNotFound)
		}
		if !same && (op.Type == OpUpdate || op.Item.Revision != 0) {
			return refuse(fault.ErrStale)
		}
	case OpCheck:
		if absent := op.Item.Revision == 0; absent == exists || (!absent && !same) {
			return refuse(fault.ErrStale)
		}
	case OpPut:
	}
	return nil
}

// errClosed ends what a closed backend was asked for.
var errClosed = errors.New("the store is closed")

// Closed is the error of every call on a closed backend.
func Closed() error { return fault.New(fault.ErrUnreachable, "%w", errClosed) }

// Precise returns an expiry as plugs keep it: UTC, to the microsecond.
func Precise(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return time.UnixMicro(t.UnixMicro()).UTC()
}

// Expired reports whether an item with that expiry has stopped existing.
func Expired(expires, now time.Time) bool {
	return !expires.IsZero() && !expires.After(now)
}
