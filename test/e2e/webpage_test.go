package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/net/websocket"
)

// page is what the application shows; what comes by the web socket and by events is
// added to it.
const page = `<!doctype html><title>shop</title><h1>the shop</h1><pre id="log"></pre><script>
const say = text => { document.getElementById('log').append(text + '\n') }
const socket = new WebSocket('wss://' + location.host + '/socket')
socket.onopen = () => socket.send('ping')
socket.onmessage = e => say('socket: ' + e.data)
socket.onclose = () => say('socket closed')
const events = new EventSource('/events')
events.onmessage = e => say('event: ' + e.data)
events.onerror = () => { say('events closed'); events.close() }
</script>`

// webpage VAR runs an HTTP application with a page, which opens a web socket that echoes
// and a stream of events; /token has the token that says who asks. The variable is its
// port.
func webpage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: webpage VAR")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, page)
	})
	mux.Handle("/socket", websocket.Server{Handler: func(ws *websocket.Conn) {
		for {
			var text string
			if websocket.Message.Receive(ws, &text) != nil || websocket.Message.Send(ws, "echo of "+text) != nil {
				return
			}
		}
	}})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for n := 1; ; n++ {
			if _, err := fmt.Fprintf(w, "data: number %d\n\n", n); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("Teleport-Jwt-Assertion"))
	})
	mux.HandleFunc("/cookies", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "cookies: "+r.Header.Get("Cookie"))
	})
	server := httptest.NewServer(mux)
	ts.Defer(server.Close)
	ts.Setenv(args[0], portOf(server.Listener))
}

// jwtOf FILE URL AUDIENCE checks the token in a file by the keys at the URL, as an
// application would, and writes its claims into jwt.out.
func jwtOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: jwt FILE URL AUDIENCE")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(args[1])
	ts.Check(err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	ts.Check(err)
	var keys jose.JSONWebKeySet
	ts.Check(json.Unmarshal(data, &keys))
	token, err := jwt.ParseSigned(strings.TrimSpace(ts.ReadFile(args[0])), []jose.SignatureAlgorithm{jose.ES256})
	ts.Check(err)
	var claims jwt.Claims
	more := map[string]any{}
	ts.Check(token.Claims(keys, &claims, &more))
	ts.Check(claims.Validate(jwt.Expected{AnyAudience: jwt.Audience{args[2]}, Time: time.Now()}))
	ts.Check(os.WriteFile(ts.MkAbs("jwt.out"), fmt.Appendf(nil, "%v\n", more), 0o600))
	ts.Logf("%v", more)
}
