package client

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// maxRouted bounds how many certificates for resources are looked at.
const maxRouted = 10_000

// RoutedPaths are the files of a certificate that is good for one application or
// database.
type RoutedPaths struct {
	// Key and Cert are the pair; CA holds the certificates of the host authority, which
	// the agent is known by.
	Key, Cert, CA string
}

// Routed is a certificate for one application or database as it is kept on disk.
type Routed struct {
	Paths RoutedPaths
	// User is what the certificate says; its App or Database is set.
	User    *identity.User
	Expires time.Time
}

// Name returns the name of the application or database.
func (r Routed) Name() string {
	if r.User.App != nil {
		return r.User.App.Name
	}
	return r.User.Database.Service
}

// routedDir is where certificates for applications or databases are.
func (h *Home) routedDir(p Profile, kind string) string {
	return filepath.Join(h.dir, "keys", p.Host(), p.User+"-"+kind, p.Cluster)
}

// RoutedPaths returns where the certificate for a resource of the kind (types.KindApp or
// types.KindDatabase) is, whether there is one or not.
func (h *Home) RoutedPaths(p Profile, kind, name string) RoutedPaths {
	base := filepath.Join(h.routedDir(p, kind), name)
	return RoutedPaths{Key: base + ".key", Cert: base + ".crt", CA: h.Paths(p).Authorities}
}

// SaveRouted keeps a certificate for a resource. With bundle, the key is in the file of
// the certificate as well: clients of MongoDB want that.
func (h *Home) SaveRouted(ctx context.Context, p Profile, kind, name string, cert tls.Certificate, bundle bool) error {
	if err := errors.Join(p.check(), fileName("name", name)); err != nil {
		return err
	}
	signer, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return fault.Invalid("the certificate for %q has no key", name)
	}
	key, err := keys.MarshalPrivate(signer)
	if err != nil {
		return err
	}
	var certs []byte
	for _, der := range cert.Certificate {
		certs = append(certs, encodeCert(der)...)
	}
	if bundle {
		certs = append(certs, key...)
	}
	unlock, err := h.lock(ctx, true)
	if err != nil {
		return err
	}
	defer unlock()
	paths := h.RoutedPaths(p, kind, name)
	if err := writeFile(paths.Key, key); err != nil {
		return err
	}
	return writeFile(paths.Cert, certs)
}

// Routed returns the certificates of a kind that there are, in order of their names.
// Files that cannot be read are left out.
func (h *Home) Routed(p Profile, kind string) ([]Routed, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(h.routedDir(p, kind))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Invalid("read the certificates for resources: %w", err)
	}
	var out []Routed
	for _, e := range entries[:min(len(entries), maxRouted)] {
		name, ok := strings.CutSuffix(e.Name(), ".crt")
		if !ok || fileName("name", name) != nil {
			continue
		}
		paths := h.RoutedPaths(p, kind, name)
		if r, err := readRouted(paths, kind, name); err == nil {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(x, y Routed) int { return cmp.Compare(x.Name(), y.Name()) })
	return out, nil
}

// FindRouted returns the certificate for a resource; it may have expired. Without one
// the error is fault.ErrNotFound.
func (h *Home) FindRouted(p Profile, kind, name string) (Routed, error) {
	if err := errors.Join(p.check(), fileName("name", name)); err != nil {
		return Routed{}, err
	}
	r, err := readRouted(h.RoutedPaths(p, kind, name), kind, name)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fault.NotFound("not logged in to %q", name)
	}
	return r, err
}

func readRouted(paths RoutedPaths, kind, name string) (Routed, error) {
	data, err := readFile(paths.Cert)
	if err != nil {
		return Routed{}, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return Routed{}, fault.Invalid("%s is damaged: log in to %q again", paths.Cert, name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Routed{}, fault.Invalid("%s is damaged (%w): log in to %q again", paths.Cert, err, name)
	}
	id, err := identity.FromTLS(cert)
	if err != nil {
		return Routed{}, fault.Invalid("%s: %w", paths.Cert, err)
	}
	r := Routed{Paths: paths, User: id.User, Expires: cert.NotAfter}
	if id.User == nil || (kind == types.KindApp) != (id.User.App != nil) || (kind == types.KindDatabase) != (id.User.Database != nil) || r.Name() != name {
		return Routed{}, fault.Invalid("%s is not a certificate for %q: log in to it again", paths.Cert, name)
	}
	return r, nil
}

// RemoveRouted deletes the certificate for a resource, and reports whether there was one.
func (h *Home) RemoveRouted(ctx context.Context, p Profile, kind, name string) (bool, error) {
	if err := errors.Join(p.check(), fileName("name", name)); err != nil {
		return false, err
	}
	unlock, err := h.lock(ctx, true)
	if err != nil {
		return false, err
	}
	defer unlock()
	paths := h.RoutedPaths(p, kind, name)
	found := false
	for _, path := range []string{paths.Cert, paths.Key} {
		switch err := os.Remove(path); {
		case err == nil:
			found = true
		case !errors.Is(err, fs.ErrNotExist):
			return found, fault.Invalid("log out: %w", err)
		}
	}
	// Only if they are empty.
	_ = os.Remove(h.routedDir(p, kind))
	_ = os.Remove(filepath.Dir(h.routedDir(p, kind)))
	return found, nil
}

// RemoveAllRouted deletes the certificates for all resources of a profile and returns
// the names of the databases among them. The profile need not be logged in.
func (h *Home) RemoveAllRouted(ctx context.Context, p Profile) (databases []string, err error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	unlock, err := h.lock(ctx, true)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, kind := range []string{types.KindApp, types.KindDatabase} {
		dir := h.routedDir(p, kind)
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return databases, fault.Invalid("log out: %w", err)
		}
		for _, e := range entries {
			if name, ok := strings.CutSuffix(e.Name(), ".crt"); ok && kind == types.KindDatabase {
				databases = append(databases, name)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			return databases, fault.Invalid("log out: %w", err)
		}
		_ = os.Remove(filepath.Dir(dir)) // only if it is empty
	}
	return databases, nil
}
