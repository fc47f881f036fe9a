package postgres

import "sync"

// maxRequests bounds the requests of one session that wait for an answer and are known
// one by one.
const maxRequests = 8192

// request is something that the client asked and the server has not answered.
type request struct {
	// kind is that of the message: Q, P, B, D, E, C, F or S.
	kind byte
	text string
	// params are those of the statement, stmt what D describes.
	params []string
	stmt   *statement
}

// requests are in the order in which they are answered. The client's goroutine adds, the
// server's takes away.
type requests struct {
	mu   sync.Mutex
	list []request
	// ends counts those after which the server says that it is ready.
	ends int
	// many is set when there were too many; then they are only counted, until all are
	// answered.
	many bool
	// idle is called when the last is answered outside of a transaction, and when a new
	// one comes.
	idle func(bool)
}

// ends reports whether ReadyForQuery answers the kind.
func endsInReady(kind byte) bool { return kind == 'Q' || kind == 'S' || kind == 'F' }

// add notes a request.
func (r *requests) add(q request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if endsInReady(q.kind) {
		r.ends++
	}
	if !r.many && len(r.list) == maxRequests {
		r.list, r.many = nil, true
	}
	if !r.many {
		r.list = append(r.list, q)
	}
	r.idle(false)
}

// answered takes away the oldest request if it is of the kind.
func (r *requests) answered(kind byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) > 0 && r.list[0].kind == kind {
		r.take(1)
	}
}

func (r *requests) take(n int) {
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
// follows up to the next Sync is not done.
func (r *requests) failed() (q request, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		return request{}, false
	}
	q = r.list[0]
	n := 0
	for n < len(r.list) && !endsInReady(r.list[n].kind) {
		n++
	}
	r.take(n)
	return q, q.kind != 'S'
}

// ready notes that the server is ready, in the state that it says.
func (r *requests) ready(state byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(r.list) && !endsInReady(r.list[n].kind) {
		n++
	}
	r.take(min(n+1, len(r.list)))
	if r.ends = max(0, r.ends-1); r.ends == 0 {
		r.many = false
		r.idle(state == 'I' && len(r.list) == 0)
	}
}
