package client

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

// SectionFile is a configuration file of somebody else's program in which a section is
// ours: PostgreSQL's ~/.pg_service.conf, MySQL's ~/.my.cnf. Everything else in it stays
// as it is, to the byte.
type SectionFile struct {
	// Path is where it is; a symbolic link is followed.
	Path string
}

// Put writes a section in the place of the one with the name, or at the end.
func (f SectionFile) Put(name string, lines ...string) error {
	var section bytes.Buffer
	section.WriteString("[" + name + "]\n")
	for _, line := range lines {
		if strings.ContainsAny(line, "\r\n\x00") {
			return fault.Invalid("%s cannot hold %q", f.Path, line)
		}
		section.WriteString(line + "\n")
	}
	return f.change(name, section.Bytes())
}

// Remove takes the section with the name out. A file that is not there is left alone.
func (f SectionFile) Remove(name string) error { return f.change(name, nil) }

// Has reports whether there is a section with the name.
func (f SectionFile) Has(name string) bool {
	data, err := readFile(f.Path)
	if err != nil {
		return false
	}
	for line := range bytes.Lines(data) {
		if got, ok := sectionName(line); ok && got == name {
			return true
		}
	}
	return false
}

func (f SectionFile) change(name string, section []byte) error {
	if name == "" || strings.ContainsAny(name, "[]\r\n\x00") {
		return fault.Invalid("%q cannot be the name of a section in %s", name, f.Path)
	}
	path, err := filepath.EvalSymlinks(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		path = f.Path
	} else if err != nil {
		return fault.Invalid("change %s: %w", f.Path, err)
	}
	unlock, err := lockFileOf(path)
	if err != nil {
		return err
	}
	defer unlock()
	mode := fs.FileMode(0o600)
	old, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if section == nil {
			return nil
		}
	case err != nil:
		return fault.Invalid("change %s: %w", f.Path, err)
	default:
		if info, err := os.Stat(path); err == nil {
			mode = info.Mode().Perm()
		}
	}
	text := replaceSection(old, name, section)
	if bytes.Equal(text, old) {
		return nil
	}
	if err := writeFile(path, text); err != nil {
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return fault.Invalid("change %s: %w", f.Path, err)
	}
	return nil
}

// lockFileOf keeps a second tsh from changing the file at the same time. The lock is
// that of the directory: the file itself is replaced.
func lockFileOf(path string) (func(), error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fault.Invalid("change %s: %w", path, err)
	}
	for {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { _ = dir.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			_ = dir.Close()
			return nil, fault.Invalid("change %s: %w", path, err)
		}
	}
}

// replaceSection puts a section in the place of the first one with the name, takes
// others with the name out, and adds it at the end if there was none.
func replaceSection(old []byte, name string, section []byte) []byte {
	var out bytes.Buffer
	placed, inside := section == nil, false
	for line := range bytes.Lines(old) {
		if got, ok := sectionName(line); ok {
			inside = got == name
			if inside && !placed {
				out.Write(section)
				placed = true
			}
		}
		// What stands between the section and the next is not ours but if it is a
		// setting: comments and empty lines stay.
		if inside && (ownLine(line) || isSection(line)) {
			continue
		}
		out.Write(line)
	}
	if !placed {
		if out.Len() > 0 && !bytes.HasSuffix(out.Bytes(), []byte("\n")) {
			out.WriteByte('\n')
		}
		out.Write(section)
	}
	return out.Bytes()
}

// sectionName returns the name of the section that the line begins.
func sectionName(line []byte) (string, bool) {
	text := strings.TrimSpace(string(line))
	if !strings.HasPrefix(text, "[") {
		return "", false
	}
	name, _, ok := strings.Cut(text[1:], "]")
	return strings.TrimSpace(name), ok
}

func isSection(line []byte) bool {
	_, ok := sectionName(line)
	return ok
}

// ownLine reports whether a line in a section is a setting.
func ownLine(line []byte) bool {
	text := bytes.TrimSpace(line)
	return len(text) > 0 && text[0] != '#' && text[0] != ';'
}
