package client

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
	"unicode/utf16"

	"teleport/internal/fault"
	"teleport/internal/types"
)

const (
	// maxOpening bounds what is read of a program before it is told that it is not
	// served.
	maxOpening = 64 << 10
	// lingering is how long a program has to read what it was told.
	lingering = time.Second
)

// Refusal returns what tells a program of a database protocol why it is not served, or
// nil where the protocol has no way to.
func Refusal(protocol string) func(conn net.Conn, err error) {
	say := map[string]func(net.Conn, refusal) error{
		types.ProtocolPostgres: refusePostgres, types.ProtocolCockroachDB: refusePostgres, types.ProtocolMySQL: refuseMySQL,
		types.ProtocolRedis: refuseRedis, types.ProtocolMongoDB: refuseMongo,
		types.ProtocolSQLServer: refuseSQLServer, types.ProtocolClickHouseHTTP: refuseHTTP,
	}[protocol]
	if say == nil {
		return nil
	}
	return func(conn net.Conn, err error) {
		r := refusal{
			text:   firstLine(err.Error()),
			denied: errors.Is(err, fault.ErrDenied) || errors.Is(err, fault.ErrUnauthenticated),
		}
		if say(conn, r) != nil {
			return
		}
		// A connection that is closed before everything was read takes the message with it.
		if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			_ = conn.SetReadDeadline(time.Now().Add(lingering))
			_, _ = io.Copy(io.Discard, io.LimitReader(conn, maxOpening))
		}
	}
}

// refusal is what a program is told.
type refusal struct {
	text string
	// denied: the user may not, or has to log in; otherwise something is out of order.
	denied bool
}

// pick returns the first if the user is denied, otherwise the second.
func pick[T any](r refusal, denied, broken T) T {
	if r.denied {
		return denied
	}
	return broken
}

// refusePostgres answers requests for encryption with no, and the startup message with
// an ErrorResponse.
func refusePostgres(conn net.Conn, r refusal) error {
	const cancel, tls, gss = 80877102, 80877103, 80877104
	for {
		var head [8]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return err
		}
		switch binary.BigEndian.Uint32(head[4:]) {
		case cancel:
			return io.EOF
		case tls, gss:
			if _, err := conn.Write([]byte("N")); err != nil {
				return err
			}
			continue
		}
		rest := int64(binary.BigEndian.Uint32(head[:4])) - int64(len(head))
		if rest < 0 || rest > maxOpening {
			return io.ErrUnexpectedEOF
		}
		if _, err := io.CopyN(io.Discard, conn, rest); err != nil {
			return err
		}
		var body []byte
		for _, field := range []string{"SFATAL", "VFATAL", "C" + pick(r, "28000", "08006"), "M" + r.text} {
			body = append(append(body, field...), 0)
		}
		body = append(body, 0)
		out := binary.BigEndian.AppendUint32([]byte("E"), uint32(len(body)+4))
		_, err := conn.Write(append(out, body...))
		return err
	}
}

// refuseMySQL sends an error in the place of the greeting.
func refuseMySQL(conn net.Conn, r refusal) error {
	body := binary.LittleEndian.AppendUint16([]byte{0xff}, pick[uint16](r, 1045, 1105))
	body = append(body, r.text...)
	size := len(body)
	_, err := conn.Write(append([]byte{byte(size), byte(size >> 8), byte(size >> 16), 0}, body...))
	return err
}

// refuseRedis sends an error as Redis does to one client too many.
func refuseRedis(conn net.Conn, r refusal) error {
	_, err := io.WriteString(conn, pick(r, "-NOPERM ", "-ERR ")+r.text+"\r\n")
	return err
}

// refuseHTTP answers one request.
func refuseHTTP(conn net.Conn, r refusal) error {
	if _, err := http.ReadRequest(bufio.NewReader(io.LimitReader(conn, maxOpening))); err != nil {
		return err
	}
	status := pick(r, http.StatusForbidden, http.StatusBadGateway)
	_, err := fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		status, http.StatusText(status), len(r.text)+1, r.text)
	return err
}

