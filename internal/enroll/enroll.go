// Package enroll makes a machine whose only SSH server is OpenSSH a server of the
// cluster: it joins, gets host certificates for the host keys of the sshd, has the sshd
// show them and trust the logins that the cluster signs, and creates the server's
// resource. It is what `teleport join openssh` does: nothing of it stays running.
//
//	join or renew      an identity of its own, in <data_dir>/openssh
//	sshd -T            which host keys the sshd has, and whom it trusts already
//	EnrollServer       certificates for them, and the resource
//	files, sshd_config a marked block at the top; checked before it takes the file's place
//	restart            if asked for
package enroll

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	joinv1 "teleport/api/join/v1"
	opensshv1 "teleport/api/openssh/v1"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/join/method"
	"teleport/internal/mux"
	"teleport/internal/rpc"
	"teleport/internal/state"
	"teleport/internal/types"
)

// Params says what to enrol, and where.
type Params struct {
	// Proxy is host:port of a Proxy Service.
	Proxy string
	// Token is the join token, Method its join method or empty, Methods those that this
	// machine can prove itself by and Settings the keys of teleport.join_params. A token
	// is needed the first time, and when the identity in Dir has expired.
	Token    string
	Method   string
	Methods  []method.Method
	Settings map[string]string
	Pins     []string
	Insecure bool
	// Hostname is what the server is called, Addr host:port where Proxies reach its sshd.
	Hostname string
	Addr     string
	Labels   map[string]string
	// Principals are more names for the host certificates.
	Principals []string
	// Dir is the directory for the identity, the certificates and what the sshd trusts.
	Dir string
	// SSHDConfig is the configuration of the sshd. CheckCommand is run with a path behind
	// it before that file takes the place of SSHDConfig; its first word is the sshd.
	SSHDConfig   string
	CheckCommand []string
	// RestartCommand is run at the end; empty for not.
	RestartCommand []string
	Log            *slog.Logger
	// Say is told each thing that was done.
	Say func(line string)
	Now func() time.Time
}

// Result is what the server is now.
type Result struct {
	HostID, Hostname, Cluster string
	Labels                    map[string]string
	// Expires is when the host certificates end.
	Expires time.Time
}

// callTimeout bounds one call to Auth.
const callTimeout = 30 * time.Second

