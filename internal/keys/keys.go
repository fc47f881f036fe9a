// Package keys makes key pairs, reads them from bytes that others sent, and
// writes them down. It is for every certificate and signature of the system, so
// that one allow-list says which keys exist: Ed25519, ECDSA P-256 and P-384, and
// RSA of 2048 to 4096 bits. It neither stores keys (package keystore) nor signs
// certificates (package ca).
package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
)

// Algorithm is a kind of key pair that Generate can make.
type Algorithm int

// Algorithms.
const (
	// Ed25519 is for SSH.
	Ed25519 Algorithm = iota + 1
	// ECDSAP256 is for TLS and JWT.
	ECDSAP256
	// RSA2048 is for authorities whose consumers know nothing newer. Making one
	// takes a few hundred milliseconds of one core.
	RSA2048
)

// String returns the name of the algorithm.
func (a Algorithm) String() string {
	switch a {
	case Ed25519:
		return "ed25519"
	case ECDSAP256:
		return "ecdsa-p256"
	case RSA2048:
		return "rsa-2048"
	}
	return fmt.Sprintf("algorithm(%d)", int(a))
}

// Limits of what the parsers look at, in bytes. The largest allowed public key
// (RSA of 4096 bits) takes 550 bytes, the largest private one about 3300.
const (
	maxPublic  = 1024
	maxPrivate = 16 << 10

	minRSABits = 2048
	maxRSABits = 4096
)

const pemPrivate = "PRIVATE KEY"

// Generate makes a key pair from the system's random source.
func Generate(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate ed25519 key: %w", err)
		}
		return private, nil
	case ECDSAP256:
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate ecdsa key: %w", err)
		}
		return private, nil
	case RSA2048:
		private, err := rsa.GenerateKey(rand.Reader, minRSABits)
		if err != nil {
			return nil, fmt.Errorf("generate rsa key: %w", err)
		}
		return private, nil
	}
	return nil, fault.Unsupported("unknown key algorithm %d", int(alg))
}

// MarshalPrivate returns the private key as PKCS#8 PEM. Only keys that live in
// memory can be written; those of a hardware keystore cannot.
func MarshalPrivate(key crypto.Signer) ([]byte, error) {
	if key == nil {
		return nil, fault.Invalid("no private key to write")
	}
	if err := Check(key.Public()); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fault.Unsupported("cannot write a private key of type %T: %w", key, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemPrivate, Bytes: der}), nil
}

// ParsePrivate reads a private key from one block of PKCS#8 PEM, and nothing
// else. Its errors never quote the input.
func ParsePrivate(data []byte) (crypto.Signer, error) {
	if len(data) > maxPrivate {
		return nil, fault.Invalid("private key is %d bytes long, at most %d are read", len(data), maxPrivate)
	}
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return nil, fault.Invalid("private key is not PEM: expected a block %q", pemPrivate)
	case block.Type != pemPrivate || len(block.Headers) != 0:
		return nil, fault.Invalid("private key is not unencrypted PKCS#8: expected a block %q without headers", pemPrivate)
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, fault.Invalid("private key is followed by other data")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fault.Invalid("private key is damaged: not valid PKCS#8")
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fault.Invalid("private key cannot sign: its type is %T", parsed)
	}
	if err := Check(signer.Public()); err != nil {
		return nil, err
	}
	return signer, nil
}

// PublicDER returns the key as SubjectPublicKeyInfo, DER.
func PublicDER(key crypto.PublicKey) ([]byte, error) {
	if err := Check(key); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fault.Invalid("cannot write the public key: %w", err)
	}
	return der, nil
}

// ParsePublicTLS reads a SubjectPublicKeyInfo. Keys outside the allow-list and
// encodings that are not the canonical one are refused.
func ParsePublicTLS(der []byte) (crypto.PublicKey, error) {
	switch {
	case len(der) == 0:
		return nil, fault.Invalid("TLS public key is missing")
	case len(der) > maxPublic:
		return nil, fault.Invalid("TLS public key is %d bytes long, at most %d are read", len(der), maxPublic)
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fault.Invalid("TLS public key is not a SubjectPublicKeyInfo in DER")
	}
	again, err := PublicDER(key)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, der) {
		return nil, fault.Invalid("TLS public key is not in canonical DER")
	}
	return key, nil
}

// ParsePublicSSH reads a plain public key in SSH wire format. Certificates,
// security keys and keys outside the allow-list are refused before any of their
// fields is looked at.
func ParsePublicSSH(wire []byte) (ssh.PublicKey, error) {
	switch {
	case len(wire) == 0:
		return nil, fault.Invalid("SSH public key is missing")
	case len(wire) > maxPublic:
		return nil, fault.Invalid("SSH public key is %d bytes long, at most %d are read", len(wire), maxPublic)
	case len(wire) < 4 || uint64(binary.BigEndian.Uint32(wire)) > uint64(len(wire)-4):
		return nil, fault.Invalid("SSH public key is not in wire format")
	}
	name := string(wire[4 : 4+binary.BigEndian.Uint32(wire)])
	if !plainSSH(name) {
		return nil, fault.Invalid("SSH public key type %q is not accepted: use ssh-ed25519, ecdsa-sha2-nistp256, ecdsa-sha2-nistp384 or ssh-rsa", name)
	}
	key, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return nil, fault.Invalid("SSH public key of type %q is damaged", name)
	}
	if err := CheckSSH(key); err != nil {
		return nil, err
	}
	if !bytes.Equal(key.Marshal(), wire) {
		return nil, fault.Invalid("SSH public key is not in canonical form")
	}
	return key, nil
}

// CheckSSH refuses an SSH public key that is not plain (a certificate, a security
// key, a type of someone else's making) or not on the allow-list.
func CheckSSH(key ssh.PublicKey) error {
	if key == nil {
		return fault.Invalid("SSH public key is missing")
	}
	// Asking a malformed certificate for its type makes the library panic.
	if _, ok := key.(*ssh.Certificate); ok {
		return fault.Invalid("a certificate stands where an SSH public key is expected: a plain Ed25519, ECDSA or RSA key is needed")
	}
	if !plainSSH(key.Type()) {
		return fault.Invalid("SSH public key type %q is not accepted: a plain Ed25519, ECDSA or RSA key is needed", key.Type())
	}
	inner, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return fault.Invalid("SSH public key type %q is not accepted: not a standard key", key.Type())
	}
	return Check(inner.CryptoPublicKey())
}

// Check refuses a public key that is not on the allow-list: Ed25519, ECDSA P-256
// or P-384, RSA of 2048 to 4096 bits with an exponent from 65537.
func Check(key crypto.PublicKey) error {
	switch k := key.(type) {
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize {
			return nil
		}
		return fault.Invalid("Ed25519 public key is %d bytes long, expected %d", len(k), ed25519.PublicKeySize)
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fault.Invalid("ECDSA curve is not accepted: use P-256 or P-384")
	case *rsa.PublicKey:
		if k.N == nil || k.N.BitLen() < minRSABits || k.N.BitLen() > maxRSABits {
			return fault.Invalid("RSA key size is not accepted: use %d to %d bits", minRSABits, maxRSABits)
		}
		if k.E < 65537 || k.E%2 == 0 {
			return fault.Invalid("RSA exponent is not accepted: use 65537")
		}
		return nil
	case nil:
		return fault.Invalid("public key is missing")
	}
	return fault.Invalid("public key type %T is not accepted: use Ed25519, ECDSA P-256 or P-384, or RSA", key)
}

func plainSSH(name string) bool {
	switch name {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoRSA:
		return true
	}
	return false
}
