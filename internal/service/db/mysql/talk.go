package mysql

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/service/db/engine"
)

// Commands (the first byte of a packet that begins one).
const (
	comQuit         = 0x01
	comInitDB       = 0x02
	comQuery        = 0x03
	comFieldList    = 0x04
	comCreateDB     = 0x05
	comDropDB       = 0x06
	comRefresh      = 0x07
	comShutdown     = 0x08
	comStatistics   = 0x09
	comProcessInfo  = 0x0a
	comProcessKill  = 0x0c
	comDebug        = 0x0d
	comPing         = 0x0e
	comChangeUser   = 0x11
	comBinlogDump   = 0x12
	comTableDump    = 0x13
	comConnectOut   = 0x14
	comRegister     = 0x15
	comStmtPrepare  = 0x16
	comStmtExecute  = 0x17
	comStmtLongData = 0x18
	comStmtClose    = 0x19
	comStmtReset    = 0x1a
	comSetOption    = 0x1b
	comStmtFetch    = 0x1c
	comBinlogGTID   = 0x1e
	comReset        = 0x1f
	comBulkExecute  = 0xfa
)

// Status flags of the server.
const (
	statusInTransaction = 0x0001
	statusMoreResults   = 0x0008
	statusCursor        = 0x0040
)

const (
	// maxStatements and maxHeld bound the prepared statements that are remembered, and
	// their texts; maxWaiting the commands whose answer has not come.
	maxStatements = 4096
	maxHeld       = 1 << 20
	maxWaiting    = 1024
)

// talk follows what is asked and answered. The sides are followed by one goroutine each.
type talk struct {
	audit engine.Audit
	idle  func(bool)
	// quit is set at the client's farewell.
	quit bool
	// goesOn says that the next packet of the client continues a message.
	goesOn bool

	mu         sync.Mutex
	statements map[uint32]*statement
	held       int
	waiting    []*command
	// weight is how much was kept of parameters since nothing waited.
	weight int
	// lost says that answers can no longer be told apart.
	lost bool
	// status are the flags of the last answer.
	status uint16
}

// statement is a prepared one.
type statement struct {
	text   string
	params int
	types  []byte
	// long are the parameters that came ahead of the others, by number.
	long map[int]bool
}

// command waits for its answer.
type command struct {
	kind byte
	text string
	// params are those of a prepared statement.
	params []string
	at     stage
	// left counts the definitions that are still to come, before the mark at their end.
	left, then int
}

// stage is how far an answer has come.
type stage int

const (
	first stage = iota
	columns
	columnsEnd
	rows
	prepared
	preparedEnd
)

func newTalk(h engine.Host) *talk {
	return &talk{audit: h.Audit(), idle: h.Idle, statements: map[uint32]*statement{}}
}

// asked looks at a packet of the client, of which head has come. An error ends the
// session before the packet gets through.
func (t *talk) asked(h header, head []byte, limits engine.Limits) error {
	continues := t.goesOn
	t.goesOn = h.size == maxPayload
	// Only a command begins with the number 0; the content of a file has others.
	if continues || h.seq != 0 || len(head) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	kind, body := head[0], head[1:]
	switch kind {
	case comChangeUser:
		return fault.Unsupported("another user or a fresh session by COM_CHANGE_USER is not possible here: open a new connection")
	case comBinlogDump, comTableDump, comConnectOut, comRegister, comBinlogGTID:
		return fault.Unsupported("replication is not possible through Teleport")
	}
	c := &command{kind: kind}
	whole := h.size == len(head)
	switch kind {
	case comQuit:
		t.quit = true
		return nil
	case comQuery:
		c.text = cut(body, h.size-1, limits.Query)
		t.audit.Query(engine.Query{Text: c.text})
	case comStmtPrepare:
		c.text = cut(body, h.size-1, limits.Query)
	case comStmtExecute:
		if !t.execute(c, body, whole) {
			t.audit.Malformed(head)
		}
	case comBulkExecute:
		t.bulk(c, body)
	case comStmtLongData:
		t.longData(body, h.size)
		return nil
	case comStmtClose:
		t.close(body)
		return nil
	default:
		if known := t.other(c, body); !known {
			t.audit.Malformed(head)
			if limits.RefuseUnknown {
				return fault.Invalid("a command that is not known: this database takes only what can be recorded")
			}
			t.lose()
		}
	}
	if len(t.waiting) >= maxWaiting {
		t.lose()
	}
	if t.lost {
		t.unanswered(c)
		return nil
	}
	for _, p := range c.params {
		t.weight += len(p)
	}
	if t.weight > maxHeld {
		c.params = nil
	}
	t.waiting = append(t.waiting, c)
	t.idle(false)
	return nil
}

