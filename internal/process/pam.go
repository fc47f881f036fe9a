package process

import (
	"context"
	"os"

	"teleport/internal/config"
	"teleport/internal/pam"
	"teleport/internal/service/ssh"
)

// Keys of the configuration that PAM may not go with.
const (
	keyPAM        = "ssh_service.pam.enabled"
	keyPAMService = "ssh_service.pam.service_name"
)

// openPAM opens what PAM sessions are opened with, if the configuration wants them. The
// error says which key this host cannot do with.
func (p *process) openPAM(ctx context.Context, cfg *config.Config) (ssh.PAMConfig, error) {
	c := cfg.SSH.PAM
	if !cfg.SSH.Enabled || !c.Enabled {
		return ssh.PAMConfig{}, nil
	}
	wrong := func(key, format string, args ...any) (ssh.PAMConfig, error) {
		return ssh.PAMConfig{}, &Error{ExitUsage, cfg.Wrong(key, format, args...)}
	}
	if os.Geteuid() != 0 {
		return wrong(keyPAM, "PAM sessions can be opened by root only: run this process as root, or set it to no")
	}
	if err := pam.CheckService(c.ServiceName); err != nil {
		return wrong(keyPAMService, "%s", err)
	}
	self := ""
	if p.program != nil {
		self = p.program.path
	}
	path, err := pam.Find(self)
	if err != nil {
		return wrong(keyPAM, "PAM sessions need another program: %s; or set it to no", err)
	}
	helper, err := pam.Open(ctx, path)
	if err != nil {
		return wrong(keyPAM, "%s", err)
	}
	return ssh.PAMConfig{Helper: helper, Service: c.ServiceName, Authenticate: c.UseAuth, Environment: c.Environment}, nil
}

// checkPAM makes sure that openPAM will do.
func (p *process) checkPAM(ctx context.Context, cfg *config.Config) error {
	c, err := p.openPAM(ctx, cfg)
	if c.Helper != nil {
		_ = c.Helper.Close()
	}
	return err
}
