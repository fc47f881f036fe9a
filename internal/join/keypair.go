package join

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	joinv1 "teleport/api/join/v1"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/state"
	"teleport/internal/types"
)

// KeyPair is the two keys of a process, made on the machine that uses them.
type KeyPair struct {
	TLS, SSH crypto.Signer
	// TLSPublic is SubjectPublicKeyInfo DER; SSHPublic is the SSH wire format.
	TLSPublic, SSHPublic []byte
}

// NewKeyPair makes the keys of a process.
func NewKeyPair() (KeyPair, error) {
	var k KeyPair
	var err error
	if k.TLS, err = keys.Generate(keys.ECDSAP256); err != nil {
		return k, err
	}
	if k.SSH, err = keys.Generate(keys.Ed25519); err != nil {
		return k, err
	}
	if k.TLSPublic, err = keys.PublicDER(k.TLS.Public()); err != nil {
		return k, err
	}
	sshPublic, err := ssh.NewPublicKey(k.SSH.Public())
	if err != nil {
		return k, err
	}
	k.SSHPublic = sshPublic.Marshal()
	return k, nil
}

// NewState returns the state of a process for a grant over the key pair, after
// checking that the certificates are for it. Pins and token say how it joined.
func NewState(grant *joinv1.Grant, pair KeyPair, hostname string, pins []string, token string) (*state.State, error) {
	raw, err := proto.Marshal(grant)
	if err != nil {
		return nil, err
	}
	st := &state.State{
		Cluster:    grant.GetClusterName(),
		HostID:     grant.GetHostId(),
		Hostname:   hostname,
		Generation: grant.GetGeneration(),
		Pins:       pins,
		Grant:      raw,
		JoinedWith: token,
	}
	for _, name := range grant.GetRoles() {
		role, err := types.ParseSystemRole(name)
		if err != nil {
			return nil, err
		}
		st.Roles = append(st.Roles, role)
	}
	if st.TLSKey, err = keys.MarshalPrivate(pair.TLS); err != nil {
		return nil, err
	}
	if st.SSHKey, err = keys.MarshalPrivate(pair.SSH); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(grant.GetCertificates().GetTls())
	if err != nil {
		return nil, fmt.Errorf("issued certificate: %w", err)
	}
	if key, ok := pair.TLS.Public().(*ecdsa.PublicKey); !ok || !key.Equal(cert.PublicKey) {
		return nil, fault.Invalid("the issued certificate is for another key than ours")
	}
	// A state that cannot be used is found here, not after it was saved.
	if _, err := state.NewHolder(st); err != nil {
		return nil, fmt.Errorf("issued identity: %w", err)
	}
	return st, nil
}

// Renew asks for new certificates over new keys; roles, if any, are those to keep.
func Renew(ctx context.Context, client joinv1.JoinServiceClient, current *state.State, roles []types.SystemRole) (*state.State, error) {
	pair, err := NewKeyPair()
	if err != nil {
		return nil, err
	}
	resp, err := client.Renew(ctx, &joinv1.RenewRequest{TlsPublicKey: pair.TLSPublic, SshPublicKey: pair.SSHPublic, Roles: roleNames(roles)})
	if err != nil {
		return nil, err
	}
	return NewState(resp.GetGrant(), pair, current.Hostname, current.Pins, current.JoinedWith)
}
