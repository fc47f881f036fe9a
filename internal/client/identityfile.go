package client

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/keys"
)

// Formats of credentials that are written for other programs.
const (
	// FormatFile is one file with everything: what tsh -i and tctl -i read.
	FormatFile = "file"
	// FormatOpenSSH is a private key and, beside it, NAME-cert.pub.
	FormatOpenSSH = "openssh"
)

// maxIdentityParts bounds each kind of thing in an identity file.
const maxIdentityParts = 64

// ReadIdentity reads an identity file.
func ReadIdentity(path string) (*Credentials, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, fault.Invalid("read the identity file: %w", err)
	}
	c, err := ParseIdentity(data)
	if err != nil {
		return nil, fmt.Errorf("identity file %s: %w", path, err)
	}
	c.Renew = "tctl auth sign, or tsh login --out, for a new identity file"
	return c, nil
}

// ParseIdentity reads the bytes of an identity file: a private key, an SSH
// certificate (unless the user may log in nowhere), a TLS certificate, then those
// of the host CA and of the authority that signed it, and @cert-authority lines.
func ParseIdentity(data []byte) (*Credentials, error) {
	if len(data) > maxFile {
		return nil, fault.Limit("%d bytes are more than an identity file has", len(data))
	}
	var b identityBuilder
	if err := b.read(data); err != nil {
		return nil, err
	}
	if len(b.keys) != 1 {
		return nil, fault.Invalid("%d private keys found, one was expected", len(b.keys))
	}
	if len(b.certs) < 2 || len(b.hostKeys) == 0 {
		return nil, fault.Invalid("a TLS certificate, those of the authorities and an @cert-authority line were expected")
	}
	trust, err := readTrust(b.certs[0], b.certs[1:], b.hostKeys)
	if err != nil {
		return nil, err
	}
	c := &Credentials{Keys: Keys{SSH: b.keys[0], TLS: b.keys[0]}, SSHCert: b.sshCert, TLSCert: b.certs[0], Trust: trust}
	return c, c.consistent()
}

// identityBuilder collects the parts of credential files, in their order.
type identityBuilder struct {
	keys     []crypto.Signer
	sshCert  *ssh.Certificate
	certs    []*x509.Certificate
	hostKeys []ssh.PublicKey
}

// read takes PEM blocks and lines until the end of data. Blank lines and
// comments are skipped; anything else that is not understood is an error.
func (b *identityBuilder) read(data []byte) error {
	rest, number := data, 1
	for len(rest) > 0 {
		line, after, _ := bytes.Cut(rest, []byte("\n"))
		line = bytes.TrimSpace(line)
		var err error
		switch {
		case len(line) == 0 || line[0] == '#':
		case bytes.HasPrefix(line, []byte("-----BEGIN ")):
			var block *pem.Block
			block, after = pem.Decode(rest)
			if block == nil {
				return fault.Invalid("line %d: the PEM block is damaged", number)
			}
			err = b.block(block)
		default:
			err = b.line(line)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		if len(b.keys) > maxIdentityParts || len(b.certs) > maxIdentityParts || len(b.hostKeys) > maxIdentityParts {
			return fault.Limit("line %d: too many keys and certificates", number)
		}
		number += bytes.Count(rest[:len(rest)-len(after)], []byte("\n"))
		rest = after
	}
	return nil
}

func (b *identityBuilder) block(block *pem.Block) error {
	if block.Type != "CERTIFICATE" {
		key, err := parseKey(block)
		b.keys = append(b.keys, key)
		return err
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fault.Invalid("the certificate cannot be read: %w", err)
	}
	b.certs = append(b.certs, cert)
	return nil
}

func (b *identityBuilder) line(line []byte) error {
	if bytes.HasPrefix(line, []byte("@")) {
		_, key := authorityLine(line)
		if key == nil {
			return fault.Invalid("expected an @cert-authority line")
		}
		if _, nested := key.(*ssh.Certificate); nested {
			return fault.Invalid("a certificate cannot be an authority")
		}
		b.hostKeys = append(b.hostKeys, key)
		return nil
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return fault.Invalid("expected a PEM block, an SSH certificate or an @cert-authority line")
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok || b.sshCert != nil {
		return fault.Invalid("expected exactly one SSH certificate")
	}
	b.sshCert = cert
	return nil
}

// IdentityFile returns the bytes of an identity file. Both keys must be one.
func (c *Credentials) IdentityFile() ([]byte, error) {
	if err := c.consistent(); err != nil {
		return nil, err
	}
	key, err := keys.MarshalPrivate(c.TLS)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	issuer, err := c.issuer()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.Write(key)
	if c.SSHCert != nil {
		out.Write(ssh.MarshalAuthorizedKey(c.SSHCert))
	}
	out.Write(encodeCert(c.TLSCert.Raw))
	out.Write(c.hostCerts())
	out.Write(issuer)
	cluster := c.Trust.Cluster()
	for _, line := range c.Trust.KnownHosts(cluster, "*."+cluster) {
		out.WriteString(line + "\n")
	}
	if _, err := ParseIdentity(out.Bytes()); err != nil {
		return nil, fmt.Errorf("one key for SSH and TLS is needed: %w", err)
	}
	return out.Bytes(), nil
}

// Export writes the credentials to path in the format and returns the files that
// were written. Unless overwrite is set, existing files are an error.
func (c *Credentials) Export(path, format string, overwrite bool) ([]string, error) {
	var files []file
	switch format {
	case FormatFile:
		data, err := c.IdentityFile()
		if err != nil {
			return nil, err
		}
		files = []file{{path, data}}
	case FormatOpenSSH:
		if c.SSHCert == nil {
			return nil, fault.Invalid("the user's roles allow no logins, so there is nothing for OpenSSH to use")
		}
		all, err := c.files(Paths{SSHKey: path, SSHCert: path + "-cert.pub"})
		if err != nil {
			return nil, err
		}
		files = slices.DeleteFunc(all, func(f file) bool { return f.path == "" })
	default:
		return nil, fault.Invalid("unknown format %q: use %s or %s", format, FormatFile, FormatOpenSSH)
	}
	var names []string
	for _, f := range files {
		if _, err := os.Lstat(f.path); !overwrite && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.Exists("%s exists already: use --overwrite to replace it", f.path)
		}
		names = append(names, f.path)
	}
	for _, f := range files {
		if err := writeFile(f.path, f.data); err != nil {
			return nil, err
		}
	}
	return names, nil
}
