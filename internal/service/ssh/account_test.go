package ssh

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"teleport/internal/fault"
)

// host writes the files of a made-up host.
func host(t testing.TB) hostFiles {
	t.Helper()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return hostFiles{
		passwd: file("passwd", "root:x:0:0::/root:/bin/bash\nann:x:1000:1000:Ann:/home/ann:\nbad:x:many:1::/:/bin/sh\nhole\nrel:x:5:5::home:/bin/sh\nall:x:4294967295:5::/:/bin/sh\n"),
		group:  file("group", "root:x:0:\nusers:x:100:bob,ann\nadm:x:4:annette\nwheel:x:10:ann\ndup:x:1000:ann\nbroken\n"),
		shadow: file("shadow", "ann:*:1::::::\nold:*:1:::::1:\nodd:*:1:::::x:\n"),
		nologin: []string{
			filepath.Join(dir, "nologin"),
		},
		getent: file("getent", "#!/bin/sh\nif [ \"$*\" = '-- passwd ldap' ]; then echo 'ldap:x:7000:7000::/home/ldap:/bin/sh'; elif [ \"$*\" = '-- passwd Case' ]; then echo 'case:x:1:1::/:/bin/sh'; else exit 2; fi\n"),
		id:     file("id", "#!/bin/sh\necho 7000 7001\n"),
	}
}

func TestFindAccount(t *testing.T) {
	h := host(t)
	tests := []struct {
		name   string
		uid    uint32
		groups []uint32
		shell  string
		kind   error
	}{
		{name: "root", uid: 0, groups: []uint32{0}, shell: "/bin/bash"},
		{name: "ann", uid: 1000, groups: []uint32{10, 100, 1000}, shell: "/bin/sh"},
		{name: "ldap", uid: 7000, groups: []uint32{7000, 7001}, shell: "/bin/sh"},
		{name: "nobody-here", kind: fault.ErrNotFound},
		{name: "Case", kind: fault.ErrNotFound},
		{name: "an", kind: fault.ErrNotFound},
		{name: "bad", kind: fault.ErrInvalid},
		{name: "rel", kind: fault.ErrInvalid},
		{name: "all", kind: fault.ErrInvalid},
		{name: "-x", kind: fault.ErrInvalid},
		{name: "a b", kind: fault.ErrInvalid},
		{name: "", kind: fault.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := h.find(context.Background(), tt.name)
			if tt.kind != nil {
				if !errors.Is(err, tt.kind) {
					t.Errorf("find(%q) = %+v, %v, want %v", tt.name, a, err, tt.kind)
				}
				return
			}
			if err != nil || a.uid != tt.uid || !slices.Equal(a.groups, tt.groups) || a.shell != tt.shell {
				t.Errorf("find(%q) = %+v, %v, want %+v", tt.name, a, err, tt)
			}
		})
	}
}

func TestClosed(t *testing.T) {
	h := host(t)
	ann, old, odd := &account{name: "ann", uid: 1000}, &account{name: "old", uid: 2}, &account{name: "odd", uid: 3}
	super := &account{name: "root"}
	now := time.Now()
	for _, a := range []*account{ann, super} {
		if err := h.closed(a, now); err != nil {
			t.Errorf("closed(%s) = %v, want nil", a.name, err)
		}
	}
	for _, a := range []*account{old, odd} {
		if err := h.closed(a, now); !errors.Is(err, fault.ErrDenied) {
			t.Errorf("closed(%s) = %v, want denied", a.name, err)
		}
	}
	if err := os.WriteFile(h.nologin[0], []byte("closed for cleaning\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.closed(ann, now); err == nil || err.Error() != "closed for cleaning" {
		t.Errorf("closed with a nologin file = %v, want its text", err)
	}
	if err := h.closed(super, now); err != nil {
		t.Errorf("closed(root) with a nologin file = %v, want nil", err)
	}
}

func TestCredential(t *testing.T) {
	a := &account{name: "ann", uid: 1000, gid: 100, groups: []uint32{100, 7}}
	if c, err := credential(a, 0); err != nil || c.Uid != 1000 || c.Gid != 100 || !slices.Equal(c.Groups, a.groups) {
		t.Errorf("credential as root = %+v, %v", c, err)
	}
	if c, err := credential(a, 1000); err != nil || c != nil {
		t.Errorf("credential as oneself = %+v, %v, want none", c, err)
	}
	if _, err := credential(a, 1001); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("credential as somebody else = %v, want denied", err)
	}
}

