package transfer_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"teleport/internal/client/transfer"
	"teleport/internal/fault"
)

// serve runs an SSH server whose sftp subsystem is handled by the function, and returns
// a connection to it.
func serve(t *testing.T, handle func(ch ssh.Channel)) *ssh.Client {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		conf := &ssh.ServerConfig{NoClientAuth: true}
		conf.AddHostKey(signer)
		_, chans, reqs, err := ssh.NewServerConn(raw, conf)
		if err != nil {
			return
		}
		go ssh.DiscardRequests(reqs)
		for newChannel := range chans {
			ch, requests, err := newChannel.Accept()
			if err != nil {
				return
			}
			go func() {
				for req := range requests {
					ok := req.Type == "subsystem" && handle != nil
					_ = req.Reply(ok, nil)
					if ok {
						go func() {
							handle(ch)
							_ = ch.Close()
						}()
					}
				}
			}()
		}
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, chans, reqs, err := ssh.NewClientConn(raw, "", &ssh.ClientConfig{User: "root", HostKeyCallback: ssh.FixedHostKey(signer.PublicKey())})
	if err != nil {
		t.Fatal(err)
	}
	client := ssh.NewClient(conn, chans, reqs)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// remote is a server whose relative names begin in the directory.
func remote(t *testing.T, dir string) *transfer.Remote {
	t.Helper()
	side, err := transfer.Dial(serve(t, func(ch ssh.Channel) {
		server, err := sftp.NewServer(ch, sftp.WithServerWorkingDirectory(dir))
		if err == nil {
			_ = server.Serve()
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = side.Close() })
	return side
}

// write makes files; a name that ends in a slash is a directory.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// tree returns what is below a directory, with the texts of files.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if d.IsDir() {
			out[name+"/"] = ""
			return nil
		}
		text, err := os.ReadFile(path)
		out[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// copying is one Job that is watched.
type copying struct {
	transfer.Job
	mu       sync.Mutex
	problems []string
}

func (c *copying) run(t *testing.T, sources []transfer.Source, to transfer.Side, name string) (int, error) {
	t.Helper()
	c.Problem = func(name string, err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.problems = append(c.problems, name+": "+err.Error())
	}
	c.Meter = &transfer.Meter{}
	return c.Copy(t.Context(), sources, to, name)
}

// Every direction copies files and directories the way scp names them.
func TestCopy(t *testing.T) {
	big := make([]byte, 3<<20+17)
	if _, err := rand.Read(big); err != nil {
		t.Fatal(err)
	}
	from := map[string]string{
		"one": "first", "two": "second", "empty": "", "big": string(big),
		"dir/a": "a", "dir/sub/b": "b", "dir/sub/none/": "", "dir/.hidden": "h",
	}
	for name, tt := range map[string]struct {
		names []string
		to    string
		there map[string]string
		want  map[string]string
	}{
		"file_to_name":     {names: []string{"one"}, to: "new", want: map[string]string{"new": "first"}},
		"file_over_file":   {names: []string{"one"}, to: "old", there: map[string]string{"old": "longer than before"}, want: map[string]string{"old": "first"}},
		"file_into_dir":    {names: []string{"one"}, to: "in", there: map[string]string{"in/": ""}, want: map[string]string{"in/": "", "in/one": "first"}},
		"files_into_dir":   {names: []string{"one", "two", "empty"}, to: "in", there: map[string]string{"in/": ""}, want: map[string]string{"in/": "", "in/one": "first", "in/two": "second", "in/empty": ""}},
		"big":              {names: []string{"big"}, to: "big", want: map[string]string{"big": string(big)}},
		"dir_to_name":      {names: []string{"dir"}, to: "new", want: map[string]string{"new/": "", "new/a": "a", "new/.hidden": "h", "new/sub/": "", "new/sub/b": "b", "new/sub/none/": ""}},
		"dir_into_dir":     {names: []string{"dir/"}, to: "in", there: map[string]string{"in/": ""}, want: map[string]string{"in/": "", "in/dir/": "", "in/dir/a": "a", "in/dir/.hidden": "h", "in/dir/sub/": "", "in/dir/sub/b": "b", "in/dir/sub/none/": ""}},
		"dir_over_the_dir": {names: []string{"dir/sub"}, to: ".", there: map[string]string{"sub/b": "old", "sub/kept": "k"}, want: map[string]string{"sub/": "", "sub/b": "b", "sub/kept": "k", "sub/none/": ""}},
	} {
		for _, way := range []string{"up", "down", "across"} {
			t.Run(name+"/"+way, func(t *testing.T) {
				here, there := t.TempDir(), t.TempDir()
				write(t, here, from)
				write(t, there, tt.there)
				var source, target transfer.Side = transfer.Local{}, transfer.Local{}
				if way != "up" {
					source = remote(t, here)
				}
				if way != "down" {
					target = remote(t, there)
				}
				var sources []transfer.Source
				total := 0
				for _, n := range tt.names {
					sources = append(sources, transfer.Source{Side: source, Name: source.Join(here, n)})
					for path, text := range from {
						if path == n || strings.HasPrefix(path, strings.TrimSuffix(n, "/")+"/") {
							total += len(text)
						}
					}
				}
				c := &copying{Job: transfer.Job{Recursive: true}}
				failed, err := c.run(t, sources, target, filepath.Join(there, tt.to))
				if err != nil || failed != 0 {
					t.Fatalf("Copy = %d, %v, %q", failed, err, c.problems)
				}
				got := tree(t, there)
				for path, text := range tt.want {
					if have, ok := got[path]; !ok || have != text {
						t.Errorf("%s: %d bytes, %v, want %d", path, len(have), ok, len(text))
					}
				}
				if len(got) != len(tt.want) {
					t.Errorf("%d files and directories, want %d", len(got), len(tt.want))
				}
				if done := c.Meter.Done.Load(); done != int64(total) || c.Meter.Total.Load() != done {
					t.Errorf("counted %d of %d bytes, want %d", done, c.Meter.Total.Load(), total)
				}
			})
		}
	}
}

func TestPermissionsAndTimes(t *testing.T) {
	past := time.Now().Add(-1000 * time.Hour).Truncate(time.Second)
	for _, way := range []string{"up", "down"} {
		for _, preserve := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", way, preserve), func(t *testing.T) {
				here, there := t.TempDir(), t.TempDir()
				write(t, here, map[string]string{"d/run": "#!", "d/secret": "s", "d/set": "u"})
				for name, mode := range map[string]fs.FileMode{"d/run": 0o755, "d/secret": 0o600, "d/set": 0o755 | fs.ModeSetuid, "d": 0o700} {
					path := filepath.Join(here, name)
					if err := errors.Join(os.Chmod(path, mode), os.Chtimes(path, past, past)); err != nil {
						t.Fatal(err)
					}
				}
				var source, target transfer.Side = transfer.Local{}, remote(t, there)
				if way == "down" {
					source, target = remote(t, here), transfer.Local{}
				}
				c := &copying{Job: transfer.Job{Recursive: true, Preserve: preserve}}
				if failed, err := c.run(t, []transfer.Source{{Side: source, Name: filepath.Join(here, "d")}}, target, there); err != nil || failed != 0 {
					t.Fatalf("Copy = %d, %v, %q", failed, err, c.problems)
				}
				for name, mode := range map[string]fs.FileMode{"d/run": 0o755, "d/secret": 0o600, "d/set": 0o755, "d": fs.ModeDir | 0o700} {
					info, err := os.Stat(filepath.Join(there, name))
					if err != nil || info.Mode() != mode {
						t.Errorf("%s has mode %v, %v, want %v", name, info.Mode(), err, mode)
					}
					if kept := info.ModTime().Equal(past); kept != preserve {
						t.Errorf("%s was changed at %s, want it kept: %v", name, info.ModTime(), preserve)
					}
				}
			})
		}
	}
}

