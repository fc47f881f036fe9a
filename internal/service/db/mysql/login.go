package mysql

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strconv"

	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
)

// Capabilities (Protocol::CapabilityFlags).
const (
	capLongPassword  = 1 << 0
	capFoundRows     = 1 << 1
	capLongFlag      = 1 << 2
	capConnectWithDB = 1 << 3
	capNoSchema      = 1 << 4
	capODBC          = 1 << 6
	capLocalFiles    = 1 << 7
	capIgnoreSpace   = 1 << 8
	capProtocol41    = 1 << 9
	capInteractive   = 1 << 10
	capSSL           = 1 << 11
	capIgnoreSigpipe = 1 << 12
	capTransactions  = 1 << 13
	capReserved      = 1 << 14
	capSecure        = 1 << 15
	capMultiStmts    = 1 << 16
	capMultiResults  = 1 << 17
	capPSMulti       = 1 << 18
	capPluginAuth    = 1 << 19
	capConnectAttrs  = 1 << 20
	capLenencAuth    = 1 << 21

	// dialect is what the agent offers, and so the most that both sides speak after the
	// login. What is left out changes the form of answers, or compresses them.
	dialect = capLongPassword | capFoundRows | capLongFlag | capConnectWithDB | capNoSchema | capODBC | capLocalFiles | capIgnoreSpace |
		capProtocol41 | capInteractive | capIgnoreSigpipe | capTransactions | capReserved | capSecure | capMultiStmts | capMultiResults |
		capPSMulti | capPluginAuth | capConnectAttrs | capLenencAuth
	// asked is what the agent asks of the server, besides what the client did.
	required = capLongPassword | capProtocol41 | capSecure | capPluginAuth | capTransactions | capSSL
)

const (
	pluginNative  = "mysql_native_password"
	pluginCaching = "caching_sha2_password"

	markOK     = 0x00
	markMore   = 0x01
	markSwitch = 0xfe
	markError  = 0xff

	scrambleSize = 20
	// maxRounds bounds what a server may ask in a login.
	maxRounds = 8

	statusAutocommit = 0x0002
	charsetUTF8      = 45 // utf8mb4_general_ci
)

func itoa(n int) string { return strconv.Itoa(n) }

// greeting is what the agent says first.
type greeting struct {
	version  string
	thread   uint32
	ssl      bool
	scramble [scrambleSize]byte
}

func newGreeting(version string, thread uint32, ssl bool) *greeting {
	g := &greeting{version: version, thread: thread, ssl: ssl}
	// The scramble goes into hashes that nobody checks; it must have no zero byte.
	copy(g.scramble[:], rand.Text())
	return g
}

// encode returns Protocol::HandshakeV10.
func (g *greeting) encode() []byte {
	caps := uint32(dialect)
	if g.ssl {
		caps |= capSSL
	}
	b := append([]byte{10}, g.version...)
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint32(b, g.thread)
	b = append(b, g.scramble[:8]...)
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(caps))
	b = append(b, charsetUTF8)
	b = binary.LittleEndian.AppendUint16(b, statusAutocommit)
	b = binary.LittleEndian.AppendUint16(b, uint16(caps>>16))
	b = append(b, scrambleSize+1)
	b = append(b, make([]byte, 10)...)
	b = append(b, g.scramble[8:]...)
	b = append(b, 0)
	return append(append(b, pluginNative...), 0)
}

// isSSLRequest reports whether a packet is Protocol::SSLRequest.
func isSSLRequest(p []byte) bool {
	return len(p) == 32 && binary.LittleEndian.Uint32(p)&capSSL != 0
}

// login is who a client wants to be.
type login struct {
	caps     uint32
	packet   uint32
	charset  byte
	user     string
	auth     []byte
	database string
	plugin   string
	// attributes are what the client says about itself, as they came.
	attributes []byte
}

// parseLogin reads Protocol::HandshakeResponse41.
func parseLogin(p []byte) (*login, error) {
	bad := fault.Invalid("the login cannot be read")
	if len(p) < 32 {
		return nil, bad
	}
	l := &login{caps: binary.LittleEndian.Uint32(p), packet: binary.LittleEndian.Uint32(p[4:]), charset: p[8]}
	if l.caps&capProtocol41 == 0 {
		return nil, fault.Unsupported("the client speaks a protocol older than MySQL 4.1")
	}
	if l.caps&capSSL != 0 && len(p) == 32 {
		return nil, fault.Invalid("the connection is encrypted already: turn TLS off in the client (--skip-ssl, --ssl-mode=DISABLED), the local proxy does it")
	}
	var ok bool
	p = p[32:]
	if l.user, p, ok = text(p); !ok {
		return nil, bad
	}
	switch {
	case l.caps&capLenencAuth != 0:
		l.auth, p, ok = lenencBytes(p)
	case l.caps&capSecure != 0:
		if ok = len(p) > 0 && len(p) > int(p[0]); ok {
			l.auth, p = p[1:1+int(p[0])], p[1+int(p[0]):]
		}
	default:
		var s string
		s, p, ok = text(p)
		l.auth = []byte(s)
	}
	if !ok {
		return nil, bad
	}
	if l.caps&capConnectWithDB != 0 && len(p) > 0 {
		if l.database, p, ok = text(p); !ok {
			return nil, bad
		}
	}
	if l.caps&capPluginAuth != 0 && len(p) > 0 {
		if l.plugin, p, ok = text(p); !ok { // some clients leave the end out
			l.plugin, p = string(p), nil
		}
	}
	if l.caps&capConnectAttrs != 0 && len(p) > 0 {
		if _, rest, ok := lenencBytes(p); ok {
			l.attributes = p[:len(p)-len(rest)]
		}
	}
	return l, nil
}

