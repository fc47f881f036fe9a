package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	opensshv1 "teleport/api/openssh/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/keys"
)

// runAuthSignHost writes a host key, its certificate and the keys that sign logins for
// an OpenSSH server whose resource somebody has made. host is its id or its host name,
// names that follow it behind commas are additional ones.
func runAuthSignHost(ctx context.Context, a *app, o signOptions, ttlSet bool) error {
	if o.format != client.FormatOpenSSH {
		return screen.Usage("tctl auth sign --host: --format=%s is needed for an OpenSSH server; for a database server use %s", client.FormatOpenSSH, databaseFormatNames)
	}
	names := strings.Split(o.host, ",")
	key, err := keys.Generate(keys.Ed25519)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return fmt.Errorf("write the key as OpenSSH does: %w", err)
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("make the public key: %w", err)
	}
	req := &opensshv1.SignServerRequest{Server: names[0], HostKeys: [][]byte{public.Marshal()}, Principals: names[1:]}
	if ttlSet {
		req.Ttl = durationpb.New(o.ttl)
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		resp, err := opensshv1.NewOpenSSHServiceClient(conn).SignServer(ctx, req)
		if err != nil {
			return fmt.Errorf("sign a host certificate for %q: %w", names[0], err)
		}
		if len(resp.GetCertificates()) != 1 {
			return fault.Invalid("the Auth Service sent %d certificates for one key", len(resp.GetCertificates()))
		}
		cert, err := ssh.ParsePublicKey(resp.GetCertificates()[0])
		if err != nil {
			return fault.Invalid("the certificate cannot be read: %w", err)
		}
		if err := a.writeFiles(o.overwrite, []outFile{
			{o.out, pem.EncodeToMemory(block), 0o600},
			{o.out + "-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o644},
			{o.out + "-trusted.pub", []byte(strings.Join(resp.GetTrustedKeys(), "\n") + "\n"), 0o644},
		}); err != nil {
			return err
		}
		return a.print("The host certificate is good until %s\n", resp.GetExpires().AsTime().UTC().Format(time.RFC3339))
	})
}

// outFile is a file to write.
type outFile struct {
	path string
	data []byte
	mode fs.FileMode
}

// writeFiles writes all of them, and says so.
func (a *app) writeFiles(overwrite bool, files []outFile) error {
	for _, f := range files {
		if err := writeNew(f.path, f.data, f.mode, overwrite); err != nil {
			return err
		}
		if err := a.print("Wrote %s\n", screen.Escape(f.path)); err != nil {
			return err
		}
	}
	return nil
}

// writeNew writes a file that must not be there yet, unless overwrite is set.
func writeNew(path string, data []byte, mode fs.FileMode, overwrite bool) error {
	if overwrite {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Invalid("replace %s: %w", path, err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return fault.Exists("%s exists already: use --overwrite to replace it", path)
	}
	if err != nil {
		return fault.Invalid("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