// What cannot be copied is named, and the rest is copied.
func TestProblems(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	write(t, here, map[string]string{"d/good": "g", "d/sub/x": "x"})
	if err := errors.Join(os.Symlink("nowhere", filepath.Join(here, "d/broken")), os.Symlink("good", filepath.Join(here, "d/link")),
		os.Symlink("..", filepath.Join(here, "d/sub/up"))); err != nil {
		t.Fatal(err)
	}
	c := &copying{}
	failed, err := c.run(t, []transfer.Source{{Side: transfer.Local{}, Name: filepath.Join(here, "d")}, {Side: transfer.Local{}, Name: filepath.Join(here, "none")}}, remote(t, there), there)
	if err != nil || failed != 2 || !strings.Contains(c.problems[0], "use -r") || !strings.HasSuffix(c.problems[1], "none: no such file or directory") {
		t.Errorf("Copy = %d, %v, %q", failed, err, c.problems)
	}
	c = &copying{}
	if _, err := c.run(t, []transfer.Source{{}, {}}, transfer.Local{}, filepath.Join(there, "none")); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("two files to one name: %v", err)
	}
	if err := os.Remove(filepath.Join(here, "d/sub/up")); err != nil {
		t.Fatal(err)
	}
	c = &copying{Job: transfer.Job{Recursive: true}}
	failed, err = c.run(t, []transfer.Source{{Side: transfer.Local{}, Name: filepath.Join(here, "d")}}, remote(t, there), there)
	if err != nil || failed != 1 || !strings.Contains(c.problems[0], "broken") {
		t.Errorf("Copy = %d, %v, %q", failed, err, c.problems)
	}
	if got := tree(t, there); got["d/good"] != "g" || got["d/link"] != "g" || got["d/sub/x"] != "x" {
		t.Errorf("copied %v", got)
	}
}

