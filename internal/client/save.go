package client

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/keys"
)

// Save writes the profile with its credentials and makes it the current one.
func (h *Home) Save(ctx context.Context, p Profile, c *Credentials) error {
	if err := p.check(); err != nil {
		return err
	}
	files, err := c.files(h.Paths(p))
	if err != nil {
		return err
	}
	unlock, err := h.lock(ctx, true)
	if err != nil {
		return err
	}
	defer unlock()
	known, err := h.mergeKnownHosts(p, c.Trust)
	if err != nil {
		return err
	}
	profile, err := yaml.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode the profile: %w", err)
	}
	files = append(files,
		file{h.Paths(p).KnownHosts, known},
		file{filepath.Join(h.dir, p.Host()+profileSuffix), profile},
		file{filepath.Join(h.dir, currentFile), []byte(p.Host() + "\n")})
	for _, f := range files {
		if err := writeFile(f.path, f.data); err != nil {
			return err
		}
	}
	if c.SSHCert == nil {
		_ = os.Remove(h.Paths(p).SSHCert)
	}
	return h.forgetOthers(p)
}

// forgetOthers drops the authorities of clusters that were behind the same Proxy
// address before.
func (h *Home) forgetOthers(p Profile) error {
	keep := h.Paths(p).Authorities
	entries, err := os.ReadDir(filepath.Dir(keep))
	if err != nil {
		return fault.Invalid("read the authorities: %w", err)
	}
	for _, e := range entries {
		if path := filepath.Join(filepath.Dir(keep), e.Name()); path != keep {
			_ = os.Remove(path)
		}
	}
	return nil
}

type file struct {
	path string
	data []byte
}

// files returns what credentials are on disk.
func (c *Credentials) files(paths Paths) ([]file, error) {
	block, err := ssh.MarshalPrivateKey(c.SSH, "")
	if err != nil {
		return nil, fmt.Errorf("encode the SSH key: %w", err)
	}
	pub, err := ssh.NewPublicKey(c.SSH.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the SSH key: %w", err)
	}
	tlsKey, err := keys.MarshalPrivate(c.TLS)
	if err != nil {
		return nil, fmt.Errorf("encode the TLS key: %w", err)
	}
	issuer, err := c.issuer()
	if err != nil {
		return nil, err
	}
	out := []file{
		{paths.SSHKey, pem.EncodeToMemory(block)},
		{paths.SSHPublic, ssh.MarshalAuthorizedKey(pub)},
		{paths.TLSKey, tlsKey},
		{paths.TLSCert, append(encodeCert(c.TLSCert.Raw), issuer...)},
		{paths.Authorities, c.hostCerts()},
	}
	if c.SSHCert != nil {
		out = append(out, file{paths.SSHCert, ssh.MarshalAuthorizedKey(c.SSHCert)})
	}
	return out, nil
}

// Credentials reads the keys and certificates of a profile. They may have
// expired; see Credentials.Check.
func (h *Home) Credentials(ctx context.Context, p Profile) (*Credentials, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	unlock, err := h.lock(ctx, false)
	if err != nil {
		return nil, err
	}
	defer unlock()
	again := fmt.Sprintf("tsh login --proxy=%s --user=%s", p.Proxy, p.User)
	c, err := h.readCredentials(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, notLoggedIn("%s is not logged in at %s: run %s", p.User, p.Proxy, again)
	case err != nil:
		return nil, fault.Invalid("the credentials of %s at %s are damaged (%w): run %s", p.User, p.Proxy, err, again)
	}
	c.Renew = again
	return c, nil
}

