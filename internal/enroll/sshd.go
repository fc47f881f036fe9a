package enroll

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"teleport/internal/fault"
	"teleport/internal/keys"
)

const (
	beginMark = "# BEGIN teleport join openssh: written by that command, changes here are lost"
	endMark   = "# END teleport join openssh"
	// trustedName is the file with the keys that sign logins, ownKeyName a host key where
	// the sshd has none.
	trustedName = "trusted_user_ca.pub"
	ownKeyName  = "ssh_host_ed25519_key"
	// previousSuffix is that of the configuration as it was.
	previousSuffix = ".before-teleport"

	maxConfig      = 1 << 20
	maxKeyFile     = 64 << 10
	maxKeys        = 8
	commandTimeout = time.Minute
	maxOutput      = 512
)

// sshdConfig is the configuration of an sshd.
type sshdConfig struct {
	// path is the file itself, behind symbolic links.
	path  string
	check []string
	// text is the file as it is, rest what is not ours in it.
	text, rest string
	info       fs.FileInfo
	// keys are the paths of its host keys, trusted that of the file with the authorities
	// that it trusts already, or "".
	keys    []string
	trusted string
}

// readSSHD reads a configuration, and asks the sshd what it makes of it without the
// block that an earlier run wrote.
func readSSHD(ctx context.Context, path string, check []string) (*sshdConfig, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fault.Invalid("the configuration of the sshd, %s, cannot be read: %w: give --openssh-config", path, cause(err))
	}
	s := &sshdConfig{path: real, check: check}
	if s.info, err = os.Stat(real); err != nil || !s.info.Mode().IsRegular() || s.info.Size() > maxConfig {
		return nil, fault.Invalid("the configuration of the sshd, %s, is no file of at most %d bytes", real, maxConfig)
	}
	text, err := os.ReadFile(real)
	if err != nil {
		return nil, fault.Invalid("the configuration of the sshd, %s, cannot be read: %w", real, cause(err))
	}
	s.text = string(text)
	if s.rest, err = withoutBlock(s.text); err != nil {
		return nil, fault.Invalid("%s: %w", real, err)
	}
	return s, s.ask(ctx)
}

// withoutBlock takes the block off.
func withoutBlock(text string) (string, error) {
	before, more, found := strings.Cut(text, beginMark+"\n")
	if !found {
		if strings.Contains(text, endMark) {
			return "", errors.New("the block of `teleport join openssh` has an end and no beginning: remove what is left of it")
		}
		return text, nil
	}
	_, after, found := strings.Cut(more, endMark+"\n")
	if !found || strings.Contains(after, beginMark) || strings.Contains(before, endMark) {
		return "", errors.New("the block of `teleport join openssh` has a beginning and no end, or is there twice: remove it")
	}
	return before + strings.TrimPrefix(after, "\n"), nil
}

// ask has the sshd print its configuration (sshd -T).
func (s *sshdConfig) ask(ctx context.Context) error {
	file, err := s.draft(s.rest)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file) }()
	out, err := run(ctx, s.check[0], "-T", "-f", file)
	if err != nil && strings.Contains(out, "no hostkeys available") {
		// It says nothing before it has one.
		spare, rmErr := spareKey(filepath.Dir(s.path))
		if rmErr != nil {
			return rmErr
		}
		defer func() { _ = os.Remove(spare) }()
		out, err = run(ctx, s.check[0], "-T", "-h", spare, "-f", file)
		out = strings.ReplaceAll(out, "hostkey "+spare+"\n", "")
	}
	if err != nil {
		return fault.Invalid("the sshd cannot use its configuration %s as it is: %s", s.path, strings.ReplaceAll(clip(out, err), file, s.path))
	}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch strings.ToLower(name) {
		case "hostkey":
			s.keys = append(s.keys, value)
		case "trustedusercakeys":
			if value != "none" {
				s.trusted = value
			}
		case "hostcertificate":
			if value != "none" {
				return fault.Invalid("%s has HostCertificate %s already: a host key has one certificate, remove that line first", s.path, value)
			}
		}
	}
	return nil
}

// hostKey is a host key of the sshd.
type hostKey struct {
	path     string
	certName string
	public   ssh.PublicKey
	// own is set for one that was made here.
	own bool
}