// lose gives up telling answers apart.
func (t *talk) lose() {
	for _, c := range t.waiting {
		t.unanswered(c)
	}
	t.lost, t.waiting = true, nil
}

// unanswered records what would have been with the answer.
func (t *talk) unanswered(c *command) {
	if c.kind == comStmtPrepare {
		t.audit.Event(audit.MySQLPrepare, map[string]any{"query": c.text})
	}
}

// taken takes the oldest command off, whose answer is over.
func (t *talk) taken() {
	t.waiting = t.waiting[1:]
	if len(t.waiting) == 0 {
		t.waiting, t.weight = nil, 0
	}
	t.idle(len(t.waiting) == 0 && t.status&statusInTransaction == 0)
}

// cut is a text of which at most limit bytes are recorded.
func cut(body []byte, size, limit int) string {
	if len(body) < size || len(body) > limit {
		kept := min(len(body), limit)
		return fmt.Sprintf("%s...[truncated: %d of %d bytes]", body[:kept], kept, size)
	}
	return string(body)
}

// other records the commands that are neither queries nor statements.
func (t *talk) other(c *command, body []byte) (known bool) {
	name := func(kind audit.Kind, field string) {
		c.text = string(body[:min(len(body), 1024)])
		t.audit.Event(kind, map[string]any{field: c.text})
	}
	switch c.kind {
	case comInitDB:
		name(audit.MySQLInitDB, "schema_name")
	case comCreateDB:
		name(audit.MySQLCreateDB, "schema_name")
	case comDropDB:
		name(audit.MySQLDropDB, "schema_name")
	case comShutdown:
		t.audit.Event(audit.MySQLShutDown, nil)
	case comDebug:
		t.audit.Event(audit.MySQLDebug, nil)
	case comRefresh:
		sub := ""
		if len(body) > 0 {
			sub = itoa(int(body[0]))
		}
		t.audit.Event(audit.MySQLRefresh, map[string]any{"subcommand": sub})
	case comProcessKill:
		if len(body) >= 4 {
			t.audit.Event(audit.MySQLProcessKill, map[string]any{"process_id": binary.LittleEndian.Uint32(body)})
		}
	case comStmtReset:
		if len(body) >= 4 {
			t.audit.Event(audit.MySQLReset, map[string]any{"statement_id": binary.LittleEndian.Uint32(body)})
		}
	case comStmtFetch:
		if len(body) >= 8 {
			t.audit.Event(audit.MySQLFetch, map[string]any{"statement_id": binary.LittleEndian.Uint32(body), "rows_count": binary.LittleEndian.Uint32(body[4:])})
		}
		c.at = rows
	case comFieldList:
		c.at = rows
	case comPing, comStatistics, comProcessInfo, comSetOption, comReset:
	default:
		return false
	}
	return true
}

// execute records the execution of a prepared statement.
func (t *talk) execute(c *command, body []byte, whole bool) bool {
	if len(body) < 9 {
		return false
	}
	id := binary.LittleEndian.Uint32(body)
	c.text = fmt.Sprintf("[statement %d was not kept]", id)
	ok := true
	if st := t.statements[id]; st != nil {
		c.text = st.text
		if st.params > 0 {
			c.params, ok = st.values(body[9:])
			if !ok && !whole {
				c.params, ok = append(c.params, "...[truncated]"), true
			}
		}
	}
	t.audit.Event(audit.MySQLExecute, map[string]any{"statement_id": id})
	t.audit.Query(engine.Query{Text: c.text, Parameters: c.params})
	return ok
}

// bulk records the execution of a statement with many rows of parameters (MariaDB).
func (t *talk) bulk(c *command, body []byte) {
	if len(body) < 4 {
		return
	}
	id := binary.LittleEndian.Uint32(body)
	c.text = fmt.Sprintf("[statement %d was not kept]", id)
	if st := t.statements[id]; st != nil {
		c.text = st.text
	}
	t.audit.Event(audit.MySQLBulkExecute, map[string]any{"statement_id": id})
	t.audit.Query(engine.Query{Text: c.text, Parameters: []string{"[many rows]"}})
}

func (t *talk) longData(body []byte, size int) {
	if len(body) < 6 {
		return
	}
	id, param := binary.LittleEndian.Uint32(body), int(binary.LittleEndian.Uint16(body[4:]))
	if st := t.statements[id]; st != nil && param < st.params {
		if st.long == nil {
			st.long = map[int]bool{}
		}
		st.long[param] = true
	}
	t.audit.Event(audit.MySQLSendLongData, map[string]any{"statement_id": id, "parameter_id": param, "data_size": size - 7})
}