// refuseMongo answers the first message, in the old or the new form.
func refuseMongo(conn net.Conn, r refusal) error {
	const opReply, opQuery, opMsg = 1, 2004, 2013
	var head [16]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return err
	}
	rest := int64(binary.LittleEndian.Uint32(head[:4])) - int64(len(head))
	if rest < 0 || rest > maxOpening {
		return io.ErrUnexpectedEOF
	}
	if _, err := io.CopyN(io.Discard, conn, rest); err != nil {
		return err
	}
	var doc []byte
	doc = append(append(doc, "\x01ok\x00"...), make([]byte, 8)...)
	doc = binary.LittleEndian.AppendUint32(append(doc, "\x02errmsg\x00"...), uint32(len(r.text)+1))
	doc = append(append(doc, r.text...), 0)
	doc = binary.LittleEndian.AppendUint32(append(doc, "\x10code\x00"...), pick[uint32](r, 18, 6))
	doc = append(doc, 0)
	doc = append(binary.LittleEndian.AppendUint32(nil, uint32(len(doc)+4)), doc...)
	var code uint32
	var body []byte
	switch binary.LittleEndian.Uint32(head[12:]) {
	case opMsg:
		code, body = opMsg, make([]byte, 5) // no flags; a body section
	case opQuery:
		code, body = opReply, make([]byte, 20) // no flags, no cursor, from 0
		body[16] = 1
	default:
		return io.ErrUnexpectedEOF
	}
	out := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)+len(doc)))
	out = binary.LittleEndian.AppendUint32(out, 1)
	out = append(out, head[4:8]...)
	out = binary.LittleEndian.AppendUint32(out, code)
	_, err := conn.Write(append(append(out, body...), doc...))
	return err
}

// refuseSQLServer leads a client without encryption up to its login, and answers that
// with an error.
func refuseSQLServer(conn net.Conn, r refusal) error {
	const prelogin, login, answer = 0x12, 0x10, 0x04
	packet := func(body []byte) error {
		out := binary.BigEndian.AppendUint16([]byte{answer, 1}, uint16(len(body)+8))
		_, err := conn.Write(append(append(out, 0, 0, 1, 0), body...))
		return err
	}
	for {
		kind, err := readTDS(conn)
		switch {
		case err != nil:
			return err
		case kind == prelogin:
			// Version 11.0 and "encryption is not supported", at their offsets.
			if err := packet([]byte{0, 0, 11, 0, 6, 1, 0, 17, 0, 1, 0xff, 11, 0, 0, 0, 0, 0, 2}); err != nil {
				return err
			}
		case kind == login:
			text := utf16.Encode([]rune(r.text))
			var token []byte
			token = binary.LittleEndian.AppendUint32(token, pick[uint32](r, 18456, 17142))
			token = binary.LittleEndian.AppendUint16(append(token, 1, 14), uint16(len(text)))
			for _, unit := range text {
				token = binary.LittleEndian.AppendUint16(token, unit)
			}
			token = append(token, 0, 0, 0, 0, 0, 0) // no server, no procedure, line 0
			out := binary.LittleEndian.AppendUint16([]byte{0xaa}, uint16(len(token)))
			out = append(append(out, token...), 0xfd, 2, 0, 0, 0)
			return packet(append(out, make([]byte, 8)...))
		default:
			return io.ErrUnexpectedEOF
		}
	}
}

// readTDS reads one message of SQL Server's protocol and returns its type.
func readTDS(conn net.Conn) (kind byte, err error) {
	for read := 0; read < maxOpening; {
		var head [8]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return 0, err
		}
		size := int(binary.BigEndian.Uint16(head[2:]))
		if size < len(head) {
			return 0, io.ErrUnexpectedEOF
		}
		if _, err := io.CopyN(io.Discard, conn, int64(size-len(head))); err != nil {
			return 0, err
		}
		if head[1]&1 != 0 {
			return head[0], nil
		}
		read += size
	}
	return 0, io.ErrUnexpectedEOF
}
