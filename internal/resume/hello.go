package resume

import (
	"bufio"
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"teleport/internal/fault"
)

// Mark in the comment of an SSH identification says that the node speaks this.
const Mark = "teleport-resume-1"

const (
	lineStart = "teleport-resume/"
	protocol  = lineStart + "1"
	// maxLine bounds a line; SSH libraries that skip lines before the identification
	// take no more than 255 bytes.
	maxLine = 250

	verbNew     = "new"
	verbAgain   = "again"
	verbRefused = "refused"
	verbGone    = "gone"

	tokenSize = 16
	nonceSize = 32
	macSize   = sha256.Size
	keySize   = 32
)

type (
	token [tokenSize]byte
	nonce [nonceSize]byte
	mac   [macSize]byte
)

// secrets are what the two ends of a connection share.
type secrets struct {
	token        token
	client, node []byte
}

// agree derives the secrets from one's own key and the public key of the other end.
func agree(own *ecdh.PrivateKey, peer, client, node []byte) (*secrets, error) {
	key, err := ecdh.X25519().NewPublicKey(peer)
	if err != nil {
		return nil, fault.Invalid("key of the other end: %w", err)
	}
	shared, err := own.ECDH(key)
	if err != nil {
		return nil, fault.Invalid("key of the other end: %w", err)
	}
	transcript := sha256.Sum256(bytes.Join([][]byte{[]byte(protocol), client, node}, []byte{0}))
	out, err := hkdf.Key(sha256.New, shared, transcript[:], protocol, tokenSize+2*keySize)
	if err != nil {
		return nil, fmt.Errorf("derive keys: %w", err)
	}
	s := &secrets{client: out[tokenSize : tokenSize+keySize], node: out[tokenSize+keySize:]}
	copy(s.token[:], out)
	return s, nil
}

// attempt is one exchange that attaches a new path.
type attempt struct {
	token          token
	number         uint64
	client, node   nonce
	clientReceived uint64
	nodeReceived   uint64
	status         byte
}

// fromClient is the client's proof, fromNode that of the node.
func (a *attempt) fromClient(s *secrets) mac {
	return a.mac(s.client, "client", a.clientReceived)
}

func (a *attempt) fromNode(s *secrets) mac {
	return a.mac(s.node, "node", a.clientReceived, a.nodeReceived, uint64(a.status))
}

func (a *attempt) mac(key []byte, label string, numbers ...uint64) (out mac) {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(protocol + " " + label + "\x00"))
	h.Write(a.token[:])
	h.Write(a.client[:])
	h.Write(a.node[:])
	for _, n := range append([]uint64{a.number}, numbers...) {
		h.Write(binary.BigEndian.AppendUint64(nil, n))
	}
	h.Sum(out[:0])
	return out
}

// equal compares in constant time.
func (m mac) equal(o []byte) bool { return hmac.Equal(m[:], o) }

// errGone is the node's answer for a connection that it does not have, or not any more.
var errGone = errors.New("the node does not have the connection any more")

func randomNonce() (n nonce) {
	_, _ = rand.Read(n[:]) // it never fails
	return n
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// decode fills out, which the text has to fit exactly.
func decode(out []byte, text string) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != len(out) {
		return fault.Invalid("expected %d bytes in base64", len(out))
	}
	copy(out, b)
	return nil
}

// line makes one of a verb and its words.
func line(words ...string) []byte {
	return []byte(protocol + " " + strings.Join(words, " ") + "\r\n")
}

// readLine reads a line and returns it without its end.
func readLine(r *bufio.Reader) (string, error) {
	var out []byte
	for len(out) < maxLine {
		b, err := r.ReadByte()
		if err != nil {
			if len(out) > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
		if b == '\n' {
			return string(bytes.TrimSuffix(out, []byte("\r"))), nil
		}
		out = append(out, b)
	}
	return "", fault.Invalid("a line of more than %d bytes before the SSH protocol", maxLine)
}

// split takes a line of this protocol apart. The version is part of the verb's
// meaning: one that is not ours has no verb.
func split(text string) (verb string, words []string) {
	rest, ok := strings.CutPrefix(text, protocol+" ")
	if !ok {
		return "", nil
	}
	all := strings.Split(rest, " ")
	return all[0], all[1:]
}

// parseNew returns the key of a line with the verb new.
func parseNew(words []string) ([]byte, error) {
	key := make([]byte, keySize)
	if len(words) != 1 {
		return nil, fault.Invalid("%s: expected a key", verbNew)
	}
	return key, decode(key, words[0])
}

// parseAgain reads the client's line with the verb again.
func parseAgain(words []string) (a attempt, err error) {
	if len(words) != 3 {
		return a, fault.Invalid("%s: expected a token, a number and a nonce", verbAgain)
	}
	a.number, err = strconv.ParseUint(words[1], 10, 64)
	return a, errors.Join(err, decode(a.token[:], words[0]), decode(a.client[:], words[2]))
}

// An answer is what the node says about an attempt: status, counter, proof.
const (
	proofSize  = 8 + macSize
	answerSize = 1 + 8 + macSize

	statusResumed byte = 0
	statusRefused byte = 1
)
