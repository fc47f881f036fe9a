package client_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"teleport/internal/client"
	"teleport/internal/client/clienttest"
	"teleport/internal/fault"
	"teleport/internal/types"
)

func newHome(t *testing.T) *client.Home {
	t.Helper()
	h, err := client.OpenHome(filepath.Join(t.TempDir(), "tsh"))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// credentials returns those of two keys, as a login makes them.
func credentials(t *testing.T, c *clienttest.Cluster, user string, logins ...string) *client.Credentials {
	t.Helper()
	keys, err := client.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	public, err := keys.Public()
	if err != nil {
		t.Fatal(err)
	}
	creds, err := client.NewCredentials(keys, c.Certificates(public, user, time.Hour, logins...))
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

func TestProfileRoundTrip(t *testing.T) {
	c, h, ctx := clienttest.Start(t), newHome(t), t.Context()
	for name, logins := range map[string][]string{"with_logins": {"root", "ubuntu"}, "without_logins": nil} {
		t.Run(name, func(t *testing.T) {
			p := client.Profile{Proxy: "proxy.example.com:3080", User: "alice@example.com", Cluster: clienttest.Name}
			creds := credentials(t, c, p.User, logins...)
			if err := h.Save(ctx, p, creds); err != nil {
				t.Fatal(err)
			}
			found, err := h.Find("", "")
			if err != nil || found != p {
				t.Fatalf("Find() = %v, %v, want %v", found, err, p)
			}
			got, err := h.Credentials(ctx, found)
			if err != nil {
				t.Fatal(err)
			}
			if !got.TLSCert.Equal(creds.TLSCert) || (got.SSHCert == nil) != (logins == nil) {
				t.Error("other certificates came back")
			}
			if diff := cmp.Diff(creds.Trust.Pins(), got.Trust.Pins()); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(creds.Trust.KnownHosts("*"), got.Trust.KnownHosts("*")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The layout is what users and other programs know.
func TestProfileLayout(t *testing.T) {
	c, h := clienttest.Start(t), newHome(t)
	p := client.Profile{Proxy: "proxy.example.com:3080", User: "alice", Cluster: clienttest.Name}
	if err := h.Save(t.Context(), p, credentials(t, c, "alice", "root")); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := filepath.WalkDir(h.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else {
			rel, _ := filepath.Rel(h.Dir(), path)
			got = append(got, rel)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		".lock", "current-profile",
		"keys/proxy.example.com/alice", "keys/proxy.example.com/alice-ssh/test.example.com-cert.pub",
		"keys/proxy.example.com/alice-x509.pem", "keys/proxy.example.com/alice.key", "keys/proxy.example.com/alice.pub",
		"keys/proxy.example.com/cas/test.example.com.pem", "known_hosts", "proxy.example.com.yaml",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	current, _ := os.ReadFile(filepath.Join(h.Dir(), "current-profile"))
	if string(current) != "proxy.example.com\n" {
		t.Errorf("current-profile = %q", current)
	}
	key, _ := os.ReadFile(h.Paths(p).SSHKey)
	if _, err := ssh.ParsePrivateKey(key); err != nil {
		t.Errorf("the SSH key is not one that OpenSSH reads: %v", err)
	}
	known, _ := os.ReadFile(h.Paths(p).KnownHosts)
	if !strings.HasPrefix(string(known), "@cert-authority proxy.example.com,test.example.com,*.test.example.com ssh-") {
		t.Errorf("known_hosts = %q", known)
	}
}

func TestFind(t *testing.T) {
	c, h, ctx := clienttest.Start(t), newHome(t), t.Context()
	one := client.Profile{Proxy: "one.example.com:443", User: "alice", Cluster: clienttest.Name}
	two := client.Profile{Proxy: "[::1]:3080", User: "bob", Cluster: clienttest.Name}
	for _, p := range []client.Profile{two, one} {
		if err := h.Save(ctx, p, credentials(t, c, p.User, "root")); err != nil {
			t.Fatal(err)
		}
	}
	carol := one
	carol.User = "carol"
	for name, tt := range map[string]struct {
		proxy, user string
		want        client.Profile
		problem     bool
	}{
		"current":      {"", "", one, false},
		"by_host":      {"one.example.com", "", one, false},
		"by_address":   {"one.example.com:443", "", one, false},
		"ipv6":         {"[::1]:3080", "", two, false},
		"other_port":   {"one.example.com:444", "", client.Profile{}, true},
		"unknown":      {"three.example.com", "", client.Profile{}, true},
		"other_user":   {"", "carol", carol, false},
		"hostile_host": {"../../etc/passwd", "", client.Profile{}, true},
		"hostile_user": {"", "../alice", client.Profile{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := h.Find(tt.proxy, tt.user)
			if (err != nil) != tt.problem || !tt.problem && got != tt.want {
				t.Errorf("Find(%q, %q) = %v, %v, want %v", tt.proxy, tt.user, got, err, tt.want)
			}
		})
	}
	if _, err := h.Credentials(ctx, carol); fault.Code(err) != client.CodeNotLoggedIn {
		t.Errorf("credentials of a user who is not logged in: %v", err)
	}
	list, err := h.Profiles()
	if diff := cmp.Diff([]client.Profile{one, two}, list); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if _, err := newHome(t).Find("", ""); fault.Code(err) != client.CodeNotLoggedIn || !strings.Contains(err.Error(), "tsh login") {
		t.Errorf("an empty home: %v", err)
	}
}

func TestRemoveKeepsPins(t *testing.T) {
	c, h, ctx := clienttest.Start(t), newHome(t), t.Context()
	p := client.Profile{Proxy: "proxy.example.com:3080", User: "alice", Cluster: clienttest.Name}
	if err := h.Save(ctx, p, credentials(t, c, "alice", "root")); err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(ctx, p); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{h.Paths(p).SSHKey, h.Paths(p).TLSKey, h.Paths(p).SSHCert, h.Paths(p).TLSCert} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if _, err := h.Find("", ""); fault.Code(err) != client.CodeNotLoggedIn {
		t.Errorf("Find() after logout: %v", err)
	}
	if diff := cmp.Diff(c.Trust.Pins(), h.Pins("proxy.example.com")); diff != "" {
		t.Errorf("pins after logout: %s", diff)
	}
	if pins := h.Pins("other.example.com"); len(pins) > 0 {
		t.Errorf("pins of a Proxy never seen: %v", pins)
	}
}

func TestKnownHostsKeepsOthers(t *testing.T) {
	a, b, h, ctx := clienttest.Start(t), clienttest.Start(t), newHome(t), t.Context()
	if err := os.MkdirAll(h.Dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.Dir(), "known_hosts")
	const foreign = "# mine\ngithub.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
	if err := os.WriteFile(path, []byte(foreign), 0o600); err != nil {
		t.Fatal(err)
	}
	one := client.Profile{Proxy: "one.example.com:443", User: "alice", Cluster: clienttest.Name}
	two := client.Profile{Proxy: "two.example.com:443", User: "alice", Cluster: clienttest.Name}
	for _, step := range []struct {
		p client.Profile
		c *clienttest.Cluster
	}{{one, a}, {two, a}, {one, b}} { // the cluster behind one was made anew
		if err := h.Save(ctx, step.p, credentials(t, step.c, "alice", "root")); err != nil {
			t.Fatal(err)
		}
	}
	got, _ := os.ReadFile(path)
	want := foreign + "\n" +
		a.Trust.KnownHosts("two.example.com", clienttest.Name, "*."+clienttest.Name)[0] + "\n" +
		b.Trust.KnownHosts("one.example.com", clienttest.Name, "*."+clienttest.Name)[0] + "\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	creds, err := h.Credentials(ctx, two)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a.Trust.Pins(), creds.Trust.Pins()); diff != "" {
		t.Error(diff)
	}
}

func TestDamagedCredentials(t *testing.T) {
	c, ctx := clienttest.Start(t), t.Context()
	p := client.Profile{Proxy: "proxy.example.com:3080", User: "alice", Cluster: clienttest.Name}
	for name, damage := range map[string]func(h *client.Home, paths client.Paths) error{
		"key_of_another": func(_ *client.Home, paths client.Paths) error {
			other := newHome(t)
			if err := other.Save(ctx, p, credentials(t, c, "alice", "root")); err != nil {
				return err
			}
			data, err := os.ReadFile(other.Paths(p).TLSKey)
			if err != nil {
				return err
			}
			return os.WriteFile(paths.TLSKey, data, 0o600)
		},
		"empty_certificate": func(_ *client.Home, paths client.Paths) error { return os.WriteFile(paths.TLSCert, nil, 0o600) },
		"no_authorities":    func(_ *client.Home, paths client.Paths) error { return os.WriteFile(paths.Authorities, nil, 0o600) },
		"no_known_hosts":    func(_ *client.Home, paths client.Paths) error { return os.WriteFile(paths.KnownHosts, nil, 0o600) },
		"huge":              func(_ *client.Home, paths client.Paths) error { return os.Truncate(paths.SSHKey, 2<<20) },
		"garbage": func(_ *client.Home, paths client.Paths) error {
			return os.WriteFile(paths.SSHCert, []byte("\x00\xff junk"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			if err := h.Save(ctx, p, credentials(t, c, "alice", "root")); err != nil {
				t.Fatal(err)
			}
			if err := damage(h, h.Paths(p)); err != nil {
				t.Fatal(err)
			}
			creds, err := h.Credentials(ctx, p)
			if name == "no_known_hosts" && err == nil {
				// Without SSH authorities no host is believed.
				if err := creds.Trust.HostKeyCallback(types.RoleNode, "x")("x", nil, creds.SSHCert.Key); err == nil {
					t.Error("a host key was believed without an authority")
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "tsh login --proxy=proxy.example.com:3080") {
				t.Errorf("Credentials() = %v, want an error that says to log in again", err)
			}
		})
	}
}

func TestLockIsWaitedFor(t *testing.T) {
	c, h := clienttest.Start(t), newHome(t)
	creds := credentials(t, c, "alice", "root")
	p := client.Profile{Proxy: "proxy.example.com:3080", User: "alice", Cluster: clienttest.Name}
	if err := h.Save(t.Context(), p, creds); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(h.Dir(), ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := h.Save(t.Context(), p, creds); !errors.Is(err, fault.ErrExists) {
			t.Errorf("Save() with the lock held = %v, want ErrExists", err)
		}
		if waited := time.Since(start); waited < time.Second || waited > time.Minute {
			t.Errorf("waited %s for the lock", waited)
		}
		go func() {
			time.Sleep(time.Second)
			_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		}()
		if _, err := h.Credentials(t.Context(), p); err != nil {
			t.Errorf("Credentials() after the lock was given back: %v", err)
		}
	})
}

func TestCheckNames(t *testing.T) {
	c, h := clienttest.Start(t), newHome(t)
	creds := credentials(t, c, "alice", "root")
	good := client.Profile{Proxy: "proxy.example.com:3080", User: "alice", Cluster: clienttest.Name}
	for name, change := range map[string]func(p *client.Profile){
		"path_in_user":      func(p *client.Profile) { p.User = "../../x" },
		"path_in_cluster":   func(p *client.Profile) { p.Cluster = "a/b" },
		"dot_host":          func(p *client.Profile) { p.Proxy = "..:443" },
		"control_character": func(p *client.Profile) { p.User = "al\x1bice" },
		"pattern":           func(p *client.Profile) { p.Cluster = "*" },
		"empty_user":        func(p *client.Profile) { p.User = "" },
		"option":            func(p *client.Profile) { p.User = "-oProxyCommand=x" },
	} {
		t.Run(name, func(t *testing.T) {
			p := good
			change(&p)
			if err := h.Save(t.Context(), p, creds); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("Save(%v) = %v, want ErrInvalid", p, err)
			}
		})
	}
}
