package app_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/identity"
	"teleport/internal/service/app"
	"teleport/internal/types"
)

func healthy(s *typesv1.AppServer) bool { return s.GetSpec().GetHealth() == "healthy" }

// TestAnnounced: the cluster hears of an application what it needs, and no more.
func TestAnnounced(t *testing.T) {
	tg := serve(t, hello)
	a := application(appName, tg.URL, func(s *typesv1.AppSpec) {
		s.Rewrite = &typesv1.AppRewrite{Headers: []*typesv1.AppHeader{{Name: "Authorization", Value: "secret"}}, JwtClaims: "roles"}
		s.Cors = &typesv1.AppCORS{AllowedOrigins: []string{"https://ui.test"}}
		s.DynamicLabels = map[string]*typesv1.CommandLabel{"made": {Command: []string{"echo", "here"}, Period: "1m"}}
	})
	w := start(t, func(c *app.Config) { c.Labels = map[string]string{"env": "token", "team": "x"} }, a)
	s := w.announcement(t, appName, healthy)
	if err := types.Check(s); err != nil {
		t.Errorf("the announcement is not good: %v", err)
	}
	if got := fmt.Sprint(s.GetMetadata().GetLabels()); got != "map[env:token made:here team:x]" {
		t.Errorf("labels = %s, want the application's, the command's and the token's, which win", got)
	}
	spec := s.GetSpec().GetApp().GetSpec()
	if s.GetMetadata().GetName() != appName+"@"+hostID || s.GetSpec().GetHostId() != hostID || s.GetSpec().GetHostname() != "agent-1" || spec.GetUri() != tg.URL || spec.GetCors() == nil || spec.GetRewrite().GetJwtClaims() != "roles" {
		t.Errorf("announcement = %v", s)
	}
	if spec.GetRewrite().GetHeaders() != nil || spec.GetDynamicLabels() != nil {
		t.Errorf("the announcement has what only the agent needs: %v", spec)
	}
}

// TestStaticAndDynamic: those of the configuration and those of the cluster at once,
// changed while the service runs.
func TestStaticAndDynamic(t *testing.T) {
	one, two := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("one")) }), serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("two")) })
	w := start(t, func(c *app.Config) {
		c.Matchers = []map[string]*typesv1.Strings{{"env": strs("test"), "tier": strs("a", "b")}, {"special": strs("yes")}}
	}, application("static", one.URL, nil))
	ask := func(name string) string {
		t.Helper()
		p := w.person(t, "alice", func(u *identity.User, _ *ca.UserRequest) { u.App.Name, u.App.SessionID = name, "s-"+name }, "all")
		a := get(t, p.http(t, false), "/")
		if a.StatusCode != http.StatusOK {
			return fmt.Sprint(a.StatusCode)
		}
		return a.body
	}
	dynamic := func(name, uri string, labels map[string]string) *typesv1.App {
		a := application(name, uri, nil)
		a.Metadata.Labels = labels
		return a
	}
	w.setApp(dynamic("match", two.URL, map[string]string{"env": "test", "tier": "b"}))
	w.setApp(dynamic("special", two.URL, map[string]string{"special": "yes"}))
	w.setApp(dynamic("half", two.URL, map[string]string{"env": "test"}))
	w.setApp(dynamic("static", two.URL, map[string]string{"special": "yes"}))
	w.announcement(t, "match", nil)
	w.announcement(t, "special", nil)
	for name, want := range map[string]string{"static": "one", "match": "two", "special": "two", "half": "404"} {
		if got := ask(name); got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
	// The cluster's one moves and goes; the static one gives way to the cluster's.
	w.setApp(dynamic("match", one.URL, map[string]string{"env": "test", "tier": "b"}))
	w.announcement(t, "match", func(s *typesv1.AppServer) bool { return s.GetSpec().GetApp().GetSpec().GetUri() == one.URL })
	if got := ask("match"); got != "one" {
		t.Errorf("match, moved = %s, want one", got)
	}
	w.cache.Apply(types.Change{Kind: types.KindApp, Name: "special"})
	if got := <-w.withdrawn; got != "special@"+hostID {
		t.Errorf("withdrawn is %s", got)
	}
	if err := w.svc.Update([]*typesv1.App{application("new", one.URL, nil)}); err != nil {
		t.Fatal(err)
	}
	w.announcement(t, "new", nil)
	w.announcement(t, "static", func(s *typesv1.AppServer) bool { return s.GetSpec().GetApp().GetSpec().GetUri() == two.URL })
	for name, want := range map[string]string{"static": "two", "match": "one", "special": "404", "new": "one"} {
		if got := ask(name); got != want {
			t.Errorf("after the changes %s = %s, want %s", name, got, want)
		}
	}
}

// TestCommandsOfTheCluster: who may write applications runs no programs on hosts.
func TestCommandsOfTheCluster(t *testing.T) {
	tg := serve(t, hello)
	file := filepath.Join(t.TempDir(), "ran")
	w := start(t, func(c *app.Config) { c.Matchers = []map[string]*typesv1.Strings{{"*": strs("*")}} })
	w.setApp(application("dyn", tg.URL, func(s *typesv1.AppSpec) {
		s.DynamicLabels = map[string]*typesv1.CommandLabel{"x": {Command: []string{"touch", file}, Period: "1m"}}
	}))
	w.announcement(t, "dyn", healthy)
	if found, _ := filepath.Glob(file); len(found) > 0 {
		t.Error("the command of an application of the cluster was run")
	}
}

func TestUpdateRefuses(t *testing.T) {
	w := start(t, nil)
	a := application("a", "http://127.0.0.1:1", nil)
	for name, apps := range map[string][]*typesv1.App{
		"twice":   {a, proto.CloneOf(a)},
		"bad_uri": {application("b", "gopher://x", nil)},
		"command": {application("b", "http://x", func(s *typesv1.AppSpec) {
			s.DynamicLabels = map[string]*typesv1.CommandLabel{"x": {Command: []string{"true"}, Period: "1s"}}
		})},
	} {
		t.Run(name, func(t *testing.T) {
			if err := w.svc.Update(apps); err == nil {
				t.Error("Update = nil, want an error")
			}
		})
	}
}

// TestLabelsOfATokenDecide: nobody can give an application a label that the host's token
// gives otherwise.
func TestLabelsOfATokenDecide(t *testing.T) {
	tg := serve(t, hello)
	w := start(t, func(c *app.Config) { c.Labels = map[string]string{"env": "prod"} }, application(appName, tg.URL, nil))
	if a := get(t, w.alice(t).http(t, false), "/"); a.StatusCode != http.StatusForbidden {
		t.Errorf("alice gets %s, want 403: the label is prod", a.Status)
	}
	if a := get(t, w.person(t, "bob", nil, "ops").http(t, false), "/"); a.StatusCode != http.StatusOK {
		t.Errorf("bob gets %s %s", a.Status, strings.TrimSpace(a.body))
	}
}
