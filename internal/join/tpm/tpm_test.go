package tpm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/jointest"
	"teleport/internal/join/method"
	"teleport/test/swtpm"
)

// hashOf asks the TPM for its name in rules.
func hashOf(t *testing.T, dev *swtpm.TPM) *Identity {
	t.Helper()
	id, err := Identify(dev.Device)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func specFor(hash string) *typesv1.TokenSpec {
	return &typesv1.TokenSpec{Tpm: &typesv1.TPMJoin{Allow: []*typesv1.TPMRule{{EkPublicHash: hash}}}}
}

func TestSuite(t *testing.T) {
	dev, other := swtpm.Start(t, "--create-ek-cert"), swtpm.Start(t, "--create-ek-cert")
	// This one keeps its key where the profile wants it; the others make it anew.
	persist(t, dev)
	id := hashOf(t, dev)
	chained := func(s *jointest.Setup, rule *typesv1.TPMRule, cas []string) {
		s.Spec.Tpm = &typesv1.TPMJoin{EkcertAllowedCas: cas, Allow: []*typesv1.TPMRule{rule}}
	}
	serial := &typesv1.TPMRule{EkCertificateSerial: id.CertificateSerial}
	jointest.Run(t, jointest.Rig{
		Method: Method(),
		Good: func(*testing.T) *jointest.Setup {
			s := &jointest.Setup{Spec: specFor(id.PublicHash), Machine: method.Machine{Settings: map[string]string{SettingDevice: dev.Device}}}
			chained(s, &typesv1.TPMRule{EkPublicHash: id.PublicHash, EkCertificateSerial: id.CertificateSerial}, dev.Authorities)
			return s
		},
		Claims: map[string]string{"ek_public_hash": id.PublicHash, "ek_certificate_serial": id.CertificateSerial, "ek_certificate_verified": "true"},
		Bad: []jointest.Case{
			{Name: "expired", Code: method.CodeProofExpired, Bend: func(_ *testing.T, s *jointest.Setup) { s.Now = time.Now().AddDate(9000, 0, 0) }},
			{Name: "future", Code: method.CodeProofNotYetValid, Bend: func(_ *testing.T, s *jointest.Setup) { s.Now = time.Now().AddDate(-20, 0, 0) }},
			{Name: "wrong_account", Code: method.CodeRuleMismatch, Bend: func(_ *testing.T, s *jointest.Setup) {
				s.Machine.Settings = map[string]string{SettingDevice: other.Device}
				s.Spec = specFor(id.PublicHash)
			}},
			{Name: "wrong serial", Code: method.CodeRuleMismatch, Bend: func(_ *testing.T, s *jointest.Setup) {
				chained(s, &typesv1.TPMRule{EkCertificateSerial: "7f:7f"}, dev.Authorities)
			}},
			{Name: "cloud_lies", Code: method.CodeProofIssuer, Bend: func(_ *testing.T, s *jointest.Setup) {
				// The serial number is right, and another authority gave it.
				chained(s, serial, other.Authorities)
			}},
			{Name: "certificate of another TPM", Code: method.CodeProofMachine, Bend: func(t *testing.T, s *jointest.Setup) {
				foreign := hashOf(t, other).Certificate
				s.Tamper = changeFirst(t, func(a *attestation) { a.Certificate = foreign })
			}},
			{Name: "no certificate", Code: method.CodeProofIssuer, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = changeFirst(t, func(a *attestation) { a.Certificate = nil })
			}},
			{Name: "certificate that is not one", Code: method.CodeProofMalformed, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = changeFirst(t, func(a *attestation) { a.Certificate = []byte{0x30, 0x82, 0xff, 0xff, 0x02} })
			}},
			{Name: "no TPM", Code: method.CodeCredentials, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Machine.Settings = map[string]string{SettingDevice: t.TempDir() + "/tpm0"}
			}},
			{Name: "wrong secret", Code: method.CodeProofMachine, Bend: func(t *testing.T, s *jointest.Setup) {
				s.Tamper = func(raw []byte) []byte {
					var a activation
					if decode(raw, &a) != nil {
						return raw
					}
					a.Secret[0] ^= 1
					return marshal(t, a)
				}
			}},
		},
		NotApplicable: map[string]string{
			"wrong_audience": "nothing but the transcript says for whom a quote is, and the suite tries another one",
			"cloud_down":     "Auth asks nobody",
		},
	})
}

// persist puts the EK where a maker of machines would.
func persist(t *testing.T, dev *swtpm.TPM) {
	t.Helper()
	d := openTPM(t, dev)
	ek := loadEK(t, d)
	_, err := tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     &tpm2.NamedHandle{Handle: ek.handle, Name: ek.name},
		PersistentHandle: endorsements()[0].persistent,
	}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
}

