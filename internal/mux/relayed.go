package mux

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	proxyv1 "teleport/api/proxy/v1"
	"teleport/internal/fault"
)

// Purposes of a relayed connection. They are part of what is signed, so that a
// preamble for one service is no use at another.
const (
	PurposeAuth = "auth"
	PurposeNode = "node"
)

const (
	// relayedMagic begins the preamble. No TLS, SSH or HTTP client begins so.
	relayedMagic = "TPRLY\x00\x01\n"
	// relayedLabel keeps the signature apart from all others of the same key.
	relayedLabel = "teleport-relayed"
	// maxRelayed bounds the message: a certificate is about 1 KiB.
	maxRelayed = 8 << 10
	// relayedWindow is how far the clocks of both ends may differ.
	relayedWindow = time.Minute
	// relayedSilence is how long a connection may say nothing before it passes
	// as one without preamble: some SSH clients wait for the server's first line.
	relayedSilence = 3 * time.Second
)

// WriteRelayed writes the preamble that says, signed with the Proxy's certificate,
// that the client at clientAddr ("ip:port") is at the other end of w.
func WriteRelayed(w io.Writer, clientAddr, purpose string, cert *tls.Certificate, now time.Time) error {
	if _, err := netip.ParseAddrPort(clientAddr); err != nil {
		return fault.Invalid("relayed client address %q: expected ip:port", clientAddr)
	}
	if cert == nil || len(cert.Certificate) == 0 {
		return fault.Invalid("no certificate to sign a relayed connection with: the Proxy has not joined")
	}
	signer, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return fault.Invalid("the Proxy's key cannot sign: got %T", cert.PrivateKey)
	}
	m := &proxyv1.Relayed{ClientAddr: clientAddr, Time: now.UnixMilli(), Certificate: cert.Certificate[0]}
	signed := relayedBytes(m, purpose)
	var err error
	if _, plain := signer.Public().(ed25519.PublicKey); plain {
		m.Signature, err = signer.Sign(rand.Reader, signed, crypto.Hash(0))
	} else {
		digest := sha256.Sum256(signed)
		m.Signature, err = signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	if err != nil {
		return fmt.Errorf("sign a relayed connection: %w", err)
	}
	body, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode a relayed connection: %w", err)
	}
	out := binary.BigEndian.AppendUint32([]byte(relayedMagic), uint32(len(body)))
	if _, err := w.Write(append(out, body...)); err != nil {
		return fmt.Errorf("announce a relayed connection: %w", err)
	}
	return nil
}

// relayedBytes returns what the signature covers.
func relayedBytes(m *proxyv1.Relayed, purpose string) []byte {
	b := append([]byte(relayedLabel), m.GetClientAddr()...)
	b = append(b, 0)
	b = strconv.AppendInt(b, m.GetTime(), 10)
	b = append(b, 0)
	return append(b, purpose...)
}

// RelayedListener returns a listener whose connections may begin with the preamble
// of WriteRelayed for the purpose: RemoteAddr is then the true client's. verify
// says whether a certificate is that of a Proxy of this cluster. A connection
// without preamble passes unchanged; one with a bad preamble is handed out closed,
// and its Read returns what was wrong.
func RelayedListener(ln net.Listener, purpose string, verify func(*x509.Certificate) error, now func() time.Time) net.Listener {
	ctx, cancel := context.WithCancel(context.Background())
	r := &relayed{
		listener: newListener(ln.Addr()), inner: ln, purpose: purpose, verify: verify, now: now,
		gate: NewGate(DefaultMaxPending, DefaultMaxPending/2, 0), cancel: cancel,
	}
	r.work.Go(func() { r.serve(ctx) })
	return r
}

type relayed struct {
	*listener
	inner   net.Listener
	purpose string
	verify  func(*x509.Certificate) error
	now     func() time.Time
	gate    *Gate
	cancel  context.CancelFunc
	work    sync.WaitGroup
}

func (r *relayed) serve(ctx context.Context) {
	_ = Accept(ctx, r.inner, slog.New(slog.DiscardHandler), func(conn net.Conn) {
		r.work.Go(func() { r.handle(ctx, conn) })
	})
	_ = r.listener.Close()
}

