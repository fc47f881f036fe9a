package mux

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// Bounds of a ClientHello. Real ones are below 2 KiB, in one record.
const (
	maxHello       = 16 << 10
	maxRecords     = 16
	maxProtos      = 64
	recordHeader   = 5
	messageHeader  = 4
	firstHelloRead = 2 << 10
)

// errHello marks bytes that are no ClientHello.
var errHello = errors.New("not a TLS ClientHello")

// hello is what routing needs of a ClientHello.
type hello struct {
	protos []string
	sni    string
}

// peekHello reads the ClientHello. It returns all bytes that it took from conn,
// also with an error.
func peekHello(conn net.Conn) (raw []byte, h hello, err error) {
	buf := make([]byte, 0, firstHelloRead)
	for {
		msg, missing, err := assemble(buf)
		if err != nil {
			return buf, hello{}, err
		}
		if missing == 0 {
			h, err := parseHello(msg)
			return buf, h, err
		}
		if len(buf)+missing > cap(buf) {
			buf = append(make([]byte, 0, min(2*(len(buf)+missing), 2*maxHello)), buf...)
		}
		n, err := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err != nil && n == 0 {
			return buf, hello{}, fmt.Errorf("read the ClientHello: %w", err)
		}
	}
}

// assemble returns the body of the ClientHello message at the start of buf, or at
// least how many bytes are missing.
func assemble(buf []byte) (body []byte, missing int, err error) {
	var msg []byte
	rest := buf
	for range maxRecords {
		if len(rest) > 0 && rest[0] != 22 || len(rest) > 1 && rest[1] != 3 {
			return nil, 0, fmt.Errorf("%w: no handshake record", errHello)
		}
		if len(rest) < recordHeader {
			return nil, recordHeader - len(rest), nil
		}
		size := int(rest[3])<<8 | int(rest[4])
		if size == 0 || size > maxHello {
			return nil, 0, fmt.Errorf("%w: record of %d bytes", errHello, size)
		}
		part := rest[recordHeader:min(len(rest), recordHeader+size)]
		if msg == nil {
			msg = part
		} else {
			msg = append(msg[:len(msg):len(msg)], part...)
		}
		if len(msg) > 0 && msg[0] != 1 {
			return nil, 0, fmt.Errorf("%w: message type %d", errHello, msg[0])
		}
		if len(msg) >= messageHeader {
			want := int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3])
			if want > maxHello-messageHeader {
				return nil, 0, fmt.Errorf("%w: %d bytes long", errHello, want)
			}
			if len(msg) >= messageHeader+want {
				return msg[messageHeader : messageHeader+want], 0, nil
			}
		}
		if len(part) < size {
			return nil, size - len(part), nil
		}
		rest = rest[recordHeader+size:]
	}
	return nil, 0, fmt.Errorf("%w: in more than %d records", errHello, maxRecords)
}

// parseHello reads the body of a ClientHello (RFC 8446 section 4.1.2).
func parseHello(body []byte) (hello, error) {
	var (
		h                                       hello
		s                                       = cryptobyte.String(body)
		session, suites, compression, extension cryptobyte.String
	)
	if !s.Skip(2+32) || !s.ReadUint8LengthPrefixed(&session) || !s.ReadUint16LengthPrefixed(&suites) ||
		!s.ReadUint8LengthPrefixed(&compression) {
		return hello{}, fmt.Errorf("%w: cut short", errHello)
	}
	if s.Empty() {
		return h, nil
	}
	if !s.ReadUint16LengthPrefixed(&extension) || !s.Empty() {
		return hello{}, fmt.Errorf("%w: extensions cut short", errHello)
	}
	for !extension.Empty() {
		var (
			kind uint16
			data cryptobyte.String
			ok   = true
		)
		if !extension.ReadUint16(&kind) || !extension.ReadUint16LengthPrefixed(&data) {
			return hello{}, fmt.Errorf("%w: extension cut short", errHello)
		}
		switch kind {
		case 0:
			h.sni, ok = parseServerName(data)
		case 16:
			h.protos, ok = parseProtos(data)
		}
		if !ok {
			return hello{}, fmt.Errorf("%w: bad extension %d", errHello, kind)
		}
	}
	return h, nil
}

// parseServerName reads the extension of RFC 6066 section 3.
func parseServerName(s cryptobyte.String) (string, bool) {
	var (
		names, name cryptobyte.String
		kind        uint8
		found       string
	)
	if !s.ReadUint16LengthPrefixed(&names) || !s.Empty() || names.Empty() {
		return "", false
	}
	for !names.Empty() {
		if !names.ReadUint8(&kind) || !names.ReadUint16LengthPrefixed(&name) || len(name) == 0 || len(name) > 255 {
			return "", false
		}
		if kind == 0 {
			if found != "" {
				return "", false
			}
			found = string(name)
		}
	}
	return found, true
}

// parseProtos reads the extension of RFC 7301 section 3.1.
func parseProtos(s cryptobyte.String) ([]string, bool) {
	var (
		list, name cryptobyte.String
		protos     []string
	)
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return nil, false
	}
	for !list.Empty() {
		if !list.ReadUint8LengthPrefixed(&name) || len(name) == 0 || len(protos) == maxProtos {
			return nil, false
		}
		protos = append(protos, string(name))
	}
	return protos, true
}

// looksLikeHTTP reports whether the first bytes begin an HTTP request.
func looksLikeHTTP(raw []byte) bool {
	for _, m := range []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH ", "CONNECT ", "TRACE ", "PRI "} {
		if len(raw) >= len(m) && bytes.Equal(raw[:len(m)], []byte(m)) {
			return true
		}
	}
	return false
}

// answerHTTP tells a client that forgot the "s" of https. It reads what the
// client still sends for a moment: closing with bytes unread would take the
// answer away with a reset.
func answerHTTP(conn net.Conn) {
	const body = "this port speaks HTTPS\n"
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body); err != nil {
		return
	}
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	var buf [1 << 10]byte
	for range 16 {
		if _, err := conn.Read(buf[:]); err != nil {
			return
		}
	}
}
