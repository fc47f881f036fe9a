package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"teleport/internal/access"
	"teleport/internal/fault"
)

// Codes that stand where a startup message has its version.
const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSS    = 80877104
)

const (
	// maxStartup is the longest startup message, as the server has it.
	maxStartup = 10_000
	// maxPreliminaries bounds the requests before the startup message.
	maxPreliminaries = 4
	// maxGreeting bounds what the server says before the login is over.
	maxGreeting = 64 << 10
	// headerSize is that of a message: its kind and its length.
	headerSize = 5
)

// preliminary is a message without a kind, as the first ones are.
type preliminary struct {
	code uint32
	body []byte
}

// readStartup reads one, and nothing after it.
func readStartup(r io.Reader) (preliminary, error) {
	head := make([]byte, 8)
	if _, err := io.ReadFull(r, head); err != nil {
		return preliminary{}, fmt.Errorf("read the startup message: %w", err)
	}
	size := binary.BigEndian.Uint32(head)
	if size < 8 || size > maxStartup {
		return preliminary{}, fault.Invalid("a startup message of %d bytes: this is not the protocol of PostgreSQL", size)
	}
	p := preliminary{code: binary.BigEndian.Uint32(head[4:]), body: make([]byte, size-8)}
	if _, err := io.ReadFull(r, p.body); err != nil {
		return preliminary{}, fmt.Errorf("read the startup message: %w", err)
	}
	return p, nil
}

// readHello reads a StartupMessage or a CancelRequest. TLS is there already: who asks for
// encryption is told that there is none more.
func readHello(client net.Conn) (preliminary, error) {
	for range maxPreliminaries {
		p, err := readStartup(client)
		if err != nil || p.code != codeSSL && p.code != codeGSS {
			return p, err
		}
		if _, err := client.Write([]byte{'N'}); err != nil {
			return p, err
		}
	}
	return preliminary{}, fault.Invalid("the client asks for encryption again and again")
}

func startupMessage(code uint32, body []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	out = binary.BigEndian.AppendUint32(out, code)
	return append(out, body...)
}

// startup is a StartupMessage.
type startup struct {
	version        uint32
	user, database string
	// rest are the other parameters, names and values in turn.
	rest []string
}

// parseStartup reads the parameters. One that is there twice could be read in two ways,
// and is refused.
func parseStartup(p preliminary) (*startup, error) {
	s := &startup{version: p.code}
	if p.code>>16 != 3 {
		return nil, fault.Unsupported("protocol version %d.%d: this is version 3", p.code>>16, p.code&0xffff)
	}
	body, ok := bytes.CutSuffix(p.body, []byte{0})
	if !ok {
		return nil, fault.Invalid("the startup message has no end")
	}
	seen := map[string]bool{}
	for len(body) > 0 {
		name, rest, ok := bytes.Cut(body, []byte{0})
		value, rest, more := bytes.Cut(rest, []byte{0})
		if !ok || !more || len(name) == 0 {
			return nil, fault.Invalid("the parameters of the startup message cannot be read")
		}
		body = rest
		key, text := string(name), string(value)
		if seen[key] {
			return nil, fault.Invalid("the startup parameter %q is there twice", key)
		}
		seen[key] = true
		switch key {
		case "user":
			s.user = text
		case "database":
			s.database = text
		case "replication":
			if off, err := strconv.ParseBool(text); err != nil || off {
				return nil, fault.Unsupported("replication does not go through Teleport: it would copy more than roles can speak of")
			}
		default:
			s.rest = append(s.rest, key, text)
		}
	}
	if s.user == "" {
		return nil, fault.Invalid("no database user: give one with --db-user, or -U")
	}
	if s.database == "" {
		s.database = s.user
	}
	return s, nil
}

// encode returns the parameters as they are sent.
func (s *startup) encode() []byte {
	text := strings.Join(append([]string{"user", s.user, "database", s.database}, s.rest...), "\x00")
	return append([]byte(text), 0, 0)
}

// Kinds of messages of the server that matter here.
const (
	msgError          = 'E'
	msgAuthentication = 'R'
)

// readMessage reads one message with its header, and nothing after it.
func readMessage(r io.Reader, limit int) (kind byte, message []byte, err error) {
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size < 4 || size > uint32(limit) {
		return 0, nil, fault.Invalid("a message of %d bytes is no answer of a PostgreSQL server", size)
	}
	message = append(head, make([]byte, size-4)...)
	_, err = io.ReadFull(r, message[headerSize:])
	return head[0], message, err
}

const authOK = 0

func authCode(body []byte) uint32 {
	if len(body) < 4 {
		return ^uint32(0)
	}
	return binary.BigEndian.Uint32(body)
}

// authName names what the server asks for.
func authName(code uint32) string {
	switch code {
	case pgproto3.AuthTypeCleartextPassword, pgproto3.AuthTypeMD5Password, pgproto3.AuthTypeSASL:
		return "a password"
	case pgproto3.AuthTypeGSS, pgproto3.AuthTypeGSSCont:
		return "a Kerberos ticket"
	}
	return "authentication method " + strconv.FormatUint(uint64(code), 10)
}

// SQLSTATE codes of what the agent itself says.
const (
	stateDenied      = "28000" // invalid_authorization_specification
	stateUnreachable = "08001" // sqlclient_unable_to_establish_sqlconnection
	stateUnsupported = "0A000" // feature_not_supported
	stateProtocol    = "08P01" // protocol_violation
	stateEnded       = "57P01" // admin_shutdown
)

// errorMessage is an ErrorResponse that ends the connection.
func errorMessage(err error) []byte {
	e := &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: stateUnreachable, Message: err.Error()}
	switch {
	case errors.Is(err, fault.ErrDenied), errors.Is(err, fault.ErrUnauthenticated):
		e.Code, e.Hint = stateDenied, "tsh db ls shows the databases that you may use, and as whom."
		if fault.Code(err) == access.CodeLocked {
			e.Hint = "A lock ends all access: an administrator can say more."
		}
	case errors.Is(err, fault.ErrUnsupported):
		e.Code = stateUnsupported
	case errors.Is(err, fault.ErrInvalid):
		e.Code = stateProtocol
	}
	out, err := e.Encode(nil)
	if err != nil {
		return nil
	}
	return out
}

// endMessage says why a session ends that was under way.
func endMessage(reason error) []byte {
	e := &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: stateEnded, Message: reason.Error()}
	out, err := e.Encode(nil)
	if err != nil {
		return nil
	}
	return out
}

// errorText returns what an ErrorResponse says, in one line.
func errorText(body []byte) string {
	var severity, code, message string
	for len(body) > 1 {
		value, rest, _ := bytes.Cut(body[1:], []byte{0})
		switch body[0] {
		case 'S':
			severity = string(value)
		case 'C':
			code = string(value)
		case 'M':
			message = string(value)
		}
		body = rest
	}
	return fmt.Sprintf("%s: %s (SQLSTATE %s)", severity, message, code)
}
