package app_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/service/app"
	"teleport/internal/types"
)

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

func TestWhoGetsIn(t *testing.T) {
	tg := serve(t, hello)
	w := start(t, nil, application(appName, tg.URL, nil))
	pinned := role("pinned", "env", "test")
	pinned.Spec.Options = &typesv1.RoleOptions{PinSourceIp: proto.Bool(true)}
	w.setRole(pinned)
	deny := types.New(types.KindRole, "deny").(*typesv1.Role)
	deny.Spec = &typesv1.RoleSpec{Deny: &typesv1.RoleConditions{AppLabels: map[string]*typesv1.Strings{"env": strs("test")}}}
	w.setRole(deny)
	for _, tc := range []struct {
		name   string
		roles  []string
		change func(*identity.User, *ca.UserRequest)
		status int
		text   string
		reason string
	}{
		{name: "allowed", roles: []string{"dev"}, status: 200},
		{name: "wildcard", roles: []string{"all"}, status: 200},
		{name: "no_role", status: 403, text: "your roles do not allow it", reason: "no known role"},
		{name: "other_labels", roles: []string{"ops"}, status: 403, text: "your roles do not allow it", reason: "allow.app_labels"},
		{name: "denied", roles: []string{"all", "deny"}, status: 403, text: "your roles do not allow it", reason: "deny.app_labels"},
		{name: "other_address", roles: []string{"dev"}, change: func(u *identity.User, _ *ca.UserRequest) { u.SourceIP = "192.0.2.8" }, status: 403, text: "only be used from the address of its login", reason: "address"},
		{name: "own_address", roles: []string{"pinned"}, change: func(u *identity.User, _ *ca.UserRequest) { u.SourceIP = "192.0.2.7" }, status: 200},
		{name: "no_address", roles: []string{"pinned"}, status: 403, text: "yours names none", reason: "pin_source_ip"},
		{name: "not_served", roles: []string{"all"}, change: func(u *identity.User, _ *ca.UserRequest) { u.App.Name = "other" }, status: 404, text: `"other" is not served by this host`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := w.person(t, strings.ReplaceAll(tc.name, "_", "-"), tc.change, tc.roles...)
			both(t, func(t *testing.T, h2 bool) {
				a := get(t, p.http(t, h2), "/")
				if a.StatusCode != tc.status || !strings.Contains(a.body, tc.text) {
					t.Errorf("answer = %s %q, want %d with %q", a.Status, a.body, tc.status, tc.text)
				}
			})
			if tc.reason != "" {
				w.events.wait(t, "T2007E", func(f map[string]any) bool {
					return f["user"] == strings.ReplaceAll(tc.name, "_", "-") && strings.Contains(fmt.Sprint(f["reason"]), tc.reason) && f["server_id"] == hostID && f["app_name"] == appName
				})
			}
		})
	}
}

// TestStrangers are refused before anything is said.
func TestStrangers(t *testing.T) {
	tg := serve(t, hello)
	w := start(t, nil, application(appName, tg.URL, nil))
	twin := start(t, nil)
	foreign := twin.alice(t)
	foreign.w = w
	nobody := &person{w: w}
	for name, p := range map[string]*person{
		"no_certificate": nobody,
		"other_cluster":  foreign,
		"not_for_an_app": w.person(t, "u", func(u *identity.User, _ *ca.UserRequest) { u.App = nil }, "dev"),
		"for_a_database": w.person(t, "u", func(u *identity.User, _ *ca.UserRequest) {
			u.App, u.Database = nil, &identity.DatabaseRoute{Service: "pg", Protocol: "postgres"}
		}, "dev"),
		"a_host": {w, *w.holder.Certificate(types.RoleApp)},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := tls.Dial("tcp", w.addr, p.tls("http/1.1"))
			if err == nil {
				_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			if err == nil {
				t.Error("was let in")
			}
		})
	}
	if w.events.count("T2007I") != 0 {
		t.Error("a session began")
	}
}

