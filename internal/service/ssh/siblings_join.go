package ssh

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/sshaccess"
	"teleport/internal/sshd"
	"teleport/internal/types"
)

// Whoever joins a session reaches the newest process, and the session may be in one from
// before. They speak SSH to the newest then, which passes the session on through the
// socket of the other:
//
//	newest -> join <address> <session> <certificate> <key>
//	other  -> ok                    then SSH; or gone
//
// The certificate is the user's, who has proven to hold its key; the key is one that the
// newest process made for this connection, and logs in with instead. The other process
// decides and records as if the user had come to it.

const (
	joinVerb = "join "
	// maxJoinLine bounds the first line: a certificate is about 2 KiB.
	maxJoinLine = 32 << 10
	answerOK    = "ok\n"
	answerGone  = "gone\n"
)

// vouched is what another process says of somebody who joins.
type vouched struct {
	addr, session string
	cert          *gossh.Certificate
	key           gossh.PublicKey
}

// line is the first line of the exchange.
func (v *vouched) line() string {
	encode := base64.RawStdEncoding.EncodeToString
	return joinVerb + strings.Join([]string{v.addr, v.session, encode(v.cert.Marshal()), encode(v.key.Marshal())}, " ") + "\n"
}

// parseVouched reads the line, without its end.
func parseVouched(line string) (*vouched, error) {
	words := strings.Split(strings.TrimPrefix(line, joinVerb), " ")
	if len(words) != 4 {
		return nil, fault.Invalid("another process passed on somebody who joins, with %d words instead of 4", len(words))
	}
	v := &vouched{addr: words[0], session: words[1]}
	if err := types.ValidSessionID(v.session); err != nil {
		return nil, err
	}
	cert, err := base64.RawStdEncoding.DecodeString(words[2])
	if err != nil {
		return nil, fault.Invalid("the certificate of somebody who joins is no base64: %w", err)
	}
	if v.cert, err = ca.ParseSSHCertificate(cert); err != nil {
		return nil, err
	}
	key, err := base64.RawStdEncoding.DecodeString(words[3])
	if err != nil {
		return nil, fault.Invalid("the key for somebody who joins is no base64: %w", err)
	}
	if v.key, err = gossh.ParsePublicKey(key); err != nil {
		return nil, fault.Invalid("the key for somebody who joins: %w", err)
	}
	return v, nil
}

