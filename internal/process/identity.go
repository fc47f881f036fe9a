package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/join"
	"teleport/internal/retry"
	"teleport/internal/state"
	"teleport/internal/types"
)

// makeIdentity gets the identity of the process: from Auth if that runs here, from
// the data directory if it fits the configuration, otherwise by joining.
func (p *process) makeIdentity(ctx context.Context) (Service, error) {
	if p.auth != nil {
		return nil, p.issueLocal(ctx)
	}
	st, err := p.dir.Load()
	if errors.Is(err, fault.ErrNotFound) {
		return nil, p.join(ctx, nil)
	}
	if err != nil {
		return nil, &Error{ExitDataDir, err}
	}
	if damage := p.dir.Damage(); damage != nil {
		p.log.WarnContext(ctx, "the state file was damaged, going on with the one before it", "error", damage)
	}
	holder, err := state.NewHolder(st)
	if err != nil {
		return nil, &Error{ExitDataDir, fmt.Errorf("identity in %s: %w; delete the directory to join afresh", p.config().DataDir, err)}
	}
	expired := !time.Now().Before(holder.Expires())
	missing := slices.DeleteFunc(p.roles(), func(r types.SystemRole) bool { return slices.Contains(st.Roles, r) })
	switch {
	case expired && p.config().Join.TokenName != "":
		p.log.InfoContext(ctx, "the identity in the data directory expired, joining again", "expired", holder.Expires())
		return nil, p.join(ctx, holder)
	case expired:
		return nil, &Error{ExitJoinRefused, fault.Denied("the identity in %s expired at %s, while this process was off: set teleport.auth_token to a new join token and start again",
			p.config().DataDir, holder.Expires().UTC().Format(time.RFC3339))}
	case len(missing) > 0:
		p.log.InfoContext(ctx, "joining again for additional services", "services", missing)
		return nil, p.join(ctx, holder)
	}
	p.holder = holder
	return nil, nil
}

// issueLocal lets the Auth Service of this process make the identity. It is made
// anew at each start, under the same host id; when the disk is full the process
// starts with the one of before, so that somebody can log in and clean up.
func (p *process) issueLocal(ctx context.Context) error {
	held := p.heldIdentity()
	if held != nil {
		// Auth counts what it issues: see first whether there is room to save it.
		if err := p.dir.Save(held.State()); errors.Is(err, fault.ErrLimit) {
			p.keep(ctx, held, err)
			return nil
		}
	}
	st, err := p.newLocal(ctx)
	if held != nil && errors.Is(err, fault.ErrLimit) {
		p.keep(ctx, held, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("identity of this process: %w", err)
	}
	err = p.adopt(st)
	if held != nil && errors.Is(err, fault.ErrLimit) {
		if held, err = state.NewHolder(st); err == nil {
			p.keep(ctx, held, errors.New("the new identity could not be saved"))
		}
	}
	return err
}

// newLocal asks the Auth Service of this process for an identity over new keys.
func (p *process) newLocal(ctx context.Context) (*state.State, error) {
	pair, err := join.NewKeyPair()
	if err != nil {
		return nil, err
	}
	grant, err := p.auth.Join().IssueLocal(ctx, join.LocalRequest{
		HostID: p.hostID, Hostname: p.config().Nodename, Roles: p.roles(), Principals: p.principals(), TLSKey: pair.TLSPublic, SSHKey: pair.SSHPublic,
		Process: p.runID,
	})
	if err != nil {
		return nil, err
	}
	return join.NewState(grant, pair, p.config().Nodename, nil, "")
}

// heldIdentity returns the saved identity if the process is starting and could do
// with it, or nil.
func (p *process) heldIdentity() *state.Holder {
	if p.holder != nil {
		return nil
	}
	st, err := p.dir.Load()
	if err != nil {
		return nil
	}
	had, want := slices.Sorted(slices.Values(st.Roles)), slices.Sorted(slices.Values(p.roles()))
	if st.HostID != p.hostID || st.Cluster != p.auth.ClusterName() || !slices.Equal(had, want) {
		return nil
	}
	held, err := state.NewHolder(st)
	if err != nil || !time.Now().Before(held.Expires()) {
		return nil
	}
	return held
}

// keep starts the process with an identity although the disk is full.
func (p *process) keep(ctx context.Context, held *state.Holder, cause error) {
	p.log.ErrorContext(ctx, "the disk is full, starting without a new identity on it: free some space", "data_dir", p.config().DataDir,
		"identity_expires", held.Expires(), "error", cause)
	p.holder = held
}

// adopt saves the state and works with it from now on.
func (p *process) adopt(st *state.State) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	if err := p.dir.Save(st); err != nil {
		return &Error{ExitDataDir, err}
	}
	if p.holder != nil {
		return p.holder.Replace(st)
	}
	holder, err := state.NewHolder(st)
	p.holder = holder
	return err
}

