package sshauth

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/types"
)

// TestConformance makes each attack on each way in.
func TestConformance(t *testing.T) {
	s := newSite(t)
	ways := s.ways(t)
	for _, w := range ways {
		within(t, 30*time.Second, "the way "+w.name, func() error {
			conn, err := s.tryProxy(t, w.host, w.joins)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
	}
	sid := s.sessionID(t)
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			t.Run("honest", func(t *testing.T) { s.honest(t, w, sid) })
			t.Run("certificate", func(t *testing.T) { s.certificates(t, w) })
			t.Run("packet", func(t *testing.T) { s.packets(t, w) })
			t.Run("key_exchange", func(t *testing.T) { keyExchanges(t, w) })
			t.Run("lock", func(t *testing.T) { s.locks(t, w) })
			t.Run("restriction", func(t *testing.T) { s.restrictions(t, w, sid) })
		})
	}
	t.Run("expiry", func(t *testing.T) {
		for _, w := range s.ways(t) {
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				s.expiry(t, w, sid)
			})
		}
	})
}

// honest makes sure that what is refused below is not refused to everybody: by
// x/crypto, by hand and by OpenSSH.
func (s *site) honest(t *testing.T, w way, sid string) {
	c := w.in(t, s.good(t, "alice", freeRole))
	w.breakIt(t, c)
	if !w.joins {
		if out, err := run(t, c, "echo in"); err != nil || out != "in\n" {
			t.Errorf("echo = %q, %v", out, err)
		}
	} else if err := join(t, c, sid); err != nil {
		t.Errorf("join = %v", err)
	}
	good := s.good(t, "alice", freeRole)
	byHand := w.service(t)
	q := ask(w.login, good)
	if got := byHand.says(t, q.query()); got != msgPublicKeyOK {
		t.Errorf("a good certificate is offered: message %d, want %d", got, msgPublicKeyOK)
	}
	if got := byHand.says(t, q.with(q.sign(t, byHand.session, good.signer(t)))); got != msgSuccess {
		t.Errorf("a good certificate, signed by hand: message %d, want %d", got, msgSuccess)
	}
	if !byHand.opensSession(t) {
		t.Error("no session after a login by hand")
	}
	if out, code := s.stockClient(t, w, good); code != 0 || !w.joins && out != "in\n" {
		t.Errorf("OpenSSH = %q, exit code %d", out, code)
	}
}

func run(t testing.TB, c *ssh.Client, command string) (string, error) {
	t.Helper()
	sess, err := c.NewSession()
	if err != nil {
		return "", err
	}
	defer func() { _ = sess.Close() }()
	out, err := sess.Output(command)
	return string(out), err
}

