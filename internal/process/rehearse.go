package process

import (
	"context"
	"errors"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/state"
)

// Rehearse runs the join that Run would make and changes nothing. It works beside a
// process that uses the same data directory.
func Rehearse(ctx context.Context, opts Options) (*joinv1.Explanation, error) {
	p := newProcess(opts)
	if p.config().Auth.Enabled {
		return nil, fault.Invalid("this process runs the Auth Service itself and joins nobody")
	}
	p.addrs = Addrs{Proxy: p.config().Proxy.WebListenAddr}
	var current *state.Holder
	st, err := state.Peek(p.config().DataDir)
	switch {
	case errors.Is(err, fault.ErrNotFound):
	case err != nil:
		return nil, err
	default:
		if current, err = state.NewHolder(st); err != nil {
			return nil, err
		}
	}
	params, err := p.joinParams(current)
	if err != nil {
		return nil, err
	}
	return join.Rehearse(ctx, params)
}
