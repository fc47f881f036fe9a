package process

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"teleport/internal/backend"
	"teleport/internal/backend/memory"
	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/service/auth"
	"teleport/internal/state"
	"teleport/internal/types"
)

// fullBackend takes no writes while full, like a database on a full disk.
type fullBackend struct {
	backend.Backend
	full atomic.Bool
}

func (b *fullBackend) Batch(ctx context.Context, ops ...backend.Op) (uint64, error) {
	if b.full.Load() {
		return 0, fault.Limit("the disk is full")
	}
	return b.Backend.Batch(ctx, ops...)
}

// TestStartOnFullDisk starts an Auth process whose database takes no writes: it goes
// on with the identity of before if that will do, and only when it starts.
func TestStartOnFullDisk(t *testing.T) {
	text := fmt.Sprintf(`version: v3
teleport: {nodename: hub, data_dir: %s}
auth_service: {enabled: yes, cluster_name: main, listen_addr: "127.0.0.1:0"}
proxy_service: {enabled: no}
ssh_service: {enabled: no}
`, t.TempDir())
	cfg, err := config.Parse("teleport.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir, err := state.Open(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const hostID = "7d9b1a5e-54c3-4c05-9f0b-0d0f2f6f7a11"
	store := &fullBackend{Backend: memory.New()}
	service, err := auth.Open(t.Context(), auth.Config{ClusterName: "main", DataDir: cfg.DataDir, HostID: hostID, Hostname: "hub", Backend: store, Listener: ln})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var logged strings.Builder
	starting := func(cfg config.Config) *process {
		p := newProcess(Options{Config: &cfg, Log: slog.New(slog.NewTextHandler(&logged, nil))})
		p.dir, p.auth, p.hostID = dir, service, hostID
		return p
	}

	store.full.Store(true)
	if err := starting(*cfg).issueLocal(t.Context()); !errors.Is(err, fault.ErrLimit) {
		t.Fatalf("first start on a full disk: %v, want ErrLimit", err)
	}
	store.full.Store(false)
	first := starting(*cfg)
	if err := first.issueLocal(t.Context()); err != nil {
		t.Fatal(err)
	}
	store.full.Store(true)
	again := starting(*cfg)
	if err := again.issueLocal(t.Context()); err != nil {
		t.Fatalf("start on a full disk: %v", err)
	}
	if a, b := again.holder.State(), first.holder.State(); a.Generation != b.Generation || !slices.Equal(a.TLSKey, b.TLSKey) {
		t.Errorf("started with generation %d, want that of before, %d", a.Generation, b.Generation)
	}
	if !strings.Contains(logged.String(), "level=ERROR") || !strings.Contains(logged.String(), "disk is full") {
		t.Errorf("nothing in the log says why: %s", logged.String())
	}
	if err := again.issueLocal(t.Context()); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("renewal on a full disk: %v, want ErrLimit", err)
	}
	more := *cfg
	more.SSH.Enabled = true
	if err := starting(more).issueLocal(t.Context()); !errors.Is(err, fault.ErrLimit) {
		t.Errorf("start of another service on a full disk: %v, want ErrLimit", err)
	}
	store.full.Store(false)
	if err := again.issueLocal(t.Context()); err != nil || again.holder.State().Generation <= first.holder.State().Generation {
		t.Errorf("renewal with room again: %v, generation %d", err, again.holder.State().Generation)
	}
}

// TestDatabaseFails makes the database refuse writes under a running process: readyz
// says so, and that it is over with the next write that works.
func TestDatabaseFails(t *testing.T) {
	hub := start(t, fmt.Sprintf(`version: v3
teleport: {nodename: hub, data_dir: %s}
auth_service: {enabled: yes, cluster_name: main, listen_addr: "127.0.0.1:0"}
proxy_service: {enabled: no}
ssh_service: {enabled: no}
`, t.TempDir()))
	db, err := sql.Open("sqlite", hub.config().DatabaseFile())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	write := func() error {
		role := types.New(types.KindRole, "r")
		return hub.auth.Store().Tx().Upsert(role).Commit(t.Context())
	}
	do := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	do(`CREATE TRIGGER refuse BEFORE INSERT ON item BEGIN SELECT RAISE(ABORT, 'no more'); END`)
	if err := write(); err == nil {
		t.Fatal("a write that the database refused has worked")
	}
	if got := hub.readyz(); !strings.HasPrefix(got, "503 ") || !strings.Contains(got, `"auth":"degraded"`) || !strings.Contains(got, "no more") {
		t.Errorf("readyz = %s, want auth degraded with the reason", got)
	}
	do(`DROP TRIGGER refuse`)
	if err := write(); err != nil {
		t.Fatal(err)
	}
	if got := hub.readyz(); !strings.HasPrefix(got, "200 ") {
		t.Errorf("readyz = %s, want all well again", got)
	}
}