// join joins a session as an observer and leaves it.
func join(t testing.TB, c *ssh.Client, sid string) error {
	t.Helper()
	var ch ssh.Channel
	var reqs <-chan *ssh.Request
	err := patiently(func() (err error) {
		ch, reqs, err = c.OpenChannel("session", nil)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = ch.Close() }()
	if ok, err := ch.SendRequest("subsystem", true, ssh.Marshal(struct{ Name string }{"join:observer:" + sid})); err != nil || !ok {
		return fmt.Errorf("not joined: %w", err)
	}
	if _, err := ch.Write([]byte{3}); err != nil {
		return err
	}
	for r := range reqs {
		var m struct{ Code uint32 }
		if r.Type == "exit-status" && ssh.Unmarshal(r.Payload, &m) == nil && m.Code == 0 {
			return nil
		}
	}
	return errors.New("refused")
}

// stockClient logs in with OpenSSH and runs echo.
func (s *site) stockClient(t testing.TB, w way, c credential) (string, int) {
	t.Helper()
	name := "id-" + rand.Text()
	s.writeKey(name, c.key)
	s.write(name+"-cert.pub", string(ssh.MarshalAuthorizedKey(c.cert)))
	args := []string{
		"-F", "none", "-i", s.path(name), "-o", "CertificateFile=" + s.path(name) + "-cert.pub", "-p", w.bridge(t), "-l", w.login,
		"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "GlobalKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", "127.0.0.1",
	}
	cmd := exec.Command("ssh", append(args, "echo in")...)
	var out, failure bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failure
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	code := cmd.ProcessState.ExitCode()
	// Who is let in to join and runs something is told so by the server, not by OpenSSH.
	if w.joins && code == 254 && strings.Contains(failure.String(), "access denied") {
		code = 0
	}
	return out.String(), code
}

// forgery is a certificate that must not do.
type forgery struct {
	name string
	make func(t *testing.T) credential
}

func (s *site) forgeries(w way) []forgery {
	users := func(t *testing.T) ssh.Signer { return authority(t, s.cas[ca.TypeUser]) }
	changed := func(name string, change func(*ssh.Certificate)) forgery {
		return forgery{name, func(t *testing.T) credential { return s.forge(t, keys.Ed25519, users(t), change) }}
	}
	by := func(name string, signer func(t *testing.T) ssh.Signer, change func(*ssh.Certificate)) forgery {
		return forgery{name, func(t *testing.T) credential { return s.forge(t, keys.Ed25519, signer(t), change) }}
	}
	critical := func(option, value string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.CriticalOptions[option] = value }
	}
	extension := func(name, value string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.Extensions[name] = value }
	}
	at := func(from, to time.Duration) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) {
			c.ValidAfter, c.ValidBefore = uint64(time.Now().Add(from).Unix()), uint64(time.Now().Add(to).Unix())
		}
	}
	out := []forgery{
		by("other_authority", func(t *testing.T) ssh.Signer {
			other, err := ca.Generate(keystore.Software(), clusterName, ca.TypeUser, time.Now())
			must(t, err)
			return authority(t, other)
		}, nil),
		by("host_authority", func(t *testing.T) ssh.Signer { return authority(t, s.cas[ca.TypeHost]) }, nil),
		by("openssh_authority", func(t *testing.T) ssh.Signer { return authority(t, s.cas[ca.TypeOpenSSH]) }, nil),
		by("own_key_as_authority", func(t *testing.T) ssh.Signer {
			key, err := keys.Generate(keys.Ed25519)
			must(t, err)
			signer, err := ssh.NewSignerFromSigner(key)
			must(t, err)
			return signer
		}, nil),
		{"authority_is_a_certificate", func(t *testing.T) credential {
			// Signed by somebody who shows a certificate of the authority in the place of a key.
			middle, end := s.forge(t, keys.Ed25519, users(t), nil), s.forge(t, keys.Ed25519, users(t), nil)
			end.cert.SignatureKey, end.cert.Signature = middle.cert, nil
			unsigned := end.cert.Marshal()
			sig, err := middle.signer(t).Sign(rand.Reader, unsigned[:len(unsigned)-4]) // which end with the length of the signature
			must(t, err)
			end.cert.Signature = sig
			return end
		}},
		changed("host_certificate", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }),
		changed("unknown_type", func(c *ssh.Certificate) { c.CertType = 3 }),
		changed("expired", at(-time.Hour, -time.Second)),
		changed("not_yet_valid", at(30*time.Minute, time.Hour)),
		changed("without_end", func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }),
		changed("ends_before_it_begins", at(time.Hour, -time.Hour)),
		changed("no_principals", func(c *ssh.Certificate) { c.ValidPrincipals = nil }),
		changed("principal_is_a_pattern", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"*"} }),
		changed("principal_is_empty", func(c *ssh.Certificate) { c.ValidPrincipals = []string{""} }),
		changed("other_cluster", extension("teleport-cluster@teleport", `"elsewhere"`)),
		changed("no_cluster", func(c *ssh.Certificate) { delete(c.Extensions, "teleport-cluster@teleport") }),
		changed("no_user", func(c *ssh.Certificate) { delete(c.Extensions, "teleport-user@teleport") }),
		changed("user_is_not_the_key_id", func(c *ssh.Certificate) { c.KeyId = "bob" }),
		changed("unknown_extension_of_ours", extension("teleport-admin@teleport", `true`)),
		changed("broken_roles", extension("teleport-roles@teleport", `["free"`)),
		changed("source_elsewhere", critical(sourceAddress, "192.0.2.0/24")),
		changed("source_is_empty", critical(sourceAddress, "")),
		changed("source_is_nonsense", critical(sourceAddress, "!127.0.0.1,localhost,*")),
		changed("force_command", critical("force-command", "true")),
		changed("verify_required", critical("verify-required", "")),
		changed("unknown_critical_option", critical("no-such-option@example.com", "")),
		{"changed_after_it_was_signed", func(t *testing.T) credential {
			c := s.forge(t, keys.Ed25519, users(t), nil)
			c.cert.Serial++
			return c
		}},
		{"signature_of_another", func(t *testing.T) credential {
			c, other := s.forge(t, keys.Ed25519, users(t), nil), s.forge(t, keys.Ed25519, users(t), nil)
			c.cert.Signature = other.cert.Signature
			return c
		}},
		{"roles_that_do_not_exist", func(t *testing.T) credential {
			key, err := keys.Generate(keys.Ed25519)
			must(t, err)
			return s.forgeFor(t, key, s.person("bob", "no-such-role"), users(t), nil)
		}},
		{"user_without_roles", func(t *testing.T) credential {
			key, err := keys.Generate(keys.Ed25519)
			must(t, err)
			return s.forgeFor(t, key, s.person("bob"), users(t), nil)
		}},
		{"host_identity", func(t *testing.T) credential {
			key, err := keys.Generate(keys.Ed25519)
			must(t, err)
			id := &identity.Identity{Cluster: clusterName, Host: &identity.Host{ID: stockID, Name: "web", Roles: []types.SystemRole{types.RoleNode}}}
			return s.forgeFor(t, key, id, authority(t, s.cas[ca.TypeHost]), func(c *ssh.Certificate) {
				c.CertType, c.ValidPrincipals = ssh.UserCert, []string{w.login}
			})
		}},
	}
	if !w.joins { // whoever joins asks for no login
		out = append(out, changed("principal_missing", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"daemon"} }),
			changed("principal_in_other_case", func(c *ssh.Certificate) { c.ValidPrincipals = []string{strings.ToUpper(w.login)} }))
	}
	return out
}

