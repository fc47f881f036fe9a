package ssh

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"

	"teleport/internal/pam"
	"teleport/internal/sshd"
)

// maxOpenFiles bounds the files and directories that a session has open.
const maxOpenFiles = 512

// sftp serves the subsystem in this process, with the user's rights on every
// operation. Files are streamed: nothing is kept but what is under way.
func (s *Service) sftp(ctx context.Context, r *record, a *account, cred *syscall.Credential) (sshd.Exit, error) {
	if err := mayTransfer(a); err != nil {
		return sshd.Exit{}, err
	}
	held, err := s.holdPAM(ctx, r, cred)
	var refusal *pam.Refusal
	if errors.As(err, &refusal) {
		return sshd.Exit{}, s.reject(ctx, r, err)
	}
	if err != nil {
		return sshd.Exit{}, err
	}
	ctx, done := untilClosed(ctx, held)
	defer done()
	thread, err := newFSThread(cred, processOf(held))
	if err != nil {
		return sshd.Exit{}, err
	}
	defer thread.close()
	h := &sftpServer{files: files{thread}, home: a.home, hosts: s.hosts, log: r.files}
	if info, err := h.files.stat(a.home, true); err != nil || !info.IsDir() {
		h.home = "/"
	}
	server := sftp.NewRequestServer(r.Session, sftp.Handlers{FileGet: h, FilePut: h, FileCmd: h, FileList: h}, sftp.WithStartDirectory(h.home))
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		s.cfg.Log.InfoContext(ctx, "sftp session ended early", "error", err, "sid", r.Session.ID())
		return sshd.Exit{Code: 1}, nil
	}
	return sshd.Exit{}, nil
}

// sftpServer answers the requests of one session.
type sftpServer struct {
	files files
	home  string
	hosts hostFiles
	log   *transfers
	open  atomic.Int64
}

// Fileread opens a file for reading.
func (h *sftpServer) Fileread(req *sftp.Request) (io.ReaderAt, error) {
	return h.openFile(req.Filepath, unix.O_RDONLY, 0, false)
}

// Filewrite opens a file for writing.
func (h *sftpServer) Filewrite(req *sftp.Request) (io.WriterAt, error) {
	return h.openToWrite(req, unix.O_WRONLY)
}

// OpenFile opens a file for reading and writing.
func (h *sftpServer) OpenFile(req *sftp.Request) (sftp.WriterAtReaderAt, error) {
	return h.openToWrite(req, unix.O_RDWR)
}

func (h *sftpServer) openToWrite(req *sftp.Request, flags int) (*transfer, error) {
	p := req.Pflags()
	for flag, set := range map[int]bool{unix.O_CREAT: p.Creat, unix.O_TRUNC: p.Trunc, unix.O_EXCL: p.Excl && p.Creat} {
		if set {
			flags |= flag
		}
	}
	return h.openFile(req.Filepath, flags, createMode(req.Attrs), p.Append)
}

// createMode is the mode that the attributes of an open request ask for. The
// library does not say which attributes they are: a mode alone, or a mode and the
// times, is what clients send.
func createMode(attrs []byte) fs.FileMode {
	const def = 0o666
	if len(attrs) != 4 && len(attrs) != 12 {
		return def
	}
	mode := binary.BigEndian.Uint32(attrs)
	if mode == 0 || mode&^0o177777 != 0 {
		return def
	}
	return fs.FileMode(mode & 0o777)
}

func (h *sftpServer) openFile(name string, flags int, mode fs.FileMode, appending bool) (*transfer, error) {
	if err := h.take(); err != nil {
		return nil, err
	}
	file, err := h.files.open(name, flags, mode)
	if err != nil {
		h.open.Add(-1)
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		err = &fs.PathError{Op: "open", Path: name, Err: unix.EISDIR}
	}
	if err != nil {
		h.open.Add(-1)
		_ = file.Close()
		return nil, err
	}
	t := &transfer{server: h, file: file, path: name, writing: flags&(unix.O_WRONLY|unix.O_RDWR) != 0}
	if appending {
		t.base = info.Size()
	}
	return t, nil
}

// take counts one more open file.
func (h *sftpServer) take() error {
	if h.open.Add(1) > maxOpenFiles {
		h.open.Add(-1)
		return &fs.PathError{Op: "open", Path: "", Err: unix.EMFILE}
	}
	return nil
}

