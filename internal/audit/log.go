package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/fault"
)

const (
	// dayForm and fileEnd make the name of a day's file.
	dayForm = "2006-01-02"
	fileEnd = ".00:00:00.log"
	// currentLink points to the newest file.
	currentLink = "events.log"
)

// Log is a folder of append-only files with one JSON line an event, a file for
// each day in UTC, and a link events.log to the newest. It is a projection of
// the store: the store remains the truth.
//
// When Append returns without an error, its lines are on the disk: the file is
// synced once a call, so a caller with many events appends them in one call. A
// line torn by a crash is removed when the folder is opened; its event was not
// acknowledged and is to be appended again.
type Log struct {
	dir string

	mu   sync.Mutex
	file *os.File
	// day is the name of file; the empty string when none is open.
	day string
	// size is where the last whole line ends.
	size int64
	// torn is set while the file may have part of a line after size.
	torn     bool
	lastUID  string
	lastTime time.Time
}

// OpenLog opens the folder, makes it if need be, and repairs the newest file.
func OpenLog(dir string) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("audit log: make folder: %w", err)
	}
	l := &Log{dir: dir}
	names, err := l.files()
	if err != nil {
		return nil, err
	}
	for i := len(names) - 1; i >= 0 && l.lastUID == ""; i-- {
		if err := l.resume(names[i], i == len(names)-1); err != nil {
			return nil, errors.Join(err, l.closeLocked())
		}
	}
	return l, nil
}

// files returns the names of the days' files, oldest first.
func (l *Log) files() ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("audit log: read folder: %w", err)
	}
	var names []string
	for _, e := range entries {
		day, ok := strings.CutSuffix(e.Name(), fileEnd)
		if _, err := time.Parse(dayForm, day); ok && err == nil && e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// resume finds the last whole line of a file. The newest file is repaired and
// stays open for appending.
func (l *Log) resume(name string, newest bool) error {
	f, err := os.OpenFile(filepath.Join(l.dir, name), os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: open %s: %w", name, err)
	}
	size, last, err := scanTail(f)
	if err == nil && newest {
		err = truncate(f, size)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("audit log: repair %s: %w", name, err), f.Close())
	}
	if last != nil {
		l.lastUID, l.lastTime = last.GetUid(), last.GetTime().AsTime()
	}
	if !newest {
		return f.Close()
	}
	l.file, l.day, l.size = f, name, size
	return l.link(name)
}

// truncate cuts the file after its last whole line, if there is more.
func truncate(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil || info.Size() == size {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

// scanTail returns where the last whole line ends and the last line that is an
// event, reading backwards from the end.
func scanTail(f *os.File) (int64, *auditv1.Event, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, nil, err
	}
	start := max(0, info.Size()-2*maxLine)
	tail := make([]byte, info.Size()-start)
	if _, err := f.ReadAt(tail, start); err != nil {
		return 0, nil, err
	}
	text := string(tail)
	end := strings.LastIndexByte(text, '\n') + 1
	if end == 0 && start > 0 {
		return 0, nil, fault.Invalid("no line ends in the last %d bytes: move the file away", len(text))
	}
	size := start + int64(end)
	for text = text[:end]; text != ""; {
		text = strings.TrimSuffix(text, "\n")
		from := strings.LastIndexByte(text, '\n') + 1
		if e, err := ParseJSON([]byte(text[from:])); err == nil {
			return size, e, nil
		}
		text = text[:from]
	}
	return size, nil, nil
}

// Append writes the events as lines, in their order, and syncs. It goes to the
// file of the events' day, but neither back to an earlier file than the newest
// nor ahead of today, so that the files in order of their names hold the lines
// in order of writing. After an error Last says how far it came; a line that was
// written in part is removed before the next one.
func (l *Log) Append(events ...*auditv1.Event) error {
	var lines Lines
	for _, e := range events {
		var enc Encoded
		if err := enc.of(e); err != nil {
			return err
		}
		if err := lines.Add(&enc); err != nil {
			return err
		}
	}
	return l.AppendLines(&lines)
}

// Lines are lines to be appended to a log. The zero value is none of them.
type Lines struct {
	text  []byte
	marks []mark
}

// mark is a line: where it ends, and of what event it is.
type mark struct {
	end  int
	uid  string
	time time.Time
}

// Add adds the line of an event.
func (l *Lines) Add(e *Encoded) error {
	text, err := e.AppendJSON(l.text)
	if err != nil {
		return err
	}
	l.text = append(text, '\n')
	l.marks = append(l.marks, mark{end: len(l.text), uid: e.UID, time: e.Time().AsTime()})
	return nil
}

// keepLines is the room for text that is kept for other lines.
const keepLines = 1 << 20

// Reset drops the lines, and keeps their room for others unless it is great.
func (l *Lines) Reset() {
	if cap(l.text) > keepLines {
		l.text = nil
	}
	l.text, l.marks = l.text[:0], l.marks[:0]
}

// AppendLines is Append for lines.
func (l *Log) AppendLines(lines *Lines) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	today := fileName(time.Now())
	begin := 0
	for i := 0; i < len(lines.marks); {
		day := l.dayOfLocked(lines.marks[i].time, today)
		if err := l.openLocked(day); err != nil {
			return err
		}
		first := i
		for i < len(lines.marks) && (day == today || l.dayOfLocked(lines.marks[i].time, today) == day) {
			i++
		}
		last := lines.marks[i-1]
		if err := l.writeLocked(lines.text[begin:last.end]); err != nil {
			return fmt.Errorf("audit log: write %d events: %w", i-first, err)
		}
		begin, l.lastUID, l.lastTime = last.end, last.uid, last.time
	}
	return nil
}

// dayOfLocked returns the name of the file that an event of the time goes to. File names
// sort by time.
func (l *Log) dayOfLocked(at time.Time, today string) string {
	return max(min(fileName(at), today), l.day)
}

func fileName(t time.Time) string { return t.UTC().Format(dayForm) + fileEnd }

// writeLocked appends whole lines and syncs, or leaves the file as it was.
func (l *Log) writeLocked(lines []byte) error {
	if l.torn {
		if err := truncate(l.file, l.size); err != nil {
			return err
		}
		l.torn = false
	}
	n, err := l.file.Write(lines)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		l.torn = n > 0
		return err
	}
	l.size += int64(n)
	return nil
}

// openLocked makes the file of the day the current one.
func (l *Log) openLocked(day string) error {
	if l.file != nil && l.day == day {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(l.dir, day), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: open %s: %w", day, err)
	}
	info, err := f.Stat()
	if err == nil {
		err = l.link(day)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("audit log: start %s: %w", day, err), f.Close())
	}
	err = l.closeLocked()
	l.file, l.day, l.size, l.torn = f, day, info.Size(), false
	return err
}

// link lets events.log point to the file, without a moment at which it is missing.
func (l *Log) link(name string) error {
	path := filepath.Join(l.dir, currentLink)
	if target, err := os.Readlink(path); err == nil && target == name {
		return nil
	}
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(name, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Last returns the uid and the time of the newest line; both are zero when there
// is none.
func (l *Log) Last() (string, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastUID, l.lastTime
}

// Close closes the current file. The log cannot be used afterwards.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closeLocked()
}

func (l *Log) closeLocked() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