func TestDirectoryInItself(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	if err := os.Symlink(here, filepath.Join(here, "loop")); err != nil {
		t.Fatal(err)
	}
	c := &copying{Job: transfer.Job{Recursive: true}}
	failed, err := c.run(t, []transfer.Source{{Side: transfer.Local{}, Name: here}}, remote(t, there), filepath.Join(there, "new"))
	if err != nil || failed != 1 || !strings.Contains(c.problems[0], "symbolic link") {
		t.Errorf("Copy = %d, %v, %q", failed, err, c.problems)
	}
}

func TestCancelled(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	write(t, here, map[string]string{"a": "a"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var said error
	job := transfer.Job{Problem: func(_ string, err error) { said = err }}
	failed, err := job.Copy(ctx, []transfer.Source{{Side: transfer.Local{}, Name: filepath.Join(here, "a")}}, transfer.Local{}, there)
	if err != nil || failed != 1 || !errors.Is(said, context.Canceled) || len(tree(t, there)) != 0 {
		t.Errorf("Copy = %d, %v, %v", failed, err, said)
	}
}

// liar is a server that lists names no file may have.
type liar struct{ names []string }

type liarInfo struct{ name string }

func (i liarInfo) Name() string { return i.name }

func (i liarInfo) Size() int64 { return 4 }

func (i liarInfo) Mode() fs.FileMode {
	switch {
	case strings.HasSuffix(i.name, "listed"):
		return fs.ModeDir | 0o755
	case strings.HasSuffix(i.name, "pipe"):
		return fs.ModeNamedPipe | 0o644
	}
	return 0o644
}

func (i liarInfo) ModTime() time.Time { return time.Unix(0, 0) }

func (i liarInfo) IsDir() bool { return i.Mode().IsDir() }

func (i liarInfo) Sys() any { return nil }

type listing []fs.FileInfo

func (l listing) ListAt(to []fs.FileInfo, at int64) (int, error) {
	if at >= int64(len(l)) {
		return 0, io.EOF
	}
	return copy(to, l[at:]), nil
}

func (l liar) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	if r.Method != "List" {
		return listing{liarInfo{r.Filepath}}, nil
	}
	var out listing
	for _, n := range l.names {
		out = append(out, liarInfo{n})
	}
	return out, nil
}

func (l liar) Fileread(*sftp.Request) (io.ReaderAt, error) {
	return bytes.NewReader([]byte("evil")), nil
}

func (l liar) Filewrite(*sftp.Request) (io.WriterAt, error) { return nil, sftp.ErrSSHFxOpUnsupported }

func (l liar) Filecmd(*sftp.Request) error { return sftp.ErrSSHFxOpUnsupported }

// A server cannot make files beside those that were asked for.
func TestLyingServer(t *testing.T) {
	bad := []string{"../up", "/etc/passwd", "a/b", "..", "x\x00y", "pipe"}
	side, err := transfer.Dial(serve(t, func(ch ssh.Channel) {
		h := liar{append([]string{"good"}, bad...)}
		_ = sftp.NewRequestServer(ch, sftp.Handlers{FileGet: h, FilePut: h, FileCmd: h, FileList: h}).Serve()
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = side.Close() }()
	outer := t.TempDir()
	write(t, outer, map[string]string{"in/": ""})
	c := &copying{Job: transfer.Job{Recursive: true}}
	failed, err := c.run(t, []transfer.Source{{Side: side, Name: "/listed"}}, transfer.Local{}, filepath.Join(outer, "in"))
	if err != nil || failed == 0 {
		t.Errorf("Copy = %d, %v", failed, err)
	}
	got := tree(t, outer)
	for name := range got {
		if name != "in/" && !strings.HasPrefix(name, "in/listed/") || strings.Contains(name, "\x00") || strings.Contains(name, "pipe") {
			t.Errorf("the server made %q", name)
		}
	}
	if got["in/listed/good"] != "evil" {
		t.Errorf("the good file was not copied: %q, %q", got, c.problems)
	}
}

func TestGlob(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a.log": "", "b.log": "", ".c.log": "", "d.txt": "", "sub/e.log": "", ".sub/f.log": "", "[x]": ""})
	side := remote(t, dir)
	for pattern, want := range map[string][]string{
		"*.log":     {"a.log", "b.log"},
		".*.log":    {".c.log"},
		"?.txt":     {"d.txt"},
		"[ab].log":  {"a.log", "b.log"},
		"*/*.log":   {"sub/e.log"},
		".s*/*.log": {".sub/f.log"},
		"none*":     {"none*"},
		"plain":     {"plain"},
		"[x]":       {"[x]"},
		`\[x\]`:     {"[x]"},
	} {
		got, err := side.Glob(pattern)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("Glob(%q) = %q, %v, want %q", pattern, got, err, want)
		}
	}
	if _, err := side.Glob("[a"); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("Glob of a broken pattern = %v", err)
	}
}

func TestHome(t *testing.T) {
	for in, want := range map[string]string{"": ".", "~": ".", "~/x": "x", "~/": ".", "x/y": "x/y", "/etc": "/etc", "~bob/x": ""} {
		if got, err := transfer.Home(in); got != want || (err == nil) != (want != "") {
			t.Errorf("Home(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	if _, err := transfer.Dial(serve(t, nil)); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("no subsystem: %v", err)
	}
	_, err := transfer.Dial(serve(t, func(ch ssh.Channel) { _, _ = fmt.Fprintln(ch.Stderr(), "your roles do not allow it") }))
	if !errors.Is(err, fault.ErrDenied) || !strings.Contains(err.Error(), "your roles do not allow it") {
		t.Errorf("a subsystem that ends: %v", err)
	}
	_, err = transfer.Dial(serve(t, func(ch ssh.Channel) { _, _ = io.WriteString(ch, "\x00\x00\x00\x02hi") }))
	if !errors.Is(err, fault.ErrUnreachable) {
		t.Errorf("no SFTP: %v", err)
	}
}
