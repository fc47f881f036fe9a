package mongodb

import (
	"bytes"
	"errors"
	"sync"

	"teleport/internal/service/db/engine"
)

const (
	// maxWaiting is how many commands are remembered whose answer has not come, and
	// maxText how much of each.
	maxWaiting = 256
	maxText    = 1 << 10
)

// seen records commands, and the errors that they are answered with.
type seen struct {
	audit engine.Audit
	// idle is told whether something waits for an answer.
	idle func(bool)

	mu sync.Mutex
	// waiting are the commands whose answer has not come, by the number of the message.
	waiting map[int32]asked
}

type asked struct{ text, db string }

func newSeen(h engine.Host) *seen {
	return &seen{audit: h.Audit(), idle: h.Idle, waiting: map[int32]asked{}}
}

// expect notes that a command will be answered.
func (s *seen) expect(r *request, cmd *command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.silent() && len(s.waiting) < maxWaiting {
		s.waiting[r.head.id] = asked{cmd.name, cmd.db}
	}
	s.idle(len(s.waiting) == 0)
}

// asked records a command.
func (s *seen) asked(r *request, cmd *command, text string) {
	s.audit.Query(engine.Query{Text: text, Database: cmd.db})
	s.mu.Lock()
	defer s.mu.Unlock()
	_, long := s.waiting[r.head.id]
	// The answer to a long message may be there before all of the message is.
	if !r.silent() && len(s.waiting) < maxWaiting && (r.rest == 0 || long) {
		s.waiting[r.head.id] = asked{text[:min(len(text), maxText)], cmd.db}
	}
	s.idle(len(s.waiting) == 0)
}

// failed records a command that was refused here.
func (s *seen) failed(text, db string, err error) {
	s.audit.Query(engine.Query{Text: text, Database: db, Err: err})
}

// answered looks at an answer.
func (s *seen) answered(h head, p []byte) {
	s.mu.Lock()
	a, known := s.waiting[h.to]
	if known && !moreToCome(h, p) {
		delete(s.waiting, h.to)
	}
	s.idle(len(s.waiting) == 0)
	s.mu.Unlock()
	doc, ok := answerOf(h, p)
	if !ok {
		return
	}
	if text := failure(doc); text != "" {
		s.audit.Query(engine.Query{Text: a.text, Database: a.db, Err: errors.New(text)})
	}
}

// left are the messages that were not answered.
func (s *seen) left() (ids []int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.waiting {
		ids = append(ids, id)
	}
	return ids
}

func indexNUL(p []byte) int { return bytes.IndexByte(p, 0) }
