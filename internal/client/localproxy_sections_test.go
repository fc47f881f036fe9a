package client_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"teleport/internal/client"
)

func TestSectionFile(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "dotfiles")
	if err := os.WriteFile(real, []byte("# mine\n[client]\nuser=me\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, ".my.cnf")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	f := client.SectionFile{Path: link}
	content := func(want string) {
		t.Helper()
		got, err := os.ReadFile(real)
		if err != nil || string(got) != want {
			t.Errorf("got %q, %v\nwant %q", got, err, want)
		}
	}
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	step(f.Put("hub-a", "port=1"))
	step(f.Put("hub-b", "port=2"))
	content("# mine\n[client]\nuser=me\n[hub-a]\nport=1\n[hub-b]\nport=2\n")
	step(f.Put("hub-a", "port=3", "x=y"))
	content("# mine\n[client]\nuser=me\n[hub-a]\nport=3\nx=y\n[hub-b]\nport=2\n")
	if !f.Has("hub-a") || f.Has("hub") {
		t.Error("Has is wrong")
	}
	step(f.Remove("hub-a"))
	step(f.Remove("hub-c"))
	content("# mine\n[client]\nuser=me\n[hub-b]\nport=2\n")
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info, err)
	}
	if target, err := os.Readlink(link); err != nil || target != real {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	if err := f.Put("a]b"); err == nil {
		t.Error("a name with a bracket was taken")
	}
	if err := f.Put("a", "x=1\n[client]\npassword=y"); err == nil {
		t.Error("a value with a line break was taken")
	}
	fresh := client.SectionFile{Path: filepath.Join(dir, "new")}
	step(fresh.Remove("a"))
	if _, err := os.Stat(fresh.Path); err == nil {
		t.Error("Remove made a file")
	}
	old := unix.Umask(0)
	step(fresh.Put("a", "b=c"))
	unix.Umask(old)
	if info, err := os.Stat(fresh.Path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a new file has mode %v, %v", info, err)
	}
}

func FuzzSectionFile(f *testing.F) {
	f.Add("[a]\nb=c\n# d\n\n[e]\n")
	f.Add("x")
	f.Add("[hub-db]\nport=1\n")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<16 {
			return
		}
		file := client.SectionFile{Path: filepath.Join(t.TempDir(), "f")}
		if err := os.WriteFile(file.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if file.Has("hub-db") {
			return
		}
		if err := file.Put("hub-db", "port=1"); err != nil {
			t.Fatal(err)
		}
		if !file.Has("hub-db") {
			t.Fatal("the section is not there")
		}
		if err := file.Remove("hub-db"); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file.Path)
		if err != nil || strings.TrimSuffix(string(got), "\n") != strings.TrimSuffix(text, "\n") {
			t.Errorf("%q became %q, %v", text, got, err)
		}
	})
}
