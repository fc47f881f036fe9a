package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"golang.org/x/sys/unix"

	"teleport/internal/fault"
)

const (
	// maxFile bounds every file that is read: keys, certificates, known hosts.
	maxFile = 1 << 20
	// lockPatience is how long a second tsh waits for the first.
	lockPatience = 10 * time.Second
	lockInterval = 20 * time.Millisecond

	currentFile    = "current-profile"
	knownHostsFile = "known_hosts"
	lockFile       = ".lock"
	profileSuffix  = ".yaml"
)

// CodeNotLoggedIn is the reason code of errors that a login would mend.
const CodeNotLoggedIn = "not_logged_in"

// Home is the directory of profiles, keys and certificates, ~/.tsh by default.
// Directories are 0700 and files 0600; files are replaced whole.
type Home struct {
	dir string
}

// Profile says where somebody is logged in and as whom.
type Profile struct {
	// Proxy is host:port of the Proxy's one port.
	Proxy string `yaml:"web_proxy_addr"`
	// User is the name the person logs in with.
	User string `yaml:"user"`
	// Cluster is the name of the cluster behind the Proxy.
	Cluster string `yaml:"cluster"`
}

// Paths are the files of a profile; other programs may be pointed at them.
type Paths struct {
	// SSHKey is the private key for SSH; SSHPublic its public half.
	SSHKey, SSHPublic string
	// SSHCert is the certificate over SSHPublic.
	SSHCert string
	// TLSKey and TLSCert are the pair for TLS.
	TLSKey, TLSCert string
	// Authorities holds the host CA's TLS certificates.
	Authorities string
	// KnownHosts holds the host CAs of all profiles for SSH.
	KnownHosts string
}

// OpenHome returns the home in dir, or in ~/.tsh if dir is empty. Nothing is
// made until something is saved.
func OpenHome(dir string) (*Home, error) {
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fault.Invalid("cannot tell where ~/.tsh is (%w): set TELEPORT_HOME", err)
		}
		dir = filepath.Join(home, ".tsh")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Invalid("profile directory %q: %w", dir, err)
	}
	return &Home{dir: abs}, nil
}

// Dir returns the absolute path of the directory.
func (h *Home) Dir() string { return h.dir }

// Host returns the host name of the profile's Proxy, which names its files.
func (p Profile) Host() string {
	host, _, err := net.SplitHostPort(p.Proxy)
	if err != nil {
		return strings.Trim(p.Proxy, "[]")
	}
	return host
}

// Paths returns where the files of p are, whether they exist or not.
func (h *Home) Paths(p Profile) Paths {
	dir := filepath.Join(h.dir, "keys", p.Host())
	return Paths{
		SSHKey:      filepath.Join(dir, p.User),
		SSHPublic:   filepath.Join(dir, p.User+".pub"),
		SSHCert:     filepath.Join(dir, p.User+"-ssh", p.Cluster+"-cert.pub"),
		TLSKey:      filepath.Join(dir, p.User+".key"),
		TLSCert:     filepath.Join(dir, p.User+"-x509.pem"),
		Authorities: filepath.Join(dir, "cas", p.Cluster+".pem"),
		KnownHosts:  filepath.Join(h.dir, knownHostsFile),
	}
}

// Find returns the profile for the Proxy (host or host:port) and user; empty
// values mean the current profile and its user. Without one the error is
// ErrNotFound with CodeNotLoggedIn.
func (h *Home) Find(proxy, user string) (Profile, error) {
	var host string
	if proxy == "" {
		name, err := readFile(filepath.Join(h.dir, currentFile))
		if errors.Is(err, fs.ErrNotExist) {
			return Profile{}, notLoggedIn("not logged in: run tsh login --proxy=HOST --user=NAME")
		}
		if err != nil {
			return Profile{}, fmt.Errorf("read the current profile: %w", err)
		}
		host = strings.TrimSpace(string(name))
	} else {
		host = Profile{Proxy: proxy}.Host()
	}
	p, err := h.readProfile(host)
	if errors.Is(err, fs.ErrNotExist) {
		return Profile{}, notLoggedIn("not logged in at %s: run tsh login --proxy=%s", host, host)
	}
	if err != nil {
		return Profile{}, err
	}
	if _, port, perr := net.SplitHostPort(proxy); perr == nil && proxy != p.Proxy && port != "" {
		return Profile{}, notLoggedIn("not logged in at %s (but at %s): run tsh login --proxy=%s", proxy, p.Proxy, proxy)
	}
	if user != "" {
		p.User = user
	}
	return p, p.check()
}

