package proxy

import (
	"context"
	"net"
	"time"

	appv1 "teleport/api/app/v1"
	loginv1 "teleport/api/login/v1"
	"teleport/internal/budget"
	"teleport/internal/identity"
	"teleport/internal/types"
	"teleport/internal/webapp"
)

// newApps serves applications at the web port.
func (s *Service) newApps() (*webapp.Handler, error) {
	addr := s.cfg.PublicAddr
	if addr == "" {
		addr = s.cfg.Listener.Addr().String()
	}
	return webapp.New(webapp.Config{
		PublicAddr: addr,
		Cache:      s.cfg.Cache,
		Trust:      s.cfg.Holder.Trust,
		Login:      loginv1.NewLoginServiceClient(s.cfg.AuthConn),
		Apps:       appv1.NewAppServiceClient(s.cfg.AuthConn),
		Dial: func(ctx context.Context, caller *identity.Identity, app, clientAddr string) (net.Conn, string, error) {
			return s.router.DialResource(ctx, caller, types.RoleApp, app, false, clientAddr)
		},
		Enter:      s.enter,
		AllowLogin: func(addr string) bool { return s.logins.Allow(budget.Source(addr), time.Now()) },
		Log:        s.cfg.Log,
	})
}
