package join

import (
	"context"
	"errors"
	"sync"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
)

// names knows the names of tokens by the id that each derives. A machine never sends
// what was configured as its token, since that may be a secret, only that id. Names
// that are gone stay, so that a refusal can say what became of the token.
type names struct {
	mu     sync.Mutex
	loaded time.Time
	byID   map[string]string
}

// maxNames bounds what is remembered of tokens that are gone.
const maxNames = 100_000

// findToken returns the token that a machine means, and the name under which it is or
// was stored.
func (s *Server) findToken(ctx context.Context, id string) (*typesv1.Token, string, error) {
	arrived := time.Now()
	token, err := store.Get[*typesv1.Token](ctx, s.cfg.Store, types.KindToken, id)
	if !errors.Is(err, fault.ErrNotFound) {
		return token, id, err
	}
	name, err := s.names.find(ctx, s.cfg.Store, id, arrived)
	if err != nil {
		return nil, id, err
	}
	token, err = store.Get[*typesv1.Token](ctx, s.cfg.Store, types.KindToken, name)
	return token, name, err
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
		if n.byID == nil || len(n.byID) > maxNames {
			n.byID = map[string]string{}
		}
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