// hostKeys returns the keys that the sshd has, or makes one in the directory.
func (s *sshdConfig) hostKeys(dir string) ([]hostKey, error) {
	var out []hostKey
	names := map[string]bool{}
	for _, path := range s.keys {
		public, err := readPublic(path)
		if err != nil || len(out) == maxKeys {
			continue // it is not there, or not of a kind that is certified
		}
		name := filepath.Base(path) + "-cert.pub"
		for n := 2; names[name]; n++ {
			name = fmt.Sprintf("%s-%d-cert.pub", filepath.Base(path), n)
		}
		names[name] = true
		out = append(out, hostKey{path: path, certName: name, public: public})
	}
	if len(out) > 0 {
		return out, nil
	}
	path := filepath.Join(dir, ownKeyName)
	public, err := readPublic(path)
	if errors.Is(err, fs.ErrNotExist) {
		public, err = makeKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("host key %s: %w", path, err)
	}
	return []hostKey{{path: path, certName: ownKeyName + "-cert.pub", public: public, own: true}}, nil
}

// readPublic returns the public half of a host key, which the file beside it or the key
// itself has.
func readPublic(path string) (ssh.PublicKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, fault.Invalid("it is no file of at most %d bytes", maxKeyFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fault.Invalid("it is no private key without a passphrase")
	}
	return keys.ParsePublicSSH(signer.PublicKey().Marshal())
}

// spareKey writes a key to a file of its own in the directory.
func spareKey(dir string) (string, error) {
	f, err := os.CreateTemp(dir, ".host-key-*")
	if err != nil {
		return "", fault.Invalid("write to %s: %w", dir, cause(err))
	}
	_ = f.Close()
	_, err = makeKey(f.Name())
	return f.Name(), err
}

func makeKey(path string) (ssh.PublicKey, error) {
	key, err := keys.Generate(keys.Ed25519)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, fmt.Errorf("write the key as OpenSSH does: %w", err)
	}
	if err := replaceFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	return readPublic(path)
}

// replace writes the block with the lines to the top of the configuration: what comes
// first counts, and behind a Match line it would be about a few only. The sshd checks
// the new file before it takes the place of the old one. It returns the path of the
// file as it was, or "" if nothing had to change.
func (s *sshdConfig) replace(ctx context.Context, lines []string) (previous string, err error) {
	text := beginMark + "\n" + strings.Join(lines, "\n") + "\n" + endMark + "\n\n" + s.rest
	file, err := s.draft(text)
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(file) }()
	if out, err := run(ctx, append(slices.Clone(s.check), file)...); err != nil {
		return "", fault.Invalid("the sshd does not accept the new configuration, and %s is as it was: %s", s.path, strings.ReplaceAll(clip(out, err), file, s.path))
	}
	if text == s.text {
		return "", nil
	}
	now, err := os.ReadFile(s.path)
	if err != nil || string(now) != s.text {
		return "", fault.Stale("%s was changed by somebody else meanwhile: run this again", s.path)
	}
	previous = s.path + previousSuffix
	if err := replaceFile(previous, []byte(s.text), s.info.Mode().Perm()); err != nil {
		return "", err
	}
	if err := os.Rename(file, s.path); err != nil {
		return "", fault.Invalid("replace %s: %w", s.path, cause(err))
	}
	return previous, syncDir(filepath.Dir(s.path))
}

// draft writes a text beside the configuration, with its owner and mode.
func (s *sshdConfig) draft(text string) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(s.path), "."+filepath.Base(s.path)+".teleport-*")
	if err != nil {
		return "", fault.Invalid("write beside %s: %w: run this as the user who may, usually root", s.path, cause(err))
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chmod(s.info.Mode().Perm()))
	if st, ok := s.info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
		err = errors.Join(err, f.Chown(int(st.Uid), int(st.Gid)))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return "", fault.Invalid("write beside %s: %w", s.path, err)
	}
	return f.Name(), nil
}

// replaceFile writes a file as a whole or not at all.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fault.Invalid("write %s: %w", path, cause(err))
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fault.Invalid("write %s: %w", path, cause(err))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

func authorizedLine(key ssh.PublicKey) []byte { return ssh.MarshalAuthorizedKey(key) }

// run runs a command without a shell and returns what it said.
func run(ctx context.Context, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	program, err := exec.LookPath(command[0])
	if err != nil && !strings.Contains(command[0], "/") {
		// Where sshd and systemctl are, and the search path of users may not lead.
		for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"} {
			if p := filepath.Join(dir, command[0]); err != nil && executable(p) {
				program, err = p, nil
			}
		}
	}
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, program, command[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// clip makes one line of what a command said.
func clip(out string, err error) string {
	text := strings.Join(strings.FieldsFunc(out, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, text)
	if text == "" {
		return err.Error()
	}
	return text[:min(len(text), maxOutput)]
}

// cause strips the path that the os package puts into its errors.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
