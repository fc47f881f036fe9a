package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"teleport/internal/audit"
	"teleport/internal/service/db/engine"
)

// asked records what the client asks. The query is recorded when it runs, with its text and
// its parameters, whether it came in one message or in four. Those messages have events of
// their own where they are about something with a name, that lasts: a prepared statement, a
// cursor. It has the client's half of the session: prepared
// statements and portals by name, within a bound of memory.
type asked struct {
	audit    engine.Audit
	limits   engine.Limits
	requests *requests

	known
	// copied is how much of a COPY has come.
	copied int64
	// unknown is set at a message that the protocol does not have.
	unknown bool
}

type statement struct {
	text string
	// types are the object ids of the parameters, where they are known: from the client
	// at first, then from the server.
	types atomic.Pointer[[]uint32]
}

// learn takes the object ids, four bytes each.
func (st *statement) learn(list []byte) {
	types := make([]uint32, 0, min(len(list)/4, maxParameters))
	for ; len(list) >= 4 && len(types) < maxParameters; list = list[4:] {
		types = append(types, binary.BigEndian.Uint32(list))
	}
	st.types.Store(&types)
}

// known returns the object ids as far as they are known.
func (st *statement) known() []uint32 {
	if types := st.types.Load(); types != nil {
		return *types
	}
	return nil
}

type portal struct {
	statement *statement
	params    []string
}

const (
	// maxHeld bounds the texts of statements and parameters that are kept; maxNames the
	// statements and portals.
	maxHeld  = 1 << 20
	maxNames = 4096
	// maxParameters bounds those of one statement that are recorded.
	maxParameters = 256
	// cutParameter is how much of one is recorded.
	cutParameter = 1 << 10
)

func newAsked(a engine.Audit, l engine.Limits, r *requests) *asked {
	r.unrecorded = func(q request) {
		if q.kind == 'P' {
			a.Event(audit.PostgresParse, map[string]any{"statement_name": q.id, "query": q.text})
			return
		}
		a.Event(audit.PostgresBind, map[string]any{"statement_name": q.from, "portal_name": q.id, "parameters": q.params})
	}
	r.differs = func(p *portal) { a.Query(engine.Query{Text: p.statement.text, Parameters: p.params}) }
	return &asked{audit: a, limits: l, requests: r, known: newKnown()}
}

// want is how much of a message of the client is looked at.
func (a *asked) want(kind byte, _ int) int {
	switch kind {
	case 'd', 'S', 'H', 'X', 'c', 'p':
		return 0
	}
	return a.limits.Message
}

// got records a message.
func (a *asked) got(kind byte, body []byte, size int) {
	switch kind {
	case 'Q':
		text := a.text(body, size)
		a.audit.Query(engine.Query{Text: text})
		a.requests.add(request{kind: kind, text: text})
	case 'P':
		a.parse(body, size)
	case 'B':
		a.bind(body, size)
	case 'E':
		a.execute(body)
	case 'C':
		a.close(body)
	case 'D':
		a.describe(body)
	case 'F':
		a.function(body, size)
	case 'S':
		a.requests.add(request{kind: kind})
	case 'd':
		a.copied += int64(size)
	case 'c', 'f':
		a.endCopy(kind == 'f')
	case 'H', 'X', 'p':
	default:
		a.unknown = true
		a.audit.Malformed(append([]byte{kind}, body...))
	}
}

// text is the query of a message of that size, of which body was kept.
func (a *asked) text(body []byte, size int) string {
	if len(body) < size {
		kept := min(len(body), a.limits.Query)
		return fmt.Sprintf("%s...[truncated: %d of %d bytes]", body[:kept], kept, size)
	}
	text, _, _ := bytes.Cut(body, []byte{0})
	return string(text)
}

// name takes a text that ends with a zero byte.
func name(body []byte) (text string, rest []byte, ok bool) {
	b, rest, ok := bytes.Cut(body, []byte{0})
	return string(b), rest, ok
}

func (a *asked) malformed(kind byte, body []byte) {
	a.audit.Malformed(append([]byte{kind}, body...))
	a.unknown = true
	// The server answers it all the same, and may take it for something.
	a.requests.giveUp()
	a.requests.add(request{kind: kind})
}

