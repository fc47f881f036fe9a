// Package fault defines the kinds of error that the whole system tells apart,
// and reason codes for the refusals that people look up. It knows nothing of
// gRPC (package rpc maps kinds to codes) and making an error has no side effect.
package fault

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Kinds of error, matched with errors.Is.
var (
	// ErrNotFound: the thing named does not exist, or the caller may not know.
	ErrNotFound = errors.New("not found")
	// ErrExists: a thing of that name is already there.
	ErrExists = errors.New("already exists")
	// ErrDenied: the caller is known, and may not.
	ErrDenied = errors.New("access denied")
	// ErrUnauthenticated: the caller did not prove who it is.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrInvalid: the input is wrong; the message says where and how to mend it.
	ErrInvalid = errors.New("invalid")
	// ErrStale: the thing changed since it was read; read again and retry.
	ErrStale = errors.New("changed by somebody else")
	// ErrLimit: too much or too often; try later or ask for less.
	ErrLimit = errors.New("limit exceeded")
	// ErrUnreachable: the other side cannot be reached now.
	ErrUnreachable = errors.New("unreachable")
	// ErrUnsupported: this version does not do that.
	ErrUnsupported = errors.New("not supported")
)

// Kinds lists every kind; a table that maps kinds must have a row for each.
func Kinds() []error {
	return []error{
		ErrNotFound, ErrExists, ErrDenied, ErrUnauthenticated, ErrInvalid, ErrStale, ErrLimit, ErrUnreachable, ErrUnsupported,
	}
}

// Error is an error of a kind, with a message for the person who has to act.
type Error struct {
	// Kind is one of the Err values above.
	Kind error
	// Code is a stable reason such as "token_expired", or empty.
	Code string
	// Msg says what is wrong, what was expected and what to do, in one line.
	Msg string
	// Cause is the error underneath, or nil. It is part of the message only if
	// the message was made with it.
	Cause error
	// RetryAfter is when the other side wants to hear from the caller again; zero
	// leaves it to the caller.
	RetryAfter time.Duration
}

// Error returns the message.
func (e *Error) Error() string { return e.Msg }

// Unwrap makes errors.Is find both the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// New returns an error of the kind. The format may use %w for a cause.
func New(kind error, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Msg: wrapped.Error(), Cause: errors.Unwrap(wrapped)}
}

// WithCode sets the reason code and returns e.
func (e *Error) WithCode(code string) *Error {
	e.Code = code
	return e
}

// WithRetryAfter sets when to try again and returns e.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// NotFound returns an ErrNotFound error.
func NotFound(format string, args ...any) error { return New(ErrNotFound, format, args...) }

// Exists returns an ErrExists error.
func Exists(format string, args ...any) error { return New(ErrExists, format, args...) }

// Denied returns an ErrDenied error.
func Denied(format string, args ...any) error { return New(ErrDenied, format, args...) }

// Unauthenticated returns an ErrUnauthenticated error.
func Unauthenticated(format string, args ...any) error {
	return New(ErrUnauthenticated, format, args...)
}

// Invalid returns an ErrInvalid error.
func Invalid(format string, args ...any) error { return New(ErrInvalid, format, args...) }

// Stale returns an ErrStale error.
func Stale(format string, args ...any) error { return New(ErrStale, format, args...) }

// Limit returns an ErrLimit error.
func Limit(format string, args ...any) error { return New(ErrLimit, format, args...) }

// Unreachable returns an ErrUnreachable error.
func Unreachable(format string, args ...any) error { return New(ErrUnreachable, format, args...) }

// Unsupported returns an ErrUnsupported error.
func Unsupported(format string, args ...any) error { return New(ErrUnsupported, format, args...) }

// Kind returns the kind of err, or nil if it has none. The error on the outside says
// what it is; its causes may be of other kinds.
func Kind(err error) error {
	var e *Error
	if errors.As(err, &e) && slices.Contains(Kinds(), e.Kind) {
		return e.Kind
	}
	for _, k := range Kinds() {
		if errors.Is(err, k) {
			return k
		}
	}
	return nil
}

// Code returns the reason code of err, or "".
func Code(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// RetryAfter returns when the other side wants to hear from the caller again, or zero.
func RetryAfter(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}
