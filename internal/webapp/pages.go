package webapp

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"html"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"teleport/internal/fault"
)

// The pages are few and small, and made by hand: nothing of a request gets into one but
// by html.EscapeString.

const (
	style = `body{font:16px/1.5 system-ui,sans-serif;background:#f4f5f7;color:#1d2733;margin:0}` +
		`main{max-width:22rem;margin:12vh auto;padding:2rem;background:#fff;border-radius:.5rem;box-shadow:0 1px 4px #0003}` +
		`h1{font-size:1.3rem;margin:0 0 1rem}label{display:block;margin:.8rem 0 .2rem}` +
		`input{box-sizing:border-box;width:100%;padding:.5rem;font:inherit;border:1px solid #9aa5b1;border-radius:.3rem}` +
		`button{margin-top:1.2rem;width:100%;padding:.6rem;font:inherit;color:#fff;background:#3d3ab8;border:0;border-radius:.3rem}` +
		`.error{color:#a3161c}`
	script = `document.forms[0].submit()`
)

// hashOf is how a Content-Security-Policy names what stands in a page.
func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// page answers with a page that loads nothing, runs nothing but the script above, and
// whose forms go to formAction only.
func (h *Handler) page(w http.ResponseWriter, status int, body, formAction string) {
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; style-src "+hashOf(style)+
		"; script-src "+hashOf(script)+"; form-action "+formAction)
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) //nolint:gosec // the pages above escape what they show
}

func document(title, content string) string {
	return `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">` +
		`<title>` + html.EscapeString(title) + ` - Teleport</title><style>` + style + `</style></head><body><main><h1>` +
		html.EscapeString(title) + `</h1>` + content + `</main></body></html>`
}

func messagePage(title, text string) string {
	return document(title, `<p>`+html.EscapeString(text)+`</p>`)
}

func loginPage(next, user, problem string) string {
	var b strings.Builder
	if problem != "" {
		b.WriteString(`<p class="error" role="alert">` + html.EscapeString(problem) + `</p>`)
	}
	b.WriteString(`<form method="post" action="` + loginPath + `">` + hidden("next", next) +
		`<label for="user">User</label><input id="user" name="user" autocomplete="username" required autofocus value="` + html.EscapeString(user) + `">` +
		`<label for="password">Password</label><input id="password" name="password" type="password" autocomplete="current-password" required>` +
		`<label for="code">One-time code</label><input id="code" name="code" inputmode="numeric" autocomplete="one-time-code" required>` +
		`<button>Log in</button></form>`)
	return document("Log in", b.String())
}

func logoutPage() string {
	return document("Log out", `<p>This ends your sessions at the Proxy and at all applications, in this browser.</p>`+
		`<form method="post" action="`+leavePath+`"><button>Log out</button></form>`)
}

// launchPage sends its form by itself; without scripts somebody presses the button.
func launchPage(action string, fields map[string]string) string {
	var b strings.Builder
	b.WriteString(`<form method="post" action="` + html.EscapeString(action) + `">`)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		b.WriteString(hidden(name, fields[name]))
	}
	b.WriteString(`<button>Continue</button></form><script>` + script + `</script>`)
	return document("Opening the application", b.String())
}

func hidden(name, value string) string {
	return `<input type="hidden" name="` + name + `" value="` + html.EscapeString(value) + `">`
}

// fail answers with an error: a page to people, JSON to programs.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, title := http.StatusBadGateway, "The application cannot be reached"
	text := err.Error()
	switch {
	case errors.Is(err, fault.ErrInvalid):
		status, title = http.StatusBadRequest, "This does not work"
	case errors.Is(err, fault.ErrDenied), errors.Is(err, fault.ErrUnauthenticated):
		status, title = http.StatusForbidden, "You may not use this application"
	case errors.Is(err, fault.ErrNotFound):
		status, title = http.StatusNotFound, "There is no such application"
	case errors.Is(err, fault.ErrLimit):
		status, title = http.StatusTooManyRequests, "Too many requests"
	case errors.Is(err, fault.ErrUnreachable):
	default:
		h.cfg.Log.WarnContext(r.Context(), "request of an application failed", "host", bareHost(r.Host), "error", err)
		text = "Something failed at the Proxy: its log says what."
	}
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		h.page(w, status, messagePage(title, sentence(text)), "'none'")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text})
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
