package db

import (
	"context"
	"net"
	"time"

	"teleport/internal/hosted"
	"teleport/internal/types"
)

const (
	// probePeriod is the pause between two tries to reach a database, probeTimeout how
	// long one may take.
	probePeriod  = time.Minute
	probeTimeout = 10 * time.Second
)

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

func (sv *served) protocol() string { return sv.db.GetSpec().GetProtocol() }

// Watch tries now and then whether the database can be reached, until ctx ends.
func (sv *served) Watch(ctx context.Context) {
	if !probed(sv.protocol()) {
		return
	}
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
	health := hosted.Healthy
	if err != nil {
		health = err.Error()
	}
	sv.SetHealth(ctx, health)
}

// hostOf returns the host of an address that was checked.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
