package mongodb

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"teleport/internal/fault"
)

const (
	mechanismScram = "SCRAM-SHA-256"
	mechanismPlain = "PLAIN"
	mechanismX509  = "MONGODB-X509"
	// scramPassword is what a client that insists on a password gives. It keeps nobody
	// out: who the client is has been proven before the protocol began.
	scramPassword = "teleport"
	// scramRounds is the least that clients take.
	scramRounds = 4096
	maxPayload  = 4 << 10
	external    = "$external"
)

// named returns who a greeting says that it will log in as, or "".
func named(body []byte) (user string) {
	_ = elements(body, func(e element) bool {
		switch {
		case e.key == "saslSupportedMechs":
			_, name, _ := strings.Cut(e.str(), ".")
			user = commonName(name)
		case e.key == "speculativeAuthenticate" && e.kind == typeDocument && user == "":
			user = speculated(e.value)
		}
		return true
	})
	return user
}

// speculated is who the beginning of a login is about.
func speculated(body []byte) string {
	f := fieldsOf(body)
	switch f.mechanism {
	case mechanismX509:
		return commonName(f.user)
	case mechanismScram:
		user, _, _, _ := clientFirst(string(f.payload))
		return user
	case mechanismPlain:
		user, _ := plainUser(f.payload)
		return user
	}
	return ""
}

// loginFields are those of the commands that log in.
type loginFields struct {
	mechanism, user string
	payload         []byte
	skipEmpty       bool
}

func fieldsOf(body []byte) (f loginFields) {
	_ = elements(body, func(e element) bool {
		switch e.key {
		case "mechanism":
			f.mechanism = e.str()
		case "user":
			f.user = e.str()
		case "payload":
			if b := e.bin(); len(b) <= maxPayload {
				f.payload = b
			}
			if s := e.str(); f.payload == nil && len(s) <= maxPayload {
				f.payload, _ = base64.StdEncoding.DecodeString(s)
			}
		case "options":
			if e.kind == typeDocument {
				_ = elements(e.value, func(o element) bool {
					f.skipEmpty = f.skipEmpty || o.key == "skipEmptyExchange" && o.number() != 0
					return true
				})
			}
		}
		return true
	})
	return f
}

// commonName is the database user of a subject as X.509 has it, such as CN=alice.
func commonName(subject string) string {
	for part := range strings.SplitSeq(subject, ",") {
		if name, ok := strings.CutPrefix(strings.TrimSpace(part), "CN="); ok {
			return name
		}
	}
	return subject
}

// plainUser is who logs in by PLAIN: authzid NUL user NUL password.
func plainUser(payload []byte) (string, error) {
	parts := bytes.Split(payload, []byte{0})
	if len(parts) != 3 || len(parts[1]) == 0 {
		return "", fault.Invalid("a login by %s that cannot be read", mechanismPlain)
	}
	return string(parts[1]), nil
}

// clientFirst reads the first message of SCRAM (RFC 5802): a header, n=user,r=nonce.
func clientFirst(text string) (user, nonce, bare string, err error) {
	bad := fault.Invalid("a login by %s that cannot be read", mechanismScram)
	parts := strings.SplitN(text, ",", 3)
	if len(parts) != 3 || parts[0] != "n" && parts[0] != "y" {
		return "", "", "", bad
	}
	bare = parts[2]
	for attr := range strings.SplitSeq(bare, ",") {
		switch name, value, _ := strings.Cut(attr, "="); name {
		case "n":
			user = strings.NewReplacer("=2C", ",", "=3D", "=").Replace(value)
		case "r":
			nonce = value
		}
	}
	if user == "" || nonce == "" {
		return "", "", "", bad
	}
	return user, nonce, bare, nil
}

// scram is a login that has begun.
type scram struct {
	user        string
	header      string
	first       string
	serverFirst string
	nonce       string
	salted      []byte
	skipEmpty   bool
	// proven says that the client knew the password; only an empty exchange is left.
	proven bool
}

