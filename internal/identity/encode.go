package identity

import (
	"bytes"
	"encoding/json"
	"fmt"

	"teleport/internal/fault"
	"teleport/internal/types"
)

// Both certificate formats carry the same JSON. Only the form that marshal makes
// is read back: an unknown field, a repeated one, another order or one space more
// is an error, so two readers cannot disagree on what was signed.

// formatVersion is the version of the encoding.
const formatVersion = 1

type payload struct {
	Version int          `json:"v"`
	Cluster string       `json:"cluster"`
	User    *userPayload `json:"user,omitempty"`
	Host    *hostPayload `json:"host,omitempty"`
}

type userPayload struct {
	Name     string              `json:"name"`
	Roles    []string            `json:"roles,omitempty"`
	Logins   []string            `json:"logins,omitempty"`
	Traits   map[string][]string `json:"traits,omitempty"`
	Device   string              `json:"mfa_device,omitempty"`
	SourceIP string              `json:"source_ip,omitempty"`
	App      *appPayload         `json:"app,omitempty"`
	Database *databasePayload    `json:"database,omitempty"`
}

type appPayload struct {
	Name       string `json:"name"`
	PublicAddr string `json:"public_addr,omitempty"`
	SessionID  string `json:"session_id,omitempty"`
}

type databasePayload struct {
	Service  string   `json:"service"`
	Protocol string   `json:"protocol"`
	User     string   `json:"user,omitempty"`
	Name     string   `json:"name,omitempty"`
	Roles    []string `json:"roles,omitempty"`
}

type hostPayload struct {
	ID         string             `json:"id"`
	Name       string             `json:"name"`
	Roles      []types.SystemRole `json:"roles"`
	Service    types.SystemRole   `json:"service,omitempty"`
	Generation uint64             `json:"generation,omitempty"`
	OpenSSH    bool               `json:"openssh,omitempty"`
	Proxy      string             `json:"proxy,omitempty"`
}

func (id *Identity) payload() payload {
	p := payload{Version: formatVersion, Cluster: id.Cluster}
	if u := id.User; u != nil {
		p.User = &userPayload{
			Name: u.Name, Roles: u.Roles, Logins: u.Logins, Traits: u.Traits, Device: u.MFADevice, SourceIP: u.SourceIP,
			App: (*appPayload)(u.App), Database: (*databasePayload)(u.Database),
		}
	}
	if h := id.Host; h != nil {
		p.Host = &hostPayload{ID: h.ID, Name: h.Name, Roles: h.Roles, Service: h.Service, Generation: h.Generation, OpenSSH: h.OpenSSH, Proxy: h.Proxy}
	}
	return p
}

func (p payload) identity() (*Identity, error) {
	if p.Version != formatVersion {
		return nil, fault.Unsupported("the certificate describes its holder in format %d, this version reads %d: upgrade", p.Version, formatVersion)
	}
	id := &Identity{Cluster: p.Cluster}
	if u := p.User; u != nil {
		id.User = &User{
			Name: u.Name, Roles: u.Roles, Logins: u.Logins, Traits: u.Traits, MFADevice: u.Device, SourceIP: u.SourceIP,
			App: (*AppRoute)(u.App), Database: (*DatabaseRoute)(u.Database),
		}
	}
	if p.Host != nil {
		id.Host = p.Host.host()
	}
	return id, id.Check()
}

func (h *hostPayload) host() *Host {
	return &Host{ID: h.ID, Name: h.Name, Roles: h.Roles, Service: h.Service, Generation: h.Generation, OpenSSH: h.OpenSSH, Proxy: h.Proxy}
}

// marshal returns the one accepted encoding of v.
func marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode identity: %w", err)
	}
	if len(b) > maxEncoded {
		return nil, fault.Limit("roles, logins and traits take %d bytes in a certificate, at most %d fit: give the user fewer", len(b), maxEncoded)
	}
	return b, nil
}

// unmarshal reads into v what marshal made of it, and nothing else.
func unmarshal(data []byte, v any) error {
	if len(data) > maxEncoded {
		return fault.Invalid("identity in the certificate is %d bytes long, at most %d are read", len(data), maxEncoded)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fault.Invalid("identity in the certificate cannot be read: %w", err)
	}
	again, err := marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, data) {
		return fault.Invalid("identity in the certificate is not in canonical form")
	}
	return nil
}
