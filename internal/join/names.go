package join

import (
	"context"
	"errors"
	"sync"
	"time"

	joinv1 "teleport/api/join/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
)

// names finds tokens by the id that their name derives. A machine that was given no
// join method cannot know whether its token is a secret, and sends only that id.
type names struct {
	mu     sync.Mutex
	loaded time.Time
	byID   map[string]string
}

// findToken returns the token that a machine means.
func (s *Server) findToken(ctx context.Context, init *joinv1.Init) (*typesv1.Token, error) {
	arrived := time.Now()
	token, err := store.Get[*typesv1.Token](ctx, s.cfg.Store, types.KindToken, init.GetTokenId())
	if !errors.Is(err, fault.ErrNotFound) {
		return token, err
	}
	name, err := s.names.find(ctx, s.cfg.Store, init.GetTokenId(), arrived)
	if err != nil {
		return nil, err
	}
	return store.Get[*typesv1.Token](ctx, s.cfg.Store, types.KindToken, name)
}

// find looks in what it knows, and reads the tokens again if that is older than the
// request: those who ask at the same time share one reading.
func (n *names) find(ctx context.Context, st *store.Store, id string, arrived time.Time) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if name, ok := n.byID[id]; ok {
		return name, nil
	}
	if n.loaded.Before(arrived) {
		began := time.Now()
		tokens, err := store.All[*typesv1.Token](ctx, st, types.KindToken)
		if err != nil {
			return "", err
		}
		n.byID = map[string]string{}
		for _, t := range tokens {
			if d := t.GetStatus().GetDerivedId(); d != "" {
				n.byID[d] = t.GetMetadata().GetName()
			}
		}
		n.loaded = began
	}
	if name, ok := n.byID[id]; ok {
		return name, nil
	}
	return "", fault.NotFound("no token has this id")
}
