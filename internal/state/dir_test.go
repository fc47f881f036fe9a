package state_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"teleport/internal/fault"
	"teleport/internal/state"
	"teleport/internal/types"
)

// sample returns a state whose size depends on its generation.
func sample(generation uint64) *state.State {
	return &state.State{
		Cluster: "example.com", HostID: "host", Hostname: "web1", Roles: []types.SystemRole{types.RoleNode}, Generation: generation,
		Pins: []string{"sha256:x"}, TLSKey: []byte("tls"), SSHKey: []byte("ssh"), JoinedWith: "token",
		Grant: bytes.Repeat([]byte(strconv.FormatUint(generation, 10)), int(generation*37%20000)+1),
	}
}

func open(t *testing.T, dir string) *state.Dir {
	t.Helper()
	d, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func save(t *testing.T, d *state.Dir, s *state.State) {
	t.Helper()
	if err := d.Save(s); err != nil {
		t.Fatal(err)
	}
}

func wantGeneration(t *testing.T, d *state.Dir, want uint64, damaged bool) {
	t.Helper()
	s, err := d.Load()
	if err != nil {
		t.Fatalf("Load = %v", err)
	}
	if d := cmp.Diff(sample(want), s); d != "" {
		t.Errorf("Load (-want +got):\n%s", d)
	}
	if (d.Damage() != nil) != damaged {
		t.Errorf("Damage = %v, want one: %v", d.Damage(), damaged)
	}
}

// wantLine checks an error for its kind, for being one line, and for its text.
func wantLine(t *testing.T, err, kind error, texts ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error = %v, want %v", err, kind)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error has several lines: %q", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q says nothing of %q", err, text)
		}
	}
}

func TestUnusableAdvice(t *testing.T) {
	for _, tt := range []struct {
		name       string
		err        error
		want, lack string
	}{
		{"closed", unix.EACCES, "chmod 700 /d", "mount"},
		{"read_only", unix.EROFS, "mount that file system for writing", "chmod"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := state.Unusable("/d", "used", tt.err, "`chmod 700 /d`")
			if !errors.Is(err, fault.ErrInvalid) || !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), tt.lack) {
				t.Errorf("got %v, want %q and no %q", err, tt.want, tt.lack)
			}
		})
	}
}

func TestSaveAndLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	d := open(t, dir)
	if d.Path() != dir {
		t.Errorf("Path = %q, want %q", d.Path(), dir)
	}
	_, err := d.Load()
	wantLine(t, err, fault.ErrNotFound, filepath.Join(dir, "state"))
	save(t, d, sample(1))
	wantGeneration(t, d, 1, false)
	save(t, d, sample(2))
	wantGeneration(t, d, 2, false)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	wantGeneration(t, open(t, dir), 2, false)
	for name, mode := range map[string]os.FileMode{"": 0o700, "state": 0o600, "state.prev": 0o600, "lock": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("mode of %q = %v, %v; want %o", name, info.Mode().Perm(), err, mode)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "state.new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state.new is left over: %v", err)
	}
}

func TestSaveRefuses(t *testing.T) {
	d := open(t, t.TempDir())
	for name, s := range map[string]*state.State{
		"nil": nil, "empty": {}, "no_host": {Cluster: "c"}, "no_cluster": {HostID: "h"}, "bad_host": {Cluster: "c", HostID: "../h"},
	} {
		if err := d.Save(s); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("Save(%s) = %v, want ErrInvalid", name, err)
		}
	}
	big := sample(1)
	big.Grant = make([]byte, 5<<20)
	if err := d.Save(big); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("Save of 5 MB = %v, want ErrLimit", err)
	}
	if _, err := d.Load(); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("Load after refused saves = %v, want ErrNotFound", err)
	}
}

