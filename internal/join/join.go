// Package join is how a machine gets in: the exchange that turns a join token
// into a host identity, both ends of it, and the renewal of that identity.
//
//	machine                                   Auth (through a Proxy, or directly)
//	Init      token id, keys, roles, names ->
//	                                       <- Question  method, cluster, nonce
//	Answer    the method's proof, over T   ->           (0 to n more rounds)
//	                                       <- Result    grant, signed by the host CA
//
// T, the transcript, is a hash of what both sides said first, so that a relay can
// neither swap keys nor replay an answer. What a proof is belongs to the join method
// (package method and its plugs). The package does not run services and does not
// keep the identity (package state does).
package join

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"time"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/access"
	"teleport/internal/join/token"
)

// Protocol is the version of the exchange.
const Protocol = 1

// Lifetimes and windows.
const (
	// CertificateTTL is the life of host certificates.
	CertificateTTL = 7 * 24 * time.Hour
	// MaxClockSkew is how far the machine's clock may be from Auth's.
	MaxClockSkew = time.Minute
	// exchangeTimeout bounds the whole stream.
	exchangeTimeout = time.Minute
)

// Reason codes of refusals: docs/reference/join-errors.md has a section for each.
const (
	CodeTokenUnknown      = "token_unknown"
	CodeTokenExpired      = "token_expired"
	CodeTokenRevoked      = "token_revoked"
	CodeTokenUsedUp       = "token_used_up"
	CodeTokenProof        = token.CodeTokenProof
	CodeRoleNotAllowed    = "role_not_allowed"
	CodeMethodMismatch    = "method_mismatch"
	CodeClockSkew         = "clock_skew"
	CodeBadRequest        = "bad_request"
	CodeTooMany           = "too_many_refusals"
	CodeBusy              = "busy"
	CodeRejoinDenied      = "rejoin_denied"
	CodeMustAttest        = "must_attest"
	CodeLocked            = access.CodeLocked
	CodeNameReserved      = "name_reserved"
	CodePrincipalDenied   = "principal_denied"
	CodeIdentityInvalid   = "identity_invalid"
	CodeIdentityCloned    = "identity_cloned"
	CodeReplaced          = "certificate_replaced"
	CodeHostRemoved       = "host_removed"
	CodeWrongCluster      = "wrong_cluster"
	CodeWrongPin          = "wrong_pin"
	CodeNoTrust           = "no_trust"
	CodeServerUntrusted   = "server_untrusted"
	CodeServerUnreachable = "server_unreachable"
)

// transcript returns T for an exchange. Every field is length-prefixed, so no two
// different exchanges have the same bytes.
func transcript(init *joinv1.Init, q *joinv1.Question) [sha256.Size]byte {
	h := sha256.New()
	field(h, []byte("teleport-join"))
	number(h, uint64(init.GetProtocol()))
	field(h, []byte(q.GetClusterName()))
	field(h, []byte(init.GetTokenId()))
	field(h, []byte(q.GetMethod()))
	list(h, init.GetRoles())
	field(h, []byte(init.GetHostname()))
	field(h, init.GetTlsPublicKey())
	field(h, init.GetSshPublicKey())
	list(h, init.GetPrincipals())
	field(h, init.GetCurrent().GetCertificate())
	dryRun := uint64(0)
	if init.GetDryRun() {
		dryRun = 1
	}
	number(h, dryRun)
	field(h, q.GetNonce())
	field(h, q.GetChallenge())
	return [sha256.Size]byte(h.Sum(nil))
}

// currentDigest is what the key of an existing identity signs.
func currentDigest(t [sha256.Size]byte) [sha256.Size]byte {
	return sha256.Sum256(slices.Concat([]byte("teleport-join-current"), t[:]))
}

// resultDigest is what the host CA signs.
func resultDigest(t [sha256.Size]byte, grant []byte) [sha256.Size]byte {
	return sha256.Sum256(slices.Concat([]byte("teleport-join-result"), t[:], grant))
}

func field(h hash.Hash, b []byte) {
	number(h, uint64(len(b)))
	h.Write(b)
}

func list(h hash.Hash, values []string) {
	number(h, uint64(len(values)))
	for _, v := range values {
		field(h, []byte(v))
	}
}

func number(h hash.Hash, n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	h.Write(b[:])
}
