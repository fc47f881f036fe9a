// Package state keeps what a process must not lose: its identity, in one small
// checksummed file and its predecessor under an exclusive lock (Dir), and in
// memory for everything that uses it while it changes (Holder). It is not a
// database, and it neither joins nor renews.
//
//	<data_dir>/lock        flock; pid and start time of the holder
//	<data_dir>/state       what was saved last
//	<data_dir>/state.prev  what was saved before that
//	<data_dir>/state.new   a save that did not finish; never read
package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/types"
)

// State is the identity of a process, with its private keys.
type State struct {
	// Cluster is the name of the cluster that was joined.
	Cluster string
	// HostID is the id that the Auth Service assigned.
	HostID   string
	Hostname string
	// Roles are the system roles that the certificates are for.
	Roles []types.SystemRole
	// Generation counts renewals.
	Generation uint64
	// Pins are the pins of the host authority that the join was made with.
	Pins []string
	// TLSKey and SSHKey are the private keys, PKCS#8 PEM.
	TLSKey []byte
	SSHKey []byte
	// Grant is a serialised joinv1.Grant: certificates and authorities.
	Grant []byte
	// JoinedWith is the id of the token.
	JoinedWith string
}

// String names the host and hides the keys.
func (s State) String() string {
	return fmt.Sprintf("host %s of %s, generation %d", s.HostID, s.Cluster, s.Generation)
}

// GoString is String: %#v would show the keys.
func (s State) GoString() string { return s.String() }

// LogValue names the host and hides the keys.
func (s State) LogValue() slog.Value { return slog.StringValue(s.String()) }

// clone returns a copy that shares nothing with s.
func (s *State) clone() *State {
	c := *s
	c.Roles, c.Pins = slices.Clone(s.Roles), slices.Clone(s.Pins)
	c.TLSKey, c.SSHKey, c.Grant = bytes.Clone(s.TLSKey), bytes.Clone(s.SSHKey), bytes.Clone(s.Grant)
	return &c
}

const (
	magic         = "teleport-state"
	formatVersion = 1
	maxFile       = 4 << 20
	maxHeader     = 128
)

// encode returns the content of the state file: a line of magic, format version,
// length and SHA-256 of the rest, and the rest.
func encode(s *State) ([]byte, error) {
	if s == nil {
		return nil, fault.Invalid("no state to save")
	}
	if err := identity.CheckHostname(s.Cluster); err != nil {
		return nil, fmt.Errorf("state: cluster name: %w", err)
	}
	if err := identity.CheckHostID(s.HostID); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	body, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	if len(body) > maxFile-maxHeader {
		return nil, fault.Limit("state is %d bytes long, at most %d are kept", len(body), maxFile-maxHeader)
	}
	sum := sha256.Sum256(body)
	head := fmt.Sprintf("%s %d %d %s\n", magic, formatVersion, len(body), hex.EncodeToString(sum[:]))
	return append([]byte(head), body...), nil
}

// decode reads the content of a state file. A file that a newer version wrote is
// fault.ErrUnsupported, anything else that encode would not have written is
// fault.ErrInvalid.
func decode(data []byte) (*State, error) {
	line, body, ok := bytes.Cut(data, []byte("\n"))
	fields := strings.Split(string(line[:min(len(line), maxHeader)]), " ")
	if !ok || len(fields) != 4 || fields[0] != magic {
		return nil, fault.Invalid("it does not begin like a state file")
	}
	version, err := strconv.ParseUint(fields[1], 10, 16)
	if err != nil {
		return nil, fault.Invalid("it does not begin like a state file")
	}
	if version != formatVersion {
		return nil, fault.Unsupported("it is written in format %d, this version reads %d: run the version that wrote it, or a newer one", version, formatVersion)
	}
	if size, err := strconv.ParseUint(fields[2], 10, 32); err != nil || size != uint64(len(body)) {
		return nil, fault.Invalid("it is %d bytes long, expected %q", len(body), fields[2])
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != fields[3] {
		return nil, fault.Invalid("its checksum is wrong")
	}
	var s State
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, fault.Invalid("its content cannot be read")
	}
	if s.Cluster == "" || s.HostID == "" {
		return nil, fault.Invalid("it names no cluster or no host")
	}
	return &s, nil
}
