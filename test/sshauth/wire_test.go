package sshauth

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// Numbers of messages (RFC 4253 and 4252).
const (
	msgDisconnect     = 1
	msgIgnore         = 2
	msgUnimplemented  = 3
	msgDebug          = 4
	msgServiceRequest = 5
	msgServiceAccept  = 6
	msgExtInfo        = 7
	msgKexInit        = 20
	msgNewKeys        = 21
	msgECDHInit       = 30
	msgUserauth       = 50
	msgFailure        = 51
	msgSuccess        = 52
	msgBanner         = 53
	msgPublicKeyOK    = 60
	msgGlobalRequest  = 80
	msgChannelOpen    = 90
	msgChannelConfirm = 91
	msgChannelFailure = 92
	msgChannelRequest = 98
)

// wireTimeout bounds everything that an attack waits for.
const wireTimeout = 15 * time.Second

// wire is an SSH client that says what it is told, in order or not: curve25519 and
// AES-128-GCM, and no check of who the server is.
type wire struct {
	conn    net.Conn
	r       *bufio.Reader
	session []byte
	in, out *gcm
}

// gcm is one direction after the key exchange.
type gcm struct {
	aead cipher.AEAD
	iv   []byte
}

func (g *gcm) next() []byte {
	iv := bytes.Clone(g.iv)
	binary.BigEndian.PutUint64(g.iv[4:], binary.BigEndian.Uint64(g.iv[4:])+1)
	return iv
}

// offer is what a client says in its key exchange.
type offer struct {
	kex, hostKeys, ciphers, macs string
	// ignore sends a message in between that means nothing.
	ignore bool
}

func fairOffer() offer {
	return offer{
		kex: "curve25519-sha256,kex-strict-c-v00@openssh.com", hostKeys: ssh.CertAlgoED25519v01 + "," + ssh.KeyAlgoED25519,
		ciphers: ssh.CipherAES128GCM, macs: ssh.HMACSHA256ETM,
	}
}

// greetWire opens a connection and makes the key exchange.
func greetWire(t testing.TB, w way, o offer) (*wire, error) {
	t.Helper()
	c := &wire{conn: w.open(t)}
	t.Cleanup(func() { _ = c.conn.Close() })
	_ = c.conn.SetDeadline(time.Now().Add(wireTimeout))
	c.r = bufio.NewReader(c.conn)
	return c, c.keyExchange(o)
}

// service does everything up to the first request to log in.
func (w way) service(t testing.TB) *wire {
	t.Helper()
	c, err := greetWire(t, w, fairOffer())
	must(t, err)
	must(t, c.write(append([]byte{msgServiceRequest}, text("ssh-userauth")...)))
	p, err := c.read()
	must(t, err)
	if p[0] != msgServiceAccept {
		t.Fatalf("message %d in answer to a request for the service", p[0])
	}
	return c
}

func text[S string | []byte](s S) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func number(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return text(b)
}

func (c *wire) keyExchange(o offer) error {
	const version = "SSH-2.0-Attack"
	if _, err := io.WriteString(c.conn, version+"\r\n"); err != nil {
		return err
	}
	line, err := c.r.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "SSH-2.0-") {
		return fmt.Errorf("identification %q: %w", line, err)
	}
	init := append([]byte{msgKexInit}, make([]byte, 16)...)
	for _, list := range []string{o.kex, o.hostKeys, o.ciphers, o.ciphers, o.macs, o.macs, "none", "none", "", ""} {
		init = append(init, text(list)...)
	}
	init = append(init, 0, 0, 0, 0, 0)
	if err := c.write(init); err != nil {
		return err
	}
	theirs, err := c.read()
	if err != nil {
		return err
	}
	if o.ignore {
		if err := c.write(append([]byte{msgIgnore}, text("nothing")...)); err != nil {
			return err
		}
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	if err := c.write(append([]byte{msgECDHInit}, text(key.PublicKey().Bytes())...)); err != nil {
		return err
	}
	reply, err := c.read()
	if err != nil {
		return err
	}
	var m struct {
		HostKey, Public, Signature []byte
	}
	if reply[0] != msgECDHInit+1 || ssh.Unmarshal(append([]byte{0}, reply[1:]...)[1:], &m) != nil {
		return fmt.Errorf("message %d in the key exchange", reply[0])
	}
	public, err := ecdh.X25519().NewPublicKey(m.Public)
	if err != nil {
		return err
	}
	shared, err := key.ECDH(public)
	if err != nil {
		return err
	}
	secret := number(new(big.Int).SetBytes(shared))
	h := sha256.New()
	for _, part := range [][]byte{
		text(version), text(strings.TrimRight(line, "\r\n")), text(init), text(theirs), text(m.HostKey), text(key.PublicKey().Bytes()), text(m.Public), secret,
	} {
		h.Write(part)
	}
	c.session = h.Sum(nil)
	if err := c.write([]byte{msgNewKeys}); err != nil {
		return err
	}
	if p, err := c.read(); err != nil || p[0] != msgNewKeys {
		return fmt.Errorf("no new keys: %w", err)
	}
	derive := func(letter byte) []byte {
		d := sha256.New()
		d.Write(secret)
		d.Write(c.session)
		d.Write([]byte{letter})
		d.Write(c.session)
		return d.Sum(nil)
	}
	c.out, c.in = newGCM(derive('A'), derive('C')), newGCM(derive('B'), derive('D'))
	return nil
}

