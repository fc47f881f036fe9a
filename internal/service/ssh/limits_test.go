package ssh_test

import (
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	auditv1 "teleport/api/audit/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
)

func TestMaxConnections(t *testing.T) {
	w := start(t, nil)
	carol := w.carol(t, func(o *typesv1.RoleOptions) { o.MaxConnections = 2 })
	one := carol.dial(t, w.login)
	carol.dial(t, w.login)
	got := runCmd(t, carol.ssh(w.login, "true"))
	if got.code != 255 || !strings.Contains(got.err, "you have 2 connections to node-1 already") {
		t.Errorf("third connection = %+v, want it refused", got)
	}
	w.events.wait(t, "T1006W", func(e *auditv1.Event) bool { return field(e, "reason") == "options.max_connections is 2" })
	// Others have their own count.
	w.setRole(role("dev", w.login))
	ok(t, w.person(t, "dave", []string{w.login}, []string{"dev"}, nil).ssh(w.login, "true"))
	_ = one.Close()
	for try := 0; ; try++ {
		c, err := carol.tryDial(w.login)
		if err == nil {
			_ = c.Close()
			break
		}
		if try == 200 {
			t.Fatalf("a connection after one was closed: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestMaxSessions(t *testing.T) {
	w := start(t, nil)
	carol := w.carol(t, func(o *typesv1.RoleOptions) { o.MaxSessions = 2 })
	c := carol.dial(t, w.login)
	session(t, c)
	session(t, c)
	if _, err := c.NewSession(); err == nil || !strings.Contains(err.Error(), "your roles allow 2 sessions") {
		t.Errorf("third session = %v, want it refused", err)
	}
	w.events.wait(t, "T1006W", func(e *auditv1.Event) bool { return field(e, "reason") == "options.max_sessions is 2" })
}

func TestIdleTimeout(t *testing.T) {
	w := start(t, nil)
	carol := w.carol(t, nil)
	// Output on a terminal is not the user's doing.
	cmd := carol.ssh(w.login, "echo begun; while :; do echo noise; sleep 0.1; done")
	cmd.Args = append([]string{"ssh", "-tt"}, cmd.Args[1:]...)
	out := must(cmd.StdoutPipe())
	var errOut strings.Builder
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.events.wait(t, "T2000I", nil)
	// The role of a connection that is open changes.
	w.carolMay(func(o *typesv1.RoleOptions) { o.ClientIdleTimeout = "2s" })
	_, _ = io.ReadAll(out)
	if err := cmd.Wait(); err == nil || !strings.Contains(errOut.String(), "nothing was done on it for 2s") {
		t.Errorf("idle session = %v, %q, want it closed with the reason", err, errOut.String())
	}
	w.events.wait(t, "T3006I", nil)
	w.events.wait(t, "T2004I", nil)
}

func TestExpiredCertificate(t *testing.T) {
	w := start(t, nil)
	yes := true
	w.carolMay(func(o *typesv1.RoleOptions) { o.DisconnectExpiredCert = &yes })
	brief := w.person(t, "carol", []string{w.login}, []string{"all"}, func(r *ca.UserRequest) { r.TTL = 3 * time.Second })
	c := brief.dial(t, w.login)
	s := session(t, c)
	var told strings.Builder
	s.Stderr = &told
	if err := s.Start("sleep 60"); err != nil {
		t.Fatal(err)
	}
	_ = s.Wait()
	if err := c.Wait(); err == nil {
		t.Error("the connection ended without an error")
	}
	if !strings.Contains(told.String(), "your certificate has expired") {
		t.Errorf("the user was told %q", told.String())
	}
	w.events.wait(t, "T3006I", nil)
}

func TestPinnedAddress(t *testing.T) {
	w := start(t, nil)
	yes := true
	carol := w.carol(t, func(o *typesv1.RoleOptions) { o.PinSourceIp = &yes })
	if got := runCmd(t, carol.ssh(w.login, "true")); got.code != 255 || !strings.Contains(got.err, "bind certificates to the address") {
		t.Errorf("certificate without an address = %+v, want it refused", got)
	}
	pinned := func(addr string) *person {
		return w.person(t, "pinned", []string{w.login}, []string{"all"}, func(r *ca.UserRequest) { r.Identity.User.SourceIP = addr })
	}
	ok(t, pinned("127.0.0.1").ssh(w.login, "true"))
	if cert := pinned("192.0.2.9").cert; cert.CriticalOptions["source-address"] != netip.MustParsePrefix("192.0.2.9/32").String() {
		t.Errorf("critical options = %v", cert.CriticalOptions)
	}
	if c, err := pinned("192.0.2.9").tryDial(w.login); err == nil {
		_ = c.Close()
		t.Error("a certificate was good from another address")
	}
}

func TestExtensions(t *testing.T) {
	w := start(t, nil)
	p := w.person(t, "carol", []string{w.login}, []string{"dev"}, func(r *ca.UserRequest) {
		r.Extensions = map[string]string{"login@github.com": "octo"}
		r.PermitX11Forwarding = true
	})
	want := gossh.Permissions{Extensions: map[string]string{"login@github.com": "octo", "permit-X11-forwarding": "", "permit-pty": ""}}
	for name, value := range want.Extensions {
		if got, ok := p.cert.Extensions[name]; !ok || got != value {
			t.Errorf("extension %s = %q, %t", name, got, ok)
		}
	}
	ok(t, p.ssh(w.login, "true"))
}

// Signs of life of programs are not the user's doing, whatever they are called.
func TestIdleTimeoutWithSignsOfLife(t *testing.T) {
	w := start(t, nil)
	carol := w.carol(t, func(o *typesv1.RoleOptions) { o.ClientIdleTimeout = "1s" })
	c := carol.dial(t, w.login)
	s := session(t, c)
	if err := s.Start("sleep 60"); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(15 * time.Second)
	for {
		select {
		case <-ended:
			w.events.wait(t, "T3006I", nil)
			return
		case <-limit:
			t.Fatal("signs of life keep the connection open")
		case <-tick.C:
			for _, name := range []string{"keepalive@openssh.com", "keepalive@lag.net", "keepalive@libssh2.org", "ping"} {
				_, _, _ = c.SendRequest(name, false, nil)
				_, _ = s.SendRequest(name, false, nil)
			}
		}
	}
}
