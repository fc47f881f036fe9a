package sshauth

import (
	"bufio"
	"crypto/tls"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/mux"
	"teleport/internal/types"
)

// notKnownYet are algorithms that are younger than the ssh-audit of some systems.
var notKnownYet = regexp.MustCompile(`^(mlkem768x25519-sha256|kex-strict-s-v00@openssh\.com) -- \[warn\] unknown algorithm$`)

// TestAudit has ssh-audit look at what is served: nothing is weak.
func TestAudit(t *testing.T) {
	s := newSite(t)
	agents := way{name: "reverse_tunnel", open: func(t testing.TB) net.Conn {
		config := ca.ClientTLS(nil, func() *ca.Trust { return s.trust }, types.RoleProxy)
		config.NextProtos = []string{mux.ALPNTunnel}
		conn, err := tls.Dial("tcp", s.proxy, config)
		must(t, err)
		return conn
	}}
	for _, w := range append(s.ways(t), agents) {
		if w.name == "resumed" {
			continue // it begins like the others
		}
		t.Run(w.name, func(t *testing.T) {
			// -b has a line for each algorithm, and says nothing with a status other than 0.
			cmd := exec.Command("ssh-audit", "-n", "-b", "-v", "--timeout=10", "-p", w.bridge(t), "127.0.0.1")
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState == nil {
				t.Fatal(err)
			}
			text := string(out)
			for _, want := range []string{"(kex) curve25519-sha256", "(key) " + ssh.CertAlgoED25519v01, "(enc) " + ssh.CipherAES128GCM} {
				if !strings.Contains(text, want) {
					t.Errorf("ssh-audit does not speak of %q:\n%s", want, text)
				}
			}
			lines := bufio.NewScanner(strings.NewReader(text))
			for lines.Scan() {
				line := strings.Join(strings.Fields(lines.Text()), " ")
				if !strings.Contains(line, "[fail]") && !strings.Contains(line, "[warn]") {
					continue
				}
				if _, about, ok := strings.Cut(line, ") "); ok && notKnownYet.MatchString(about) {
					continue
				}
				t.Error(line)
			}
		})
	}
}
