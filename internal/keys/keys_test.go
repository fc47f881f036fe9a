package keys_test

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/keys"
)

func algorithms() []keys.Algorithm {
	return []keys.Algorithm{keys.Ed25519, keys.ECDSAP256, keys.RSA2048}
}

func TestRoundTrip(t *testing.T) {
	for _, alg := range algorithms() {
		t.Run(alg.String(), func(t *testing.T) {
			t.Parallel()
			signer, err := keys.Generate(alg)
			if err != nil {
				t.Fatal(err)
			}
			text, err := keys.MarshalPrivate(signer)
			if err != nil {
				t.Fatal(err)
			}
			again, err := keys.ParsePrivate(text)
			if err != nil {
				t.Fatal(err)
			}
			if !equal(signer.Public(), again.Public()) {
				t.Error("ParsePrivate(MarshalPrivate(key)) is another key")
			}
			der, err := keys.PublicDER(signer.Public())
			if err != nil {
				t.Fatal(err)
			}
			public, err := keys.ParsePublicTLS(der)
			if err != nil {
				t.Fatal(err)
			}
			if !equal(signer.Public(), public) {
				t.Error("ParsePublicTLS(PublicDER(key)) is another key")
			}
			sshKey, err := ssh.NewPublicKey(signer.Public())
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := keys.ParsePublicSSH(sshKey.Marshal())
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Type() != sshKey.Type() {
				t.Errorf("ParsePublicSSH type = %q, want %q", parsed.Type(), sshKey.Type())
			}
		})
	}
}

func TestGenerateUnknown(t *testing.T) {
	if _, err := keys.Generate(keys.Algorithm(0)); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("Generate(0) = %v, want ErrUnsupported", err)
	}
}

func TestCheckRefuses(t *testing.T) {
	p521 := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	x25519 := must(ecdh.X25519().GenerateKey(rand.Reader))
	modulus := new(big.Int).Lsh(big.NewInt(1), 2047)
	for name, key := range map[string]crypto.PublicKey{
		"nil":           nil,
		"p521":          &p521.PublicKey,
		"p224":          &p224.PublicKey,
		"x25519":        x25519.PublicKey(),
		"short_ed25519": ed25519.PublicKey("short"),
		"rsa_1024":      &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537},
		"rsa_8192":      &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8191), E: 65537},
		"rsa_exponent":  &rsa.PublicKey{N: modulus, E: 3},
		"rsa_even":      &rsa.PublicKey{N: modulus, E: 65538},
		"rsa_empty":     &rsa.PublicKey{},
		"a_string":      "ssh-ed25519",
	} {
		t.Run(name, func(t *testing.T) {
			if err := keys.Check(key); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("Check = %v, want ErrInvalid", err)
			}
			if _, err := keys.PublicDER(key); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("PublicDER = %v, want ErrInvalid", err)
			}
		})
	}
}

func TestParsePublicTLSRefuses(t *testing.T) {
	good := must(keys.PublicDER(must(keys.Generate(keys.ECDSAP256)).Public()))
	p521 := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	cert := selfSigned(t)
	for name, der := range map[string][]byte{
		"empty":       nil,
		"garbage":     []byte("garbage"),
		"trailing":    append(append([]byte{}, good...), 0),
		"truncated":   good[:len(good)-1],
		"long":        make([]byte, 5000),
		"p521":        must(x509.MarshalPKIXPublicKey(&p521.PublicKey)),
		"x25519":      must(x509.MarshalPKIXPublicKey(must(ecdh.X25519().GenerateKey(rand.Reader)).PublicKey())),
		"certificate": cert.Raw,
		"pem":         pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: good}),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := keys.ParsePublicTLS(der); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("ParsePublicTLS = %v, want ErrInvalid", err)
			}
		})
	}
}

func TestParsePublicSSHRefuses(t *testing.T) {
	signer := must(ssh.NewSignerFromSigner(must(keys.Generate(keys.Ed25519))))
	plain := signer.PublicKey().Marshal()
	cert := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.HostCert, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	p521 := must(ssh.NewPublicKey(&must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)).PublicKey))
	sk := ssh.Marshal(struct {
		Name string
		Key  []byte
		App  string
	}{ssh.KeyAlgoSKED25519, make([]byte, 32), "ssh:"})
	for name, wire := range map[string][]byte{
		"empty":        nil,
		"garbage":      []byte("garbage"),
		"bad_length":   {0xff, 0xff, 0xff, 0xff, 1},
		"short":        {0, 0, 0},
		"trailing":     append(append([]byte{}, plain...), 0),
		"truncated":    plain[:len(plain)-1],
		"certificate":  cert.Marshal(),
		"security_key": sk,
		"p521":         p521.Marshal(),
		"long":         append(append([]byte{}, plain...), make([]byte, 5000)...),
		"text":         ssh.MarshalAuthorizedKey(signer.PublicKey()),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := keys.ParsePublicSSH(wire); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("ParsePublicSSH = %v, want ErrInvalid", err)
			}
		})
	}
	if err := keys.CheckSSH(cert); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("CheckSSH(certificate) = %v, want ErrInvalid", err)
	}
	if err := keys.CheckSSH(nil); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("CheckSSH(nil) = %v, want ErrInvalid", err)
	}
}

