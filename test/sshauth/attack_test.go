package sshauth

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/keys"
)

// attack is a conversation, after which the server must not serve.
type attack struct {
	name string
	// say returns whether the client was let in.
	say func(t *testing.T, c *wire) bool
}

func (s *site) attacks(t *testing.T, w way) []attack {
	good, thief := s.good(t, "alice", freeRole), s.good(t, "thief", "no-such-role")
	q := ask(w.login, good)
	sign := func(t *testing.T, c *wire, q request, by credential) []byte {
		return q.with(q.sign(t, c.session, by.signer(t)))
	}
	raw := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	single := func(name string, message func(t *testing.T, c *wire) []byte) attack {
		return attack{name, func(t *testing.T, c *wire) bool { return c.says(t, message(t, c)) == msgSuccess || c.opensSession(t) }}
	}
	return []attack{
		{"offer_only", func(t *testing.T, c *wire) bool { return c.says(t, q.query()) == msgSuccess || c.opensSession(t) }},
		{"offer_then_the_key_of_another", func(t *testing.T, c *wire) bool {
			return c.says(t, q.query()) == msgSuccess || c.says(t, sign(t, c, q, thief)) == msgSuccess || c.opensSession(t)
		}},
		{"offer_then_log_in_as_another", func(t *testing.T, c *wire) bool {
			_ = c.says(t, q.query())
			return c.says(t, sign(t, c, ask(w.login, thief), thief)) == msgSuccess || c.opensSession(t)
		}},
		{"own_key_then_offer_of_another", func(t *testing.T, c *wire) bool {
			// What the first stands for must not be what the second proves.
			_ = c.says(t, ask(w.login, thief).query())
			_ = c.says(t, q.query())
			return c.says(t, sign(t, c, ask(w.login, thief), thief)) == msgSuccess || c.opensSession(t)
		}},
		{"offer_for_one_login_signature_for_another", func(t *testing.T, c *wire) bool {
			other := ask("daemon", good)
			_ = c.says(t, q.query())
			return c.says(t, sign(t, c, other, good)) == msgSuccess || c.opensSession(t)
		}},
		{"signature_of_another_login", func(t *testing.T, c *wire) bool {
			sig := ask("daemon", good).sign(t, c.session, good.signer(t))
			return c.says(t, q.with(sig)) == msgSuccess || c.opensSession(t)
		}},
		single("signature_of_another_connection", func(t *testing.T, c *wire) []byte {
			other := w.service(t)
			return q.with(q.sign(t, other.session, good.signer(t)))
		}),
		single("signature_without_the_connection", func(t *testing.T, _ *wire) []byte { return q.with(q.sign(t, nil, good.signer(t))) }),
		single("empty_signature", func(*testing.T, *wire) []byte { return q.with(&ssh.Signature{Format: ssh.KeyAlgoED25519}) }),
		single("no_signature", func(*testing.T, *wire) []byte { return q.signed() }),
		single("signature_with_more_behind", func(t *testing.T, c *wire) []byte { return append(sign(t, c, q, good), 0) }),
		single("other_service", func(t *testing.T, c *wire) []byte {
			o := q
			o.service = "ssh-userauth"
			return sign(t, c, o, good)
		}),
		single("other_method_in_the_signature", func(t *testing.T, c *wire) []byte {
			o := q
			o.method = "hostbased"
			return q.with(o.sign(t, c.session, good.signer(t)))
		}),
		single("plain_algorithm_for_a_certificate", func(t *testing.T, c *wire) []byte {
			o := q
			o.algorithm = ssh.KeyAlgoED25519
			return sign(t, c, o, good)
		}),
		single("certificate_algorithm_for_a_plain_key", func(t *testing.T, c *wire) []byte {
			o := q
			o.key = good.cert.Key.Marshal()
			return sign(t, c, o, good)
		}),
		single("none", func(*testing.T, *wire) []byte {
			return request{user: w.login, service: "ssh-connection", method: "none"}.head()
		}),
		single("empty_password", func(*testing.T, *wire) []byte {
			return raw(request{user: w.login, service: "ssh-connection", method: "password"}.head(), []byte{0}, text(""))
		}),
		single("hostbased", func(t *testing.T, c *wire) []byte {
			h := request{user: w.login, service: "ssh-connection", method: "hostbased"}
			return raw(h.head(), text(good.cert.Type()), text(good.cert.Marshal()), text("localhost"), text("root"), text("x"))
		}),
		single("gssapi", func(*testing.T, *wire) []byte {
			return raw(request{user: w.login, service: "ssh-connection", method: "gssapi-with-mic"}.head(), []byte{0, 0, 0, 0})
		}),
		{"methods_in_turn", func(t *testing.T, c *wire) bool {
			_ = c.says(t, q.query())
			for _, method := range []string{"none", "password", "keyboard-interactive"} {
				message := request{user: w.login, service: "ssh-connection", method: method}.head()
				switch method {
				case "password":
					message = raw(message, []byte{0}, text("secret"))
				case "keyboard-interactive":
					message = raw(message, text(""), text(""))
				}
				if c.says(t, message) == msgSuccess {
					return true
				}
			}
			return c.opensSession(t)
		}},
		// The client says what only the server may (CVE-2018-10933).
		{"success_said_by_the_client", func(t *testing.T, c *wire) bool {
			_ = c.says(t, q.query())
			_ = c.write([]byte{msgSuccess})
			return c.opensSession(t)
		}},
		{"partial_success_said_by_the_client", func(t *testing.T, c *wire) bool {
			_ = c.write(raw([]byte{msgFailure}, text("publickey"), []byte{1}))
			return c.opensSession(t)
		}},
		{"key_accepted_said_by_the_client", func(t *testing.T, c *wire) bool {
			_ = c.write(raw([]byte{msgPublicKeyOK}, text(q.algorithm), text(q.key)))
			return c.opensSession(t)
		}},
		{"session_before_the_login", func(t *testing.T, c *wire) bool { return c.opensSession(t) }},
		{"forward_before_the_login", func(t *testing.T, c *wire) bool {
			got := c.says(t, raw([]byte{msgGlobalRequest}, text("tcpip-forward"), []byte{1}, text("localhost"), []byte{0, 0, 0, 0}))
			return got == 81
		}},
		{"second_service_request", func(t *testing.T, c *wire) bool {
			_ = c.says(t, raw([]byte{msgServiceRequest}, text("ssh-connection")))
			return c.opensSession(t)
		}},
		{"many_keys_and_then_a_good_one", func(t *testing.T, c *wire) bool {
			for range 8 {
				bad := s.forge(t, keys.Ed25519, authority(t, s.cas[ca.TypeHost]), nil)
				if c.says(t, ask(w.login, bad).query()) == 0 {
					return false
				}
			}
			return c.says(t, sign(t, c, q, good)) == msgSuccess
		}},
		{"offers_without_end", func(t *testing.T, c *wire) bool {
			for range 1000 {
				if c.says(t, q.query()) == 0 {
					return false
				}
			}
			return true
		}},
		{"huge_request", func(t *testing.T, c *wire) bool {
			o := q
			o.key = make([]byte, 200<<10)
			return c.says(t, o.query()) != 0 && c.opensSession(t)
		}},
		single("huge_certificate", func(t *testing.T, c *wire) []byte {
			fat := s.forge(t, keys.Ed25519, authority(t, s.cas[ca.TypeUser]), func(c *ssh.Certificate) {
				c.Extensions["teleport-traits@teleport"] = fmt.Sprintf(`{"x":[%q]}`, strings.Repeat("y", 28<<10))
			})
			return sign(t, c, ask(w.login, fat), fat)
		}),
		single("rsa_with_sha1", func(t *testing.T, c *wire) []byte {
			o, sig := s.withSHA1(t, c, w.login, ssh.CertAlgoRSAv01)
			return o.with(sig)
		}),
		single("rsa_with_sha1_under_another_name", func(t *testing.T, c *wire) []byte {
			o, sig := s.withSHA1(t, c, w.login, ssh.CertAlgoRSASHA512v01)
			return o.with(sig)
		}),
		single("rsa_of_1024_bits", func(t *testing.T, c *wire) []byte {
			weak := s.weak(t)
			o := ask(w.login, weak)
			o.algorithm = ssh.CertAlgoRSASHA512v01
			sig, err := weak.signer(t).(shown).Signer.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, append(text(c.session), o.signed()...), ssh.KeyAlgoRSASHA512)
			must(t, err)
			return o.with(sig)
		}),
	}
}

