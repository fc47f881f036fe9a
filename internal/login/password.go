package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"teleport/internal/fault"
)

// Limits of passwords.
const (
	minPassword = 12
	maxPassword = 512
)

const (
	saltSize = 16
	keySize  = 32
	// hashTimeout is how long an attempt waits for its turn to hash.
	hashTimeout = 10 * time.Second
	// queueFactor is how many attempts may wait for each one that is hashing.
	queueFactor = 64
)

// cost is what one argon2id hash takes.
type cost struct {
	// memory is in KiB.
	memory  uint32
	time    uint32
	threads uint8
}

// defaultCost takes 19 MiB and two passes.
var defaultCost = cost{memory: 19456, time: 2, threads: 1}

// checkPassword refuses a new password that is too short or too long.
func checkPassword(password string) error {
	switch {
	case len(password) > maxPassword:
		return fault.Invalid("the password has %d bytes: use at most %d", len(password), maxPassword)
	case !utf8.ValidString(password):
		return fault.Invalid("the password is not UTF-8 text")
	case utf8.RuneCountInString(password) < minPassword:
		return fault.Invalid("the password is too short: use at least %d characters", minPassword)
	}
	return nil
}

// hasher hashes passwords, a few at a time: hashing is made to need much memory,
// so the number of hashes under way bounds what strangers can make us spend.
type hasher struct {
	cost cost
	// slots holds a token for each hash under way, queue one for each attempt that
	// hashes or waits.
	slots, queue chan struct{}
	// dummy is the hash of a password that nobody knows.
	dummy string
}

func newHasher(c cost, slots int) (*hasher, error) {
	h := &hasher{cost: c, slots: make(chan struct{}, slots), queue: make(chan struct{}, slots*(1+queueFactor))}
	random := make([]byte, saltSize+keySize)
	if _, err := rand.Read(random); err != nil {
		return nil, fmt.Errorf("make dummy hash: %w", err)
	}
	h.dummy = phc{cost: c, salt: random[:saltSize], key: random[saltSize:]}.String()
	return h, nil
}

// enter waits for a turn to hash; the caller calls the returned function after.
func (h *hasher) enter(ctx context.Context) (func(), error) {
	select {
	case h.queue <- struct{}{}:
	default:
		return nil, errBusy()
	}
	timer := time.NewTimer(hashTimeout)
	defer timer.Stop()
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots; <-h.queue }, nil
	case <-timer.C:
		<-h.queue
		return nil, errBusy()
	case <-ctx.Done():
		<-h.queue
		return nil, context.Cause(ctx)
	}
}

func errBusy() error {
	return fault.New(fault.ErrLimit, "too many logins at this moment: try again in some seconds").WithCode("busy")
}

// hash returns the PHC string of a password.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("make salt: %w", err)
	}
	leave, err := h.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	return phc{cost: h.cost, salt: salt, key: h.cost.derive(password, salt, keySize)}.String(), nil
}

// verify reports whether the password is that of the hash. Without a hash, or
// with one that cannot be read, it does the same work and reports false.
func (h *hasher) verify(ctx context.Context, encoded, password string) (bool, error) {
	p, err := parsePHC(encoded)
	known := err == nil
	if !known {
		if p, err = parsePHC(h.dummy); err != nil {
			return false, err
		}
	}
	leave, err := h.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	key := p.cost.derive(password, p.salt, len(p.key))
	return subtle.ConstantTimeCompare(key, p.key) == 1 && known, nil
}

func (c cost) derive(password string, salt []byte, size int) []byte {
	return argon2.IDKey([]byte(password), salt, c.time, c.memory, c.threads, uint32(size))
}

// phc is a password hash in the PHC string format:
//
//	$argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>
type phc struct {
	cost cost
	salt []byte
	key  []byte
}

// String returns the format above.
func (p phc) String() string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version,
		p.cost.memory, p.cost.time, p.cost.threads, b64.EncodeToString(p.salt), b64.EncodeToString(p.key))
}

// parsePHC reads the format strictly: only what String writes, within bounds that
// keep a damaged or foreign hash from exhausting memory or time.
func parsePHC(s string) (phc, error) {
	bad := fault.Invalid("password hash is not in the argon2id PHC format")
	if len(s) > 512 {
		return phc{}, bad
	}
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return phc{}, bad
	}
	params := strings.Split(parts[3], ",")
	if len(params) != 3 {
		return phc{}, bad
	}
	var numbers [3]uint32
	for i, row := range []struct {
		name string
		high uint64
	}{{"m=", 1 << 18}, {"t=", 16}, {"p=", 16}} {
		digits, ok := strings.CutPrefix(params[i], row.name)
		n, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil || n < 1 || n > row.high {
			return phc{}, bad
		}
		numbers[i] = uint32(n)
	}
	b64 := base64.RawStdEncoding.Strict()
	salt, err := b64.DecodeString(parts[4])
	if err != nil || len(salt) < 8 || len(salt) > 64 {
		return phc{}, bad
	}
	key, err := b64.DecodeString(parts[5])
	if err != nil || len(key) < 16 || len(key) > 64 {
		return phc{}, bad
	}
	p := phc{cost: cost{memory: numbers[0], time: numbers[1], threads: uint8(numbers[2])}, salt: salt, key: key}
	if p.String() != s {
		return phc{}, bad
	}
	return p, nil
}