func notLoggedIn(format string, args ...any) error {
	return fault.New(fault.ErrNotFound, format, args...).WithCode(CodeNotLoggedIn)
}

func (h *Home) readProfile(host string) (Profile, error) {
	if err := fileName("Proxy host", host); err != nil {
		return Profile{}, err
	}
	path := filepath.Join(h.dir, host+profileSuffix)
	data, err := readFile(path)
	if err != nil {
		return Profile{}, err
	}
	var p Profile
	if err := yaml.Unmarshal(data, &p); err != nil {
		return Profile{}, fault.Invalid("profile %s is damaged: run tsh login --proxy=%s again", path, host)
	}
	if p.Host() != host {
		return Profile{}, fault.Invalid("profile %s is for the Proxy %q: run tsh login --proxy=%s again", path, p.Proxy, host)
	}
	return p, p.check()
}

// Profiles lists the profiles, the current one first.
func (h *Home) Profiles() ([]Profile, error) {
	entries, err := os.ReadDir(h.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Invalid("read the profile directory: %w", err)
	}
	current, _ := readFile(filepath.Join(h.dir, currentFile))
	first := strings.TrimSpace(string(current))
	var out []Profile
	for _, e := range entries {
		host, isProfile := strings.CutSuffix(e.Name(), profileSuffix)
		if !isProfile || e.IsDir() {
			continue
		}
		p, err := h.readProfile(host)
		if err != nil {
			continue
		}
		if host == first {
			out = slices.Insert(out, 0, p)
		} else {
			out = append(out, p)
		}
	}
	return out, nil
}

// check refuses names that are not plain file names: they come from the command
// line and from the cluster.
func (p Profile) check() error {
	return errors.Join(fileName("Proxy host", p.Host()), fileName("user", p.User), fileName("cluster", p.Cluster))
}

func fileName(what, s string) error {
	bad := s == "" || len(s) > 200 || s[0] == '.' || s[0] == '-' || strings.ContainsAny(s, "/\\\x00,!*?\"' \t")
	for _, r := range s {
		bad = bad || r < ' ' || r == 0x7f || r == utf8.RuneError
	}
	if bad {
		return fault.Invalid("%s %q cannot be used as a file name", what, s)
	}
	return nil
}

// lock takes the directory's lock: shared to read a profile, exclusive to change
// one. The returned function gives it back.
func (h *Home) lock(ctx context.Context, exclusive bool) (func(), error) {
	mode := unix.LOCK_SH
	if exclusive {
		mode = unix.LOCK_EX
		if err := os.MkdirAll(h.dir, 0o700); err != nil {
			return nil, fault.Invalid("make the profile directory: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(h.dir, lockFile), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		if !exclusive {
			return func() {}, nil // read-only or absent directory: nobody writes there
		}
		return nil, fault.Invalid("lock the profile directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for {
		err = unix.Flock(int(f.Fd()), mode|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fault.Invalid("lock %s: %w", f.Name(), err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = f.Close()
			return nil, fault.Exists("another tsh is working in %s: try again when it is done", h.dir)
		}
	}
}

// readFile reads a regular file of bounded size.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fault.Limit("%s has %d bytes, at most %d are expected", path, info.Size(), maxFile)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fault.Limit("%s has more than %d bytes", path, maxFile)
	}
	return data, nil
}