// parse is a statement that is prepared.
func (a *asked) parse(body []byte, size int) {
	id, rest, ok := name(body)
	if !ok {
		a.malformed('P', body)
		return
	}
	query, types, whole := bytes.Cut(rest, []byte{0})
	text := string(query)
	if !whole && len(body) < size {
		kept := min(len(query), a.limits.Query)
		text = fmt.Sprintf("%s...[truncated: %d of %d bytes]", query[:kept], kept, size)
	}
	st := &statement{text: text}
	if len(types) >= 2 {
		st.learn(types[2:])
	}
	a.known.parse(id, st)
	if id != "" {
		a.audit.Event(audit.PostgresParse, map[string]any{"statement_name": id, "query": text})
	}
	a.requests.add(request{kind: 'P', text: text, stmt: st, id: id})
}

// bind gives a statement its parameters.
func (a *asked) bind(body []byte, size int) {
	id, rest, ok := name(body)
	from, rest, ok2 := name(rest)
	if !ok || !ok2 {
		a.malformed('B', body)
		return
	}
	var types []uint32
	if st := a.statements[from]; st != nil {
		types = st.known()
	}
	params, ok := parameters(rest, types)
	if !ok && len(body) == size {
		a.malformed('B', body)
		return
	}
	if !ok {
		params = append(params, fmt.Sprintf("[truncated: %d of %d bytes]", len(body), size))
	}
	p := a.known.bind(id, from, params)
	if from != "" || id != "" {
		a.audit.Event(audit.PostgresBind, map[string]any{"statement_name": from, "portal_name": id, "parameters": p.params})
	}
	a.requests.add(request{kind: 'B', text: p.statement.text, params: p.params, id: id, from: from})
}

// parameters reads formats and values of a Bind as far as they are there.
func parameters(body []byte, types []uint32) (out []string, ok bool) {
	formats, body, ok := shorts(body)
	if !ok || len(body) < 2 {
		return nil, false
	}
	count := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	for i := range count {
		if len(body) < 4 {
			return out, false
		}
		size := int32(binary.BigEndian.Uint32(body))
		body = body[4:]
		value := []byte(nil)
		if size >= 0 {
			if int(size) > len(body) {
				return out, false
			}
			value, body = body[:size], body[size:]
		}
		if i >= maxParameters {
			continue
		}
		if size < 0 {
			out = append(out, "NULL")
			continue
		}
		out = append(out, valueText(value, format(formats, i), typeOf(types, i)))
	}
	if count > maxParameters {
		out = append(out, fmt.Sprintf("...[truncated: %d of %d parameters]", maxParameters, count))
	}
	return out, true
}

// shorts reads a count and so many numbers of two bytes.
func shorts(body []byte) (list, rest []byte, ok bool) {
	if len(body) < 2 {
		return nil, nil, false
	}
	n := 2 * int(binary.BigEndian.Uint16(body))
	body = body[2:]
	if len(body) < n {
		return nil, nil, false
	}
	return body[:n], body[n:], true
}

// format is that of the parameter: none given is text, one given is for all.
func format(formats []byte, i int) uint16 {
	switch {
	case len(formats) == 0:
		return 0
	case len(formats) == 2:
		return binary.BigEndian.Uint16(formats)
	case 2*i+2 <= len(formats):
		return binary.BigEndian.Uint16(formats[2*i:])
	}
	return 0
}

func typeOf(types []uint32, i int) uint32 {
	if i < len(types) {
		return types[i]
	}
	return 0
}

// Object ids of types whose binary form is read.
const (
	oidBool, oidBytea                            = 16, 17
	oidInt8, oidInt2, oidInt4, oidText           = 20, 21, 23, 25
	oidOID, oidFloat4, oidFloat8, oidVarchar     = 26, 700, 701, 1043
	oidUUID, oidJSON, oidJSONB, oidName, oidChar = 2950, 114, 3802, 19, 1042
)