// Close closes the listener underneath and the connections not yet handed out.
func (r *relayed) Close() error {
	r.cancel()
	err := r.inner.Close()
	_ = r.listener.Close()
	r.work.Wait()
	return err
}

func (r *relayed) handle(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, DefaultHandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	slot, err := r.gate.Enter(ctx, conn)
	if err != nil {
		stop()
		_ = conn.Close()
		return
	}
	c, err := r.read(conn)
	slot.Leave()
	if err != nil {
		_ = conn.Close()
		c = &refusedConn{Conn: conn, err: err}
	}
	if !r.deliver(ctx, c, stop) {
		stop()
		_ = conn.Close()
	}
}

// read takes the preamble off conn, if there is one.
func (r *relayed) read(conn net.Conn) (net.Conn, error) {
	_ = conn.SetReadDeadline(time.Now().Add(relayedSilence))
	var head [len(relayedMagic)]byte
	for n := 0; n < len(head); {
		k, err := conn.Read(head[n:])
		n += k
		if k > 0 {
			_ = conn.SetReadDeadline(time.Time{})
		}
		if string(head[:n]) != relayedMagic[:n] {
			return newConn(conn, append([]byte(nil), head[:n]...)), nil
		}
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			_ = conn.SetReadDeadline(time.Time{})
			return newConn(conn, nil), nil
		}
		if err != nil && n < len(head) {
			return nil, fmt.Errorf("read the first bytes: %w", err)
		}
	}
	m, err := readRelayed(conn)
	if err != nil {
		return nil, err
	}
	addr, err := r.check(m)
	if err != nil {
		return nil, err
	}
	return &relayedConn{Conn: newConn(conn, nil), remote: addr}, nil
}

// readRelayed reads the message after the magic bytes.
func readRelayed(rd io.Reader) (*proxyv1.Relayed, error) {
	var size [4]byte
	if _, err := io.ReadFull(rd, size[:]); err != nil {
		return nil, fmt.Errorf("read the relayed preamble: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n == 0 || n > maxRelayed {
		return nil, fault.Invalid("relayed preamble of %d bytes: expected at most %d", n, maxRelayed)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(rd, body); err != nil {
		return nil, fmt.Errorf("read the relayed preamble: %w", err)
	}
	m := new(proxyv1.Relayed)
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, fault.Invalid("relayed preamble: not a message: %w", err)
	}
	return m, nil
}

// check returns the client's address if the statement is true and fresh.
func (r *relayed) check(m *proxyv1.Relayed) (net.Addr, error) {
	cert, err := x509.ParseCertificate(m.GetCertificate())
	if err != nil {
		return nil, fault.Invalid("relayed preamble: bad certificate: %w", err)
	}
	algorithm := x509.PureEd25519
	if _, ok := cert.PublicKey.(*ecdsa.PublicKey); ok {
		algorithm = x509.ECDSAWithSHA256
	}
	if err := cert.CheckSignature(algorithm, relayedBytes(m, r.purpose), m.GetSignature()); err != nil {
		return nil, fault.Unauthenticated("relayed preamble: bad signature for purpose %q: %w", r.purpose, err)
	}
	if err := r.verify(cert); err != nil {
		return nil, fault.Unauthenticated("relayed preamble: not signed by a Proxy of this cluster: %w", err)
	}
	if skew := r.now().Sub(time.UnixMilli(m.GetTime())); skew > relayedWindow || skew < -relayedWindow {
		return nil, fault.Unauthenticated("relayed preamble: signed %s ago by the Proxy's clock, at most %s is allowed: set the clocks right",
			skew.Round(time.Second), relayedWindow)
	}
	addr, err := netip.ParseAddrPort(m.GetClientAddr())
	if err != nil {
		return nil, fault.Invalid("relayed preamble: client address %q: expected ip:port", m.GetClientAddr())
	}
	return net.TCPAddrFromAddrPort(addr), nil
}

// relayedConn says the address of the client behind the Proxy.
type relayedConn struct {
	*Conn
	remote net.Addr
}

// RemoteAddr returns the client's address, as the Proxy signed it.
func (c *relayedConn) RemoteAddr() net.Addr { return c.remote }

// refusedConn is closed; reading from it tells why.
type refusedConn struct {
	net.Conn
	err error
}

// Read returns why the connection was refused.
func (c *refusedConn) Read([]byte) (int, error) { return 0, c.err }