func (t *talk) close(body []byte) {
	if len(body) < 4 {
		return
	}
	id := binary.LittleEndian.Uint32(body)
	if st := t.statements[id]; st != nil {
		t.held -= len(st.text)
		delete(t.statements, id)
	}
	t.audit.Event(audit.MySQLClose, map[string]any{"statement_id": id})
}

// answered looks at a packet of the server.
func (t *talk) answered(p []byte, size int, goesOn bool) {
	if goesOn {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(p) > 0 && p[0] == markError {
		t.failed(p)
		return
	}
	if t.lost || len(t.waiting) == 0 || len(p) == 0 {
		return
	}
	if c := t.waiting[0]; t.step(c, p, size) {
		t.taken()
	}
}

// failed takes an error, which ends an answer wherever it stands.
func (t *talk) failed(p []byte) {
	text, params := "[a command among many]", []string(nil)
	if len(t.waiting) > 0 {
		c := t.waiting[0]
		text, params = c.text, c.params
		t.taken()
	}
	t.audit.Query(engine.Query{Text: text, Parameters: params, Err: errors.New(errorText(p))})
}

// step goes on in an answer and reports whether it is over.
func (t *talk) step(c *command, p []byte, size int) (over bool) {
	end := p[0] == 0xfe && size < 9
	switch c.at {
	case first:
		return t.first(c, p, size)
	case columns, prepared:
		if c.left--; c.left == 0 {
			c.at++
		}
	case columnsEnd:
		t.mark(p)
		// The rows of a cursor are fetched.
		if t.status&statusCursor != 0 && c.kind == comStmtExecute {
			return true
		}
		c.at = rows
	case preparedEnd:
		if c.left, c.then = c.then, 0; c.left == 0 {
			return true
		}
		c.at = prepared
	case rows:
		if end {
			t.mark(p)
			return t.next(c)
		}
	}
	return false
}

// first takes the first packet of an answer.
func (t *talk) first(c *command, p []byte, size int) (over bool) {
	switch {
	case c.kind == comStatistics:
		return true
	case c.kind == comStmtPrepare:
		return t.prepared(c, p)
	case p[0] == markOK:
		t.ok(p)
		return t.next(c)
	case p[0] == 0xfe && size < 9:
		t.mark(p)
		return t.next(c)
	case p[0] == 0xfb:
		// The server wants a file of the client, and answers once more after it.
		return false
	}
	n, _, ok := lenenc(p)
	if !ok || n == 0 || n > 1<<16 {
		t.lose()
		t.idle(true)
		return false
	}
	c.at, c.left = columns, int(n)
	return false
}

// next reports whether an answer has no more results.
func (t *talk) next(c *command) (over bool) {
	c.at = first
	return t.status&statusMoreResults == 0
}

// ok reads the flags of an OK packet.
func (t *talk) ok(p []byte) {
	_, rest, ok := lenenc(p[1:])
	if ok {
		_, rest, ok = lenenc(rest)
	}
	if ok && len(rest) >= 2 {
		t.status = binary.LittleEndian.Uint16(rest)
	}
}

// mark reads the flags of an EOF packet.
func (t *talk) mark(p []byte) {
	if len(p) >= 5 {
		t.status = binary.LittleEndian.Uint16(p[3:])
	}
}

// prepared takes the server's word about a statement: its id, and what definitions follow.
func (t *talk) prepared(c *command, p []byte) (over bool) {
	if len(p) < 9 {
		return true
	}
	id := binary.LittleEndian.Uint32(p[1:])
	cols, params := int(binary.LittleEndian.Uint16(p[5:])), int(binary.LittleEndian.Uint16(p[7:]))
	if old := t.statements[id]; old != nil {
		t.held -= len(old.text)
		delete(t.statements, id)
	}
	if t.held+len(c.text) <= maxHeld && len(t.statements) < maxStatements {
		t.statements[id] = &statement{text: c.text, params: params}
		t.held += len(c.text)
	}
	t.audit.Event(audit.MySQLPrepare, map[string]any{"statement_id": id, "query": c.text})
	if params > 0 {
		c.at, c.left, c.then = prepared, params, cols
		return false
	}
	if cols > 0 {
		c.at, c.left = prepared, cols
		return false
	}
	return true
}

// printable reports whether bytes are a text that people can read.
func printable(b []byte) bool {
	return !strings.ContainsFunc(string(b), func(r rune) bool { return r == '\ufffd' || r < ' ' && r != '\n' && r != '\t' })
}
