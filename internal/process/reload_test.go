package process

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/store"
	"teleport/internal/types"
)

// edgeConfig is a process with a Proxy Service that joined Auth directly.
func edgeConfig(dir string, hub *started, token, ssh string) string {
	return fmt.Sprintf(`version: v3
teleport:
  nodename: edge
  data_dir: %s
  auth_server: "%s"
  ca_pin: "%s"
  join_params: {token_name: "%s"}
auth_service: {enabled: no}
proxy_service: {enabled: yes, web_listen_addr: "127.0.0.1:0"}
ssh_service: {enabled: %s, listen_addr: "127.0.0.1:0"}
`, filepath.Join(dir, "edge"), hub.addrs.Auth, hub.auth.Trust().Pins()[0], token, ssh)
}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("teleport.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Services come and go while the others serve on, connections included.
func TestServicesComeAndGo(t *testing.T) {
	dir := t.TempDir()
	hub := start(t, hubConfig(dir, "127.0.0.1:0", "127.0.0.1:0"))
	hub.addToken(t, nil, "Node", "Proxy")
	edge := start(t, edgeConfig(dir, hub, secret, "no"))
	id := edge.holder.HostID()

	conn, err := tls.Dial("tcp", edge.addrs.Proxy, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	alive := func() error {
		if _, err := io.WriteString(conn, "GET /webapi/ping HTTP/1.1\r\nHost: edge\r\n\r\n"); err != nil {
			return err
		}
		buf := make([]byte, 4096)
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		_, err := conn.Read(buf)
		return err
	}
	roles := func() []string {
		i, err := store.Get[*typesv1.Instance](t.Context(), hub.auth.Store(), types.KindInstance, id)
		if err != nil {
			t.Fatal(err)
		}
		return i.GetSpec().GetRoles()
	}
	listed := func() bool {
		_, err := store.Get[*typesv1.Server](t.Context(), hub.auth.Store(), types.KindNode, id)
		if err != nil && !errors.Is(err, fault.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	if err := alive(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		edge.reload <- parse(t, edgeConfig(dir, hub, secret, "yes"))
		within(t, 10*time.Second, "the added service is listed", listed)
		if got := roles(); !slices.Equal(got, []string{"Node", "Proxy"}) {
			t.Errorf("roles %v after adding", got)
		}
		if err := alive(); err != nil {
			t.Fatalf("the connection to the other service broke: %v", err)
		}
		edge.reload <- parse(t, edgeConfig(dir, hub, secret, "no"))
		within(t, 10*time.Second, "the dropped service is gone", func() bool { return !listed() })
		within(t, 10*time.Second, "its role is given back", func() bool { return slices.Equal(roles(), []string{"Proxy"}) })
		if err := alive(); err != nil {
			t.Fatalf("the connection to the other service broke: %v", err)
		}
	}
	if edge.holder.HostID() != id {
		t.Errorf("the host became %s", edge.holder.HostID())
	}

	// A token that does not allow the service changes nothing, and a good one works then.
	edge.reload <- parse(t, edgeConfig(dir, hub, "another-secret-0123456789", "yes"))
	edge.reload <- parse(t, edgeConfig(dir, hub, secret, "no"))
	if listed() || edge.config().SSH.Enabled {
		t.Error("a service that was refused runs")
	}
	edge.reload <- parse(t, edgeConfig(dir, hub, secret, "yes"))
	within(t, 10*time.Second, "the service is listed", listed)
}

// An agent whose host was removed comes back by itself if the token says so.
func TestRemovedHostComesBack(t *testing.T) {
	dir := t.TempDir()
	hub := start(t, hubConfig(dir, "127.0.0.1:0", "127.0.0.1:0"))
	hub.addToken(t, nil, "Node", "Proxy")
	tokens, err := store.All[*typesv1.Token](t.Context(), hub.auth.Store(), types.KindToken)
	if err != nil {
		t.Fatal(err)
	}
	tokens[0].Spec.Rejoin = types.RejoinSameKey
	if err := hub.auth.Store().Tx().Update(tokens[0]).Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	edge := start(t, edgeConfig(dir, hub, secret, "yes"))
	id := edge.holder.HostID()
	if err := hub.auth.Store().Tx().Delete(types.KindInstance, id, "").Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the host is back", func() bool {
		_, err := store.Get[*typesv1.Instance](t.Context(), hub.auth.Store(), types.KindInstance, id)
		return err == nil
	})
	within(t, 20*time.Second, "and its services with it", func() bool {
		_, err := store.Get[*typesv1.Server](t.Context(), hub.auth.Store(), types.KindNode, id)
		return err == nil
	})
}
