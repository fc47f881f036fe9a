package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newBoundKeypair(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "bound-keypair", Short: "Manage tokens of join method bound_keypair"}
	return screen.Group(cmd, &cobra.Command{
		Use:   "request-rotation TOKEN",
		Short: "Make the machine change its key at its next join",
		Args:  screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(conn grpc.ClientConnInterface) error {
				return requestRotation(cmd.Context(), a, conn, args[0])
			})
		},
	})
}

// requestRotation sets spec.bound_keypair.rotate_after to now. A machine that joins
// meanwhile changes the token under us.
func requestRotation(ctx context.Context, a *app, conn grpc.ClientConnInterface, name string) error {
	var err error
	for range 3 {
		var r types.Resource
		if r, err = getResource(ctx, conn, types.KindToken, name); err != nil {
			return err
		}
		token, ok := r.(*typesv1.Token)
		if !ok || token.GetSpec().GetJoinMethod() != types.JoinMethodBoundKeypair {
			return fault.Invalid("token %q is of join method %q, only tokens of method %s have a key", name, token.GetSpec().GetJoinMethod(), types.JoinMethodBoundKeypair)
		}
		if token.Spec.BoundKeypair == nil {
			token.Spec.BoundKeypair = &typesv1.BoundKeypairJoin{}
		}
		token.Spec.BoundKeypair.RotateAfter = timestamppb.New(time.Now().Truncate(time.Second))
		if err = updateResource(ctx, conn, token); !errors.Is(err, fault.ErrStale) {
			break
		}
	}
	if err != nil {
		return err
	}
	return a.print("The machine of token %q will change its key at its next join.\n", screen.Escape(name))
}
