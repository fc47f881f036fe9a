package join

import (
	"crypto/sha256"

	joinv1 "teleport/api/join/v1"
)

// Transcript returns T, which the proof of a join is made over: for programs that
// speak the protocol without a machine behind them, to put load on Auth.
func Transcript(init *joinv1.Init, first *joinv1.Question) [sha256.Size]byte {
	return transcript(init, first)
}
