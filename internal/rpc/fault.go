package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"teleport/internal/fault"
)

// domain marks the reason codes of this system in gRPC error details.
const domain = "teleport"

// kindCodes is the one table of error kinds and gRPC codes, for both directions.
var kindCodes = []struct {
	kind error
	code codes.Code
}{
	{fault.ErrNotFound, codes.NotFound},
	{fault.ErrExists, codes.AlreadyExists},
	{fault.ErrDenied, codes.PermissionDenied},
	{fault.ErrUnauthenticated, codes.Unauthenticated},
	{fault.ErrInvalid, codes.InvalidArgument},
	{fault.ErrStale, codes.Aborted},
	{fault.ErrLimit, codes.ResourceExhausted},
	{fault.ErrUnreachable, codes.Unavailable},
	{fault.ErrUnsupported, codes.Unimplemented},
}

// toStatus turns a handler's error into what goes over the wire. An error of no
// kind may hold details of the inside: it is logged here and said in general
// terms to the caller.
func toStatus(ctx context.Context, log *slog.Logger, method string, err error) error {
	if err == nil {
		return nil
	}
	for _, row := range kindCodes {
		if fault.Kind(err) != row.kind { //nolint:errorlint // Kind returns one of the kinds themselves
			continue
		}
		st := status.New(row.code, err.Error())
		if reason := fault.Code(err); reason != "" {
			if with, derr := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: domain}); derr == nil {
				st = with
			}
		}
		if wait := fault.RetryAfter(err); wait > 0 {
			if with, derr := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)}); derr == nil {
				st = with
			}
		}
		return st.Err()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call was cancelled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call took too long")
	}
	if st, ok := status.FromError(err); ok && st.Code() != codes.Unknown && st.Code() != codes.Internal {
		return err
	}
	log.ErrorContext(ctx, "rpc failed", "method", method, "error", err)
	return status.Error(codes.Internal, "internal error; the log of the service has the details")
}

// FromStatus turns an error of a gRPC call into an error of a fault kind, where
// one applies. Clients made by this package have done it already.
func FromStatus(err error) error {
	if err == nil || errors.Is(err, io.EOF) || fault.Kind(err) != nil {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, row := range kindCodes {
		if row.code == st.Code() {
			return &fault.Error{Kind: row.kind, Code: reason(st), Msg: st.Message(), Cause: err, RetryAfter: retryAfter(st)}
		}
	}
	switch st.Code() {
	case codes.Canceled:
		return &fault.Error{Kind: context.Canceled, Msg: st.Message(), Cause: err}
	case codes.DeadlineExceeded:
		cause := errors.Join(context.DeadlineExceeded, err)
		return &fault.Error{Kind: fault.ErrUnreachable, Msg: "no answer in time: " + st.Message(), Cause: cause}
	}
	return errors.New(st.Message())
}

// maxRetryAfter bounds what another side may ask for.
const maxRetryAfter = 10 * time.Minute

// retryAfter returns when st asks to try again, or zero.
func retryAfter(st *status.Status) time.Duration {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return min(max(0, info.GetRetryDelay().AsDuration()), maxRetryAfter)
		}
	}
	return 0
}

// reason returns the reason code in the details of st, or "".
func reason(st *status.Status) string {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return info.GetReason()
		}
	}
	return ""
}
