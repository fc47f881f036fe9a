package postgres

import (
	"slices"
	"strings"
	"sync"
)

const (
	// maxRequests bounds the requests of one session that wait for an answer and are known
	// one by one, maxPending the texts in them.
	maxRequests = 8192
	maxPending  = 4 << 20
	// keptText is how much of a query waits for the answer.
	keptText = 16 << 10
)

// request is something that the client asked and the server has not answered.
type request struct {
	// kind is that of the message: Q, P, B, D, E, C, F or S.
	kind byte
	text string
	// params are those of the statement, stmt what P prepares and D describes.
	params []string
	stmt   *statement
	// id is the name of the statement or portal that it is about, from that of the
	// statement that B takes.
	id, from string
	// portal says that C is about one.
	portal bool
}

// weight is how much memory is the request's own.
func (q *request) weight() int {
	switch q.kind {
	case 'P':
		return len(q.text)
	case 'B':
		return weight(q.params)
	case 'Q', 'F':
		return len(q.text) + weight(q.params)
	}
	return 0
}

// requests are in the order in which they are answered. The client's goroutine adds, the
// server's takes away.
//
// What a query was is recorded when the client asks for it, by the statements that it has
// sent. A server may have passed over some of them, so what it confirms is held against
// that, and recorded as well where it differs. Where answers do not fit what was asked,
// that cannot be: from then on all is recorded that is sent (lost).
type requests struct {
	mu   sync.Mutex
	list []request
	// pending is the weight of the list.
	pending int
	// ends counts those after which the server says that it is ready.
	ends int
	// many is set when there were too many; then they are only counted, until all are
	// answered.
	many bool
	// confirmed is what the server has agreed to.
	confirmed known
	// begun is set at the server's first word that it is ready.
	begun bool
	// skipping says that the server passes over everything up to the next Sync, copying
	// that it takes what comes for the data of a COPY, in which a Sync means nothing.
	skipping, copying bool
	lost              bool
	// idle is called when the last is answered outside of a transaction, and when a new
	// one comes.
	idle func(bool)
	// unrecorded is told of what was not recorded by itself when it came, differs of what
	// ran in the place of what was recorded. Both may be nil.
	unrecorded func(request)
	differs    func(*portal)
}

// ends reports whether ReadyForQuery answers the kind.
func endsInReady(kind byte) bool { return kind == 'Q' || kind == 'S' || kind == 'F' }

// add notes a request.
func (r *requests) add(q request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(q.text) > keptText && q.kind == 'Q' {
		q.text = strings.Clone(q.text[:keptText])
	}
	switch {
	case r.lost:
		r.tell(q)
	case r.skipping && q.kind != 'S', r.copying && q.kind == 'S':
		return
	case r.copying:
		// The server takes it for a part of the COPY, and refuses that.
		r.lose()
		r.tell(q)
	}
	r.skipping = false
	if endsInReady(q.kind) {
		r.ends++
	}
	if !r.many && (len(r.list) == maxRequests || r.pending+q.weight() > maxPending) {
		r.lose()
		r.tell(q)
		r.list, r.pending, r.many = nil, 0, true
	}
	if !r.many {
		r.list = append(r.list, q)
		r.pending += q.weight()
	}
	r.idle(false)
}

// giveUp is lose, for others.
func (r *requests) giveUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lose()
}

// lose gives up to hold what the server confirms against what was recorded.
func (r *requests) lose() {
	if r.lost {
		return
	}
	r.lost, r.skipping, r.copying = true, false, false
	if st := r.confirmed.statements[""]; st != nil {
		r.tell(request{kind: 'P', text: st.text})
	}
	if p := r.confirmed.portals[""]; p != nil {
		r.tell(request{kind: 'B', params: p.params})
	}
	for _, q := range r.list {
		r.tell(q)
	}
	r.confirmed = known{}
}

// tell has a statement or portal without a name recorded: those with one always are.
func (r *requests) tell(q request) {
	if r.unrecorded != nil && q.id == "" && (q.kind == 'P' || q.kind == 'B' && q.from == "") {
		r.unrecorded(q)
	}
}

// answered takes away the oldest request if it is of the kind.
func (r *requests) answered(kind byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) > 0 && r.list[0].kind == kind {
		r.confirm(r.list[0])
		r.take(1)
		return
	}
	switch {
	case kind == 'D', kind == 'E' && len(r.list) > 0 && endsInReady(r.list[0].kind) && r.list[0].kind != 'S':
		// Simple queries have such answers as well.
	default:
		r.lose()
	}
}

// confirm notes what the server agreed to.
func (r *requests) confirm(q request) {
	if r.lost {
		return
	}
	if r.confirmed.statements == nil {
		r.confirmed = newKnown()
	}
	switch q.kind {
	case 'P':
		if q.stmt != nil {
			r.confirmed.parse(q.id, q.stmt)
		}
	case 'B':
		r.confirmed.bind(q.id, q.from, q.params)
	case 'C':
		if q.portal {
			r.confirmed.forgetPortal(q.id)
		} else {
			r.confirmed.forgetStatement(q.id)
		}
	case 'E':
		p := r.confirmed.portals[q.id]
		if p != nil && r.differs != nil && (p.statement.text != q.text || !slices.Equal(p.params, q.params)) {
			r.differs(p)
		}
	}
}

func (r *requests) take(n int) {
	for i := range r.list[:n] {
		r.pending -= r.list[i].weight()
	}
	clear(r.list[:n])
	if r.list = r.list[n:]; len(r.list) == 0 {
		// Nothing of a burst stays in memory.
		r.list = nil
	}
}

// described returns the statement whose description comes now.
func (r *requests) described() *statement {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) > 0 && r.list[0].kind == 'D' {
		return r.list[0].stmt
	}
	return nil
}

// current returns the text of the request that is answered now.
func (r *requests) current() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		return ""
	}
	return r.list[0].text
}

// failed returns the request that the server refused; ok is false if none is known. What
// follows one of several up to the next Sync is not done, whatever it is.
func (r *requests) failed() (q request, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.copying = false
	if len(r.list) == 0 {
		return request{}, false
	}
	q = r.list[0]
	if q.kind == 'E' {
		r.confirm(q)
	}
	if endsInReady(q.kind) {
		return q, q.kind != 'S'
	}
	n := 0
	for n < len(r.list) && r.list[n].kind != 'S' {
		if endsInReady(r.list[n].kind) {
			r.ends--
		}
		n++
	}
	r.skipping = n == len(r.list) && !r.lost
	r.take(n)
	return q, true
}

// copyIn notes that the server waits for the data of a COPY.
func (r *requests) copyIn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost {
		return
	}
	if len(r.list) == 0 {
		r.lose()
		return
	}
	// A client that sent the Sync along sends another one after the data.
	for len(r.list) > 1 && r.list[1].kind == 'S' {
		r.list = slices.Delete(r.list, 1, 2)
		r.ends--
	}
	if len(r.list) > 1 {
		r.lose()
		return
	}
	r.copying = true
}

// copied notes that the client sends no more data.
func (r *requests) copied() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.copying = false
}

// ready notes that the server is ready, in the state that it says.
func (r *requests) ready(state byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(r.list) && !endsInReady(r.list[n].kind) {
		n++
	}
	if n > 0 || len(r.list) == 0 && r.begun && !r.many {
		// Something was not answered, or nobody asked.
		r.lose()
	}
	r.begun, r.copying = true, false
	r.take(min(n+1, len(r.list)))
	if r.ends = max(0, r.ends-1); r.ends == 0 {
		r.many = false
		r.idle(state == 'I' && len(r.list) == 0)
	}
}
