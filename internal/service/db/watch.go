package db

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/label"
	"teleport/internal/types"
)

const (
	// probePeriod is the pause between two tries to reach a database, probeTimeout how
	// long one may take.
	probePeriod  = time.Minute
	probeTimeout = 10 * time.Second
	healthy      = "healthy"
)

// commandsOf makes the dynamic labels of a database. Commands run only if this host's own
// configuration has them: who may write resources of the cluster does not thereby run
// programs on its hosts.
func (t *table) commandsOf(d *typesv1.Database, static bool) (*label.Set, error) {
	var commands []label.Command
	for name, c := range d.GetSpec().GetDynamicLabels() {
		period, err := types.ParseDuration(c.GetPeriod())
		if err != nil {
			return nil, fmt.Errorf("dynamic label %q of database %q: %w", name, d.GetMetadata().GetName(), err)
		}
		commands = append(commands, label.Command{Name: name, Command: c.GetCommand(), Period: period})
	}
	if len(commands) > 0 && !static {
		t.s.cfg.Log.Warn("the dynamic labels of a database of the cluster are left out: commands have to be in the configuration of the host", "db", d.GetMetadata().GetName())
		commands = nil
	}
	return label.New(d.GetMetadata().GetLabels(), commands, t.s.cfg.Log)
}

// defaultPort is that of a database whose uri has none; empty if it has to have one.
func defaultPort(protocol string) string {
	switch protocol {
	case types.ProtocolPostgres:
		return "5432"
	case types.ProtocolCockroachDB:
		return "26257"
	case types.ProtocolMySQL:
		return "3306"
	case types.ProtocolRedis:
		return "6379"
	case types.ProtocolMongoDB:
		return "27017"
	case types.ProtocolSQLServer:
		return "1433"
	case types.ProtocolClickHouse:
		return "9440"
	case types.ProtocolClickHouseHTTP:
		return "8443"
	}
	return ""
}

// probed reports whether the database is tried without a user. MySQL counts connections
// that say nothing, and blocks the host that makes too many.
func probed(protocol string) bool {
	return protocol != types.ProtocolMySQL && defaultPort(protocol) != ""
}

// watch keeps what the cluster knows of the database until ctx ends.
func (sv *served) watch(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	sv.commands.RunAll(ctx)
	work.Go(func() { sv.commands.Run(ctx, func() { sv.announce(ctx) }) })
	sv.announce(ctx)
	if probed(sv.protocol()) {
		sv.probeAll(ctx)
	}
}

func (sv *served) protocol() string { return sv.db.GetSpec().GetProtocol() }

// announce tells the cluster of the database, unless it is no longer served.
func (sv *served) announce(ctx context.Context) {
	sv.t.mu.Lock()
	defer sv.t.mu.Unlock()
	if ctx.Err() == nil && sv.t.served[sv.name()] == sv {
		sv.t.s.cfg.Announce(sv.self())
	}
}

// probeAll tries now and then whether the database can be reached, until ctx ends.
func (sv *served) probeAll(ctx context.Context) {
	tick := time.NewTicker(probePeriod)
	defer tick.Stop()
	for {
		sv.probe(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// probe connects and hangs up.
func (sv *served) probe(ctx context.Context) {
	addr, err := types.DatabaseAddr(sv.db.GetSpec().GetUri(), defaultPort(sv.protocol()))
	if err != nil {
		return
	}
	conn, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, "tcp", addr)
	if err == nil {
		_ = conn.Close()
	}
	sv.tried(ctx, err)
}

// tried notes whether the database could be reached, and tells the cluster what is new.
func (sv *served) tried(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	health, up := healthy, 1.0
	if err != nil {
		health, up = err.Error(), 0
	}
	sv.mu.Lock()
	changed := sv.health != health
	sv.health = health
	sv.mu.Unlock()
	if !changed {
		return
	}
	sv.t.s.metrics.healthy.WithLabelValues(sv.name()).Set(up)
	sv.announce(ctx)
}

// hostOf returns the host of an address that was checked.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
