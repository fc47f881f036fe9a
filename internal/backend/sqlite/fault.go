package sqlite

import (
	"errors"

	driver "modernc.org/sqlite"
	codes "modernc.org/sqlite/lib"

	"teleport/internal/fault"
)

// code is the primary result code of an error of SQLite, or 0.
func code(err error) int {
	var e *driver.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code() & 0xff
}

func isFull(err error) bool { return code(err) == codes.SQLITE_FULL }

// noRoomToOpen reports whether there was no room for the index of the log, which is
// made when the database is opened.
func noRoomToOpen(err error) bool {
	var e *driver.Error
	return errors.As(err, &e) && e.Code() == codes.SQLITE_IOERR_SHMSIZE
}

// explain turns an error of SQLite into one that says what to do.
func (b *Backend) explain(err error) error {
	if err == nil || fault.Kind(err) != nil {
		return err
	}
	if noRoomToOpen(err) {
		return fault.New(fault.ErrLimit, "the disk that holds %s is full: free 64 KiB or more, then start again (%w)", b.path, err)
	}
	switch code(err) {
	case codes.SQLITE_FULL:
		return fault.New(fault.ErrLimit, "the disk that holds %s is full: nothing was written; free some space, then try again (%w)", b.path, err)
	case codes.SQLITE_CORRUPT, codes.SQLITE_NOTADB:
		return b.damaged(err.Error())
	case codes.SQLITE_IOERR:
		return fault.New(fault.ErrUnreachable, "the disk failed under %s: mend it, then start again (%w)", b.path, err)
	case codes.SQLITE_READONLY, codes.SQLITE_CANTOPEN, codes.SQLITE_PERM, codes.SQLITE_AUTH:
		return fault.New(fault.ErrInvalid, "cannot write the database %s: check the owner and mode of the file and its folder (%w)", b.path, err)
	case codes.SQLITE_BUSY, codes.SQLITE_LOCKED:
		return fault.New(fault.ErrUnreachable, "the database %s is held by another program: stop that one, then try again (%w)", b.path, err)
	}
	return fault.New(fault.ErrUnreachable, "database %s: %w", b.path, err)
}

func (b *Backend) damaged(why string) error {
	return fault.Invalid("the database %s is damaged: restore a copy of it (%s)", b.path, why)
}