// withSHA1 signs with an RSA key whose certificate is good, and a hash that is not.
func (s *site) withSHA1(t *testing.T, c *wire, login, algorithm string) (request, *ssh.Signature) {
	t.Helper()
	cred := s.forge(t, keys.RSA2048, authority(t, s.cas[ca.TypeUser]), nil)
	o := ask(login, cred)
	o.algorithm = algorithm
	sig, err := cred.signer(t).(shown).Signer.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, append(text(c.session), o.signed()...), ssh.KeyAlgoRSA)
	must(t, err)
	return o, sig
}

// packets says what no client says.
func (s *site) packets(t *testing.T, w way) {
	for _, a := range s.attacks(t, w) {
		t.Run(a.name, func(t *testing.T) {
			if a.say(t, w.service(t)) {
				t.Error("it was let in")
			}
		})
	}
	t.Run("login_after_the_login", func(t *testing.T) {
		// Who has logged in stays who they are.
		good := s.good(t, "alice", freeRole)
		c := w.service(t)
		q := ask(w.login, good)
		if got := c.says(t, q.with(q.sign(t, c.session, good.signer(t)))); got != msgSuccess {
			t.Fatalf("login = message %d", got)
		}
		other := ask("daemon", good)
		_ = c.write(other.with(other.sign(t, c.session, good.signer(t))))
		if p, err := c.read(); err == nil && p[0] == msgSuccess {
			t.Error("a second login was answered")
		}
	})
}

