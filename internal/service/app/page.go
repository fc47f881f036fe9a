package app

import (
	"errors"
	"html"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"teleport/internal/fault"
)

// fail answers in place of the application: a page to people, a line to programs.
func fail(w http.ResponseWriter, r *http.Request, status int, text string) {
	header := w.Header()
	clear(header)
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	text = sentence(text)
	body := text + "\n"
	header.Set("Content-Type", "text/plain; charset=utf-8")
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		title := html.EscapeString(titleOf(status))
		body = `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>` + title +
			` - Teleport</title></head><body><main><h1>` + title + `</h1><p>` + html.EscapeString(text) + `</p></main></body></html>`
	}
	if status == http.StatusBadRequest || r.ProtoMajor == 1 && status == http.StatusForbidden {
		header.Set("Connection", "close")
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(body)) //nolint:gosec // a page has it through html.EscapeString, and other answers are text/plain
	}
}

func titleOf(status int) string {
	switch status {
	case http.StatusForbidden:
		return "You may not use this application"
	case http.StatusNotFound:
		return "There is no such application here"
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return "The application does not answer"
	case http.StatusServiceUnavailable:
		return "The application cannot be used now"
	}
	return http.StatusText(status)
}

// statusOf returns how HTTP says an error that refuses a connection.
func statusOf(err error) int {
	switch {
	case errors.Is(err, fault.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, fault.ErrLimit):
		return http.StatusTooManyRequests
	case errors.Is(err, fault.ErrUnreachable):
		return http.StatusServiceUnavailable
	}
	return http.StatusForbidden
}

// sentence makes one of an error's text.
func sentence(s string) string {
	first, size := utf8.DecodeRuneInString(s)
	s = string(unicode.ToUpper(first)) + s[size:]
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}
