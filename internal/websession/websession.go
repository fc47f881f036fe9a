// Package websession keeps who is logged in with a browser: at the Proxy, and, as
// something that came of that, at single applications. The store has only a hash of the
// secret that the browser holds. The package decides nothing about users: who asks for a
// session has to hold the user's rights against it, as they are then.
package websession

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
)

const (
	idSize     = 12
	secretSize = 32
	// between ends the id of the session in its secret, and the parent's in the id.
	endOfID, endOfParent = ".", "-"
	// maxToken bounds what is looked at.
	maxToken = 256
	// maxPerApp is how many sessions of one application may come of one at the Proxy: a
	// browser that lost its cookie signs in again.
	maxPerApp = 8
	// maxChildren bounds those of all applications.
	maxChildren = 4096
)

// CodeGone is the code of the error about a session that is no more.
const CodeGone = "web_session_gone"

// errGone is the one answer about every session that does not work.
func errGone() error {
	return fault.New(fault.ErrUnauthenticated, "this session does not exist or has ended: log in again").WithCode(CodeGone)
}

// New returns a session at the Proxy, which is to be created, and its secret.
func New(user, device, addr string, now, expires time.Time) (string, *typesv1.WebSession, error) {
	return newSession("", &typesv1.WebSessionSpec{User: user, MfaDevice: device, RemoteAddr: addr}, now, expires)
}

// NewApp returns a session at an application that comes of one at the Proxy and ends with
// it, and its secret.
func NewApp(parent *typesv1.WebSession, app string, now time.Time) (string, *typesv1.WebSession, error) {
	spec := parent.GetSpec()
	return newSession(parent.GetMetadata().GetName()+endOfParent, &typesv1.WebSessionSpec{
		User: spec.GetUser(), MfaDevice: spec.GetMfaDevice(), RemoteAddr: spec.GetRemoteAddr(), App: app, Parent: parent.GetMetadata().GetName(),
	}, now, parent.GetMetadata().GetExpires().AsTime())
}

func newSession(prefix string, spec *typesv1.WebSessionSpec, now, expires time.Time) (string, *typesv1.WebSession, error) {
	random := make([]byte, idSize+secretSize)
	if _, err := rand.Read(random); err != nil {
		return "", nil, fmt.Errorf("make a session: %w", err)
	}
	id := prefix + hex.EncodeToString(random[:idSize])
	token := id + endOfID + hex.EncodeToString(random[idSize:])
	hash := sha256.Sum256([]byte(token))
	s, ok := types.New(types.KindWebSession, id).(*typesv1.WebSession)
	if !ok {
		return "", nil, fault.Invalid("kind web_session with another kind's message")
	}
	spec.TokenHash, spec.Created = hash[:], timestamppb.New(now)
	s.Spec, s.Metadata.Expires = spec, timestamppb.New(expires)
	if err := types.Check(s); err != nil {
		return "", nil, fmt.Errorf("make a session: %w", err)
	}
	return token, s, nil
}

// Find returns the session of a secret. The error is fault.ErrUnauthenticated with
// CodeGone if there is none.
func Find(ctx context.Context, st *store.Store, token string, now time.Time) (*typesv1.WebSession, error) {
	id, _, ok := strings.Cut(token, endOfID)
	if !ok || len(token) > maxToken || types.ValidName(id) != nil {
		return nil, errGone()
	}
	s, err := store.Get[*typesv1.WebSession](ctx, st, types.KindWebSession, id)
	if errors.Is(err, fault.ErrNotFound) {
		return nil, errGone()
	}
	if err != nil {
		return nil, fmt.Errorf("read the session: %w", err)
	}
	hash := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(hash[:], s.GetSpec().GetTokenHash()) != 1 || !s.GetMetadata().GetExpires().AsTime().After(now) {
		return nil, errGone()
	}
	return s, nil
}

// End adds the end of a session to tx, and of those that came of it.
func End(ctx context.Context, st *store.Store, tx *store.Tx, s *typesv1.WebSession) error {
	children, err := childrenOf(ctx, st, s)
	if err != nil {
		return err
	}
	for _, one := range append(children, s) {
		tx.Delete(types.KindWebSession, one.GetMetadata().GetName(), one.GetMetadata().GetRevision())
	}
	return nil
}

// EndUser adds the end of all sessions of a user to tx.
func EndUser(ctx context.Context, st *store.Store, tx *store.Tx, user string) error {
	all, err := store.All[*typesv1.WebSession](ctx, st, types.KindWebSession)
	if err != nil {
		return fmt.Errorf("read the sessions: %w", err)
	}
	for _, s := range all {
		if s.GetSpec().GetUser() == user {
			tx.Delete(types.KindWebSession, s.GetMetadata().GetName(), s.GetMetadata().GetRevision())
		}
	}
	return nil
}

// MakeRoom adds to tx the end of what is too much: the oldest sessions of the application
// that came of the one at the Proxy. The parent must still be there at the commit.
func MakeRoom(ctx context.Context, st *store.Store, tx *store.Tx, parent *typesv1.WebSession, app string) error {
	children, err := childrenOf(ctx, st, parent)
	if err != nil {
		return err
	}
	if len(children) >= maxChildren {
		return fault.Limit("this session is signed in to too many applications: log out and log in again")
	}
	var same []*typesv1.WebSession
	for _, s := range children {
		if s.GetSpec().GetApp() == app {
			same = append(same, s)
		}
	}
	for ; len(same) >= maxPerApp; same = same[1:] {
		oldest := 0
		for i, s := range same {
			if s.GetSpec().GetCreated().AsTime().Before(same[oldest].GetSpec().GetCreated().AsTime()) {
				oldest = i
			}
		}
		same[0], same[oldest] = same[oldest], same[0]
		tx.Delete(types.KindWebSession, same[0].GetMetadata().GetName(), same[0].GetMetadata().GetRevision())
	}
	tx.Check(types.KindWebSession, parent.GetMetadata().GetName(), parent.GetMetadata().GetRevision())
	return nil
}

func childrenOf(ctx context.Context, st *store.Store, s *typesv1.WebSession) ([]*typesv1.WebSession, error) {
	if s.GetSpec().GetApp() != "" {
		return nil, nil
	}
	children, err := store.Below[*typesv1.WebSession](ctx, st, types.KindWebSession, s.GetMetadata().GetName()+endOfParent, maxChildren)
	if err != nil {
		return nil, fmt.Errorf("read the sessions at applications: %w", err)
	}
	return children, nil
}