// join gets an identity with the configured token. A refusal is final; while the
// other side cannot be reached it tries again.
func (p *process) join(ctx context.Context, current *state.Holder) error {
	params, err := p.joinParams(current)
	if err != nil {
		return &Error{ExitUsage, err}
	}
	// Some proofs and tokens admit once.
	if err := p.dir.Room(); err != nil {
		return &Error{ExitDataDir, err}
	}
	pair, err := join.NewKeyPair()
	if err != nil {
		return err
	}
	params.Pair = &pair
	backoff := retry.Backoff{Min: time.Second, Max: 30 * time.Second}
	for {
		st, err := join.Join(ctx, params)
		wait := fault.RetryAfter(err)
		switch {
		case err == nil:
			p.log.InfoContext(ctx, "joined the cluster", "cluster", st.Cluster, "host_id", st.HostID, "roles", st.Roles)
			return p.adopt(st)
		case ctx.Err() != nil:
			return nil
		case wait > 0, errors.Is(err, fault.ErrStale):
		case fault.Code(err) == join.CodeIdentityInvalid && params.Current != nil && !time.Now().Before(params.Current.Expires()):
			// Too old to say who we were: what admits us is the token in any case.
			p.log.WarnContext(ctx, "the cluster does not know the expired identity any more, joining as a new host", "error", err)
			params.Current = nil
			continue
		case !errors.Is(err, fault.ErrUnreachable) || final(fault.Code(err)):
			return &Error{ExitJoinRefused, fmt.Errorf("join refused: %w", err)}
		}
		p.log.WarnContext(ctx, "cannot join yet, will try again", "error", err)
		p.health.Degraded("identity", err)
		if wait == 0 {
			wait = backoff.Next()
		}
		if retry.Sleep(ctx, wait) != nil {
			return nil
		}
	}
}

// final reports whether trying again cannot help although the server was there.
func final(code string) bool {
	return slices.Contains([]string{join.CodeNoTrust, join.CodeServerUntrusted, join.CodeWrongPin, join.CodeClockSkew, join.CodeWrongCluster}, code)
}

func (p *process) joinParams(current *state.Holder) (join.Params, error) {
	value := p.config().Join.TokenName
	if value == "" {
		if current != nil {
			return join.Params{}, fault.Invalid("this process has an identity for %v and is now to run %v: set teleport.auth_token to a join token for the new service (`tctl tokens add --type=%s`)",
				current.State().Roles, p.roles(), flagList(p.roles()))
		}
		return join.Params{}, fault.Invalid("this process has no identity in %s yet: set teleport.auth_token (or --token) to a join token, made with `tctl tokens add --type=%s`", p.config().DataDir, flagList(p.roles()))
	}
	secret, err := config.ReadToken(value)
	if err != nil {
		return join.Params{}, fmt.Errorf("teleport.auth_token: %w", err)
	}
	if warning := config.TokenWarning(value); warning != "" {
		p.log.Warn(warning) //nolint:sloglint // the message is the finding itself
	}
	addr, direct := p.config().ProxyServer, false
	if addr == "" {
		addr, direct = p.config().AuthServer, true
	}
	token, pins := config.SplitJoinString(secret)
	return join.Params{
		Addr: addr, Direct: direct, Token: token, Method: p.config().Join.Method,
		Methods: p.methods, Settings: p.config().Join.Settings, Dir: p.config().DataDir,
		Roles: p.roles(), Hostname: p.config().Nodename, Principals: p.principals(),
		Pins: slices.Concat(p.config().CAPins, pins), Insecure: p.opts.Insecure, Current: current, Process: p.runID, Log: p.log,
	}, nil
}

// principals are the names that users and agents reach this process under, for the
// certificates of the Proxy and the Auth Service.
func (p *process) principals() []string {
	if !p.config().Proxy.Enabled && !p.config().Auth.Enabled {
		return nil
	}
	names := []string{"localhost", "127.0.0.1", "::1"}
	for _, addr := range slices.Concat(p.config().Proxy.PublicAddrs, p.config().Auth.PublicAddrs, []string{p.addrs.Proxy, p.addrs.Auth}) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			continue
		}
		names = append(names, strings.ToLower(host))
	}
	if p.config().AdvertiseIP != "" {
		names = append(names, p.config().AdvertiseIP)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func flagList(roles []types.SystemRole) string {
	out := make([]string, len(roles))
	for i, r := range roles {
		out[i] = r.Flag()
	}
	return strings.Join(out, ",")
}
