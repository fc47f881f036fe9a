package ssh_test

import (
	"bufio"
	"encoding/base64"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/keys"
	"teleport/internal/service/ssh"
	"teleport/internal/types"
)

// newest is the process that serves after an upgrade, as the one from before sees it.
type newest struct {
	w    *world
	path string
}

// vouch passes on somebody who joins and returns the answer, and the connection if it
// is yes.
func (n *newest) vouch(t *testing.T, words ...string) (string, net.Conn) {
	t.Helper()
	var c net.Conn
	until(t, "the socket of the other process", func() bool {
		var err error
		c, err = net.Dial("unix", n.path)
		return err == nil
	})
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "join "+strings.Join(words, " ")+"\n"); err != nil {
		t.Fatal(err)
	}
	var answer []byte
	for one := make([]byte, 1); len(answer) < 16; answer = append(answer, one[0]) {
		if _, err := io.ReadFull(c, one); err != nil || one[0] == '\n' {
			break
		}
	}
	return string(answer), c
}

// enter logs in with the key over a connection that was answered with yes.
func (n *newest) enter(c net.Conn, signer gossh.Signer) (*gossh.Client, string, error) {
	told := ""
	conn, chans, reqs, err := gossh.NewClientConn(c, node, &gossh.ClientConfig{
		User: types.LoginJoin, Auth: []gossh.AuthMethod{gossh.PublicKeys(signer)},
		HostKeyCallback: n.w.holder.Trust().HostKeyCallback(types.RoleNode, node),
		BannerCallback:  func(text string) error { told = text; return nil },
	})
	if err != nil {
		return nil, told, err
	}
	return gossh.NewClient(conn, chans, reqs), told, nil
}

func encoded(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// Whom another process of the host passes on is decided about like anybody.
func TestJoinThroughAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	w := start(t, func(c *ssh.Config) { c.Siblings = dir })
	w.setRole(joins("helper", "observer", "peer"))
	w.cache.Synced(2)
	n := &newest{w, filepath.Join(dir, "resume-"+strconv.Itoa(os.Getpid())+".sock")}
	alice := w.alice(t)
	bob := w.person(t, "bob", []string{types.LoginJoin}, []string{"helper"}, nil)
	eve := w.person(t, "eve", []string{types.LoginJoin}, []string{"nobody"}, nil)
	pinned := w.person(t, "bob", []string{types.LoginJoin}, []string{"helper"}, func(r *ca.UserRequest) { r.Identity.User.SourceIP = "192.0.2.1" })
	owner := own(t, alice)
	owner.types(t, "echo go:$((6*7))\n")
	owner.shows(t, "go:42")
	sid := w.sid(t)
	signer := must(gossh.NewSignerFromSigner(must(keys.Generate(keys.Ed25519))))
	key, from := encoded(signer.PublicKey().Marshal()), "192.0.2.9:700"
	cert := func(p *person) string { return encoded(p.cert.Marshal()) }

	answer, c := n.vouch(t, from, sid, cert(bob), key)
	if answer != "ok" {
		t.Fatalf("answer %q", answer)
	}
	client, _, err := n.enter(c, signer)
	if err != nil {
		t.Fatal(err)
	}
	ch, reqs, err := client.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go gossh.DiscardRequests(reqs)
	if ok, err := ch.SendRequest("subsystem", true, gossh.Marshal(struct{ Name string }{"join:observer:" + sid})); err != nil || !ok {
		t.Fatalf("subsystem: %v, %v", ok, err)
	}
	watch(ch).shows(t, "go:42")
	owner.shows(t, "bob joined as observer")
	if e := w.events.wait(t, "T2001I", nil); field(e, "user") != "bob" || field(e, "addr.remote") != from {
		t.Errorf("event = %v", e)
	}

	other := must(gossh.NewSignerFromSigner(must(keys.Generate(keys.Ed25519))))
	for name, tt := range map[string]struct {
		words  []string
		signer gossh.Signer
		told   string
	}{
		"other_key":     {[]string{from, sid, cert(bob), key}, other, ""},
		"their_own_key": {[]string{from, sid, cert(bob), key}, bob.key, ""},
		"no_rights":     {[]string{from, sid, cert(eve), key}, signer, "your roles do not let you join sessions"},
		"pinned":        {[]string{from, sid, cert(pinned), key}, signer, ""},
		"no_address":    {[]string{"@", sid, cert(pinned), key}, signer, ""},
	} {
		answer, c := n.vouch(t, tt.words...)
		if answer != "ok" {
			t.Errorf("%s: answer %q", name, answer)
			continue
		}
		if _, told, err := n.enter(c, tt.signer); err == nil || !strings.Contains(told, tt.told) {
			t.Errorf("%s: %v, told %q", name, err, told)
		}
	}
	if answer, _ := n.vouch(t, from, "11111111-2222-4333-8444-555555555555", cert(bob), key); answer != "gone" {
		t.Errorf("a session that is not there: %q", answer)
	}
	for name, words := range map[string][]string{
		"few": {from, sid}, "id": {from, "../x", cert(bob), key}, "no_base64": {from, sid, "!", key}, "no_certificate": {from, sid, key, key},
		"no_key": {from, sid, cert(bob), "AAAA"}, "long": {from, sid, strings.Repeat("A", 64<<10), key},
	} {
		if answer, _ := n.vouch(t, words...); answer != "" {
			t.Errorf("%s: answer %q", name, answer)
		}
	}
	// What is no address of a client, nor somebody who joins, is not read on and on.
	c, err = net.Dial("unix", n.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, strings.Repeat("x", 1024))
	if _, err := bufio.NewReader(c).ReadByte(); err == nil {
		t.Error("a long address was answered")
	}
}
