package auth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/mux"
	"teleport/internal/retry"
	"teleport/internal/rpc"
	"teleport/internal/store"
	"teleport/internal/types"
	"teleport/internal/version"
)

const (
	// The server resource of this Auth Service lives for presenceTTL and is renewed
	// well before.
	presenceTTL      = 10 * time.Minute
	presenceInterval = 4 * time.Minute
	// A host that did not renew for instanceLife cannot come back with what it has.
	instanceLife  = 30 * 24 * time.Hour
	sweepInterval = time.Hour
	// farewell is how long the last writes may take.
	farewell = 5 * time.Second
)

// Run serves until ctx ends, then ends calls and streams and closes the backend.
func (s *Service) Run(ctx context.Context, ready func()) (err error) {
	defer func() { err = errors.Join(err, s.cfg.Backend.Close()) }()
	var local net.Listener
	if s.cfg.LocalSocket != "" {
		if local, err = rpc.ListenLocal(ctx, s.cfg.LocalSocket); err != nil {
			return errors.Join(err, s.cfg.Listener.Close())
		}
	}
	if err := s.announce(ctx); err != nil {
		s.cfg.Log.WarnContext(ctx, "cannot list this auth service", "error", err)
	}
	// What supports the calls outlives them.
	outlive, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	background, support := errgroup.WithContext(outlive)
	for _, task := range []func(context.Context) error{
		s.agents.Run, s.followAuthorities, s.keepCertificate, s.keepPresence, s.sweep, s.projectEvents,
	} {
		background.Go(func() error { return task(support) })
	}
	serving, serveCtx := errgroup.WithContext(ctx)
	serving.Go(func() error {
		select { // a task that fails ends the service
		case <-support.Done():
			return context.Cause(support)
		case <-serveCtx.Done():
			return nil
		}
	})
	//nolint:contextcheck // the listener ends when it is closed
	listener := mux.RelayedListener(s.cfg.Listener, "auth", s.verifyProxy, s.cfg.Now)
	serving.Go(func() error { return s.server.Serve(serveCtx, listener) })
	if local != nil {
		serving.Go(func() error { return s.server.ServeLocal(serveCtx, local) })
	}
	select {
	case <-s.agents.Ready():
		s.cfg.Log.InfoContext(ctx, "auth service is ready", "cluster", s.ClusterName(), "addr", s.cfg.Listener.Addr().String())
		ready()
	case <-serveCtx.Done():
	}
	err = serving.Wait()
	cancel()
	if berr := background.Wait(); err == nil {
		err = berr
	}
	return err
}

// keepPresence keeps this Auth Service among the servers until ctx ends, and takes
// it out then.
func (s *Service) keepPresence(ctx context.Context) error {
	for retry.Sleep(ctx, presenceInterval+retry.Jitter(presenceInterval/4)) == nil {
		if err := s.announce(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.WarnContext(ctx, "cannot list this auth service", "error", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	err := s.store.Tx().Delete(types.KindAuthServer, s.cfg.HostID, "").Commit(ctx)
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	return err
}

func (s *Service) announce(ctx context.Context) error {
	server, ok := types.New(types.KindAuthServer, s.cfg.HostID).(*typesv1.Server)
	if !ok {
		return fault.Invalid("kind auth_server with another kind's message")
	}
	server.Metadata.Expires = timestamppb.New(s.cfg.Now().Add(presenceTTL))
	server.Spec = &typesv1.ServerSpec{
		Hostname: s.cfg.Hostname, Addr: s.reachable(), PublicAddrs: s.cfg.PublicAddrs, Version: version.Version,
	}
	if err := types.Check(server); err != nil {
		return err
	}
	return s.store.Tx().Upsert(server).Commit(ctx)
}

// reachable is the address of the listener as others may dial it.
func (s *Service) reachable() string {
	host, port, err := net.SplitHostPort(s.cfg.Listener.Addr().String())
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = s.cfg.Hostname
	}
	return net.JoinHostPort(host, port)
}

// sweep removes the records of hosts that are gone for good, until ctx ends.
func (s *Service) sweep(ctx context.Context) error {
	for retry.Sleep(ctx, sweepInterval+retry.Jitter(sweepInterval/4)) == nil {
		if err := s.sweepInstances(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.WarnContext(ctx, "cannot remove the records of lost hosts", "error", err)
		}
	}
	return nil
}

func (s *Service) sweepInstances(ctx context.Context) error {
	instances, err := store.All[*typesv1.Instance](ctx, s.store, types.KindInstance)
	if err != nil {
		return err
	}
	limit := s.cfg.Now().Add(-instanceLife)
	for _, i := range instances {
		last := i.GetStatus().GetRenewed()
		if last == nil {
			last = i.GetStatus().GetJoined()
		}
		if last == nil || last.AsTime().After(limit) {
			continue
		}
		id := i.GetMetadata().GetName()
		// An OpenSSH server has nobody who renews its identity.
		if node, err := store.Get[*typesv1.Server](ctx, s.store, types.KindNode, id); err == nil && node.GetSubKind() == types.SubKindOpenSSH {
			continue
		}
		gone := audit.New(audit.InstanceDelete, map[string]any{
			"success": true, "name": id, "host_id": id, "node_name": i.GetSpec().GetHostname(),
			"reason": fmt.Sprintf("not renewed since %s", last.AsTime().UTC().Format(time.RFC3339)),
		})
		err := s.store.Tx().Delete(types.KindInstance, id, i.GetMetadata().GetRevision()).Emit(gone).Commit(ctx)
		if err != nil && !errors.Is(err, fault.ErrStale) && !errors.Is(err, fault.ErrNotFound) {
			return err
		}
	}
	return nil
}