func newGCM(iv, key []byte) *gcm {
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &gcm{aead, iv[:12]}
}

// write sends a message.
func (c *wire) write(payload []byte) error {
	block, lead := 8, 5
	if c.out != nil {
		block, lead = 16, 1
	}
	padding := block - (lead+len(payload))%block
	if padding < 4 {
		padding += block
	}
	body := append([]byte{byte(padding)}, payload...)
	body = append(body, make([]byte, padding)...)
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if c.out != nil {
		body = c.out.aead.Seal(nil, c.out.next(), body, head)
	}
	_, err := c.conn.Write(append(head, body...))
	return err
}

// errHungUp: the server said that it ends the connection.
var errHungUp = errors.New("disconnected")

// read returns the next message that is not there to be passed over.
func (c *wire) read() ([]byte, error) {
	for {
		p, err := c.readAny()
		if err != nil {
			return nil, err
		}
		switch p[0] {
		case msgIgnore, msgDebug, msgExtInfo, msgBanner, msgGlobalRequest:
		case msgDisconnect:
			return nil, fmt.Errorf("%w: %q", errHungUp, p[1:])
		default:
			return p, nil
		}
	}
}

func (c *wire) readAny() ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(c.r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head)
	if c.in != nil {
		size += 16
	}
	if size > 1<<20 {
		return nil, fmt.Errorf("a packet of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, err
	}
	if c.in != nil {
		var err error
		if body, err = c.in.aead.Open(nil, c.in.next(), body, head); err != nil {
			return nil, err
		}
	}
	if len(body) < 2 || int(body[0])+2 > len(body) {
		return nil, errors.New("a packet without a message")
	}
	return body[1 : len(body)-int(body[0])], nil
}

// request is one to log in.
type request struct {
	user, service, method string
	// algorithm and key are those of the method publickey.
	algorithm string
	key       []byte
}

func (q request) head() []byte {
	return bytes.Join([][]byte{{msgUserauth}, text(q.user), text(q.service), text(q.method)}, nil)
}

// query asks whether a key would do.
func (q request) query() []byte {
	return bytes.Join([][]byte{q.head(), {0}, text(q.algorithm), text(q.key)}, nil)
}

// signed is what a signature is over, without the identifier of the connection.
func (q request) signed() []byte {
	return bytes.Join([][]byte{q.head(), {1}, text(q.algorithm), text(q.key)}, nil)
}

// sign signs what the request says for the connection of the identifier.
func (q request) sign(t testing.TB, session []byte, by ssh.Signer) *ssh.Signature {
	t.Helper()
	sig, err := by.Sign(rand.Reader, append(text(session), q.signed()...))
	must(t, err)
	return sig
}

// with adds a signature.
func (q request) with(sig *ssh.Signature) []byte {
	return append(q.signed(), text(append(text(sig.Format), text(sig.Blob)...))...)
}

// ask makes the request to log in with a certificate.
func ask(user string, c credential) request {
	return request{user: user, service: "ssh-connection", method: "publickey", algorithm: c.cert.Type(), key: c.cert.Marshal()}
}

// says sends a message and returns the number of the one that answers it; 0 if the
// server hung up.
func (c *wire) says(t testing.TB, message []byte) byte {
	t.Helper()
	if err := c.write(message); err != nil {
		return 0
	}
	return c.answer(t)
}

func (c *wire) answer(t testing.TB) byte {
	t.Helper()
	p, err := c.read()
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		t.Fatal("the server neither answers nor hangs up")
	case err != nil:
		return 0
	}
	return p[0]
}

// opensSession reports whether the server opens a session now.
func (c *wire) opensSession(t testing.TB) bool {
	t.Helper()
	open := bytes.Join([][]byte{{msgChannelOpen}, text("session"), {0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 128, 0}}, nil)
	return c.says(t, open) == msgChannelConfirm
}
