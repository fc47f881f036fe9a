package state_test

import (
	"bufio"
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