// valueText writes a value as people read it. A binary one of a type that is not known
// here, or not yet, is written as bytea is.
func valueText(v []byte, format uint16, typ uint32) string {
	cut := ""
	if len(v) > cutParameter {
		cut = fmt.Sprintf("...[truncated: %d of %d bytes]", cutParameter, len(v))
		v = v[:cutParameter]
	}
	if format == 0 {
		return string(v) + cut
	}
	switch {
	case typ == oidInt8 && len(v) == 8:
		return strconv.FormatInt(int64(binary.BigEndian.Uint64(v)), 10)
	case typ == oidInt4 && len(v) == 4:
		return strconv.FormatInt(int64(int32(binary.BigEndian.Uint32(v))), 10)
	case typ == oidInt2 && len(v) == 2:
		return strconv.FormatInt(int64(int16(binary.BigEndian.Uint16(v))), 10)
	case typ == oidOID && len(v) == 4:
		return strconv.FormatUint(uint64(binary.BigEndian.Uint32(v)), 10)
	case typ == oidBool && len(v) == 1:
		return strconv.FormatBool(v[0] != 0)
	case typ == oidFloat8 && len(v) == 8:
		return strconv.FormatFloat(math.Float64frombits(binary.BigEndian.Uint64(v)), 'g', -1, 64)
	case typ == oidFloat4 && len(v) == 4:
		return strconv.FormatFloat(float64(math.Float32frombits(binary.BigEndian.Uint32(v))), 'g', -1, 32)
	case typ == oidUUID && len(v) == 16:
		return fmt.Sprintf("%x-%x-%x-%x-%x", v[:4], v[4:6], v[6:8], v[8:10], v[10:])
	case typ == oidJSONB && len(v) > 0 && utf8.Valid(v[1:]):
		return string(v[1:]) + cut
	case typ == oidText || typ == oidVarchar || typ == oidJSON || typ == oidName || typ == oidChar:
		return string(v) + cut
	case typ != oidBytea && printable(v):
		return string(v) + cut
	}
	return `\x` + hex.EncodeToString(v) + cut
}

func printable(v []byte) bool {
	for _, r := range string(v) {
		if r == utf8.RuneError || !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			return false
		}
	}
	return true
}

// execute runs a portal: that is the query.
func (a *asked) execute(body []byte) {
	id, _, ok := name(body)
	if !ok {
		a.malformed('E', body)
		return
	}
	q := request{kind: 'E', id: id, text: "[portal " + strconv.Quote(id) + " was not kept]"}
	if p := a.portals[id]; p != nil {
		q.text, q.params = p.statement.text, p.params
	}
	if id != "" {
		a.audit.Event(audit.PostgresExecute, map[string]any{"portal_name": id})
	}
	a.audit.Query(engine.Query{Text: q.text, Parameters: q.params})
	a.requests.add(q)
}

// close ends a statement or a portal.
func (a *asked) close(body []byte) {
	if len(body) < 2 {
		a.malformed('C', body)
		return
	}
	id, _, _ := name(body[1:])
	field := "statement_name"
	if body[0] == 'P' {
		field = "portal_name"
		a.forgetPortal(id)
	} else {
		a.forgetStatement(id)
	}
	a.audit.Event(audit.PostgresClose, map[string]any{field: id})
	a.requests.add(request{kind: 'C', id: id, portal: body[0] == 'P'})
}

func (a *asked) describe(body []byte) {
	q := request{kind: 'D'}
	if len(body) > 1 && body[0] == 'S' {
		id, _, _ := name(body[1:])
		q.stmt = a.statements[id]
	}
	a.requests.add(q)
}

// function calls a function by its object id, as very old clients do.
func (a *asked) function(body []byte, size int) {
	if len(body) < 6 {
		a.malformed('F', body)
		return
	}
	oid := binary.BigEndian.Uint32(body)
	args, ok := parameters(body[4:], nil)
	if !ok && len(body) == size {
		a.malformed('F', body)
		return
	}
	a.audit.Event(audit.PostgresFunction, map[string]any{"function_oid": oid, "function_args": args})
	a.requests.add(request{kind: 'F', text: fmt.Sprintf("[function %d]", oid), params: args})
}

// endCopy records how much a COPY brought in.
func (a *asked) endCopy(failed bool) {
	a.requests.copied()
	copyEvent(a.audit, a.requests.current(), "in", a.copied, !failed)
	a.copied = 0
}