// TestResourceHint: the certificate decides, and what the Proxy says must fit it.
func TestResourceHint(t *testing.T) {
	tg := serve(t, hello)
	w := start(t, nil, application(appName, tg.URL, nil), application("other", tg.URL, nil))
	hint := "other"
	w.resource.Store(&hint)
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusForbidden {
		t.Errorf("with a certificate for another application = %s, want 403", a.Status)
	}
}

// TestChangesEndConnections: what was taken away ends what goes on, within five seconds.
func TestChangesEndConnections(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, w *world){
		"lock_user":    func(_ *testing.T, w *world) { w.lock("l", &typesv1.LockTarget{User: "alice"}) },
		"lock_role":    func(_ *testing.T, w *world) { w.lock("l", &typesv1.LockTarget{Role: "dev"}) },
		"lock_host":    func(_ *testing.T, w *world) { w.lock("l", &typesv1.LockTarget{ServerId: hostID}) },
		"lock_process": func(_ *testing.T, w *world) { w.cache.Lockout("locked") },
		"role":         func(_ *testing.T, w *world) { w.setRole(role("dev", "env", "prod")) },
		"role_deleted": func(_ *testing.T, w *world) { w.cache.Apply(types.Change{Kind: types.KindRole, Name: "dev"}) },
		"app_gone": func(t *testing.T, w *world) {
			if err := w.svc.Update(nil); err != nil {
				t.Error(err)
			}
		},
		"app_moved": func(t *testing.T, w *world) {
			if err := w.svc.Update([]*typesv1.App{application(appName, "http://127.0.0.1:1", nil)}); err != nil {
				t.Error(err)
			}
		},
		"labels": func(t *testing.T, w *world) {
			// Its address is in the way of nothing: only the labels are others.
			a := application(appName, *w.resource.Load(), nil)
			w.resource.Store(nil)
			a.Metadata.Labels = map[string]string{"env": "prod"}
			if err := w.svc.Update([]*typesv1.App{a}); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, h2 bool) {
				tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
					_ = http.NewResponseController(w).Flush()
					<-r.Context().Done()
				})
				w := start(t, nil, application(appName, tg.URL, nil))
				resp, err := w.alice(t).http(t, h2).Get(site + "/")
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				began := time.Now()
				w.resource.Store(&tg.URL)
				change(t, w)
				if _, err := io.ReadAll(resp.Body); err == nil {
					t.Error("the stream ended in an orderly way, want it cut")
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("the stream went on for %s", took)
				}
				w.events.wait(t, "T2011I", func(f map[string]any) bool { return f["user"] == "alice" && f["reason"] != nil })
			})
		})
	}
}

func TestLockRefuses(t *testing.T) {
	tg := serve(t, hello)
	w := start(t, nil, application(appName, tg.URL, nil))
	w.lock("l", &typesv1.LockTarget{User: "alice"})
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusForbidden || !strings.Contains(a.body, "go home") {
		t.Errorf("answer = %s %q, want 403 with the lock's message", a.Status, a.body)
	}
	if a := get(t, w.person(t, "bob", nil, "dev").http(t, false), "/"); a.StatusCode != http.StatusOK {
		t.Errorf("bob gets %s", a.Status)
	}
}