func TestParsePrivateRefuses(t *testing.T) {
	good := must(keys.MarshalPrivate(must(keys.Generate(keys.Ed25519))))
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p521 := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	x := must(ecdh.X25519().GenerateKey(rand.Reader))
	block := func(typ string, der []byte, headers map[string]string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der, Headers: headers})
	}
	for name, text := range map[string][]byte{
		"empty":     nil,
		"no_pem":    []byte("hunter2"),
		"twice":     append(append([]byte{}, good...), good...),
		"sec1":      block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ec)), nil),
		"headers":   block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ec)), map[string]string{"Proc-Type": "4,ENCRYPTED"}),
		"p521":      block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(p521)), nil),
		"x25519":    block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(x)), nil),
		"garbage":   block("PRIVATE KEY", []byte("hunter2"), nil),
		"long":      append(append([]byte{}, good...), make([]byte, 20<<10)...),
		"public":    block("PUBLIC KEY", must(keys.PublicDER(ec.Public())), nil),
		"truncated": good[:len(good)/2],
	} {
		t.Run(name, func(t *testing.T) {
			_, err := keys.ParsePrivate(text)
			if !errors.Is(err, fault.ErrInvalid) {
				t.Fatalf("ParsePrivate = %v, want ErrInvalid", err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error quotes the input: %v", err)
			}
		})
	}
}

func TestMarshalPrivateRefuses(t *testing.T) {
	if _, err := keys.MarshalPrivate(nil); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("MarshalPrivate(nil) = %v, want ErrInvalid", err)
	}
	foreign := struct{ crypto.Signer }{must(keys.Generate(keys.Ed25519))}
	if _, err := keys.MarshalPrivate(foreign); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("MarshalPrivate(hardware key) = %v, want ErrUnsupported", err)
	}
}

func FuzzParsePublicTLS(f *testing.F) {
	f.Add(must(keys.PublicDER(must(keys.Generate(keys.ECDSAP256)).Public())))
	f.Add(must(keys.PublicDER(must(keys.Generate(keys.Ed25519)).Public())))
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := keys.ParsePublicTLS(der)
		if err != nil {
			return
		}
		if again, err := keys.PublicDER(key); err != nil || string(again) != string(der) {
			t.Errorf("accepted key is written as %x (%v), was read from %x", again, err, der)
		}
	})
}

func FuzzParsePublicSSH(f *testing.F) {
	signer := must(ssh.NewSignerFromSigner(must(keys.Generate(keys.Ed25519))))
	f.Add(signer.PublicKey().Marshal())
	cert := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.UserCert}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		f.Fatal(err)
	}
	f.Add(cert.Marshal())
	f.Fuzz(func(t *testing.T, wire []byte) {
		key, err := keys.ParsePublicSSH(wire)
		if err != nil {
			return
		}
		if _, ok := key.(*ssh.Certificate); ok || string(key.Marshal()) != string(wire) {
			t.Errorf("accepted %T from %x", key, wire)
		}
	})
}

func FuzzParsePrivate(f *testing.F) {
	for _, alg := range []keys.Algorithm{keys.Ed25519, keys.ECDSAP256} {
		f.Add(must(keys.MarshalPrivate(must(keys.Generate(alg)))))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := keys.ParsePrivate(text)
		if err != nil {
			return
		}
		sum := sha256.Sum256(text)
		opts, msg := crypto.SignerOpts(crypto.SHA256), sum[:]
		if _, ok := key.(ed25519.PrivateKey); ok {
			opts = crypto.Hash(0)
		}
		if _, err := key.Sign(rand.Reader, msg, opts); err != nil {
			t.Errorf("accepted key cannot sign: %v", err)
		}
	})
}

func selfSigned(t *testing.T) *x509.Certificate {
	t.Helper()
	key := must(keys.Generate(keys.ECDSAP256))
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return must(x509.ParseCertificate(der))
}

func equal(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// must is for what cannot fail in a test.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
