package enroll

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

const block = beginMark + "\nHostCertificate /x\n" + endMark + "\n"

func TestWithoutBlock(t *testing.T) {
	for name, tt := range map[string]struct{ text, want, says string }{
		"none":       {text: "Port 22\n", want: "Port 22\n"},
		"empty":      {},
		"at_the_top": {text: block + "\nPort 22\n", want: "Port 22\n"},
		"elsewhere":  {text: "Port 22\n" + block + "\nUsePAM no\n", want: "Port 22\nUsePAM no\n"},
		"alone":      {text: block},
		"no_end":     {text: beginMark + "\nPort 22\n", says: "no end"},
		"no_begin":   {text: "Port 22\n" + endMark + "\n", says: "no beginning"},
		"twice":      {text: block + block, says: "twice"},
		"reversed":   {text: endMark + "\n" + beginMark + "\n", says: "no end"},
	} {
		got, err := withoutBlock(tt.text)
		if got != tt.want || (err != nil) != (tt.says != "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %q, %v, want %q and %q", name, got, err, tt.want, tt.says)
		}
	}
}

func FuzzWithoutBlock(f *testing.F) {
	f.Add("Port 22\n")
	f.Add(block + "\nPort 22\n")
	f.Fuzz(func(t *testing.T, text string) {
		rest, err := withoutBlock(text)
		if err != nil {
			return
		}
		again, err := withoutBlock(block + "\n" + rest)
		if err != nil && !strings.Contains(rest, endMark) || err == nil && again != rest {
			t.Errorf("%q became %q, then %q, %v", text, rest, again, err)
		}
	})
}

// machine is a directory with an sshd's configuration and host keys.
type machine struct {
	dir string
	t   *testing.T
}

func newMachine(t *testing.T, lines ...string) *machine {
	t.Helper()
	m := &machine{dir: t.TempDir(), t: t}
	for _, typ := range []string{"ed25519", "ecdsa"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", typ, "-N", "", "-f", m.path("host_"+typ)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	m.write("sshd_config", strings.Join(append([]string{"Port 22", "UsePAM no"}, lines...), "\n")+"\n")
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(text), 0o640); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) text(name string) string {
	m.t.Helper()
	text, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(text)
}

func (m *machine) read() (*sshdConfig, error) {
	return readSSHD(context.Background(), m.path("sshd_config"), []string{"sshd", "-t", "-f"})
}

