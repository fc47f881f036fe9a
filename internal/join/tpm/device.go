package tpm

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"teleport/internal/fault"
	"teleport/internal/join/method"
)

// device is an open TPM.
type device struct {
	transport.TPMCloser
	path string
}

// open opens the TPM at a path, "unix:" for a socket, DefaultDevice if empty.
func open(path string) (*device, error) {
	if path == "" {
		path = DefaultDevice
	}
	var t transport.TPMCloser
	var err error
	if socket, ok := strings.CutPrefix(path, "unix:"); ok {
		t, err = linuxudstpm.Open(socket)
	} else {
		t, err = linuxtpm.Open(path)
	}
	// What passes by itself is tried again.
	kind, what := fault.ErrUnreachable, "is it a TPM 2.0, and not in use by another program?"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind, what = fault.ErrNotFound, "this machine has no TPM 2.0, or it is turned off in its firmware, or the setting "+SettingDevice+" is wrong"
	case errors.Is(err, fs.ErrPermission):
		kind, what = fault.ErrDenied, "run as root, or in the group tss"
	}
	if err != nil {
		return nil, fault.New(kind, "the TPM %s cannot be opened (%w): %s", path, err, what).WithCode(method.CodeCredentials)
	}
	return &device{TPMCloser: t, path: path}, nil
}

func (d *device) failed(doing string, err error) error {
	return fault.New(fault.ErrUnreachable, "the TPM %s cannot %s: %w", d.path, doing, err).WithCode(method.CodeCredentials)
}

// endorsement is where the profile of the TCG (EK Credential Profile 2.5, section 2.2)
// has the certificate and the key, and of what template the key is made.
type endorsement struct {
	index      tpm2.TPMHandle
	persistent tpm2.TPMHandle
	template   tpm2.TPMTPublic
}

func endorsements() []endorsement {
	return []endorsement{
		{index: 0x01c00002, persistent: 0x81010001, template: tpm2.RSAEKTemplate},
		{index: 0x01c0000a, persistent: 0x81010002, template: tpm2.ECCEKTemplate},
	}
}

// endorsementKey is the loaded EK of a machine.
type endorsementKey struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	// transient keys are flushed when they are not needed any more.
	transient bool
	public    *publicKey
	area      []byte
	// certificate is DER, empty if the TPM has none.
	certificate []byte
}

// loadEK returns the EK that has a certificate, RSA before ECC, else the RSA one, else
// the ECC one.
func (d *device) loadEK() (*endorsementKey, error) {
	choices := endorsements()
	certificates := make([][]byte, len(choices))
	for i, e := range choices {
		raw, err := d.readNV(e.index)
		if err != nil {
			return nil, d.failed("read the certificate of its endorsement key", err)
		}
		certificates[i] = firstDER(raw)
	}
	for i, e := range choices {
		if len(certificates[i]) > 0 {
			return d.loadKey(e, certificates[i])
		}
	}
	k, err := d.loadKey(choices[0], nil)
	if err != nil {
		k, err = d.loadKey(choices[1], nil)
	}
	return k, err
}

// loadKey finds the key where the profile keeps it, or makes it anew: from the same
// template a TPM makes the same key.
func (d *device) loadKey(e endorsement, certificate []byte) (*endorsementKey, error) {
	k := &endorsementKey{certificate: certificate}
	var area *tpm2.TPMTPublic
	var err error
	if found, rerr := (tpm2.ReadPublic{ObjectHandle: e.persistent}).Execute(d); rerr == nil {
		k.handle, k.name = e.persistent, found.Name
		area, err = found.OutPublic.Contents()
	} else {
		made, cerr := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(e.template),
		}.Execute(d)
		if cerr != nil {
			return nil, d.failed("make its endorsement key (a password on the endorsement hierarchy would do that)", cerr)
		}
		k.handle, k.name, k.transient = made.ObjectHandle, made.Name, true
		area, err = made.OutPublic.Contents()
	}
	if err == nil {
		k.area = tpm2.Marshal(*area)
		k.public, err = parsePublic(k.area)
	}
	if err != nil {
		d.release(k)
		return nil, d.failed("show its endorsement key", err)
	}
	return k, nil
}

func (d *device) release(k *endorsementKey) {
	if k.transient {
		d.flush(k.handle)
	}
}

// flush makes room in the TPM. If it fails the kernel's resource manager does it when
// the device is closed.
func (d *device) flush(handle tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(d)
}

// maxNV is the longest content of an index that is read, nvChunk what every TPM gives
// at a time.
const (
	maxNV   = 8 << 10
	nvChunk = 512
)

// readNV reads an index; one that is not there or was never written is empty.
func (d *device) readNV(index tpm2.TPMHandle) ([]byte, error) {
	info, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	public, err := info.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	if public.DataSize > maxNV {
		return nil, errors.New("it is too long")
	}
	var out []byte
	for len(out) < int(public.DataSize) {
		part, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: info.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: info.NVName},
			Size:       min(nvChunk, public.DataSize-uint16(len(out))),
			Offset:     uint16(len(out)),
		}.Execute(d)
		if errors.Is(err, tpm2.TPMRCNVUninitialized) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if len(part.Data.Buffer) == 0 {
			return nil, errors.New("it ends too early")
		}
		out = append(out, part.Data.Buffer...)
	}
	return out, nil
}

// newAKTemplate returns the template of an attestation key that no other join has: the
// random bytes go into the making of the key.
func newAKTemplate() (tpm2.TPMTPublic, error) {
	unique := make([]byte, 32)
	if _, err := rand.Read(unique); err != nil {
		return tpm2.TPMTPublic{}, err
	}
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}, nil
}

// makeAK makes the attestation key of a template. It is in the hierarchy that has no
// password and whose keys do not outlive a start of the machine.
func (d *device) makeAK(template tpm2.TPMTPublic) (*tpm2.CreatePrimaryResponse, error) {
	ak, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHNull, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(d)
	if err != nil {
		return nil, d.failed("make an attestation key", err)
	}
	return ak, nil
}

// quote has the attestation key sign the data, and nothing else of the machine.
func (d *device) quote(ak *tpm2.CreatePrimaryResponse, data []byte) (quote, signature []byte, err error) {
	q, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: data},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
			{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs()},
		}},
	}.Execute(d)
	if err != nil {
		return nil, nil, d.failed("quote", err)
	}
	return q.Quoted.Bytes(), tpm2.Marshal(q.Signature), nil
}

// activate recovers the secret of a credential for the two keys.
func (d *device) activate(ek *endorsementKey, ak *tpm2.CreatePrimaryResponse, c credential) ([]byte, error) {
	policy := tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(t transport.TPM, handle tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: handle,
			NonceTPM:      nonce,
		}.Execute(t)
		return err
	})
	resp, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: policy},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.IDObject},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.EncSecret},
	}.Execute(d)
	if err != nil {
		return nil, d.failed("activate the credential, which was made for another TPM or another key", err)
	}
	return resp.CertInfo.Buffer, nil
}
