package proxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"teleport/internal/version"
)

// maxHeader and maxBody bound what a visitor may send: nothing here reads more.
const (
	maxHeader = 16 << 10
	maxBody   = 64 << 10
)

// serveWeb serves browsers and the unauthenticated API.
func (s *Service) serveWeb(ctx context.Context, ln net.Listener) error {
	config := s.web.config(tls.VersionTLS12, "h2", "http/1.1")
	config.GetConfigForClient = s.apps.RequestCertificates(config)
	defer s.apps.Close()
	server := &http.Server{
		Handler:           s.handler(),
		TLSConfig:         config,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 128},
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(s.cfg.Drain, 0))
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	})
	defer stop()
	err := server.ServeTLS(s.bounded(ln, maxVisitors, maxVisitorsPerSource), "", "")
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// handler returns the routes, with the headers that every answer of the Proxy's own has.
func (s *Service) handler() http.Handler {
	routes := http.NewServeMux()
	routes.HandleFunc("GET /webapi/ping", s.ping)
	routes.HandleFunc("GET /webapi/find", s.find)
	routes.HandleFunc("GET /web/invite/{token}", page(inviteText))
	routes.HandleFunc("GET /web/reset/{token}", page(inviteText))
	routes.HandleFunc("GET /{$}", page(homeText))
	s.apps.Register(routes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.apps.Serves(r.Host) {
			s.apps.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("Strict-Transport-Security", "max-age=31536000")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		routes.ServeHTTP(w, r)
	})
}

// The pages until there is a web interface. They carry nothing of the request.
const (
	homeText = `This is a Teleport Proxy. There is no web interface yet: use tsh.

    tsh login --proxy=<this address> --user=<you>

Applications are at addresses of their own: tsh apps ls shows them.
`
	inviteText = `This is an invitation to a Teleport cluster. There is no web interface yet: redeem it with tsh.

    tsh login --invite='<the whole link, with what follows the # sign>'
`
)

func page(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(text))
	}
}

// pingResponse is the answer of /webapi/ping; /webapi/find has it without auth.
type pingResponse struct {
	Auth             *authSettings `json:"auth,omitempty"`
	Proxy            proxySettings `json:"proxy"`
	ServerVersion    string        `json:"server_version"`
	MinClientVersion string        `json:"min_client_version"`
	ClusterName      string        `json:"cluster_name"`
}

type authSettings struct {
	Type              string   `json:"type"`
	SecondFactor      string   `json:"second_factor"`
	PreferredLocalMFA string   `json:"preferred_local_mfa"`
	AllowPasswordless bool     `json:"allow_passwordless"`
	Local             nameOnly `json:"local"`
}

type nameOnly struct {
	Name string `json:"name"`
}

type proxySettings struct {
	Kube       enabled     `json:"kube"`
	SSH        sshSettings `json:"ssh"`
	DB         struct{}    `json:"db"`
	TLSRouting bool        `json:"tls_routing_enabled"`
}

type enabled struct {
	Enabled bool `json:"enabled"`
}

type sshSettings struct {
	ListenAddr       string `json:"listen_addr"`
	TunnelListenAddr string `json:"tunnel_listen_addr"`
	WebListenAddr    string `json:"web_listen_addr"`
	PublicAddr       string `json:"public_addr"`
	SSHPublicAddr    string `json:"ssh_public_addr"`
	SSHTunnelAddr    string `json:"ssh_tunnel_public_addr"`
	TunnelPublicAddr string `json:"tunnel_public_addr"`
	// DialTimeout is in nanoseconds.
	DialTimeout time.Duration `json:"dial_timeout"`
}

func (s *Service) settings() pingResponse {
	listen := s.cfg.Listener.Addr().String()
	return pingResponse{
		Proxy: proxySettings{
			SSH: sshSettings{
				ListenAddr: listen, TunnelListenAddr: listen, WebListenAddr: listen,
				PublicAddr: s.cfg.PublicAddr, SSHPublicAddr: s.cfg.PublicAddr,
				SSHTunnelAddr: s.cfg.PublicAddr, TunnelPublicAddr: s.cfg.PublicAddr,
				DialTimeout: 30 * time.Second,
			},
			TLSRouting: true,
		},
		ServerVersion:    version.Version,
		MinClientVersion: minClient(version.Version),
		ClusterName:      s.cluster(),
	}
}

func (s *Service) find(w http.ResponseWriter, _ *http.Request) { answer(w, s.settings()) }

func (s *Service) ping(w http.ResponseWriter, _ *http.Request) {
	settings := s.settings()
	settings.Auth = &authSettings{Type: "local", SecondFactor: "otp", PreferredLocalMFA: "otp"}
	answer(w, settings)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// minClient is the oldest client that a server of this version supports: one major
// version back.
func minClient(server string) string {
	text, _, _ := strings.Cut(server, ".")
	major, err := strconv.Atoi(text)
	if err != nil || major < 1 {
		return "0.0.0"
	}
	return strconv.Itoa(major-1) + ".0.0"
}