// Run enrols the server, or renews what it was enrolled with.
func Run(ctx context.Context, p Params) (*Result, error) {
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	if p.Say == nil {
		p.Say = func(string) {}
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	sshd, err := readSSHD(ctx, p.SSHDConfig, p.CheckCommand)
	if err != nil {
		return nil, err
	}
	dir, err := state.Open(p.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	keys, err := sshd.hostKeys(dir.Path())
	if err != nil {
		return nil, err
	}
	holder, err := p.identity(ctx, dir)
	if err != nil {
		return nil, err
	}
	req := &opensshv1.EnrollServerRequest{Addr: p.Addr, Labels: p.Labels, Principals: p.Principals}
	for _, k := range keys {
		req.HostKeys = append(req.HostKeys, k.public.Marshal())
	}
	resp, err := p.enroll(ctx, holder, req)
	if err != nil {
		return nil, err
	}
	p.Say(fmt.Sprintf("enrolled %s (%s) in cluster %s", resp.GetHostname(), resp.GetHostId(), holder.State().Cluster))
	if err := p.install(ctx, sshd, dir.Path(), keys, resp); err != nil {
		return nil, err
	}
	return &Result{
		HostID: resp.GetHostId(), Hostname: resp.GetHostname(), Cluster: holder.State().Cluster, Labels: resp.GetLabels(), Expires: resp.GetExpires().AsTime(),
	}, nil
}

func (p *Params) check() error {
	if _, _, err := net.SplitHostPort(p.Addr); err != nil {
		return fault.Invalid("address %q: expected host:port", p.Addr)
	}
	if err := types.ValidHostname(p.Hostname); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if len(p.CheckCommand) == 0 {
		return fault.Invalid("the command that checks the configuration of the sshd is empty")
	}
	path, err := filepath.Abs(p.Dir)
	if err != nil || strings.ContainsAny(path, "\"\\\n\r\t %") {
		return fault.Invalid("data directory %q: sshd_config cannot name it", p.Dir)
	}
	p.Dir = path
	return nil
}

// identity returns the machine's identity in the cluster, new or renewed, and saves it.
func (p *Params) identity(ctx context.Context, dir *state.Dir) (*state.Holder, error) {
	var held *state.Holder
	st, err := dir.Load()
	switch {
	case err == nil:
		if held, err = state.NewHolder(st); err != nil {
			return nil, fmt.Errorf("identity in %s: %w; delete the directory to join afresh", p.Dir, err)
		}
	case !errors.Is(err, fault.ErrNotFound):
		return nil, err
	}
	switch {
	case held == nil || !p.Now().Before(held.Expires()) || held.Attests():
		st, err = p.join(ctx, held)
	default:
		st, err = p.renew(ctx, held)
	}
	if err != nil {
		return nil, err
	}
	if err := dir.Save(st); err != nil {
		return nil, err
	}
	return state.NewHolder(st)
}

// join gets an identity with the token. One that nobody knows any more is given up.
func (p *Params) join(ctx context.Context, held *state.Holder) (*state.State, error) {
	if p.Token == "" {
		if held != nil {
			return nil, fault.Invalid("the identity of this machine expired at %s: give --token, made with `tctl tokens add --type=node`", held.Expires().UTC().Format(time.RFC3339))
		}
		return nil, fault.Invalid("this machine has no identity in %s yet: give --token, made with `tctl tokens add --type=node`", p.Dir)
	}
	params := join.Params{
		Addr: p.Proxy, Token: p.Token, Method: p.Method, Methods: p.Methods, Settings: p.Settings, Dir: p.Dir, Roles: []types.SystemRole{types.RoleNode},
		Hostname: p.Hostname, Pins: p.Pins, Insecure: p.Insecure, Current: held, Log: p.Log,
	}
	st, err := join.Join(ctx, params)
	if code := fault.Code(err); held != nil && (code == join.CodeIdentityInvalid || code == join.CodeHostRemoved) {
		p.Say("the cluster does not know this machine's identity any more: joining as a new host")
		params.Current = nil
		st, err = join.Join(ctx, params)
	}
	if err != nil {
		return nil, err
	}
	p.Say("joined cluster " + st.Cluster)
	return st, nil
}

// renew gets a new identity for the one that is good still; a host that was removed
// joins again if it has a token.
func (p *Params) renew(ctx context.Context, held *state.Holder) (*state.State, error) {
	if name := held.State().Hostname; !strings.EqualFold(name, p.Hostname) {
		return nil, fault.Invalid("this machine joined as %q and is now to be called %q: delete %s and give --token to join afresh", name, p.Hostname, p.Dir)
	}
	conn, err := p.dial(held)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	st, err := join.Renew(ctx, joinv1.NewJoinServiceClient(conn), held.State(), []types.SystemRole{types.RoleNode})
	if code := fault.Code(err); code == join.CodeHostRemoved && p.Token != "" {
		return p.join(ctx, held)
	}
	return st, err
}

// dial connects to Auth through the Proxy.
func (p *Params) dial(held *state.Holder) (*rpc.Conn, error) {
	config := ca.ClientTLS(func() *tls.Certificate { return held.Certificate("") }, held.Trust, types.RoleAuth)
	config.NextProtos = []string{mux.ALPNAuthPrefix + held.State().Cluster, "h2"}
	return rpc.NewConn(rpc.DialConfig{Addr: p.Proxy, TLS: config})
}

func (p *Params) enroll(ctx context.Context, held *state.Holder, req *opensshv1.EnrollServerRequest) (*opensshv1.EnrollServerResponse, error) {
	conn, err := p.dial(held)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := opensshv1.NewOpenSSHServiceClient(conn).EnrollServer(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("enrol the server: %w", err)
	}
	if len(resp.GetCertificates()) != len(req.GetHostKeys()) || len(resp.GetTrustedKeys()) == 0 {
		return nil, fault.Invalid("the Auth Service did not send a certificate for each host key, or no key to trust: is it of the same version?")
	}
	return resp, nil
}

// install writes what the sshd needs and has it read that.
func (p *Params) install(ctx context.Context, s *sshdConfig, dir string, keys []hostKey, resp *opensshv1.EnrollServerResponse) error {
	var lines []string
	for i, k := range keys {
		cert, err := ca.ParseSSHCertificate(resp.GetCertificates()[i])
		if err != nil {
			return err
		}
		path := filepath.Join(dir, k.certName)
		if err := replaceFile(path, authorizedLine(cert), 0o644); err != nil {
			return err
		}
		if k.own {
			lines = append(lines, "HostKey "+k.path)
		}
		lines = append(lines, "HostCertificate "+path)
		p.Say("wrote the host certificate " + path)
	}
	trusted := filepath.Join(dir, trustedName)
	if err := replaceFile(trusted, []byte(strings.Join(resp.GetTrustedKeys(), "\n")+"\n"), 0o644); err != nil {
		return err
	}
	p.Say("wrote the keys that sign logins to " + trusted)
	if s.trusted == "" {
		lines = append(lines, "TrustedUserCAKeys "+trusted)
	} else if err := holds(s.trusted, resp.GetTrustedKeys()); err != nil {
		return fault.Invalid("%s has TrustedUserCAKeys %s already, and a sshd reads only one such file (%w): add the lines of %s to it and run this again, or remove that line",
			s.path, s.trusted, err, trusted)
	}
	changed, err := s.replace(ctx, lines)
	if err != nil {
		return err
	}
	if changed != "" {
		p.Say(fmt.Sprintf("wrote a block to %s; the file as it was is %s", s.path, changed))
	}
	if len(p.RestartCommand) == 0 {
		p.Say("restart sshd to use them")
		return nil
	}
	if out, err := run(ctx, p.RestartCommand...); err != nil {
		return fault.Unreachable("sshd could not be restarted by %q: %s", strings.Join(p.RestartCommand, " "), clip(out, err))
	}
	p.Say("restarted sshd: " + strings.Join(p.RestartCommand, " "))
	return nil
}

// holds fails unless every line is in the file.
func holds(path string, want []string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, line := range want {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.Contains(string(text), fields[0]+" "+fields[1]) {
			return errors.New("it lacks the cluster's keys")
		}
	}
	return nil
}