func TestCheckStatus(t *testing.T) {
	want := &syscall.Credential{Uid: 7, Gid: 8, Groups: []uint32{9, 8}}
	good := "Name:\tx\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t8 9 \n"
	tests := []struct {
		name, status string
		ok           bool
	}{
		{"good", good, true},
		{"effective_root", strings.Replace(good, "7\t7\t7\t7", "7\t0\t7\t7", 1), false},
		{"saved_root", strings.Replace(good, "7\t7\t7\t7", "7\t7\t0\t7", 1), false},
		{"group_kept", strings.Replace(good, "8\t8\t8\t8", "8\t8\t0\t8", 1), false},
		{"more_groups", strings.Replace(good, "8 9", "0 8 9", 1), false},
		{"fewer_groups", strings.Replace(good, "8 9", "8", 1), false},
		{"nothing", "", false},
		{"no_groups_line", strings.Split(good, "Groups")[0], false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := checkStatus(tt.status, want, false); (err == nil) != tt.ok {
				t.Errorf("checkStatus = %v, want success %t", err, tt.ok)
			}
		})
	}
}

func TestAcceptEnv(t *testing.T) {
	for name, want := range map[string]bool{
		"LANG": true, "LC_ALL": true, "LC_my9": true, "COLORTERM": true, "LC_": false, "LC_A=B": false, "LC_A-B": false, "LD_PRELOAD": false,
		"BASH_ENV": false, "PATH": false, "lang": false, "": false, "TERM": false,
	} {
		if got := acceptEnv(name); got != want {
			t.Errorf("acceptEnv(%q) = %t, want %t", name, got, want)
		}
	}
}

func FuzzAccountLines(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/bash", "root")
	f.Add("users:x:100:bob,ann", "ann")
	f.Fuzz(func(t *testing.T, line, user string) {
		if a, err := parsePasswd(line); err == nil && (a.name == "" || a.uid == noID || !strings.HasPrefix(a.shell, "/") || !strings.HasPrefix(a.home, "/")) {
			t.Errorf("parsePasswd(%q) = %+v", line, a)
		}
		if gid, member := parseGroup(line, user); member && gid == noID {
			t.Errorf("parseGroup(%q) gave the id that means no change", line)
		}
		_ = checkStatus(line, &syscall.Credential{}, false)
	})
}

func TestLoginRecords(t *testing.T) {
	dir := t.TempDir()
	book := &loginBook{utmp: filepath.Join(dir, "utmp"), wtmp: filepath.Join(dir, "wtmp"), lastlog: filepath.Join(dir, "lastlog")}
	a := &account{name: "ann", uid: 3}
	remote := textAddr("192.0.2.1:4711")
	// Nothing is made where nothing was.
	book.begin(42, "/dev/pts/5", a, remote).end()
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("files were made: %v, %v", names, err)
	}
	for _, path := range []string{book.utmp, book.wtmp, book.lastlog} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := book.begin(42, "/dev/pts/5", a, remote)
	second := book.begin(43, "/dev/pts/17", a, remote)
	size := func(path string) int {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	utmp, err := os.ReadFile(book.utmp)
	if err != nil || len(utmp) != 2*utmpSize() {
		t.Fatalf("utmp has %d bytes, %v, want two records", len(utmp), err)
	}
	text := func(b []byte) string { return strings.TrimRight(string(b), "\x00") }
	if text(utmp[utLine:utID]) != "pts/5" || text(utmp[utUser:utHost]) != "ann" || text(utmp[utHost:utExit]) != "192.0.2.1" || utmp[0] != userProcess {
		t.Errorf("first record = %q", utmp[:utmpSize()])
	}
	if size(book.lastlog) != 4*292 {
		t.Errorf("lastlog has %d bytes, want four places", size(book.lastlog))
	}
	// who(1) is the judge of the form.
	out, err := exec.Command("who", book.utmp).Output()
	if f := strings.Fields(string(out)); err != nil || len(f) < 10 || f[0] != "ann" || f[1] != "pts/5" || !strings.Contains(string(out), "(192.0.2.1)") {
		t.Errorf("who = %q, %v, want two logins", out, err)
	}
	first.end()
	second.end()
	var none *loginRecord
	none.end()
	// The terminal's place is used again.
	book.begin(44, "/dev/pts/5", a, remote)
	if size(book.utmp) != 2*utmpSize() || size(book.wtmp) != 5*utmpSize() {
		t.Errorf("utmp has %d bytes and wtmp %d, want 2 and 5 records of %d", size(book.utmp), size(book.wtmp), utmpSize())
	}
}