func TestDamage(t *testing.T) {
	write := func(data string) func(string) error {
		return func(name string) error { return os.WriteFile(name, []byte(data), 0o600) }
	}
	edit := func(f func([]byte) []byte) func(string) error {
		return func(name string) error {
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return os.WriteFile(name, f(data), 0o600)
		}
	}
	for name, harm := range map[string]func(string) error{
		"missing":    os.Remove,
		"empty":      write(""),
		"zeros":      edit(func(b []byte) []byte { return make([]byte, len(b)) }),
		"garbage":    write("file is not a database\n"),
		"truncated":  edit(func(b []byte) []byte { return b[:len(b)-1] }),
		"half":       edit(func(b []byte) []byte { return b[:len(b)/2] }),
		"longer":     edit(func(b []byte) []byte { return append(b, '\n') }),
		"bit":        edit(func(b []byte) []byte { b[len(b)-5] ^= 1; return b }),
		"header_bit": edit(func(b []byte) []byte { b[30] ^= 1; return b }),
		"huge":       write(strings.Repeat("x", 5<<20)),
		"directory": func(name string) error {
			return errors.Join(os.Remove(name), os.Mkdir(name, 0o700))
		},
		"symlink": func(name string) error {
			return errors.Join(os.Remove(name), os.Symlink("state.prev", name))
		},
		"pipe": func(name string) error {
			return errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := open(t, dir)
			save(t, d, sample(1))
			save(t, d, sample(2))
			current, prev := filepath.Join(dir, "state"), filepath.Join(dir, "state.prev")
			if err := harm(current); err != nil {
				t.Fatal(err)
			}
			wantGeneration(t, d, 1, true)
			if err := harm(prev); err != nil {
				t.Fatal(err)
			}
			_, err := d.Load()
			if name == "missing" {
				wantLine(t, err, fault.ErrNotFound, current+" is missing")
				if errors.Is(err, fault.ErrInvalid) {
					t.Errorf("a host that never joined is told that its state is damaged: %v", err)
				}
				return
			}
			wantLine(t, err, fault.ErrInvalid, "delete "+current+" and "+prev, "join again")
			// A directory cannot be replaced by a file; everything else heals.
			if name == "directory" {
				return
			}
			save(t, d, sample(3))
			wantGeneration(t, d, 3, false)
		})
	}
}

// TestDamagedDoesNotReplacePredecessor shows that a save over a damaged file keeps
// the last good copy, and that one good save brings two good copies back.
func TestDamagedDoesNotReplacePredecessor(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	save(t, d, sample(1))
	save(t, d, sample(2))
	current := filepath.Join(dir, "state")
	if err := os.WriteFile(current, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	save(t, d, sample(3))
	wantGeneration(t, d, 3, false)
	if err := os.WriteFile(current, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantGeneration(t, d, 1, true)
}

func TestNewerFormatIsNotDamage(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	save(t, d, sample(1))
	save(t, d, sample(2))
	newer := []byte("teleport-state 2 cbor sha512:xyz\nsomething else")
	if err := os.WriteFile(filepath.Join(dir, "state"), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := d.Load()
	wantLine(t, err, fault.ErrUnsupported, "format 2")
	wantLine(t, d.Save(sample(3)), fault.ErrUnsupported, "format 2")
	if data, _ := os.ReadFile(filepath.Join(dir, "state")); !bytes.Equal(data, newer) {
		t.Error("Save replaced the state of a newer version")
	}
}

// TestFullDisk writes to a device that is always full, and to a closed file.
func TestFullDisk(t *testing.T) {
	for name, create := range map[string]func(string) (*os.File, error){
		"full": func(string) (*os.File, error) { return os.OpenFile("/dev/full", os.O_WRONLY, 0) },
		"fails_to_write": func(name string) (*os.File, error) {
			f, err := os.OpenFile(name, os.O_RDONLY|os.O_CREATE, 0o600)
			return f, err
		},
		"fails_to_create": func(string) (*os.File, error) { return nil, syscall.ENOSPC },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := open(t, dir)
			save(t, d, sample(1))
			save(t, d, sample(2))
			if err := d.Room(); err != nil {
				t.Fatal(err)
			}
			d.SetCreate(create)
			if err := d.Room(); err == nil || name == "full" && !errors.Is(err, fault.ErrLimit) {
				t.Errorf("Room = %v on a full disk", err)
			}
			err := d.Save(sample(3))
			if err == nil {
				t.Fatal("Save = nil on a full disk")
			}
			if name == "full" {
				wantLine(t, err, fault.ErrLimit, "disk is full")
			}
			wantGeneration(t, d, 2, false)
			if err := os.Remove(filepath.Join(dir, "state")); err != nil {
				t.Fatal(err)
			}
			wantGeneration(t, d, 1, true)
		})
	}
}

func FuzzDecode(f *testing.F) {
	dir := f.TempDir()
	d, err := state.Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	defer d.Close()
	if err := d.Save(sample(1)); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "state"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte("teleport-state 2 0 \n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := state.Decode(data)
		if err == nil && (s.Cluster == "" || s.HostID == "") {
			t.Errorf("Decode(%q) = %+v", data, s)
		}
		if err != nil && fault.Kind(err) == nil {
			t.Errorf("Decode(%q) = %v, which is of no kind", data, err)
		}
	})
}
