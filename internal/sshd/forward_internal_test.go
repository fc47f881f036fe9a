package sshd

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// FuzzForwards reads what clients send about forwards, agents and displays.
func FuzzForwards(f *testing.F) {
	f.Add(directTCP, ssh.Marshal(directPayload{"web", 80, "127.0.0.1", 4711}))
	f.Add(directUnix, ssh.Marshal(struct {
		Path, Reserved string
		Zero           uint32
	}{"/run/s", "", 0}))
	f.Add(listenTCP, ssh.Marshal(struct {
		Host string
		Port uint32
	}{"localhost", 1 << 20}))
	f.Add(listenUnix, ssh.Marshal(struct{ Path string }{"/tmp/\x1b[2J"}))
	f.Add(x11Request, ssh.Marshal(struct {
		Single           bool
		Protocol, Cookie string
		Screen           uint32
	}{true, "MIT-MAGIC-COOKIE-1", "00ff", 0}))
	f.Fuzz(func(t *testing.T, kind string, payload []byte) {
		check := func(to Target) {
			if to.Unix() && (to.Host != "" || to.Port != 0) || len(to.Host) > maxForwardHost || len(to.Path) > maxSocketPath {
				t.Errorf("%s accepted %+v", kind, to)
			}
			if to.Unix() && !strings.HasPrefix(to.Path, "/") || printable(to.String()) != to.String() {
				t.Errorf("%s accepted %q", kind, to.String())
			}
		}
		for _, kind := range []string{kind, directTCP, directUnix} {
			if to, _, err := parseDirect(kind, payload); err == nil {
				check(to)
				if !to.Unix() && to.Port == 0 {
					t.Errorf("%s leads to port 0", kind)
				}
			}
		}
		for _, kind := range []string{kind, listenTCP, listenUnix, cancelTCP, cancelUnix} {
			if at, err := parseListen(&ssh.Request{Type: kind, Payload: payload}); err == nil {
				check(at)
			}
		}
		if r, err := parseX11(payload); err == nil && (strings.Trim(r.Cookie, "0123456789abcdefABCDEF") != "" || strings.ContainsAny(r.Protocol, " \n")) {
			t.Errorf("x11-req accepted %+v", r)
		}
	})
}