// serveJoin serves somebody whom another process passes on, if the session is here.
func (s *Service) serveJoin(ctx context.Context, nc net.Conn, line string) error {
	v, err := parseVouched(line)
	if err != nil {
		return err
	}
	if s.parties.find(v.session) == nil {
		_, err := io.WriteString(nc, answerGone)
		return err
	}
	cfg := s.sshdConfig()
	cfg.Authenticate = func(ctx context.Context, meta gossh.ConnMetadata, key gossh.PublicKey) (*sshd.Login, error) {
		if !bytes.Equal(key.Marshal(), v.key.Marshal()) {
			return nil, fault.Unauthenticated("not the key that the other process named")
		}
		return s.guard.Authenticate(ctx, meta, v.cert)
	}
	server, err := sshd.New(cfg)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(nc, answerOK); err != nil {
		return err
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	server.ServeConn(ctx, fromClient(nc, v.addr))
	return nil
}

// hasSiblings reports whether there may be other processes of this host.
func (s *Service) hasSiblings() bool {
	if s.cfg.Siblings == "" {
		return false
	}
	paths, err := filepath.Glob(filepath.Join(s.cfg.Siblings, siblingSocket))
	if err != nil {
		return false
	}
	for _, path := range paths {
		if path != s.siblingPath() {
			return true
		}
	}
	return false
}

// joinElsewhere attaches somebody to a session of another process of this host. ok is
// false if none has it.
func (s *Service) joinElsewhere(ctx context.Context, se *sshd.Session, mode, sid string) (exit sshd.Exit, ok bool) {
	if types.ValidMode(mode) != nil || types.ValidSessionID(sid) != nil || !s.hasSiblings() {
		return exit, false
	}
	guest, err := sshaccess.GuestOf(se.Conn().Login())
	if err != nil {
		return exit, false
	}
	key, err := keys.Generate(keys.Ed25519)
	if err != nil {
		return s.say(se, err), true
	}
	signer, err := gossh.NewSignerFromSigner(key)
	if err != nil {
		return s.say(se, fmt.Errorf("use a key for another process: %w", err)), true
	}
	v := &vouched{addr: se.Conn().RemoteAddr().String(), session: sid, cert: guest.Certificate, key: signer.PublicKey()}
	for nc := range s.dialSiblings(v.line()) {
		answer := make([]byte, len(answerOK))
		if _, err := io.ReadFull(nc, answer); err != nil || string(answer) != answerOK {
			_ = nc.Close()
			continue
		}
		exit, err := s.passOn(ctx, se, nc, signer, mode, sid)
		if err != nil {
			return s.say(se, err), true
		}
		return exit, true
	}
	return exit, false
}

// passOn carries the session to another process.
func (s *Service) passOn(ctx context.Context, se *sshd.Session, nc net.Conn, signer gossh.Signer, mode, sid string) (sshd.Exit, error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	defer nc.Close()
	refusal := ""
	conn, chans, reqs, err := gossh.NewClientConn(nc, s.cfg.Hostname, &gossh.ClientConfig{
		User: types.LoginJoin, Auth: []gossh.AuthMethod{gossh.PublicKeys(signer)},
		HostKeyCallback:   s.cfg.Holder.Trust().HostKeyCallback(types.RoleNode, s.cfg.Hostname),
		HostKeyAlgorithms: []string{gossh.CertAlgoED25519v01},
		BannerCallback:    func(text string) error { refusal = strings.TrimSpace(text); return nil },
	})
	if err != nil {
		if refusal != "" {
			return sshd.Exit{}, fault.Denied("%s", refusal)
		}
		s.cfg.Log.WarnContext(ctx, "a session of another process cannot be joined", "error", err)
		return sshd.Exit{}, fault.Unreachable("the process of this host that has the session does not answer: try again")
	}
	defer conn.Close()
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return sshd.Exit{}, err
	}
	go gossh.DiscardRequests(reqs)
	go func() {
		for other := range chans {
			_ = other.Reject(gossh.Prohibited, "nothing is opened from there")
		}
	}()
	ch, events, err := conn.OpenChannel("session", nil)
	if err != nil {
		return sshd.Exit{}, fault.Unreachable("open a session in the other process: %w", err)
	}
	if se.Interactive() {
		size := se.Size()
		pty := struct {
			Term                         string
			Columns, Rows, Width, Height uint32
			Modes                        string
		}{se.Term(), size.Columns, size.Rows, size.Width, size.Height, ""}
		if ok, err := ch.SendRequest("pty-req", true, gossh.Marshal(pty)); err != nil || !ok {
			return sshd.Exit{}, fault.Denied("your certificate does not let you have a terminal")
		}
	}
	if ok, err := ch.SendRequest("subsystem", true, gossh.Marshal(struct{ Name string }{subsystemJoin + mode + ":" + sid})); err != nil || !ok {
		return sshd.Exit{}, fault.Unreachable("the other process does not let sessions be joined: %w", err)
	}
	se.OnResize(func(size sshd.Size) { _, _ = ch.SendRequest("window-change", false, gossh.Marshal(size)) })
	defer se.OnResize(nil)
	se.Go(func() {
		_, _ = io.Copy(ch, se)
		_ = ch.CloseWrite()
	})
	exit := sshd.Exit{Code: exitRefused}
	var work sync.WaitGroup
	work.Go(func() { _, _ = io.Copy(se.Stderr(), ch.Stderr()) })
	work.Go(func() { _, _ = io.Copy(se, ch) })
	work.Go(func() {
		for r := range events {
			if r.Type == "exit-status" && len(r.Payload) == 4 {
				exit = sshd.Exit{Code: int(binary.BigEndian.Uint32(r.Payload))}
			}
			if r.WantReply {
				_ = r.Reply(false, nil)
			}
		}
	})
	work.Wait()
	return exit, nil
}
