package redis

import (
	"errors"
	"strconv"
	"strings"
	"sync"

	"teleport/internal/service/db/engine"
)

const (
	// maxBatch is how many commands are one record, maxBatchText how much text.
	maxBatch     = 128
	maxBatchText = 8 << 10
	// maxWaiting is how many commands are remembered whose answer has not come.
	maxWaiting = 1024
	masked     = "[masked]"
)

// seen records commands, and the errors that they are answered with. Commands that a
// client sends together are one record, a line each.
type seen struct {
	audit engine.Audit
	// idle is told whether something waits for an answer.
	idle func(bool)

	batch strings.Builder
	count int

	mu sync.Mutex
	// waiting are the commands whose answer has not come. lost says that answers can no
	// longer be told apart: there are too many, or the session gets messages.
	waiting []string
	lost    bool
	scan    scanner
}

func newSeen(h engine.Host) *seen {
	s := &seen{audit: h.Audit(), idle: h.Idle}
	s.scan.done = s.replied
	return s
}

// command records a command that was passed on.
func (s *seen) command(c *command) {
	text := c.text()
	if s.count > 0 {
		s.batch.WriteByte('\n')
	}
	s.batch.WriteString(text)
	if s.count++; s.count >= maxBatch || s.batch.Len() >= maxBatchText {
		s.flush()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) >= maxWaiting || c.manyAnswers() {
		s.lost, s.waiting = true, nil
	}
	if !s.lost {
		s.waiting = append(s.waiting, text)
	}
	s.idle(s.lost)
}

// flush writes the record of what came together.
func (s *seen) flush() {
	if s.count == 0 {
		return
	}
	s.audit.Query(engine.Query{Text: s.batch.String()})
	s.batch.Reset()
	s.count = 0
}

// answered takes the commands of the login, whose answers were read one by one, off those
// that wait.
func (s *seen) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = nil
	s.idle(true)
}

// failed records a command that the server refused at the login.
func (s *seen) failed(text, reason string) {
	s.audit.Query(engine.Query{Text: text, Err: errors.New(strings.TrimSpace(reason))})
}

// answer looks at what the server sends.
func (s *seen) answer(p []byte) {
	if !s.scan.broken {
		s.scan.feed(p)
	}
}

// replied takes the end of an answer.
func (s *seen) replied(r reply) {
	if r.push {
		return
	}
	s.mu.Lock()
	text := "[a command among many]"
	if len(s.waiting) > 0 {
		text, s.waiting = s.waiting[0], s.waiting[1:]
	}
	s.idle(len(s.waiting) == 0)
	s.mu.Unlock()
	if r.err != "" {
		s.audit.Query(engine.Query{Text: text, Err: errors.New(r.err)})
	}
}

// manyAnswers reports whether a command gets any number of answers.
func (c *command) manyAnswers() bool {
	for _, name := range []string{"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "MONITOR", "SYNC", "PSYNC"} {
		if c.is(name) {
			return true
		}
	}
	return c.is("CLIENT") && len(c.args) > 1 && strings.EqualFold(string(c.args[1]), "REPLY")
}

// text is the command as people write it, without what is secret.
func (c *command) text() string {
	var b strings.Builder
	secret := c.secret()
	for i, arg := range c.args {
		if i > 0 {
			b.WriteByte(' ')
		}
		switch {
		case secret(i, string(arg)):
			b.WriteString(masked)
		case plain(arg):
			b.Write(arg)
		default:
			b.WriteString(strconv.Quote(string(arg)))
		}
	}
	if rest := c.count - len(c.args); rest > 0 {
		b.WriteString(" ...[" + strconv.Itoa(rest) + " more]")
	} else if c.cut {
		b.WriteString(" ...[cut]")
	}
	return b.String()
}

// plain reports whether an argument needs no quotes.
func plain(arg []byte) bool {
	if len(arg) == 0 {
		return false
	}
	for _, c := range arg {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '\'' || c == '\\' {
			return false
		}
	}
	return true
}

// secret returns which arguments are passwords.
func (c *command) secret() func(i int, arg string) bool {
	sub := ""
	if len(c.args) > 1 {
		sub = strings.ToUpper(string(c.args[1]))
	}
	switch {
	case c.is("AUTH"):
		return func(i int, _ string) bool { return i == len(c.args)-1 && i > 0 || i > 1 }
	case c.is("HELLO"):
		at := c.auth()
		return func(i int, _ string) bool { return at > 0 && i == at+2 }
	case c.is("CONFIG") && sub == "SET":
		return func(i int, _ string) bool { return i > 2 && i%2 == 1 && isPassword(string(c.args[i-1])) }
	case c.is("ACL") && sub == "SETUSER":
		return func(i int, arg string) bool { return i > 2 && arg != "" && strings.IndexByte("><#!", arg[0]) >= 0 }
	case c.is("MIGRATE"):
		after := len(c.args)
		for i, arg := range c.args {
			if strings.EqualFold(string(arg), "AUTH") || strings.EqualFold(string(arg), "AUTH2") {
				after = i
				break
			}
		}
		return func(i int, _ string) bool { return i > after }
	}
	return func(int, string) bool { return false }
}

// isPassword reports whether a setting of the server is secret.
func isPassword(name string) bool {
	name = strings.ToLower(name)
	return strings.Contains(name, "pass") || strings.Contains(name, "auth")
}
