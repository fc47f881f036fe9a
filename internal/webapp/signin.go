package webapp

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	appv1 "teleport/api/app/v1"
	loginv1 "teleport/api/login/v1"
	"teleport/internal/cors"
	"teleport/internal/fault"
)

const (
	// Paths that are ours at every application.
	authPath   = "/x-teleport-auth"
	startPath  = "/x-teleport-start"
	logoutPath = "/teleport-logout"

	loginPath  = "/web/login"
	launchPath = "/web/launch/"
	leavePath  = "/web/logout"

	// ownCookies is how the names of our cookies begin. With __Host- no other host can
	// set them, and they never go over plain HTTP.
	ownCookies    = "__Host-teleport_"
	sessionCookie = ownCookies + "app"
	webCookie     = ownCookies + "session"
	stateCookie   = ownCookies + "state_"

	// stateLife is how long somebody may take to log in.
	stateLife = 10 * time.Minute
	maxState  = 64
	maxForm   = 16 << 10
	maxPath   = 8 << 10
	maxField  = 1024
)

// challenge answers a request that shows no session that is good: people are sent to log
// in, programs are told what to do.
func (h *Handler) challenge(w http.ResponseWriter, r *http.Request, app target, err error) {
	unknown := errors.Is(err, fault.ErrUnauthenticated) || errors.Is(err, fault.ErrNotFound)
	if !unknown {
		h.fail(w, r, err)
		return
	}
	if c, cerr := r.Cookie(sessionCookie); cerr == nil {
		h.sessions.forget(cookieKey(app.name, c.Value))
	}
	if navigation(r) && (r.TLS == nil || len(r.TLS.PeerCertificates) == 0) {
		h.begin(w, r, r.URL.RequestURI(), "")
		return
	}
	cors.Mark(w.Header(), app.cors, r.Header.Get("Origin"))
	w.Header().Set("WWW-Authenticate", `Teleport realm="`+h.authority(h.host)+`"`)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusUnauthorized)
	_ = json.NewEncoder(w).Encode(map[string]string{
		"error": err.Error(),
		"login": "https://" + h.authority(app.host) + "/",
		"tsh":   "tsh apps login " + app.name,
	})
}

// navigation reports whether somebody opened a page, rather than a script or a program
// having asked for something.
func navigation(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate"
	}
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}

// begin sends a browser to the Proxy, with a state that ties the way back to it.
func (h *Handler) begin(w http.ResponseWriter, r *http.Request, path, back string) {
	state := rand.Text()
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // SameSite is said below
		Name: stateCookie + state[:8], Value: state, Path: "/", Secure: true, HttpOnly: true,
		MaxAge: int(stateLife.Seconds()),
		// The way back is a form that the Proxy's page sends, from another site it may be.
		SameSite: http.SameSiteNoneMode,
	})
	query := url.Values{"state": {state}, "path": {localPath(path)}}
	if back != "" {
		query.Set("back", back)
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, "https://"+h.authority(h.host)+launchPath+bareHost(r.Host)+"?"+query.Encode(), http.StatusFound) //nolint:gosec // to the Proxy's own host
}

// start begins the way in where another application asked for this one (required_apps).
func (h *Handler) start(w http.ResponseWriter, r *http.Request) {
	back := r.URL.Query().Get("back")
	if !launchURL(back) {
		h.fail(w, r, fault.Invalid("this page is only for applications that need this one"))
		return
	}
	h.begin(w, r, "/", back)
}

// launchURL reports whether a text is a path of the launch page, to go back to.
func launchURL(s string) bool {
	return len(s) <= maxPath && strings.HasPrefix(s, launchPath) && localPath(s) == s
}

// localPath returns a path to go to on the host that a browser is at, or "/" for what
// could lead elsewhere.
func localPath(s string) string {
	if len(s) > maxPath || !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '\\' || r >= 0x7f }) {
		return "/"
	}
	return s
}

// Register adds the pages of the Proxy's own host.
func (h *Handler) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET "+loginPath, h.loginForm)
	mux.Handle("POST "+loginPath, h.origin.Handler(http.HandlerFunc(h.login)))
	mux.HandleFunc("GET "+leavePath, h.logoutForm)
	mux.Handle("POST "+leavePath, h.origin.Handler(http.HandlerFunc(h.logout)))
	mux.HandleFunc("GET "+launchPath+"{host}", h.launch)
	mux.HandleFunc("GET /.well-known/jwks.json", h.ServeKeys)
}