func (m *machine) mustRead() *sshdConfig {
	m.t.Helper()
	s, err := m.read()
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// The keys of the sshd are those that it says it has.
func TestHostKeys(t *testing.T) {
	m := newMachine(t)
	m.write("sshd_config", "HostKey "+m.path("host_ed25519")+"\nHostKey "+m.path("host_ecdsa")+"\nHostKey "+m.path("missing")+"\n")
	keys, err := m.mustRead().hostKeys(m.dir)
	if err != nil || len(keys) != 2 || keys[0].own || keys[0].public.Type() != ssh.KeyAlgoED25519 || keys[1].certName != "host_ecdsa-cert.pub" {
		t.Errorf("keys = %+v, %v", keys, err)
	}
	// Without any one is made, and kept.
	m.write("sshd_config", "HostKey "+m.path("missing")+"\n")
	first, err := m.mustRead().hostKeys(m.dir)
	if err != nil || len(first) != 1 || !first[0].own || first[0].path != m.path(ownKeyName) {
		t.Fatalf("keys = %+v, %v", first, err)
	}
	info, err := os.Stat(first[0].path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the new key has mode %v, %v", info.Mode(), err)
	}
	again, err := m.mustRead().hostKeys(m.dir)
	if err != nil || string(again[0].public.Marshal()) != string(first[0].public.Marshal()) {
		t.Errorf("the second time another key: %v", err)
	}
}

func TestReplace(t *testing.T) {
	m := newMachine(t, "Match User nobody", "    X11Forwarding no")
	m.write("sshd_config", "HostKey "+m.path("host_ed25519")+"\n"+m.text("sshd_config"))
	stock := m.text("sshd_config")
	if err := os.Symlink(m.path("sshd_config"), m.path("link")); err != nil {
		t.Fatal(err)
	}
	lines := []string{"TrustedUserCAKeys " + m.path("host_ecdsa.pub")}
	s, err := readSSHD(t.Context(), m.path("link"), []string{"sshd", "-t", "-f"})
	if err != nil {
		t.Fatal(err)
	}
	previous, err := s.replace(t.Context(), lines)
	if err != nil || previous == "" || m.text(filepath.Base(previous)) != stock {
		t.Fatalf("replace = %q, %v", previous, err)
	}
	want := beginMark + "\n" + lines[0] + "\n" + endMark + "\n\n" + stock
	if got := m.text("sshd_config"); got != want {
		t.Errorf("the configuration is\n%s\nwant\n%s", got, want)
	}
	if info, err := os.Stat(m.path("sshd_config")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("its mode is %v, %v, want as before", info.Mode(), err)
	}
	if info, err := os.Lstat(m.path("link")); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link is gone")
	}
	// The same again changes nothing; other lines take the place of the first.
	s = m.mustRead()
	if s.trusted != "" {
		t.Errorf("what we wrote counts as the machine's own: %q", s.trusted)
	}
	if previous, err := s.replace(t.Context(), lines); previous != "" || err != nil {
		t.Errorf("the second time = %q, %v, want no change", previous, err)
	}
	if _, err := s.replace(t.Context(), []string{"TrustedUserCAKeys " + m.path("host_ed25519.pub")}); err != nil {
		t.Fatal(err)
	}
	if got := m.text("sshd_config"); strings.Count(got, beginMark) != 1 || strings.Contains(got, lines[0]) || !strings.HasSuffix(got, stock) {
		t.Errorf("after other lines:\n%s", got)
	}
	// What the sshd does not take is not put in place.
	before := m.text("sshd_config")
	if _, err := m.mustRead().replace(t.Context(), []string{"Nonsense yes"}); err == nil || !strings.Contains(err.Error(), "Nonsense") || m.text("sshd_config") != before {
		t.Errorf("nonsense: %v", err)
	}
	// What somebody else wrote meanwhile stays.
	s = m.mustRead()
	m.write("sshd_config", stock+"# theirs\n")
	if _, err := s.replace(t.Context(), lines); err == nil || m.text("sshd_config") != stock+"# theirs\n" {
		t.Errorf("a change by somebody else: %v", err)
	}
	left, _ := filepath.Glob(m.path(".*"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestReadSSHDThatIsRefused(t *testing.T) {
	for name, tt := range map[string]struct{ text, says string }{
		"nonsense":         {"Nonsense yes\n", "Nonsense"},
		"own_certificate":  {"HostKey KEY\nHostCertificate KEY.pub\n", "HostCertificate"},
		"half_a_block":     {beginMark + "\n", "no end"},
		"match_needs_user": {"Match User root\n  Nonsense no\n", "Nonsense"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			text := strings.ReplaceAll(tt.text, "KEY", m.path("host_ed25519"))
			m.write("sshd_config", text)
			_, err := m.read()
			if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("read = %v, want %q in one line", err, tt.says)
			}
			if m.text("sshd_config") != text {
				t.Error("the file was changed")
			}
		})
	}
	m := newMachine(t)
	m.write("big", strings.Repeat("#\n", maxConfig))
	for _, path := range []string{m.path("none"), m.dir, m.path("big")} {
		if _, err := readSSHD(t.Context(), path, []string{"sshd", "-t", "-f"}); err == nil {
			t.Errorf("%s was read", path)
		}
	}
	if _, err := readSSHD(t.Context(), m.path("sshd_config"), []string{"no-such-sshd", "-t"}); err == nil {
		t.Error("an sshd that is not there answered")
	}
}

// A sshd reads one file of authorities: one that is there must have ours.
func TestTrustedKeysThatAreThere(t *testing.T) {
	m := newMachine(t)
	m.write("authorities", "ssh-ed25519 AAAA theirs\nssh-ed25519 BBBB\n")
	m.write("sshd_config", "HostKey "+m.path("host_ed25519")+"\nTrustedUserCAKeys "+m.path("authorities")+"\n")
	s := m.mustRead()
	if s.trusted != m.path("authorities") {
		t.Errorf("trusted = %q", s.trusted)
	}
	if err := holds(s.trusted, []string{"ssh-ed25519 BBBB ours"}); err != nil {
		t.Errorf("the cluster's key is there: %v", err)
	}
	if err := holds(s.trusted, []string{"ssh-ed25519 BBBB", "ssh-ed25519 CCCC"}); err == nil {
		t.Error("a key that is not there was found")
	}
}

func TestCheckParams(t *testing.T) {
	good := Params{Addr: "h:22", Hostname: "h", CheckCommand: []string{"sshd"}, Dir: "/var/lib/teleport/openssh"}
	for name, change := range map[string]func(*Params){
		"address":   func(p *Params) { p.Addr = "h" },
		"name":      func(p *Params) { p.Hostname = "a b" },
		"check":     func(p *Params) { p.CheckCommand = nil },
		"directory": func(p *Params) { p.Dir = "/var/lib/tele port" },
		"newline":   func(p *Params) { p.Dir = "/x\nPermitRootLogin yes" },
	} {
		p := good
		change(&p)
		if err := p.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := good.check(); err != nil {
		t.Error(err)
	}
}
