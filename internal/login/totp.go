package login

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 6238: what every authenticator app computes; HMAC does not need collision resistance
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Parameters of the time-based one-time passwords (RFC 6238), those that every
// authenticator app understands.
const (
	totpPeriod = 30 * time.Second
	totpDigits = 6
	// totpSkew is how many steps the clocks may be apart.
	totpSkew       = 1
	totpSecretSize = 20
)

var totpEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// newTOTPSecret returns a random secret in base32.
func newTOTPSecret() (string, error) {
	b := make([]byte, totpSecretSize)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("make TOTP secret: %w", err)
	}
	return totpEncoding.EncodeToString(b), nil
}

// totpCode returns the code of a time step (RFC 4226 section 5.3).
func totpCode(secret []byte, step int64) string {
	mac := hmac.New(sha1.New, secret)
	var counter [8]byte
	binary.BigEndian.PutUint64(counter[:], uint64(step))
	mac.Write(counter[:])
	sum := mac.Sum(nil)
	offset := sum[len(sum)-1] & 0xf
	n := binary.BigEndian.Uint32(sum[offset:]) & 0x7fffffff
	return fmt.Sprintf("%0*d", totpDigits, n%1_000_000)
}

// totpStep finds the time step whose code this is, later than the last accepted
// one: a code works once.
func totpStep(secret, code string, last int64, now time.Time) (int64, bool) {
	key, err := totpEncoding.DecodeString(secret)
	if err != nil || len(key) < 10 {
		return 0, false
	}
	current := now.Unix() / int64(totpPeriod/time.Second)
	found, ok := int64(0), false
	for step := current - totpSkew; step <= current+totpSkew; step++ {
		if subtle.ConstantTimeCompare([]byte(totpCode(key, step)), []byte(code)) == 1 && step > last {
			found, ok = step, true
		}
	}
	return found, ok
}

// validCode reports whether s has the form of a code.
func validCode(s string) bool {
	return len(s) == totpDigits && strings.Trim(s, "0123456789") == ""
}

// totpURL returns the otpauth URL that authenticator apps read from a QR code.
func totpURL(cluster, user, secret string) string {
	query := url.Values{
		"secret": {secret}, "issuer": {cluster}, "algorithm": {"SHA1"},
		"digits": {fmt.Sprint(totpDigits)}, "period": {fmt.Sprint(int(totpPeriod / time.Second))},
	}
	// Apps read a plus sign as itself.
	return "otpauth://totp/" + url.PathEscape(cluster+":"+user) + "?" + strings.ReplaceAll(query.Encode(), "+", "%20")
}
