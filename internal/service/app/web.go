package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxHeader bounds the head of a request.
	maxHeader = 128 << 10
	// headerTimeout bounds the time until a head is whole, idleTimeout that between two
	// requests.
	headerTimeout = 30 * time.Second
	idleTimeout   = 5 * time.Minute
	// maxStreams bounds the requests that one connection of HTTP/2 has under way.
	maxStreams = 250
)

// web is an HTTP server for connections whose TLS has been ended.
type web struct {
	server *http.Server
	ln     *handover
}

// connKey is where a request has its connection.
type connKey struct{}

func newWeb(s *Service, h2 bool) *web {
	w := &web{ln: &handover{conns: make(chan net.Conn), closed: make(chan struct{})}}
	var protocols http.Protocols
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	w.server = &http.Server{
		Handler:   &handler{s},
		Protocols: &protocols,
		// The application answers OPTIONS *.
		DisableGeneralOptionsHandler: true,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout:            headerTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader,
		ErrorLog:                     slog.NewLogLogger(s.cfg.Log.With("component", "http").Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
		ConnState: func(conn net.Conn, state http.ConnState) {
			c, ok := conn.(*connection)
			if ok && state == http.StateHijacked && c.strict != nil {
				c.strict.open.Store(true)
			}
		},
	}
	return w
}

// run serves until shutdown.
func (w *web) run() { _ = w.server.Serve(w.ln) }

// serve has the server serve a connection and returns when that is over.
func (w *web) serve(c *connection) {
	select {
	case w.ln.conns <- c:
	case <-w.ln.closed:
		return
	case <-c.closed:
		return
	}
	<-c.closed
}

// shutdown takes no more connections and lets requests finish until ctx ends.
func (w *web) shutdown(ctx context.Context) {
	_ = w.ln.Close()
	_ = w.server.Shutdown(ctx)
}

// handover is a listener whose connections are handed to it.
type handover struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

var errClosed = errors.New("the service has stopped")

// Accept returns the next connection.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, errClosed
	}
}

// Close ends Accept.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr returns an address that says nothing.
func (h *handover) Addr() net.Addr { return &net.TCPAddr{} }
