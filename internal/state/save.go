package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

// Save replaces the saved state and keeps what was saved before as its
// predecessor. When it returns nil the state survives a crash of the machine; when
// it fails, or the process is killed in it, the old state is still what Load
// returns.
func (d *Dir) Save(s *State) error {
	data, err := encode(s)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.writeNew(data); err != nil {
		return fmt.Errorf("save state in %q: %w", d.path, err)
	}
	// A damaged file must not push a good predecessor out.
	switch _, err := d.read(fileCurrent); {
	case err == nil:
		if err := d.rename(fileCurrent, filePrev); err != nil {
			return err
		}
	case !recoverable(err):
		return err
	}
	if err := d.rename(fileNew, fileCurrent); err != nil {
		return err
	}
	return d.sync()
}

// room is more than a state ever has.
const room = 256 << 10

// Room finds out whether there is room to save a state: what is given only once is not
// to be asked for before. The error is that of Save.
func (d *Dir) Room() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.writeNew(make([]byte, room)); err != nil {
		return fmt.Errorf("save state in %q: %w", d.path, err)
	}
	return os.Remove(filepath.Join(d.path, fileNew))
}

// writeNew writes and syncs the new file under its temporary name.
func (d *Dir) writeNew(data []byte) error {
	name := filepath.Join(d.path, fileNew)
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fault.Limit("the disk is full: free some space, the old state is kept: %w", err)
		}
		_ = os.Remove(name) // the next save does, otherwise
		return err
	}
	return nil
}

func createExclusive(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, fileMode)
}

func (d *Dir) rename(from, to string) error {
	if err := os.Rename(filepath.Join(d.path, from), filepath.Join(d.path, to)); err != nil {
		return fmt.Errorf("save state in %q: %w", d.path, err)
	}
	return nil
}

// sync makes the renames durable.
func (d *Dir) sync() error {
	if err := syncDir(d.path); err != nil {
		return fmt.Errorf("save state in %q: %w", d.path, err)
	}
	return nil
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