// TestEnforceLocks returns when what a lock forbids has ended.
func TestEnforceLocks(t *testing.T) {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	defer ln.Close()
	w := start(t, nil, application(appName, "tcp://"+ln.Addr().String(), nil))
	conn := w.alice(t).dial(t, "teleport-tcp")
	target := must(ln.Accept())
	defer target.Close()
	w.lock("l", &typesv1.LockTarget{User: "alice"})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := w.svc.EnforceLocks(ctx); err != nil || w.svc.Open() != 0 {
		t.Errorf("EnforceLocks = %v with %d connections left", err, w.svc.Open())
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if _, err := target.Read(make([]byte, 1)); err == nil {
		t.Error("the connection to the application goes on")
	}
}

func TestStrictLocks(t *testing.T) {
	tg := serve(t, hello)
	w := start(t, nil, application(appName, tg.URL, nil))
	strict := role("strict", "env", "test")
	strict.Spec.Options = &typesv1.RoleOptions{Lock: types.LockStrict}
	w.setRole(strict)
	p := w.person(t, "carol", nil, "strict")
	if a := get(t, p.http(t, false), "/"); a.StatusCode != http.StatusOK {
		t.Fatalf("answer = %s", a.Status)
	}
	w.skew.Store(int64(6 * time.Minute))
	if a := get(t, p.http(t, false), "/"); a.StatusCode != http.StatusForbidden || !strings.Contains(a.body, "has not heard from the Auth Service") {
		t.Errorf("after silence = %s %q, want 403", a.Status, a.body)
	}
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusOK {
		t.Errorf("alice, whose role is not strict, gets %s", a.Status)
	}
}

func TestExpiry(t *testing.T) {
	ws := func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	tg := serve(t, ws)
	w := start(t, nil, application(appName, tg.URL, nil))
	p := w.person(t, "alice", func(_ *identity.User, r *ca.UserRequest) { r.TTL = 2 * time.Second }, "dev")
	resp, err := p.http(t, false).Get(site + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream ended in an orderly way")
	}
	w.events.wait(t, "T2011I", func(f map[string]any) bool { return strings.Contains(fmt.Sprint(f["reason"]), "expired") })
}

func TestIdleTimeout(t *testing.T) {
	tg := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	w := start(t, nil, application(appName, tg.URL, nil))
	r := role("idle", "env", "test")
	r.Spec.Options = &typesv1.RoleOptions{ClientIdleTimeout: "1s"}
	w.setRole(r)
	resp, err := w.person(t, "alice", nil, "idle").http(t, false).Get(site + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream ended in an orderly way")
	}
	w.events.wait(t, "T2011I", func(f map[string]any) bool { return strings.Contains(fmt.Sprint(f["reason"]), "nothing was done") })
}

// TestTooManyConnections of one user are refused, and those of others are not.
func TestTooManyConnections(t *testing.T) {
	tg := serve(t, hello)
	w := start(t, nil, application(appName, tg.URL, nil))
	alice := w.alice(t)
	ask := func(p *person) int {
		conn := p.dial(t, "http/1.1")
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	for i := range 512 {
		if got := ask(alice); got != http.StatusOK {
			t.Fatalf("connection %d gets %d", i, got)
		}
	}
	if got := ask(alice); got != http.StatusTooManyRequests {
		t.Errorf("one connection too many gets %d", got)
	}
	if got := ask(w.person(t, "bob", nil, "dev")); got != http.StatusOK {
		t.Errorf("bob gets %d", got)
	}
}

// TestUnrecorded: without an audit log there is no session.
func TestUnrecorded(t *testing.T) {
	reached := make(chan struct{}, 1)
	tg := serve(t, func(http.ResponseWriter, *http.Request) { reached <- struct{}{} })
	w := start(t, nil, application(appName, tg.URL, nil))
	w.events.refuse(true)
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusServiceUnavailable || len(reached) > 0 {
		t.Errorf("answer = %s, %d requests at the application", a.Status, len(reached))
	}
	w.events.refuse(false)
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusOK {
		t.Errorf("when it can be recorded = %s", a.Status)
	}
}

func TestNewRefuses(t *testing.T) {
	w := start(t, nil)
	good := app.Config{
		Holder: w.holder, Cache: w.cache, Emit: w.events.emit, Hostname: "h", Announce: func(types.Resource) {}, Withdraw: func(string, string) {},
		Auth: nil,
	}
	if _, err := app.New(good); err == nil {
		t.Error("New without Auth and Log = nil, want an error")
	}
}