// loginForm asks for name, password and code.
func (h *Handler) loginForm(w http.ResponseWriter, r *http.Request) {
	h.page(w, http.StatusOK, loginPage(r.URL.Query().Get("next"), "", ""), "'self'")
}

// login checks what somebody gave, and leaves the session's cookie.
func (h *Handler) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		h.fail(w, r, fault.Invalid("the form cannot be read"))
		return
	}
	user, next := r.PostForm.Get("user"), r.PostForm.Get("next")
	refuse := func(status int, text string) { h.page(w, status, loginPage(next, user, text), "'self'") }
	for _, name := range []string{"user", "password", "code"} {
		if v := r.PostForm.Get(name); v == "" || len(v) > maxField {
			refuse(http.StatusBadRequest, "Fill in all three fields.")
			return
		}
	}
	if !h.cfg.AllowLogin(r.RemoteAddr) {
		refuse(http.StatusTooManyRequests, "Too many attempts from your address: wait a second and try again.")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	resp, err := h.cfg.Login.CreateWebSession(ctx, &loginv1.CreateWebSessionRequest{
		User: user, Password: r.PostForm.Get("password"), TotpCode: strings.TrimSpace(r.PostForm.Get("code")), ClientAddr: r.RemoteAddr,
	})
	switch {
	case errors.Is(err, fault.ErrUnauthenticated), errors.Is(err, fault.ErrDenied), errors.Is(err, fault.ErrLimit):
		refuse(http.StatusForbidden, sentence(err.Error()))
		return
	case err != nil:
		h.cfg.Log.WarnContext(r.Context(), "login of a browser failed", "error", err)
		refuse(http.StatusServiceUnavailable, "The cluster cannot log anybody in just now. Try again in a moment.")
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: webCookie, Value: resp.GetToken(), Path: "/", Secure: true, HttpOnly: true,
		Expires: resp.GetExpires().AsTime(), SameSite: http.SameSiteLaxMode,
	})
	if launchURL(next) {
		http.Redirect(w, r, next, http.StatusSeeOther) //nolint:gosec // launchURL has looked at it
		return
	}
	h.page(w, http.StatusOK, messagePage("Logged in", "You are logged in as "+resp.GetUser()+". Open the address of an application, or list them with tsh apps ls."), "'none'")
}

// logoutForm asks whether somebody wants to log out: a link alone, on any page, must not.
func (h *Handler) logoutForm(w http.ResponseWriter, _ *http.Request) {
	h.page(w, http.StatusOK, logoutPage(), "'self'")
}

// logout ends the session at the Proxy, and with it those at the applications.
func (h *Handler) logout(w http.ResponseWriter, r *http.Request) {
	h.end(r.Context(), r, webCookie)
	clearCookie(w, webCookie, http.SameSiteLaxMode)
	h.page(w, http.StatusOK, messagePage("Logged out", "You are logged out of the Proxy and of all applications."), "'none'")
}

// leave ends the session at one application.
func (h *Handler) leave(w http.ResponseWriter, r *http.Request) {
	h.end(r.Context(), r, sessionCookie)
	clearCookie(w, sessionCookie, http.SameSiteLaxMode)
	h.page(w, http.StatusOK, messagePage("Logged out", "You are logged out of this application."), "'none'")
}

