package clickhouse

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"teleport/internal/service/db/engine"
)

const (
	encodingGzip = "gzip"
	// maxErrorText is how much of an error is recorded.
	maxErrorText = 2 << 10
	// maxKept is how much is remembered of a query to record its error with.
	maxKept = 1 << 10
)

// record writes down what one request asks.
type record struct {
	audit engine.Audit
	asked *asked
	// line is the request as it is named if it has no query.
	line string
	// database is where, if that is not where the session began.
	database string
	limit    int

	mu   sync.Mutex
	body []byte
	// size counts the body, done says that the query was recorded as text.
	size int64
	done bool
	text string
}

// record starts the record of a request. A query that has no body is recorded at once, one
// with a body when that has come, or enough of it.
func (c *session) record(a *asked, r *http.Request, limit int) *record {
	rec := &record{audit: c.s.Host.Audit(), asked: a, limit: limit}
	c.mu.Lock()
	if a.database != c.database {
		rec.database = a.database
	}
	c.mu.Unlock()
	rec.line = r.Method + " " + r.URL.EscapedPath()
	if a.rest != "" {
		rec.line += "?" + a.rest[:min(len(a.rest), limit)]
	}
	if r.ContentLength == 0 {
		rec.finish()
		return rec
	}
	r.Body = &tee{ReadCloser: r.Body, took: rec.took, over: rec.finish}
	return rec
}

// took takes a part of the body.
func (rec *record) took(p []byte) {
	rec.mu.Lock()
	rec.size += int64(len(p))
	rec.body = append(rec.body, p[:min(len(p), max(0, rec.limit-len(rec.body)))]...)
	full := !rec.done && len(rec.body) >= rec.limit
	rec.mu.Unlock()
	if full {
		rec.finish()
	}
}

// finish records the query, once.
func (rec *record) finish() {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.done {
		return
	}
	rec.done = true
	text := rec.asked.query
	body := rec.readable()
	switch {
	case text != "" && body != "":
		text += "\n" + body
	case text == "" && body == "":
		text = rec.line
	case text == "":
		text = body
	}
	rec.body = nil
	rec.text = text[:min(len(text), maxKept)]
	rec.audit.Query(engine.Query{Text: text, Parameters: rec.asked.parameters, Database: rec.database})
}

// readable is the body as text, as far as it was kept.
func (rec *record) readable() string {
	switch {
	case len(rec.body) == 0:
		return ""
	case rec.asked.opaque != "":
		return "[a body that is compressed by " + rec.asked.opaque + "]"
	case rec.asked.encoding == encodingGzip:
		return string(gunzip(rec.body, rec.limit))
	}
	return string(rec.body)
}

// failed records an error.
func (rec *record) failed(err error) {
	rec.finish()
	rec.mu.Lock()
	text := rec.text
	rec.mu.Unlock()
	rec.audit.Query(engine.Query{Text: text, Parameters: rec.asked.parameters, Database: rec.database, Err: err})
}

// gunzip returns what p is the beginning of, up to a limit.
func gunzip(p []byte, limit int) []byte {
	z, err := gzip.NewReader(bytes.NewReader(p))
	if err != nil {
		return []byte("[a body that says it is compressed by gzip, and is not]")
	}
	var out bytes.Buffer
	_, _ = io.Copy(&out, io.LimitReader(z, int64(limit)))
	return out.Bytes()
}

// answered looks at the answer of the server.
func (c *session) answered(resp *http.Response) error {
	rec, _ := resp.Request.Context().Value(requestKey{}).(*record)
	code := resp.Header.Get(headerCode)
	if code == "0" {
		code = ""
	}
	a := &answer{rec: rec, failed: code != "" || resp.StatusCode >= http.StatusBadRequest, gzipped: resp.Header.Get("Content-Encoding") == encodingGzip}
	a.status = resp.Status
	if code != "" {
		a.status += ", exception " + code
	}
	resp.Body = &tee{ReadCloser: resp.Body, took: a.took, over: a.over, broke: a.broke}
	return nil
}

// answer is what the server says to one request.
type answer struct {
	rec             *record
	status          string
	failed, gzipped bool

	mu   sync.Mutex
	text []byte
	told bool
}

func (a *answer) took(p []byte) {
	if !a.failed {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.text = append(a.text, p[:min(len(p), maxErrorText-len(a.text))]...)
}

// over records the error, if the answer is one.
func (a *answer) over() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.failed || a.told {
		return
	}
	a.told = true
	text := a.text
	if a.gzipped {
		text = gunzip(text, maxErrorText)
	}
	a.rec.failed(fmt.Errorf("%s: %s", a.status, strings.TrimSpace(string(text))))
}

// broke records an answer that was not whole: so the server says that it failed when it
// had begun to answer.
func (a *answer) broke(err error) {
	a.mu.Lock()
	told := a.told || a.failed
	a.told = a.told || !a.failed
	a.mu.Unlock()
	if !told {
		a.rec.failed(fmt.Errorf("the answer broke off: %w", err))
	}
}

// tee lets somebody see what is read.
type tee struct {
	io.ReadCloser
	took  func(p []byte)
	over  func()
	broke func(err error)
}

// Read reads on.
func (t *tee) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if n > 0 {
		t.took(p[:n])
	}
	switch {
	case err == nil:
	case t.broke != nil && !errors.Is(err, io.EOF):
		t.broke(err)
		t.over()
	default:
		t.over()
	}
	return n, err
}

// Close ends it.
func (t *tee) Close() error {
	t.over()
	return t.ReadCloser.Close()
}