// Filecmd changes the file system.
func (h *sftpServer) Filecmd(req *sftp.Request) error {
	switch req.Method {
	case "Setstat":
		return h.setstat(req)
	case "Rename":
		return h.files.rename(req.Filepath, req.Target, false)
	case "Mkdir":
		return h.files.mkdir(req.Filepath)
	case "Rmdir":
		return h.files.rmdir(req.Filepath)
	case "Remove":
		return h.files.unlink(req.Filepath)
	case "Link":
		return h.files.hardlink(req.Filepath, req.Target)
	case "Symlink":
		return h.files.symlink(req.Filepath, req.Target)
	}
	return sftp.ErrSSHFxOpUnsupported
}

// PosixRename moves and replaces.
func (h *sftpServer) PosixRename(req *sftp.Request) error {
	return h.files.rename(req.Filepath, req.Target, true)
}

// setstat changes the attributes that the request names.
func (h *sftpServer) setstat(req *sftp.Request) error {
	which, attrs := req.AttrFlags(), req.Attributes()
	if attrs == nil {
		return sftp.ErrSSHFxBadMessage
	}
	if which.Size {
		if err := h.files.truncate(req.Filepath, int64(attrs.Size)); err != nil {
			return err
		}
	}
	if which.UidGid {
		if err := h.files.chown(req.Filepath, int(int32(attrs.UID)), int(int32(attrs.GID))); err != nil {
			return err
		}
	}
	if which.Permissions {
		if err := h.files.chmod(req.Filepath, attrs.Mode&0o7777); err != nil {
			return err
		}
	}
	if which.Acmodtime {
		return h.files.chtimes(req.Filepath, time.Unix(int64(attrs.Atime), 0), time.Unix(int64(attrs.Mtime), 0))
	}
	return nil
}

// StatVFS describes the file system of a path.
func (h *sftpServer) StatVFS(req *sftp.Request) (*sftp.StatVFS, error) {
	st, err := h.files.statfs(req.Filepath)
	if err != nil {
		return nil, err
	}
	return &sftp.StatVFS{
		Bsize: uint64(st.Bsize), Frsize: uint64(st.Frsize), Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail,
		Files: st.Files, Ffree: st.Ffree, Favail: st.Ffree, Flag: uint64(st.Flags), Namemax: uint64(st.Namelen),
	}, nil
}

// Filelist lists a directory or describes a file.
func (h *sftpServer) Filelist(req *sftp.Request) (sftp.ListerAt, error) {
	switch req.Method {
	case "List":
		if err := h.take(); err != nil {
			return nil, err
		}
		d, err := h.files.openDir(req.Filepath)
		if err != nil {
			h.open.Add(-1)
			return nil, err
		}
		return &countedDir{directory: d, server: h}, nil
	case "Stat":
		return h.one(req.Filepath, true)
	}
	return nil, sftp.ErrSSHFxOpUnsupported
}

// Lstat describes a file and does not follow a link.
func (h *sftpServer) Lstat(req *sftp.Request) (sftp.ListerAt, error) {
	return h.one(req.Filepath, false)
}

func (h *sftpServer) one(name string, follow bool) (sftp.ListerAt, error) {
	info, err := h.files.stat(name, follow)
	if err != nil {
		return nil, err
	}
	return oneFile{info}, nil
}

// Readlink returns what a link says.
func (h *sftpServer) Readlink(name string) (string, error) { return h.files.readlink(name) }

// RealPath makes a path absolute and resolves links.
func (h *sftpServer) RealPath(name string) (string, error) {
	if !strings.HasPrefix(name, "/") {
		name = strings.TrimSuffix(h.home, "/") + "/" + name
	}
	return h.files.realpath(cleanPath(name)), nil
}

// LookupUserName names a user id in long listings.
func (h *sftpServer) LookupUserName(id string) string { return nameOf(h.hosts.passwd, id) }

// LookupGroupName names a group id in long listings.
func (h *sftpServer) LookupGroupName(id string) string { return nameOf(h.hosts.group, id) }

// nameOf finds the name of an id in passwd(5) or group(5), or returns the id.
func nameOf(path, id string) string {
	name := id
	err := eachLine(path, func(line string) error {
		if f := strings.SplitN(line, ":", 4); len(f) == 4 && f[2] == id {
			name = f[0]
			return errDone
		}
		return nil
	})
	if err != nil {
		return id
	}
	return name
}

// countedDir gives its place back.
type countedDir struct {
	*directory
	server *sftpServer
}

// Close closes the directory.
func (d *countedDir) Close() error {
	d.server.open.Add(-1)
	return d.directory.Close()
}

// oneFile is a list of one.
type oneFile struct{ info fs.FileInfo }

// ListAt returns the file.
func (o oneFile) ListAt(out []fs.FileInfo, offset int64) (int, error) {
	if offset > 0 || len(out) == 0 {
		return 0, io.EOF
	}
	out[0] = o.info
	return 1, io.EOF
}
