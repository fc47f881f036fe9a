package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"teleport/internal/fault"
)

// output writes data to where -o says: stdout, "file" for the usual path,
// file:///path or a path. It returns the path, or "" for stdout. A file that is
// there already is never changed.
func (a *app) output(to, usual string, data []byte, perm fs.FileMode) (string, error) {
	path := to
	switch {
	case to == "stdout" || to == "-":
		_, err := a.stdout.Write(data)
		return "", err
	case to == "file" && usual != "":
		path = usual
	case strings.HasPrefix(to, "file://"):
		if path = strings.TrimPrefix(to, "file://"); !strings.HasPrefix(path, "/") {
			return "", fault.Invalid("bad --output=%s: expected file:// and an absolute path, such as file:///etc/teleport.yaml", to)
		}
	case !strings.Contains(to, "/") || strings.Contains(to, "://"):
		return "", fault.Invalid("bad --output=%q: expected stdout, file:///path or a path such as ./name", to)
	}
	return path, create(path, data, perm)
}

// create writes a new file. It is no error if the file has this content already.
func create(path string, data []byte, perm fs.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if errors.Is(err, fs.ErrExist) {
		if old, rerr := os.ReadFile(path); rerr == nil && bytes.Equal(old, data) {
			return nil
		}
		return fault.Exists("%s exists already and was not changed: remove it first, or choose another path with -o", path)
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("write output: %w", cerr)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
