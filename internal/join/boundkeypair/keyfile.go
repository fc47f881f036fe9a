package boundkeypair

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/join/method"
	"teleport/internal/keys"
)

// Files in the data directory, all with mode 0600.
const (
	// KeyFile has the private key.
	KeyFile = "bound_keypair.key"
	// StateFile has the join state.
	StateFile = "bound_keypair.state"
	// nextSuffix: a key that a rotation made and that Auth may have bound.
	nextSuffix = ".next"
)

const maxFile = 16 << 10

// CreateKey makes a key at path ahead of the first join, and returns the public key as
// an authorized_keys line for spec.bound_keypair.onboarding.initial_public_key. A key
// that is there already is kept: created is false.
func CreateKey(path string) (authorizedKey string, created bool, err error) {
	private, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		private, err = makeKey(path)
		created = err == nil
	}
	if err != nil {
		return "", false, err
	}
	text, _, err := line(public(private))
	return text, created, err
}

// keyPair is the keys of a machine on disk.
type keyPair struct {
	path string
	// unsaved keys are for a rehearsal.
	unsaved bool
	// current is nil before the first join, next outside a rotation.
	current, next ed25519.PrivateKey
}

func keyPath(m method.Machine) string {
	if p := m.Settings[SettingKeyPath]; p != "" {
		return p
	}
	return filepath.Join(m.Dir, KeyFile)
}

// loadKeys reads what keys there are.
func loadKeys(ctx context.Context, m method.Machine) (keyPair, error) {
	k := keyPair{path: keyPath(m), unsaved: m.Rehearsal}
	var err error
	if k.current, err = readKey(k.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k.next, err = readKey(k.path + nextSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k.current != nil {
		warnOpen(ctx, m.Log, k.path)
	}
	return k, nil
}

// warnOpen says so if others than the owner may read a secret.
func warnOpen(ctx context.Context, log *slog.Logger, path string) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		log.WarnContext(ctx, "others than its owner can read this file: set its mode to 0600", "path", path, "mode", info.Mode().Perm().String())
	}
}

// promote puts the next key in the place of the current one.
func (k *keyPair) promote() error {
	if k.unsaved {
		k.current, k.next = k.next, nil
		return nil
	}
	if err := os.Rename(k.path+nextSuffix, k.path); err != nil {
		return fmt.Errorf("replace key: %w", err)
	}
	k.current, k.next = k.next, nil
	return syncDir(filepath.Dir(k.path))
}

func public(private ed25519.PrivateKey) ed25519.PublicKey {
	return ed25519.PublicKey(private[ed25519.SeedSize:])
}

// make makes a key, in the key file with the suffix.
func (k *keyPair) make(suffix string) (ed25519.PrivateKey, error) {
	if k.unsaved {
		return generate()
	}
	return makeKey(k.path + suffix)
}

func generate() (ed25519.PrivateKey, error) {
	signer, err := keys.Generate(keys.Ed25519)
	if err != nil {
		return nil, err
	}
	private, ok := signer.(ed25519.PrivateKey)
	if !ok {
		return nil, fault.Invalid("an Ed25519 key of type %T", signer)
	}
	return private, nil
}

// makeKey makes a key and writes it to path.
func makeKey(path string) (ed25519.PrivateKey, error) {
	private, err := generate()
	if err != nil {
		return nil, err
	}
	data, err := keys.MarshalPrivate(private)
	if err != nil {
		return nil, err
	}
	return private, writeFile(path, data)
}

func readKey(path string) (ed25519.PrivateKey, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	signer, err := keys.ParsePrivate(data)
	if err != nil {
		return nil, fault.Invalid("key file %s: %w", path, err)
	}
	private, ok := signer.(ed25519.PrivateKey)
	if !ok {
		return nil, fault.Invalid("key file %s holds a key of type %T: expected Ed25519, as `teleport keypair create` makes it", path, signer)
	}
	return private, nil
}

// savedState is the state file: the state belongs to one token of one cluster.
type savedState struct {
	Cluster string `json:"cluster"`
	Token   string `json:"token"`
	State   []byte `json:"state"`
}

// loadState returns the state that the token's last admission handed out, or nil.
func loadState(m method.Machine) ([]byte, error) {
	path := filepath.Join(m.Dir, StateFile)
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s savedState
	if err := decode(data, &s); err != nil {
		return nil, fault.Invalid("state file %s is damaged: restore it from this machine's own backup, or remove it and let `tctl` make a new token", path)
	}
	if s.Cluster != m.Cluster || s.Token != m.Token {
		return nil, nil
	}
	return s.State, nil
}

func saveState(m method.Machine, state []byte) error {
	data, err := json.Marshal(savedState{Cluster: m.Cluster, Token: m.Token, State: state})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(m.Dir, StateFile), append(data, '\n'))
}

// secretOf returns the registration secret that the configuration gives, or "" with
// what was looked at.
func secretOf(ctx context.Context, m method.Machine) (secret, tried string, err error) {
	if s := m.Settings[SettingSecret]; s != "" {
		return s, "", nil
	}
	path := m.Settings[SettingSecretPath]
	if path == "" {
		return "", "teleport.join_params." + SettingSecret + " and ." + SettingSecretPath + " are not set", nil
	}
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "there is no file " + path + " (teleport.join_params." + SettingSecretPath + ")", nil
	}
	if err != nil {
		return "", "", fault.New(fault.ErrInvalid, "teleport.join_params.%s: %w", SettingSecretPath, err).WithCode(method.CodeCredentials)
	}
	warnOpen(ctx, m.Log, path)
	if secret = strings.TrimSpace(string(data)); secret == "" {
		return "", path + " is empty (teleport.join_params." + SettingSecretPath + ")", nil
	}
	return secret, "", nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fault.Invalid("%s is longer than %d bytes", path, maxFile)
	}
	return data, nil
}

// writeFile replaces a file in one step that survives a crash.
func writeFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