// certificates shows what must not do, with a key that fits: by x/crypto, and by
// OpenSSH where it shows such a thing.
func (s *site) certificates(t *testing.T, w way) {
	for _, f := range s.forgeries(w) {
		t.Run(f.name, func(t *testing.T) {
			c := f.make(t)
			if conn, err := w.log(t, w.login, ssh.PublicKeys(c.signer(t))); err == nil {
				_ = conn.Close()
				t.Error("it was let in")
			}
			if f.name == "authority_is_a_certificate" {
				return // OpenSSH does not read it
			}
			if out, code := s.stockClient(t, w, c); code != 255 || out != "" {
				t.Errorf("OpenSSH = %q, exit code %d, want 255", out, code)
			}
		})
	}
	for name, method := range map[string]ssh.AuthMethod{
		"password": ssh.Password("secret"),
		"keyboard_interactive": ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
			return make([]string, len(questions)), nil
		}),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := w.log(t, w.login, method); err == nil {
				t.Error("it was let in")
			}
		})
	}
	t.Run("plain_keys", func(t *testing.T) {
		var signers []ssh.Signer
		for _, alg := range []keys.Algorithm{keys.Ed25519, keys.ECDSAP256, keys.RSA2048} {
			key, err := keys.Generate(alg)
			must(t, err)
			signer, err := ssh.NewSignerFromSigner(key)
			must(t, err)
			signers = append(signers, signer)
		}
		signers = append(signers, authority(t, s.cas[ca.TypeUser])) // a stolen key of the authority is no key of a user
		if _, err := w.log(t, w.login, ssh.PublicKeys(signers...)); err == nil {
			t.Error("it was let in")
		}
	})
}

// locks: somebody is locked out between the offer of a key and the proof, and when they
// are in.
func (s *site) locks(t *testing.T, w way) {
	name := "lock-" + w.name
	person := s.good(t, "bob", freeRole)
	q := ask(w.login, person)
	c := w.service(t)
	if got := c.says(t, q.query()); got != msgPublicKeyOK {
		t.Fatalf("offer = message %d", got)
	}
	in := w.in(t, person)
	ended := make(chan error, 1)
	go func() { ended <- in.Wait() }()
	lock := types.New(types.KindLock, name).(*typesv1.Lock)
	lock.Spec = &typesv1.LockSpec{Target: &typesv1.LockTarget{User: "bob"}, Message: "conformance", Expires: timestamppb.New(time.Now().Add(time.Hour))}
	s.put(lock)
	began := time.Now()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the connection was open 5 s after the lock")
	}
	t.Logf("closed after %s", time.Since(began).Round(time.Millisecond))
	if got := c.says(t, q.with(q.sign(t, c.session, person.signer(t)))); got == msgSuccess && c.opensSession(t) {
		t.Error("let in after the lock")
	}
	if conn, err := w.log(t, w.login, ssh.PublicKeys(person.signer(t))); err == nil {
		_ = conn.Close()
		t.Error("a login after the lock succeeds")
	}
	s.remove(types.KindLock, name)
	within(t, 10*time.Second, "a login after the lock is gone", func() error {
		conn, err := w.log(t, w.login, ssh.PublicKeys(person.signer(t)))
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}
