package state_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teleport/internal/fault"
	"teleport/internal/state"
	"teleport/internal/types"
)

// Roles of the test binary when it runs itself.
const (
	envRole = "TELEPORT_STATE_TEST_ROLE"
	envDir  = "TELEPORT_STATE_TEST_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(envRole) {
	case "hold":
		os.Exit(hold(os.Getenv(envDir)))
	case "save":
		os.Exit(saveForever(os.Getenv(envDir)))
	}
	os.Exit(m.Run())
}

// hold keeps the directory until its input ends.
func hold(dir string) int {
	d, err := state.Open(dir)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer d.Close()
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// saveForever saves ever newer states and says which of them are saved.
func saveForever(dir string) int {
	d, err := state.Open(dir)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	s, err := d.Load()
	if errors.Is(err, fault.ErrNotFound) {
		s, err = sample(0), nil
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for {
		s = sample(s.Generation + 1)
		if err := d.Save(s); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(s.Generation)
	}
}

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
				wantLine(t, err, fault.ErrNotFound, current)
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
			d.SetCreate(create)
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

func child(t *testing.T, role, dir string) (*exec.Cmd, *bufio.Scanner, io.Closer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), envRole+"="+role, envDir+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out), in
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	before := time.Now().UTC().Truncate(time.Second)
	cmd, out, in := child(t, "hold", dir)
	if !out.Scan() || out.Text() != "held" {
		t.Fatalf("the holder says %q", out.Text())
	}
	_, err := state.Open(dir)
	wantLine(t, err, fault.ErrExists, dir, "pid "+strconv.Itoa(cmd.Process.Pid)+",")
	_, text, _ := strings.Cut(err.Error(), "started ")
	text, _, _ = strings.Cut(text, ")")
	if started, err := time.Parse(time.RFC3339, text); err != nil || started.Before(before) || started.After(time.Now()) {
		t.Errorf("start time %q (%v), want one since %s", text, err, before)
	}
	// What the lock file says is not believed.
	if err := os.WriteFile(filepath.Join(dir, "lock"), []byte("pid 1\x1b[2J\nstarted yesterday\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = state.Open(dir)
	wantLine(t, err, fault.ErrExists, "pid unknown")
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	_, err = state.Open(dir)
	wantLine(t, err, fault.ErrExists, "pid "+strconv.Itoa(os.Getpid())+",")
}

// TestKill kills a process that saves without end, many times, and checks after
// each that what was said to be saved is what is found, or the one after it.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var saved uint64
	for round := range 25 {
		cmd, out, in := child(t, "save", dir)
		for range round%7 + 1 {
			if !out.Scan() {
				t.Fatal("the saver ended by itself")
			}
			saved = parse(t, out.Text())
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for out.Scan() {
			saved = parse(t, out.Text())
		}
		_ = cmd.Wait()
		in.Close()
		d := open(t, dir)
		s, err := d.Load()
		if err != nil {
			t.Fatalf("Load after kill %d = %v", round, err)
		}
		if s.Generation != saved && s.Generation != saved+1 {
			t.Fatalf("generation %d after kill %d, want %d or one more", s.Generation, round, saved)
		}
		if diff := cmp.Diff(sample(s.Generation), s); diff != "" {
			t.Fatalf("torn state after kill %d:\n%s", round, diff)
		}
		saved = s.Generation
		d.Close()
	}
}

func parse(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("the saver says %q", s)
	}
	return n
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(dir, "shared")
	if err := errors.Join(os.Mkdir(shared, 0o700), os.Chmod(shared, 0o770)); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(dir, "locked")
	if err := errors.Join(os.Mkdir(locked, 0o700), os.Symlink(file, filepath.Join(locked, "lock"))); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink("nowhere", dangling); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, path, text string }{
		{"file", file, "not a directory"},
		{"below_file", filepath.Join(file, "data"), "cannot be"},
		{"shared", shared, "can be written by other users (mode 0770)"},
		{"lock_is_symlink", locked, "cannot be opened"},
		{"dangling", dangling, "cannot be read"},
		{"long", filepath.Join(dir, strings.Repeat("x", 300)), "cannot be"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := state.Open(tc.path)
			wantLine(t, err, fault.ErrInvalid, tc.path, tc.text)
		})
	}
	err := state.CheckDir(dir, os.Geteuid()+1)
	wantLine(t, err, fault.ErrInvalid, dir, fmt.Sprintf("belongs to user id %d, but this process runs as %d", os.Geteuid(), os.Geteuid()+1))
}

// TestUnreadable looks at a closed directory and a closed file as somebody who is
// not root.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	uid := os.Geteuid()
	if uid == 0 {
		uid = nobody
	}
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	d := open(t, data)
	save(t, d, sample(1))
	d.Close()
	for _, name := range []string{"", "lock", "state"} {
		if err := os.Chown(filepath.Join(data, name), uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(data, "state"), 0); err != nil {
		t.Fatal(err)
	}
	run := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			// The thread is not unlocked: it ends with the goroutine, and with it the
			// changed user id, which the raw call sets for this thread only.
			if os.Geteuid() == 0 {
				runtime.LockOSThread()
				if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
					t.Errorf("setresuid: %v", errno)
					return
				}
			}
			f()
		}()
		<-done
	}
	run(func() {
		d, err := state.Open(data)
		if err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		if _, err := d.Load(); !errors.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("Load of a closed file = %v, want ErrInvalid with the reason", err)
		}
	})
	if err := os.Chmod(data, 0); err != nil {
		t.Fatal(err)
	}
	run(func() {
		if _, err := state.Open(data); !errors.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "permission denied") || !strings.Contains(err.Error(), "chmod 700") {
			t.Errorf("Open of a closed directory = %v, want ErrInvalid with reason and remedy", err)
		}
	})
	if err := os.Chmod(data, 0o700); err != nil {
		t.Fatal(err)
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
