package mysql

import (
	"encoding/binary"
	"math/rand/v2"
	"regexp"
	"strconv"
	"sync"

	"teleport/internal/service/db/engine"
)

// A client that wants its query cancelled opens another connection and asks there to KILL
// the thread that the greeting named. The agent greets before there is a connection to the
// server, so it names a number of its own, and puts the server's in its place when the
// number comes back. The numbers that the server says itself (CONNECTION_ID()) work as
// they are.

// threads knows the sessions by the numbers that clients were told.
type threads struct {
	mu   sync.Mutex
	next uint32
	all  map[uint32]thread
}

type thread struct {
	database, user string
	// id is the server's, 0 while there is none.
	id uint32
}

// firstThread begins the numbers that are told, beyond those of servers that run for years.
const firstThread = 0xc0000000

func newThreads() *threads {
	return &threads{next: firstThread + rand.Uint32N(1<<28), all: map[uint32]thread{}} //nolint:gosec // only to tell the sessions of agents apart
}

// number returns one for a session that begins.
func (t *threads) number() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next++; t.next < firstThread {
		t.next = firstThread
	}
	return t.next
}

// enter notes the server's number of a session, until the function that it returns is
// called.
func (t *threads) enter(s *engine.Session, told, id uint32) (leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[told] = thread{s.Database.GetMetadata().GetName(), s.User.Name, id}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.all, told)
	}
}

// find returns the server's number for one that a session of the same user was told.
func (t *threads) find(s *engine.Session, told uint64) (uint32, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if told < firstThread || told > 1<<32-1 {
		return 0, false
	}
	found, ok := t.all[uint32(told)]
	return found.id, ok && found.database == s.Database.GetMetadata().GetName() && found.user == s.User.Name
}

// killForm is what clients send.
var killForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^(\s*kill\s+(?:(?:hard|soft)\s+)?(?:(?:query|connection)\s+)?)([0-9]{10})(\s*;?\s*)$`)
})

// maxKill is the longest statement that is looked at.
const maxKill = 64

// rewrite returns the packet that the server gets in the place of one that kills a session
// by the number that the agent made up.
func (t *threads) rewrite(s *engine.Session, h header, head []byte) ([]byte, bool) {
	if h.seq != 0 || h.size > maxKill || len(head) != h.size || h.size < 5 {
		return nil, false
	}
	switch head[0] {
	case comProcessKill:
		if id, ok := t.find(s, uint64(binary.LittleEndian.Uint32(head[1:]))); ok {
			return binary.LittleEndian.AppendUint32([]byte{comProcessKill}, id), true
		}
	case comQuery:
		m := killForm().FindSubmatch(head[1:])
		if m == nil {
			return nil, false
		}
		told, _ := strconv.ParseUint(string(m[2]), 10, 64)
		if id, ok := t.find(s, told); ok {
			p := append([]byte{comQuery}, m[1]...)
			return append(strconv.AppendUint(p, uint64(id), 10), m[3]...), true
		}
	}
	return nil, false
}