// end has Auth end the session of a cookie.
func (h *Handler) end(ctx context.Context, r *http.Request, name string) {
	c, err := r.Cookie(name)
	if err != nil || c.Value == "" || len(c.Value) > maxSecret {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := h.cfg.Apps.EndSession(ctx, &appv1.EndSessionRequest{Token: c.Value}); err != nil {
		h.cfg.Log.WarnContext(ctx, "the end of a session could not be told to Auth", "error", err)
	}
	// Now nothing can bring it back.
	if app, ok := h.hosts.find(bareHost(r.Host)); ok {
		h.sessions.forget(cookieKey(app.name, c.Value))
	} else {
		h.sessions.forgetLogin(c.Value)
	}
}

func clearCookie(w http.ResponseWriter, name string, same http.SameSite) {
	http.SetCookie(w, &http.Cookie{Name: name, Path: "/", Secure: true, HttpOnly: true, MaxAge: -1, SameSite: same}) //nolint:gosec // SameSite is the caller's
}

// launch opens a session at an application, once those are open that it needs.
func (h *Handler) launch(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	state, path, back := query.Get("state"), localPath(query.Get("path")), query.Get("back")
	app, ok := h.hosts.find(bareHost(r.PathValue("host")))
	switch {
	case !ok:
		h.fail(w, r, fault.NotFound("there is no application at %q", bareHost(r.PathValue("host"))))
		return
	case state == "" || len(state) > maxState || back != "" && !launchURL(back):
		h.fail(w, r, fault.Invalid("this link is not whole: open https://%s/ instead", h.authority(app.host)))
		return
	}
	cookie, err := r.Cookie(webCookie)
	if err != nil || cookie.Value == "" || len(cookie.Value) > maxSecret {
		h.toLogin(w, r)
		return
	}
	done, err := strconv.Atoi(query.Get("done"))
	if err != nil || done < 0 || back != "" {
		done = 0
	}
	// Applications that this one needs come first, one after the other. They are not asked
	// for what they need themselves, so that this ends.
	for ; back == "" && done < len(app.required); done++ {
		need, ok := h.hosts.named(app.required[done])
		if !ok || need.name == app.name {
			continue
		}
		query.Set("done", strconv.Itoa(done+1))
		here := launchPath + bareHost(r.PathValue("host")) + "?" + query.Encode()
		http.Redirect(w, r, "https://"+h.authority(need.host)+startPath+"?"+url.Values{"back": {here}}.Encode(), http.StatusFound)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	resp, err := h.cfg.Apps.OpenSession(ctx, &appv1.OpenSessionRequest{WebToken: cookie.Value, App: app.name, ClientAddr: r.RemoteAddr})
	switch {
	case errors.Is(err, fault.ErrUnauthenticated):
		clearCookie(w, webCookie, http.SameSiteLaxMode)
		h.toLogin(w, r)
		return
	case err != nil:
		h.fail(w, r, err)
		return
	}
	h.sessions.ending.open(loginKey(cookie.Value), cookieKey(app.name, resp.GetToken()))
	to := "https://" + h.authority(bareHost(r.PathValue("host")))
	h.page(w, http.StatusOK, launchPage(to+authPath, map[string]string{
		"token": resp.GetToken(), "state": state, "path": path, "back": back, "expires": strconv.FormatInt(resp.GetExpires().GetSeconds(), 10),
	}), to)
}

func (h *Handler) toLogin(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, loginPath+"?"+url.Values{"next": {r.URL.RequestURI()}}.Encode(), http.StatusSeeOther)
}

// finish takes the secret of a new session, if the browser is the one that began.
func (h *Handler) finish(w http.ResponseWriter, r *http.Request, app target) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		h.fail(w, r, fault.Invalid("this page is reached by logging in: open https://%s/", h.authority(app.host)))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		h.fail(w, r, fault.Invalid("the form cannot be read"))
		return
	}
	state, token := r.PostForm.Get("state"), r.PostForm.Get("token")
	known := len(state) >= 8 && len(state) <= maxState && slices.ContainsFunc(r.CookiesNamed(stateCookie+state[:min(8, len(state))]), func(c *http.Cookie) bool {
		return subtle.ConstantTimeCompare([]byte(c.Value), []byte(state)) == 1
	})
	if !known || token == "" || len(token) > maxSecret {
		h.fail(w, r, fault.Denied("this login was begun in another browser, or too long ago: open https://%s/ again", h.authority(app.host)))
		return
	}
	same := http.SameSiteLaxMode
	if app.cors.GetAllowCredentials() {
		same = http.SameSiteNoneMode // scripts of the named origins may use the session
	}
	clearCookie(w, stateCookie+state[:8], http.SameSiteNoneMode)
	cookie := &http.Cookie{Name: sessionCookie, Value: token, Path: "/", Secure: true, HttpOnly: true, SameSite: same} //nolint:gosec // SameSite is chosen above
	if seconds, err := strconv.ParseInt(r.PostForm.Get("expires"), 10, 64); err == nil {
		cookie.Expires = time.Unix(seconds, 0)
	}
	http.SetCookie(w, cookie)
	w.Header().Set("Cache-Control", "no-store")
	if back := r.PostForm.Get("back"); launchURL(back) {
		http.Redirect(w, r, "https://"+h.authority(h.host)+back, http.StatusSeeOther) //nolint:gosec // to the Proxy's own host
		return
	}
	http.Redirect(w, r, localPath(r.PostForm.Get("path")), http.StatusSeeOther) //nolint:gosec // localPath leads nowhere else
}