// changeFirst changes the machine's first answer on its way.
func changeFirst(t *testing.T, change func(*attestation)) func([]byte) []byte {
	return func(raw []byte) []byte {
		var a attestation
		if decode(raw, &a) != nil {
			return raw
		}
		change(&a)
		return marshal(t, a)
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A serial rule admits by the chain alone; one beside a hash needs no chain.
func TestSerial(t *testing.T) {
	dev := swtpm.Start(t, "--create-ek-cert")
	id := hashOf(t, dev)
	for name, spec := range map[string]*typesv1.TPMJoin{
		"chain": {EkcertAllowedCas: dev.Authorities, Allow: []*typesv1.TPMRule{{EkCertificateSerial: id.CertificateSerial}}},
		"hash":  {Allow: []*typesv1.TPMRule{{EkPublicHash: id.PublicHash, EkCertificateSerial: id.CertificateSerial}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &jointest.Setup{Spec: &typesv1.TokenSpec{Tpm: spec}, Machine: method.Machine{Settings: map[string]string{SettingDevice: dev.Device}}}
			claims, err := jointest.Attempt(t.Context(), Method(), s, [32]byte{1})
			if err != nil {
				t.Fatal(err)
			}
			if got := claims.Get("ek_certificate_serial"); got != id.CertificateSerial {
				t.Errorf("proved serial %q, want %q", got, id.CertificateSerial)
			}
			if want := "tpm/" + id.PublicHash; claims.Machine != want {
				t.Errorf("machine %q, want %q", claims.Machine, want)
			}
		})
	}
	// A token that was never checked, with a serial and nobody to vouch for it.
	p := proofOf(t, dev, [32]byte{})
	claims, err := p.claims(method.Attempt{Token: &typesv1.Token{Spec: &typesv1.TokenSpec{Tpm: &typesv1.TPMJoin{Allow: []*typesv1.TPMRule{{EkCertificateSerial: id.CertificateSerial}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if got, there := claims.Attributes["ek_certificate_serial"]; there {
		t.Errorf("serial %q was taken from a certificate that nobody verified", got)
	}
}

// A TPM without a certificate joins by its hash, with either kind of key.
func TestWithoutCertificate(t *testing.T) {
	dev := swtpm.Start(t)
	id := hashOf(t, dev)
	if id.CertificateSerial != "" {
		t.Fatalf("a TPM without a certificate has the serial %q", id.CertificateSerial)
	}
	s := &jointest.Setup{Spec: specFor(id.PublicHash), Machine: method.Machine{Settings: map[string]string{SettingDevice: dev.Device}}}
	claims, err := jointest.Attempt(t.Context(), Method(), s, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	if got := claims.Attributes["ek_certificate_serial"]; got != nil {
		t.Errorf("proved serial %q without a certificate", got)
	}
	t.Run("ecc", func(t *testing.T) {
		d := openTPM(t, dev)
		ek, err := d.loadKey(endorsements()[1], nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.release(ek)
		admit(t, d, ek)
	})
}

// admit runs both halves with a chosen EK.
func admit(t *testing.T, d *device, ek *endorsementKey) {
	t.Helper()
	transcript := [32]byte{7}
	template, ak := newAK(t, d)
	_ = template
	a := honest(t, d, ek, ak, transcript)
	id, err := hash(ek.public.key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run(t, id, transcript, marshal(t, a), func(c credential) []byte {
		secret, err := d.activate(ek, ak, c)
		if err != nil {
			t.Fatal(err)
		}
		return secret
	})
	if err != nil {
		t.Fatal(err)
	}
}

// run is Auth's half against answers that a test makes.
func run(t *testing.T, id string, transcript [32]byte, first []byte, second func(credential) []byte) (method.Claims, error) {
	t.Helper()
	rounds := 0
	return verify(t.Context(), method.Attempt{
		T: transcript, Now: time.Now(), Token: &typesv1.Token{Spec: specFor(id)},
		Allowed: func(method.Claims) error { return nil },
	}, func(_ context.Context, question []byte) ([]byte, error) {
		if rounds++; rounds == 1 {
			return first, nil
		}
		var c credential
		if err := decode(question, &c); err != nil {
			t.Fatal(err)
		}
		return marshal(t, activation{Secret: second(c)}), nil
	})
}

func openTPM(t *testing.T, dev *swtpm.TPM) *device {
	t.Helper()
	d, err := open(dev.Device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func newAK(t *testing.T, d *device) (tpm2.TPMTPublic, *tpm2.CreatePrimaryResponse) {
	t.Helper()
	template, err := newAKTemplate()
	if err != nil {
		t.Fatal(err)
	}
	return template, makeKey(t, d, template)
}

func makeKey(t *testing.T, d *device, template tpm2.TPMTPublic) *tpm2.CreatePrimaryResponse {
	t.Helper()
	ak, err := d.makeAK(template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.flush(ak.ObjectHandle) })
	return ak
}

func areaOf(t *testing.T, ak *tpm2.CreatePrimaryResponse) tpm2.TPMTPublic {
	t.Helper()
	area, err := ak.OutPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	return *area
}

// honest is the first answer of a machine with these keys.
func honest(t *testing.T, d *device, ek *endorsementKey, ak *tpm2.CreatePrimaryResponse, transcript [32]byte) attestation {
	t.Helper()
	a := attestation{EK: ek.area, Certificate: ek.certificate, AK: tpm2.Marshal(areaOf(t, ak))}
	var err error
	if a.Quote, a.Signature, err = d.quote(ak, digest(transcript)); err != nil {
		t.Fatal(err)
	}
	return a
}

func loadEK(t *testing.T, d *device) *endorsementKey {
	t.Helper()
	ek, err := d.loadEK()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.release(ek) })
	return ek
}

// proofOf is what an honest machine says first.
func proofOf(t *testing.T, dev *swtpm.TPM, transcript [32]byte) *proof {
	t.Helper()
	d := openTPM(t, dev)
	ek := loadEK(t, d)
	_, ak := newAK(t, d)
	p, err := parseProof(marshal(t, honest(t, d, ek, ak, transcript)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// guess is the second answer of somebody who cannot read the secret.
func guess(credential) []byte { return make([]byte, secretSize) }

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if got := fault.Code(err); err == nil || got != code {
		t.Fatalf("got code %q (%v), want %q", got, err, code)
	}
}

// softKey is a key in software that claims to be the AK of a TPM.
func softKey(t *testing.T) (*ecdsa.PrivateKey, tpm2.TPMTPublic) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	area, err := newAKTemplate()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: raw[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: raw[33:]},
	})
	return key, area
}

// softSign signs as a TPM would.
func softSign(t *testing.T, key *ecdsa.PrivateKey, data []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(data)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash:       tpm2.TPMAlgSHA256,
		SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
		SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
	})})
}

// An AK in software has everything that can be seen, and not the secret.
func TestSoftwareAK(t *testing.T) {
	dev := swtpm.Start(t, "--create-ek-cert")
	id := hashOf(t, dev).PublicHash
	d := openTPM(t, dev)
	ek := loadEK(t, d)
	_, real := newAK(t, d)
	transcript := [32]byte{1}
	a := honest(t, d, ek, real, transcript)
	key, area := softKey(t)
	a.AK, a.Signature = tpm2.Marshal(area), softSign(t, key, a.Quote)
	_, err := run(t, id, transcript, marshal(t, a), guess)
	wantCode(t, err, method.CodeProofMachine)
	// Nor does the TPM give it away: the secret is for a key that it has not.
	_, err = run(t, id, transcript, marshal(t, a), func(c credential) []byte {
		if _, err := d.activate(ek, real, c); err == nil {
			t.Error("the TPM opened a credential for a key that is not in it")
		}
		return guess(c)
	})
	wantCode(t, err, method.CodeProofMachine)
}

// A key of the TPM that signs anything is refused, also when it lies about that.
func TestUnrestrictedAK(t *testing.T) {
	dev := swtpm.Start(t, "--create-ek-cert")
	id := hashOf(t, dev).PublicHash
	d := openTPM(t, dev)
	ek := loadEK(t, d)
	transcript := [32]byte{1}
	for name, change := range map[string]func(*tpm2.TPMAObject){
		"unrestricted":               func(o *tpm2.TPMAObject) { o.Restricted = false },
		"not fixed to the TPM":       func(o *tpm2.TPMAObject) { o.FixedTPM, o.FixedParent = false, false },
		"not fixed to its parent":    func(o *tpm2.TPMAObject) { o.FixedParent = false },
		"made outside":               func(o *tpm2.TPMAObject) { o.SensitiveDataOrigin = false },
		"duplicated with encryption": func(o *tpm2.TPMAObject) { o.EncryptedDuplication = true },
		"one that decrypts":          func(o *tpm2.TPMAObject) { o.Decrypt = true },
		"one that does not sign":     func(o *tpm2.TPMAObject) { o.SignEncrypt = false },
	} {
		t.Run(name, func(t *testing.T) {
			_, ak := newAK(t, d)
			a := honest(t, d, ek, ak, transcript)
			area := areaOf(t, ak)
			change(&area.ObjectAttributes)
			a.AK = tpm2.Marshal(area)
			_, err := run(t, id, transcript, marshal(t, a), guess)
			wantCode(t, err, method.CodeProofMachine)
		})
	}
	t.Run("liar", func(t *testing.T) {
		template, err := newAKTemplate()
		if err != nil {
			t.Fatal(err)
		}
		template.ObjectAttributes.Restricted = false
		ak := makeKey(t, d, template)
		a := honest(t, d, ek, ak, transcript)
		area := areaOf(t, ak)
		area.ObjectAttributes.Restricted = true
		a.AK = tpm2.Marshal(area)
		_, err = run(t, id, transcript, marshal(t, a), func(c credential) []byte {
			if _, err := d.activate(ek, ak, c); err == nil {
				t.Error("the TPM opened a credential for a key with other attributes")
			}
			return guess(c)
		})
		wantCode(t, err, method.CodeProofMachine)
	})
}

// Somebody with a TPM of his own shows the EK of another machine, and passes the
// credential on to it.
func TestRelay(t *testing.T) {
	attacker, victim := swtpm.Start(t, "--create-ek-cert"), swtpm.Start(t, "--create-ek-cert")
	id := hashOf(t, victim).PublicHash
	da, dv := openTPM(t, attacker), openTPM(t, victim)
	ekv := loadEK(t, dv)
	_, akv := newAK(t, dv)
	_, aka := newAK(t, da)
	transcript := [32]byte{1}
	a := honest(t, da, ekv, aka, transcript)
	_, err := run(t, id, transcript, marshal(t, a), func(c credential) []byte {
		if _, err := dv.activate(ekv, akv, c); err == nil {
			t.Error("the victim's TPM opened a credential for the attacker's key")
		}
		return guess(c)
	})
	wantCode(t, err, method.CodeProofMachine)
	// With the victim's AK the credential opens, but the quote is the victim's too.
	a = honest(t, dv, ekv, akv, [32]byte{2})
	_, err = run(t, id, transcript, marshal(t, a), func(c credential) []byte {
		secret, err := dv.activate(ekv, akv, c)
		if err != nil {
			t.Fatal(err)
		}
		return secret
	})
	wantCode(t, err, method.CodeProofAttempt)
}

// What a TPM signs with its AK, and what only looks like it.
func TestQuote(t *testing.T) {
	dev := swtpm.Start(t, "--create-ek-cert")
	id := hashOf(t, dev).PublicHash
	d := openTPM(t, dev)
	ek := loadEK(t, d)
	_, ak := newAK(t, d)
	transcript := [32]byte{1}
	good := honest(t, d, ek, ak, transcript)
	key, area := softKey(t)
	for name, c := range map[string]struct {
		code string
		bend func(*attestation)
	}{
		"other signature": {method.CodeProofSignature, func(a *attestation) { a.Signature = softSign(t, key, a.Quote) }},
		"changed quote":   {method.CodeProofSignature, func(a *attestation) { a.Quote[len(a.Quote)-1] ^= 1 }},
		"not a TPM's": {method.CodeProofMalformed, func(a *attestation) {
			a.AK = tpm2.Marshal(area)
			a.Quote[0] ^= 1
			a.Signature = softSign(t, key, a.Quote)
		}},
		"not a quote": {method.CodeProofMalformed, func(a *attestation) {
			a.AK = tpm2.Marshal(area)
			a.Quote[5] ^= 1
			a.Signature = softSign(t, key, a.Quote)
		}},
		"cut short": {method.CodeProofMalformed, func(a *attestation) {
			a.AK = tpm2.Marshal(area)
			a.Quote = a.Quote[:7]
			a.Signature = softSign(t, key, a.Quote)
		}},
		"signature too":     {method.CodeProofMalformed, func(a *attestation) { a.Signature = append(a.Signature, 0) }},
		"RSA signature":     {method.CodeProofMalformed, func(a *attestation) { a.Signature[1] = 0x14 }},
		"AK that is no key": {method.CodeProofMalformed, func(a *attestation) { a.AK = a.AK[:20] }},
		"EK that signs": {method.CodeProofMachine, func(a *attestation) {
			p, err := parsePublic(a.EK)
			if err != nil {
				t.Fatal(err)
			}
			p.area.ObjectAttributes.SignEncrypt = true
			a.EK = tpm2.Marshal(p.area)
		}},
		"EK as AK":               {method.CodeProofMachine, func(a *attestation) { a.AK = a.EK }},
		"AK with trailing bytes": {method.CodeProofMalformed, func(a *attestation) { a.AK = append(a.AK, 0) }},
		"off the curve": {method.CodeProofMalformed, func(a *attestation) {
			area := areaOf(t, ak)
			area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: []byte{3}}})
			a.AK = tpm2.Marshal(area)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var a attestation
			if err := decode(marshal(t, good), &a); err != nil {
				t.Fatal(err)
			}
			c.bend(&a)
			_, err := run(t, id, transcript, marshal(t, a), guess)
			wantCode(t, err, c.code)
		})
	}
}