func newScram(payload []byte, skipEmpty bool) (*scram, []byte, error) {
	user, nonce, bare, err := clientFirst(string(payload))
	if err != nil {
		return nil, nil, err
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	s := &scram{user: user, first: bare, nonce: nonce + rand.Text(), skipEmpty: skipEmpty}
	s.header = strings.TrimSuffix(string(payload), bare)
	if s.salted, err = pbkdf2.Key(sha256.New, scramPassword, salt, scramRounds, sha256.Size); err != nil {
		return nil, nil, err
	}
	s.serverFirst = fmt.Sprintf("r=%s,s=%s,i=%d", s.nonce, base64.StdEncoding.EncodeToString(salt), scramRounds)
	return s, []byte(s.serverFirst), nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(text))
	return h.Sum(nil)
}

// final takes the client's proof, and returns the server's.
func (s *scram) final(payload []byte) ([]byte, error) {
	text := string(payload)
	without, proof64, ok := strings.Cut(text, ",p=")
	proof, err := base64.StdEncoding.DecodeString(proof64)
	want := "c=" + base64.StdEncoding.EncodeToString([]byte(s.header)) + ",r=" + s.nonce
	if !ok || err != nil || without != want || len(proof) != sha256.Size {
		return nil, fault.Invalid("a login by %s that cannot be read", mechanismScram)
	}
	all := s.first + "," + s.serverFirst + "," + without
	clientKey := mac(s.salted, "Client Key")
	stored := sha256.Sum256(clientKey)
	key := make([]byte, sha256.Size)
	subtle.XORBytes(key, proof, mac(stored[:], all))
	if sum := sha256.Sum256(key); !hmac.Equal(sum[:], stored[:]) {
		return nil, fault.Unauthenticated("no password is needed here: leave it out, or give %q to a client that wants one", scramPassword)
	}
	s.proven = true
	return []byte("v=" + base64.StdEncoding.EncodeToString(mac(mac(s.salted, "Server Key"), all))), nil
}

// login answers a command that is about who the client is.
func (c *session) login(ctx context.Context, cmd *command) ([]byte, error) {
	f := fieldsOf(cmd.body)
	switch {
	case cmd.name == "logout":
		return new(builder).double("ok", 1).doc(), nil
	case cmd.name == "authenticate" && f.mechanism == mechanismX509:
		user := commonName(f.user)
		if user == "" {
			user = c.tied()
		}
		if err := c.become(ctx, user); err != nil {
			return nil, err
		}
		return new(builder).str("dbname", external).str("user", "CN="+c.user).double("ok", 1).doc(), nil
	case cmd.name == "saslStart" && f.mechanism == mechanismPlain:
		user, err := plainUser(f.payload)
		if err == nil {
			err = c.become(ctx, user)
		}
		if err != nil {
			return nil, err
		}
		return saslAnswer(true, nil), nil
	case cmd.name == "saslStart" && f.mechanism == mechanismScram:
		s, answer, err := newScram(f.payload, f.skipEmpty)
		if err == nil {
			err = c.become(ctx, s.user)
		}
		if err != nil {
			return nil, err
		}
		c.scram = s
		return saslAnswer(false, answer), nil
	case cmd.name == "saslContinue" && c.scram != nil && c.scram.proven:
		c.scram = nil
		return saslAnswer(true, nil), nil
	case cmd.name == "saslContinue" && c.scram != nil:
		answer, err := c.scram.final(f.payload)
		if err != nil {
			return nil, err
		}
		return saslAnswer(c.scram.skipEmpty, answer), nil
	}
	return nil, fault.Unsupported("there is nobody to log in by %s %s: connect without a user, or with %s, %s or %s", cmd.name, f.mechanism, mechanismScram, mechanismPlain, mechanismX509)
}

func saslAnswer(done bool, payload []byte) []byte {
	return new(builder).int("conversationId", 1).bool("done", done).bin("payload", payload).double("ok", 1).doc()
}
