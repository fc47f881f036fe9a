package mongodb

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"

	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
)

// maxLogin bounds the answers at the login.
const maxLogin = 1 << 20

// connect logs in to the server by certificate, and returns the connection with how the
// server introduced itself.
func connect(ctx context.Context, s *engine.Session, user string) (conn *tls.Conn, hello []byte, err error) {
	err = engine.Connect(ctx, s.Host, engine.Login{
		User: user, Port: defaultPort, Within: loginTimeout, Late: fault.Unreachable("the MongoDB server did not answer within %s", loginTimeout),
	}, func(ctx context.Context, raw net.Conn, config *tls.Config) error {
		var err error
		conn, hello, err = enter(ctx, s, raw, config, user)
		return err
	})
	return conn, hello, err
}

func enter(ctx context.Context, s *engine.Session, raw net.Conn, config *tls.Config, user string) (*tls.Conn, []byte, error) {
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, fault.Unreachable("TLS with the MongoDB server: %v: has it net.tls with the files of tctl auth sign --format=mongodb?", err)
	}
	client := new(builder).
		raw(element{typeDocument, "application", new(builder).str("name", "teleport "+s.User.Name[:min(len(s.User.Name), 100)]).doc()}).
		raw(element{typeDocument, "driver", new(builder).str("name", "teleport").str("version", "1").doc()}).
		raw(element{typeDocument, "os", new(builder).str("type", "linux").doc()}).doc()
	// The old name of the command is known to all versions. No compression is offered.
	hello, err := ask(conn, 1, new(builder).int("isMaster", 1).bool("helloOk", true).raw(element{typeDocument, "client", client}).str("$db", "admin").doc())
	if err != nil {
		return nil, nil, fault.Unreachable("greet the MongoDB server: %v", err)
	}
	if _, err := ask(conn, 2, new(builder).int("authenticate", 1).str("mechanism", mechanismX509).str("$db", external).doc()); err != nil {
		var no refusal
		if errors.As(err, &no) {
			return nil, nil, fault.Denied("the MongoDB server does not take the certificate of user %q: %v: has it the user CN=%s in $external?", user, err, user)
		}
		return nil, nil, fault.Unreachable("log in to the MongoDB server: %v", err)
	}
	return conn, hello, nil
}

// refusal is what the server says to a command that it does not carry out.
type refusal string

func (r refusal) Error() string { return string(r) }

// ask sends a command, and returns the answer's document.
func ask(conn io.ReadWriter, id int32, doc []byte) ([]byte, error) {
	if _, err := conn.Write(message(opMsg, id, 0, doc)); err != nil {
		return nil, err
	}
	raw := make([]byte, headSize)
	if _, err := io.ReadFull(conn, raw); err != nil {
		return nil, err
	}
	h, err := parseHead(raw)
	if err != nil {
		return nil, err
	}
	if h.op != opMsg || h.to != id || h.size > maxLogin {
		return nil, fault.Invalid("an answer that was not asked for")
	}
	p := make([]byte, int(h.size)-headSize)
	if _, err := io.ReadFull(conn, p); err != nil {
		return nil, err
	}
	answer, ok := answerOf(h, p)
	if !ok {
		return nil, fault.Invalid("an answer that cannot be read")
	}
	if err := elements(answer, func(element) bool { return true }); err != nil {
		return nil, err
	}
	if text := failure(answer); text != "" {
		return nil, refusal(text)
	}
	return answer, nil
}

// answerOf is the document of an answer, p is what follows the head.
func answerOf(h head, p []byte) ([]byte, bool) {
	if h.op != opMsg || len(p) < 5 || p[4] != sectionBody {
		return nil, false
	}
	doc, err := document(p[5:])
	return doc, err == nil
}

// moreToCome reports whether another answer to the same message follows.
func moreToCome(h head, p []byte) bool {
	return h.op == opMsg && len(p) >= 4 && binary.LittleEndian.Uint32(p)&flagMore != 0
}
