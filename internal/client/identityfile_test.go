package client_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"teleport/internal/client"
	"teleport/internal/client/clienttest"
	"teleport/internal/fault"
)

func TestIdentityFileRoundTrip(t *testing.T) {
	c := clienttest.New(t)
	for name, logins := range map[string][]string{"with_logins": {"root"}, "without_logins": nil} {
		t.Run(name, func(t *testing.T) {
			creds := c.Credentials("bot", time.Hour, logins...)
			data, err := creds.IdentityFile()
			if err != nil {
				t.Fatal(err)
			}
			got, err := client.ParseIdentity(data)
			if err != nil {
				t.Fatal(err)
			}
			again, err := got.IdentityFile()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(data), string(again)); diff != "" {
				t.Error(diff)
			}
			id, err := got.Identity()
			if err != nil || id.User.Name != "bot" || id.Cluster != clienttest.Name {
				t.Errorf("Identity() = %v, %v", id, err)
			}
		})
	}
}

func TestIdentityFileNeedsOneKey(t *testing.T) {
	c := clienttest.New(t)
	if _, err := credentials(t, c, "alice", "root").IdentityFile(); err == nil {
		t.Error("an identity file of two keys was written")
	}
}

func TestParseIdentityRefuses(t *testing.T) {
	c, other := clienttest.New(t), clienttest.New(t)
	good, err := c.Credentials("bot", time.Hour, "root").IdentityFile()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Credentials("bot", time.Hour, "root").IdentityFile()
	if err != nil {
		t.Fatal(err)
	}
	key := good[:bytes.Index(good, []byte("ecdsa-sha2"))]
	foreignKey := foreign[:bytes.Index(foreign, []byte("ecdsa-sha2"))]
	lines := strings.SplitAfter(string(good), "\n")
	for name, data := range map[string]string{
		"empty":             "",
		"junk":              "hello\n",
		"no_key":            strings.TrimPrefix(string(good), string(key)),
		"two_keys":          string(key) + string(good),
		"key_of_another":    string(foreignKey) + strings.TrimPrefix(string(good), string(key)),
		"no_authority":      strings.Join(lines[:len(lines)-2], ""),
		"foreign_ca":        string(good[:bytes.LastIndex(good, []byte("-----BEGIN CERT"))]),
		"broken_pem":        strings.Replace(string(good), "-----END PRIVATE KEY-----", "-----END-----", 1),
		"certificate_twice": string(good) + string(good[bytes.Index(good, []byte("ecdsa-sha2")):bytes.Index(good, []byte("-----BEGIN CERT"))]),
		"unknown_marker":    string(good) + "@revoked * " + strings.Fields(lines[len(lines)-2])[2] + " x\n",
		"rsa_pem":           strings.Replace(string(good), "PRIVATE KEY", "RSA PRIVATE KEY", 2),
		"too_long":          string(good) + strings.Repeat("#\n", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := client.ParseIdentity([]byte(data)); err == nil {
				t.Error("it was accepted")
			} else if fault.Kind(err) == nil {
				t.Errorf("%v has no kind", err)
			}
		})
	}
}

func FuzzParseIdentity(f *testing.F) {
	c := clienttest.New(f)
	good, err := c.Credentials("bot", time.Hour, "root").IdentityFile()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("@cert-authority * ssh-ed25519 AAAA\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		creds, err := client.ParseIdentity(data)
		if err != nil {
			return
		}
		out, err := creds.IdentityFile()
		if err != nil {
			t.Fatalf("accepted, but cannot be written: %v", err)
		}
		if _, err := client.ParseIdentity(out); err != nil {
			t.Fatalf("written, but cannot be read: %v", err)
		}
	})
}

func TestExport(t *testing.T) {
	c, dir := clienttest.New(t), t.TempDir()
	creds := c.Credentials("bot", time.Hour, "root")
	for name, tt := range map[string]struct {
		format string
		want   []string
	}{
		"file":    {client.FormatFile, []string{"out"}},
		"openssh": {client.FormatOpenSSH, []string{"out", "out-cert.pub"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name, "out")
			got, err := creds.Export(path, tt.format, false)
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				info, err := os.Stat(got[i])
				if err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", got[i], info, err)
				}
				got[i] = filepath.Base(got[i])
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if _, err := creds.Export(path, tt.format, false); !errors.Is(err, fault.ErrExists) {
				t.Errorf("writing over a file: %v, want ErrExists", err)
			}
			if _, err := creds.Export(path, tt.format, true); err != nil {
				t.Errorf("writing over a file as asked: %v", err)
			}
		})
	}
	key, err := os.ReadFile(filepath.Join(dir, "openssh", "out"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ssh.ParsePrivateKey(key); err != nil {
		t.Errorf("key: %v", err)
	}
	if _, err := creds.Export(filepath.Join(dir, "x"), "pkcs12", false); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("unknown format: %v", err)
	}
	if _, err := c.Credentials("bot", time.Hour).Export(filepath.Join(dir, "y"), client.FormatOpenSSH, false); err == nil {
		t.Error("a user without logins got files for OpenSSH")
	}
}

func TestReadIdentityNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(path, []byte("junk\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ReadIdentity(path); err == nil || !strings.Contains(err.Error(), path+": line 1") {
		t.Errorf("ReadIdentity() = %v, want the file and the line", err)
	}
}
