package login

import (
	"context"
	"time"
)

// Cheapen lets a server hash with next to no work, for tests and benchmarks.
func Cheapen(s *Server) error {
	h, err := newHasher(cost{memory: 8, time: 1, threads: 1}, cap(s.hasher.slots))
	s.hasher = h
	return err
}

// Code returns the code of a secret at a time.
func Code(secret string, at time.Time) string {
	key, err := totpEncoding.DecodeString(secret)
	if err != nil {
		return ""
	}
	return totpCode(key, at.Unix()/30)
}

// Names of what the tests in the other package look at.
var (
	ParsePHC      = func(s string) (string, error) { p, err := parsePHC(s); return p.String(), err }
	TOTPStep      = totpStep
	TOTPURL       = totpURL
	SourceOf      = sourceOf
	CheckPassword = checkPassword
	ValidUserName = validUserName
)

// Hasher hashes at the default cost.
type Hasher struct{ h *hasher }

// NewHasher returns a Hasher with a number of slots.
func NewHasher(slots int) (Hasher, error) {
	h, err := newHasher(defaultCost, slots)
	return Hasher{h}, err
}

// Hash hashes.
func (h Hasher) Hash(ctx context.Context, password string) (string, error) {
	return h.h.hash(ctx, password)
}

// Verify verifies.
func (h Hasher) Verify(ctx context.Context, encoded, password string) (bool, error) {
	return h.h.verify(ctx, encoded, password)
}

// Fill takes every slot and place in the queue, or only the slots.
func (h Hasher) Fill(queue bool) {
	for len(h.h.slots) < cap(h.h.slots) {
		h.h.slots <- struct{}{}
	}
	for queue && len(h.h.queue) < cap(h.h.queue) {
		h.h.queue <- struct{}{}
	}
}