func (h *Home) readCredentials(p Profile) (*Credentials, error) {
	paths := h.Paths(p)
	var own, cluster identityBuilder
	for _, path := range []string{paths.SSHKey, paths.TLSKey, paths.TLSCert, paths.SSHCert} {
		data, err := readFile(path)
		if path == paths.SSHCert && errors.Is(err, fs.ErrNotExist) {
			continue // the user's roles allow no logins
		}
		if err == nil {
			err = own.read(data)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if len(own.keys) != 2 || len(own.certs) != 2 {
		return nil, fault.Invalid("a key or a certificate is missing")
	}
	data, err := readFile(paths.Authorities)
	if err == nil {
		err = cluster.read(data)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", paths.Authorities, err)
	}
	known, err := readFile(paths.KnownHosts)
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(known) {
		if hosts, key := authorityLine(line); key != nil && slices.Equal(hosts, p.patterns()) {
			cluster.hostKeys = append(cluster.hostKeys, key)
		}
	}
	c := &Credentials{Keys: Keys{SSH: own.keys[0], TLS: own.keys[1]}, SSHCert: own.sshCert, TLSCert: own.certs[0]}
	c.Trust, err = readTrust(c.TLSCert, append(cluster.certs, own.certs[1]), cluster.hostKeys)
	if err != nil {
		return nil, err
	}
	return c, c.consistent()
}

// Pins returns the pins of the host CA that earlier logins at the Proxy (host or
// host:port) left, also after logging out.
func (h *Home) Pins(proxy string) []string {
	p := Profile{Proxy: proxy}
	if fileName("Proxy host", p.Host()) != nil {
		return nil
	}
	dir := filepath.Join(h.dir, "keys", p.Host(), "cas")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var b identityBuilder
	for _, e := range entries {
		if data, err := readFile(filepath.Join(dir, e.Name())); err == nil {
			_ = b.read(data) // what cannot be read is not believed
		}
	}
	var pins []string
	for _, cert := range b.certs {
		pins = append(pins, ca.Pin(cert))
	}
	return pins
}

// patterns are the host names that the cluster's host CA is trusted for.
func (p Profile) patterns() []string {
	return slices.Compact([]string{p.Host(), p.Cluster, "*." + p.Cluster})
}

// authorityLine reads one line of known_hosts; key is nil unless it is a
// well-formed @cert-authority line.
func authorityLine(line []byte) (hosts []string, key ssh.PublicKey) {
	line = bytes.TrimSpace(line)
	if !bytes.HasPrefix(line, []byte("@cert-authority ")) {
		return nil, nil
	}
	_, hosts, key, _, _, err := ssh.ParseKnownHosts(line)
	if err != nil {
		return nil, nil
	}
	return hosts, key
}

// mergeKnownHosts returns known_hosts with the profile's lines replaced; lines of
// other profiles and of other programs stay.
func (h *Home) mergeKnownHosts(p Profile, t *ca.Trust) ([]byte, error) {
	old, err := readFile(h.Paths(p).KnownHosts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Invalid("read the known hosts: %w", err)
	}
	var out bytes.Buffer
	for line := range bytes.Lines(old) {
		if hosts, key := authorityLine(line); key != nil && len(hosts) > 1 && hosts[0] == p.Host() {
			continue
		}
		out.Write(bytes.TrimRight(line, "\r\n"))
		out.WriteByte('\n')
	}
	for _, line := range t.KnownHosts(p.patterns()...) {
		out.WriteString(strings.TrimSpace(line) + "\n")
	}
	return out.Bytes(), nil
}

// Remove logs a profile out: its keys and certificates are deleted. The public
// authorities of the cluster stay, so that the next login knows the Proxy.
func (h *Home) Remove(ctx context.Context, p Profile) error {
	if err := p.check(); err != nil {
		return err
	}
	unlock, err := h.lock(ctx, true)
	if err != nil {
		return err
	}
	defer unlock()
	paths := h.Paths(p)
	doomed := []string{paths.SSHKey, paths.SSHPublic, paths.SSHCert, paths.TLSKey, paths.TLSCert}
	if stored, err := h.readProfile(p.Host()); err == nil && stored.User == p.User {
		doomed = append(doomed, filepath.Join(h.dir, p.Host()+profileSuffix))
		if current, err := readFile(filepath.Join(h.dir, currentFile)); err == nil && strings.TrimSpace(string(current)) == p.Host() {
			doomed = append(doomed, filepath.Join(h.dir, currentFile))
		}
	}
	var problems []error
	for _, path := range doomed {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, fault.Invalid("log out: %w", err))
		}
	}
	_ = os.Remove(filepath.Dir(paths.SSHCert)) // only if empty
	return errors.Join(problems...)
}

// writeFile replaces a file atomically, mode 0600, and makes its directories 0700.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.Invalid("make a directory for %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return fault.Invalid("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fault.Invalid("write %s: %w", path, err)
	}
	return nil
}