// agree ends the client's part of the login, whatever it showed, and returns the number
// of the packet that comes next.
func agree(client net.Conn, who *login, seq byte) (byte, error) {
	seq++
	switch {
	case who.plugin == "", who.plugin == pluginNative:
		return seq, nil
	case who.plugin == pluginCaching && len(who.auth) > 1:
		// "fast_auth_success"
		return seq + 1, writePacket(client, seq, []byte{markMore, 3})
	}
	p := append([]byte{markSwitch}, pluginNative...)
	p = append(append(append(p, 0), rand.Text()[:scrambleSize]...), 0)
	if err := writePacket(client, seq, p); err != nil {
		return 0, err
	}
	seq, _, err := readPacket(client, maxLogin)
	return seq + 1, err
}

// entered is a connection to a server that has agreed.
type entered struct {
	conn    *tls.Conn
	version string
	// thread is the server's number of the connection, ok how it agreed.
	thread uint32
	ok     []byte
}

// connect logs in to the server.
func connect(ctx context.Context, host engine.Host, who *login) (*entered, error) {
	var in *entered
	err := engine.Connect(ctx, host, engine.Login{
		User: who.user, Port: defaultPort, Within: loginTimeout, Late: fault.Unreachable("the MySQL server did not finish the login within %s", loginTimeout),
	}, func(ctx context.Context, raw net.Conn, config *tls.Config) error {
		var err error
		if in, err = enter(ctx, raw, config, who); closed(err) {
			return fault.Unreachable("the MySQL server ended the connection at the login")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return in, nil
}

func enter(ctx context.Context, raw net.Conn, config *tls.Config, who *login) (*entered, error) {
	seq, p, err := readPacket(raw, maxLogin)
	if err != nil {
		return nil, err
	}
	if len(p) > 0 && p[0] == markError {
		return nil, &serverError{p}
	}
	version, thread, caps, err := parseGreeting(p)
	if err != nil {
		return nil, err
	}
	if caps&capSSL == 0 {
		return nil, fault.Unreachable("the MySQL server does not speak TLS: set ssl_cert, ssl_key and ssl_ca in its configuration")
	}
	want := (who.caps&dialect | required) & (caps | capLongPassword)
	if who.database == "" {
		want &^= capConnectWithDB
	}
	if who.attributes == nil {
		want &^= capConnectAttrs
	}
	head := binary.LittleEndian.AppendUint32(nil, want)
	head = binary.LittleEndian.AppendUint32(head, who.packet)
	head = append(head, who.charset)
	head = append(head, make([]byte, 23)...)
	if err := writePacket(raw, seq+1, head); err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fault.Unreachable("the MySQL server's certificate or the agent's was refused: %v", err)
	}
	body := append(append(head, who.user...), 0)
	body = append(body, 0) // no password
	if want&capConnectWithDB != 0 {
		body = append(append(body, who.database...), 0)
	}
	if want&capPluginAuth != 0 {
		body = append(append(body, pluginNative...), 0)
	}
	if want&capConnectAttrs != 0 {
		body = append(body, who.attributes...)
	}
	if err := writePacket(conn, seq+2, body); err != nil {
		return nil, err
	}
	ok, err := await(conn, who.user)
	return &entered{conn, version, thread, ok}, err
}

// parseGreeting reads Protocol::HandshakeV10.
func parseGreeting(p []byte) (version string, thread, caps uint32, err error) {
	bad := fault.Unreachable("what answers does not speak the protocol of MySQL")
	if len(p) < 1 || p[0] != 10 {
		return "", 0, 0, bad
	}
	version, p, ok := text(p[1:])
	// thread 4, scramble 8, zero 1, capabilities 2, charset 1, status 2, capabilities 2
	if !ok || len(p) < 20 {
		return "", 0, 0, bad
	}
	return version, binary.LittleEndian.Uint32(p), uint32(binary.LittleEndian.Uint16(p[13:])) | uint32(binary.LittleEndian.Uint16(p[18:]))<<16, nil
}

// await answers what the server asks with an empty password, until it agrees.
func await(conn net.Conn, user string) ([]byte, error) {
	for range maxRounds {
		seq, p, err := readPacket(conn, maxLogin)
		if err != nil {
			return nil, err
		}
		if len(p) == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		switch p[0] {
		case markOK:
			return p, nil
		case markError:
			return nil, &serverError{p}
		case markSwitch:
			plugin, _, _ := text(append(p[1:], 0))
			if plugin != pluginNative && plugin != pluginCaching && plugin != "sha256_password" {
				return nil, refusedMethod(user, plugin)
			}
			if err := writePacket(conn, seq+1, nil); err != nil {
				return nil, err
			}
		case markMore:
			if len(p) > 1 && p[1] == 3 {
				continue
			}
			return nil, refusedMethod(user, "a password")
		default:
			return nil, refusedMethod(user, "something unknown")
		}
	}
	return nil, fault.Unreachable("the MySQL server asks again and again")
}

// refusedMethod says what to change when the server wants more than a certificate.
func refusedMethod(user, method string) error {
	return fault.Denied("the MySQL server asks user %q for %s, but the agent logs in with a certificate: CREATE or ALTER USER '%s'@'%%' IDENTIFIED BY '' REQUIRE SUBJECT '/CN=%s'", user, method, user, user)
}