// keyExchanges: what is weak, or not strict, is refused before anybody is asked who
// they are.
func keyExchanges(t *testing.T, w way) {
	strict := ",kex-strict-c-v00@openssh.com"
	for name, change := range map[string]func(*offer){
		"not_strict":             func(o *offer) { o.kex, o.ciphers = "curve25519-sha256", "chacha20-poly1305@openssh.com,aes128-ctr" },
		"message_in_between":     func(o *offer) { o.ignore = true },
		"diffie_hellman_sha1":    func(o *offer) { o.kex = "diffie-hellman-group14-sha1,diffie-hellman-group1-sha1" + strict },
		"diffie_hellman_group14": func(o *offer) { o.kex = "diffie-hellman-group14-sha256" + strict },
		"nist_curves":            func(o *offer) { o.kex = "ecdh-sha2-nistp256" + strict },
		"rsa_sha1_host_key":      func(o *offer) { o.hostKeys = "ssh-rsa,ssh-dss" },
		"no_cipher":              func(o *offer) { o.ciphers = "none" },
		"cbc":                    func(o *offer) { o.ciphers = "aes128-cbc,3des-cbc" },
		"arcfour":                func(o *offer) { o.ciphers = "arcfour256,arcfour" },
		"mac_before_encryption":  func(o *offer) { o.ciphers, o.macs = "aes128-ctr", "hmac-sha2-256,hmac-sha1,hmac-md5" },
	} {
		t.Run(name, func(t *testing.T) {
			o := fairOffer()
			change(&o)
			c, err := greetWire(t, w, o)
			if err == nil {
				err = c.write(append([]byte{msgServiceRequest}, text("ssh-userauth")...))
			}
			if err == nil && c.answer(t) == msgServiceAccept {
				t.Error("the key exchange was accepted")
			}
		})
	}
}
