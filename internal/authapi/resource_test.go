package authapi_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	resourcev1 "teleport/api/resource/v1"
	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/types"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// TestWhoMayCall goes every way through the authorisation once, over real TLS.
func TestWhoMayCall(t *testing.T) {
	e := newEnv(t)
	e.put(newRole("victim"), newUser("bob", "access"), newNode("n1", nil))
	callers := map[string]*grpc.ClientConn{
		"nobody":  e.dial(nil),
		"node":    e.dial(e.host("h1", types.RoleNode, types.RoleNode)),
		"process": e.dial(e.host("h1", "", types.RoleNode)),
		"access":  e.dial(e.user("a", "access")),
		"auditor": e.dial(e.user("b", "auditor")),
		"editor":  e.dial(e.user("c", "editor")),
		"norole":  e.dial(e.user("d", "long-gone")),
	}
	resource := func(c *grpc.ClientConn) resourcev1.ResourceServiceClient {
		return resourcev1.NewResourceServiceClient(c)
	}
	tests := []struct {
		name string
		call func(context.Context, *grpc.ClientConn) error
		may  []string
	}{
		{"get_role", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := resource(c).GetResource(ctx, &resourcev1.GetResourceRequest{Kind: "role", Name: "access"})
			return err
		}, []string{"editor"}},
		{"list_users", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := resource(c).ListResources(ctx, &resourcev1.ListResourcesRequest{Kind: "user"})
			return err
		}, []string{"editor"}},
		{"list_nodes", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := resource(c).ListResources(ctx, &resourcev1.ListResourcesRequest{Kind: "node"})
			return err
		}, []string{"access", "auditor", "editor", "norole"}},
		{"create_role", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := resource(c).CreateResource(ctx, &resourcev1.CreateResourceRequest{Resource: packed(t, newRole("new"))})
			return err
		}, []string{"editor"}},
		{"upsert_role", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := resource(c).UpsertResource(ctx, &resourcev1.UpsertResourceRequest{Resource: packed(t, newRole("victim"))})
			return err
		}, []string{"editor"}},
		{"update_role", func(ctx context.Context, c *grpc.ClientConn) error {
			r, err := e.store.Get(ctx, types.KindRole, "victim")
			check(t, err)
			_, err = resource(c).UpdateResource(ctx, &resourcev1.UpdateResourceRequest{Resource: packed(t, r)})
			return err
		}, []string{"editor"}},
		{"delete_node", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := resource(c).DeleteResource(ctx, &resourcev1.DeleteResourceRequest{Kind: "node", Name: "n1"})
			return err
		}, []string{"editor"}},
		{"create_token", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := tokenv1.NewTokenServiceClient(c).CreateToken(ctx, &tokenv1.CreateTokenRequest{Roles: []string{"node"}})
			return err
		}, []string{"editor"}},
		{"list_tokens", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := tokenv1.NewTokenServiceClient(c).ListTokens(ctx, &tokenv1.ListTokensRequest{})
			return err
		}, []string{"editor"}},
		{"delete_token", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := tokenv1.NewTokenServiceClient(c).DeleteToken(ctx, &tokenv1.DeleteTokenRequest{Id: "none"})
			if errors.Is(err, fault.ErrNotFound) {
				return nil
			}
			return err
		}, []string{"editor"}},
		{"status", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := statusv1.NewStatusServiceClient(c).GetStatus(ctx, &statusv1.GetStatusRequest{})
			return err
		}, []string{"access", "auditor", "editor", "norole"}},
		{"search_events", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := auditv1.NewAuditServiceClient(c).SearchEvents(ctx, &auditv1.SearchEventsRequest{})
			return err
		}, []string{"auditor", "editor"}},
		{"emit_events", func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := auditv1.NewAuditServiceClient(c).EmitEvents(ctx, &auditv1.EmitEventsRequest{})
			return err
		}, []string{"node", "process"}},
	}
	for _, tt := range tests {
		for name, conn := range callers {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				err := tt.call(t.Context(), conn)
				switch {
				case slices.Contains(tt.may, name) && err != nil:
					t.Errorf("error = %v, want none", err)
				case slices.Contains(tt.may, name):
				case name == "nobody" && !errors.Is(err, fault.ErrUnauthenticated), name != "nobody" && !errors.Is(err, fault.ErrDenied):
					t.Errorf("error = %v, want it refused", err)
				}
			})
		}
	}
}

func TestListNodesShowsWhatOneSees(t *testing.T) {
	e := newEnv(t)
	dev := newRole("dev")
	dev.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{
		Logins: []string{"root"}, NodeLabels: map[string]*typesv1.Strings{"env": {Values: []string{"dev"}}},
	}}
	e.put(dev, newNode("n1", map[string]string{"env": "dev"}), newNode("n2", map[string]string{"env": "prod"}), newNode("n3", map[string]string{"env": "dev"}))
	tests := []struct {
		role   string
		want   []string
		usable []string
	}{
		{"dev", []string{"n1", "n3"}, []string{"n1", "n3"}},
		{"editor", []string{"n1", "n2", "n3"}, nil},
		{"auditor", []string{"n1", "n2", "n3"}, nil},
		{"access", []string{"n1", "n2", "n3"}, []string{"n1", "n2", "n3"}},
		{"long-gone", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.role, func(t *testing.T) {
			client := resourcev1.NewResourceServiceClient(e.dial(e.user("u", tt.role)))
			list := func(usable bool, query string) (got []string) {
				req := &resourcev1.ListResourcesRequest{Kind: "node", PageSize: 2, Usable: usable, Query: query}
				for {
					resp, err := client.ListResources(t.Context(), req)
					check(t, err)
					for _, a := range resp.GetResources() {
						got = append(got, unpacked(t, a).GetMetadata().GetName())
					}
					if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
						return got
					}
				}
			}
			if got := list(false, ""); !slices.Equal(got, tt.want) {
				t.Errorf("nodes = %v, want %v", got, tt.want)
			}
			if got := list(true, ""); !slices.Equal(got, tt.usable) {
				t.Errorf("usable nodes = %v, want %v", got, tt.usable)
			}
			seen := slices.DeleteFunc(slices.Clone(tt.want), func(n string) bool { return n == "n2" })
			if got := list(false, `labels["env"] == "dev"`); !slices.Equal(got, seen) {
				t.Errorf("queried nodes = %v, want %v", got, seen)
			}
			if got := list(true, `labels["env"] == "prod"`); slices.Contains(got, "n1") || slices.Contains(got, "n2") != slices.Contains(tt.usable, "n2") {
				t.Errorf("queried usable nodes = %v, of %v", got, tt.usable)
			}
			_, err := client.GetResource(t.Context(), &resourcev1.GetResourceRequest{Kind: "node", Name: "n2"})
			if seen := slices.Contains(tt.want, "n2"); seen != (err == nil) || !seen && !errors.Is(err, fault.ErrNotFound) {
				t.Errorf("get of n2 = %v, seen is %t", err, seen)
			}
		})
	}
}

func TestWrites(t *testing.T) {
	e := newEnv(t)
	client := resourcev1.NewResourceServiceClient(e.admin())
	ctx := t.Context()
	created, err := client.CreateResource(ctx, &resourcev1.CreateResourceRequest{Resource: packed(t, newRole("ops"))})
	check(t, err)
	first := unpacked(t, created.GetResource()).(*typesv1.Role)
	if first.GetMetadata().GetRevision() == "" {
		t.Error("a created resource has no revision")
	}
	_, err = client.CreateResource(ctx, &resourcev1.CreateResourceRequest{Resource: packed(t, newRole("ops"))})
	want(t, err, fault.ErrExists, `role "ops"`)

	first.Metadata.Description = "changed"
	updated, err := client.UpdateResource(ctx, &resourcev1.UpdateResourceRequest{Resource: packed(t, first)})
	check(t, err)
	_, err = client.UpdateResource(ctx, &resourcev1.UpdateResourceRequest{Resource: packed(t, first)})
	want(t, err, fault.ErrStale, "read it again")
	_, err = client.UpdateResource(ctx, &resourcev1.UpdateResourceRequest{Resource: packed(t, newRole("ops"))})
	want(t, err, fault.ErrInvalid, "metadata.revision")
	gone := unpacked(t, updated.GetResource()).(*typesv1.Role)
	gone.Metadata.Name = "never"
	_, err = client.UpdateResource(ctx, &resourcev1.UpdateResourceRequest{Resource: packed(t, gone)})
	want(t, err, fault.ErrNotFound, "never")

	up, err := client.UpsertResource(ctx, &resourcev1.UpsertResourceRequest{Resource: packed(t, newRole("ops"))})
	if err != nil || up.GetCreated() {
		t.Errorf("upsert of what is there: created = %t, %v", up.GetCreated(), err)
	}
	up, err = client.UpsertResource(ctx, &resourcev1.UpsertResourceRequest{Resource: packed(t, newRole("dev"))})
	if err != nil || !up.GetCreated() {
		t.Errorf("upsert of a new one: created = %t, %v", up.GetCreated(), err)
	}
	_, err = client.DeleteResource(ctx, &resourcev1.DeleteResourceRequest{Kind: "role", Name: "dev"})
	check(t, err)
	_, err = client.DeleteResource(ctx, &resourcev1.DeleteResourceRequest{Kind: "role", Name: "dev"})
	want(t, err, fault.ErrNotFound, "dev")
	if got := strings.Join(e.codes(), " "); got != "T9000I T9002I T9002I T9000I T9001I" {
		t.Errorf("events = %s", got)
	}
}

func TestWritesThatAreRefused(t *testing.T) {
	e := newEnv(t)
	client := resourcev1.NewResourceServiceClient(e.admin())
	e.put(newUser("bob", "access"), newRole("held"), newUser("holder", "held"))
	expired := newRole("old")
	expired.Metadata.Expires = timestamppb.New(time.Now().Add(-time.Hour))
	invalid := newRole("bad")
	invalid.Spec = &typesv1.RoleSpec{Options: &typesv1.RoleOptions{MaxSessionTtl: "soon"}}
	short := types.New(types.KindToken, "short").(*typesv1.Token)
	short.Spec = &typesv1.TokenSpec{Roles: []string{"Node"}}
	creates := []struct {
		name string
		r    types.Resource
		kind error
		part string
	}{
		{"unknown_role", newUser("eve", "no-such-role"), fault.ErrInvalid, `role "no-such-role" does not exist`},
		{"expired", expired, fault.ErrInvalid, "has passed"},
		{"invalid", invalid, fault.ErrInvalid, "max_session_ttl"},
		{"node", newNode(uuid.NewString(), nil), fault.ErrUnsupported, "kept by the agent"},
		{"node_with_a_name", newNode("n", nil), fault.ErrInvalid, "uuidgen"},
		{"guessable_token", short, fault.ErrInvalid, "16 to 256 characters"},
		{"credential", types.New(types.KindCredential, "bob"), fault.ErrInvalid, "unknown kind"},
	}
	for _, tt := range creates {
		t.Run(tt.name, func(t *testing.T) {
			_, err := client.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, tt.r)})
			want(t, err, tt.kind, tt.part)
			_, err = client.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, tt.r)})
			want(t, err, tt.kind, tt.part)
		})
	}
	deletes := []struct {
		kind, name string
		fault      error
		part       string
	}{
		{"role", "held", fault.ErrInvalid, "held by holder"},
		{"role", "access", fault.ErrInvalid, "cluster's own"},
		{"cert_authority", "host", fault.ErrUnsupported, "cannot be deleted"},
		{"cluster_name", "", fault.ErrUnsupported, "cannot be deleted"},
		{"credential", "bob", fault.ErrInvalid, "unknown kind"},
		{"nonsense", "x", fault.ErrInvalid, "unknown kind"},
		{"user", "", fault.ErrInvalid, "name"},
	}
	for _, tt := range deletes {
		t.Run("delete_"+tt.kind, func(t *testing.T) {
			conn := client
			_, err := conn.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: tt.kind, Name: tt.name})
			if tt.kind == "cluster_name" {
				tt.fault, tt.part = fault.ErrDenied, "do not allow" // not among the editor's kinds
			}
			want(t, err, tt.fault, tt.part)
		})
	}
	if got := e.codes(); len(got) != 0 {
		t.Errorf("refused writes made events: %v", got)
	}
	_, err := client.ListResources(t.Context(), &resourcev1.ListResourcesRequest{Kind: "role", PageSize: -1})
	want(t, err, fault.ErrInvalid, "page_size")
}

func TestUserKeepsWhoMadeIt(t *testing.T) {
	e := newEnv(t)
	client := resourcev1.NewResourceServiceClient(e.admin())
	forged := newUser("bob", "access")
	forged.Status = &typesv1.UserStatus{CreatedBy: "god"}
	_, err := client.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, forged)})
	check(t, err)
	forged.Spec.Roles = []string{"auditor"}
	resp, err := client.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, forged)})
	check(t, err)
	got := unpacked(t, resp.GetResource()).(*typesv1.User)
	if got.GetStatus().GetCreatedBy() != "admin" || got.GetStatus().GetCreated() == nil || !slices.Equal(got.GetSpec().GetRoles(), []string{"auditor"}) {
		t.Errorf("user = %v, want it made by admin with the role auditor", got)
	}
}

func TestDeleteUserTakesItsSecretsAlong(t *testing.T) {
	e := newEnv(t)
	credential := types.New(types.KindCredential, "bob").(*typesv1.Credential)
	credential.Spec = &typesv1.CredentialSpec{PasswordHash: "x"}
	link := func(id, user string) types.Resource {
		l := types.New(types.KindUserToken, id).(*typesv1.UserToken)
		l.Metadata.Expires = timestamppb.New(time.Now().Add(time.Hour))
		l.Spec = &typesv1.UserTokenSpec{User: user, Usage: types.UsageReset, TokenHash: make([]byte, 32)}
		return l
	}
	e.put(newUser("bob", "access"), credential, link("l1", "bob"), link("l2", "bob"), link("l3", "alice"))
	client := resourcev1.NewResourceServiceClient(e.admin())
	_, err := client.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: "user", Name: "bob"})
	check(t, err)
	for _, what := range [][2]string{{"user", "bob"}, {"credential", "bob"}, {"user_token", "l1"}, {"user_token", "l2"}} {
		if _, err := e.store.Get(t.Context(), what[0], what[1]); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("%s %s = %v, want it gone", what[0], what[1], err)
		}
	}
	if _, err := e.store.Get(t.Context(), "user_token", "l3"); err != nil {
		t.Errorf("the link of another user = %v, want it there", err)
	}
	if got := e.codes(); !slices.Equal(got, []string{"T1004I"}) {
		t.Errorf("events = %v", got)
	}
}

func TestDeleteInstanceTakesItsServersAlong(t *testing.T) {
	e := newEnv(t)
	instance := types.New(types.KindInstance, "h1").(*typesv1.Instance)
	instance.Spec = &typesv1.InstanceSpec{Hostname: "one", Roles: []string{"Node"}}
	proxy := newNode("h1", nil)
	proxy.Kind = types.KindProxy
	e.put(instance, newNode("h1", nil), proxy)
	client := resourcev1.NewResourceServiceClient(e.admin())
	_, err := client.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: "instance", Name: "h1"})
	check(t, err)
	for _, kind := range []string{types.KindInstance, types.KindNode, types.KindProxy} {
		if _, err := e.store.Get(t.Context(), kind, "h1"); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("%s = %v, want it gone", kind, err)
		}
	}
	if got := e.codes(); !slices.Equal(got, []string{"TIN00I"}) {
		t.Errorf("events = %v", got)
	}
}

func TestAuthKeepsItsOwnInstance(t *testing.T) {
	e := newEnv(t)
	instance := types.New(types.KindInstance, "h1").(*typesv1.Instance)
	instance.Spec = &typesv1.InstanceSpec{Hostname: "one", Roles: []string{"Auth"}}
	auth := newNode("h1", nil)
	auth.Kind = types.KindAuthServer
	e.put(instance, auth)
	client := resourcev1.NewResourceServiceClient(e.admin())
	_, err := client.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: "instance", Name: "h1"})
	want(t, err, fault.ErrInvalid, "runs the Auth Service")
	if _, err := e.store.Get(t.Context(), types.KindInstance, "h1"); err != nil {
		t.Errorf("instance = %v, want it kept", err)
	}
}

func TestTokenAsResource(t *testing.T) {
	e := newEnv(t)
	client := resourcev1.NewResourceServiceClient(e.admin())
	const secret = "a-secret-that-somebody-chose"
	written := types.New(types.KindToken, secret).(*typesv1.Token)
	written.Metadata.Expires = timestamppb.New(time.Now().Add(time.Hour))
	written.Spec = &typesv1.TokenSpec{Roles: []string{"Node"}, JoinMethod: "token"}
	resp, err := client.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, written)})
	check(t, err)
	got := unpacked(t, resp.GetResource()).(*typesv1.Token)
	id := keys.TokenID(secret)
	if got.GetMetadata().GetName() != id || len(got.GetStatus().GetVerifier()) != 0 {
		t.Errorf("answer = %v, want the id and no verifier", got)
	}
	stored, err := e.store.Get(t.Context(), types.KindToken, id)
	check(t, err)
	if b, _ := types.Encode(stored); contains(string(b), secret) || len(stored.(*typesv1.Token).GetStatus().GetVerifier()) != 32 {
		t.Error("the store has the secret, or no verifier")
	}
	// Edited under its id, as `tctl get` shows it.
	got.Spec.Roles = []string{"Node", "Db"}
	_, err = client.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, got)})
	check(t, err)
	after, err := e.store.Get(t.Context(), types.KindToken, id)
	check(t, err)
	if tok := after.(*typesv1.Token); len(tok.GetStatus().GetVerifier()) != 32 || len(tok.GetSpec().GetRoles()) != 2 {
		t.Errorf("after an edit = %v, want two roles and the verifier kept", tok)
	}
	// Written again under its secret.
	up, err := client.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, written)})
	if err != nil || up.GetCreated() {
		t.Errorf("upsert under the secret: created = %t, %v", up.GetCreated(), err)
	}
	for _, ev := range e.codes() {
		if ev != "TJT00I" {
			t.Errorf("event %s, want TJT00I", ev)
		}
	}
}

func TestBigPagesAreSplit(t *testing.T) {
	e := newEnv(t)
	big := strings.Repeat("x", 1000)
	for i := range 200 {
		r := newRole(fmt.Sprintf("r%03d", i))
		labels := map[string]*typesv1.Strings{}
		for k := range 100 {
			labels[fmt.Sprintf("k%d", k)] = &typesv1.Strings{Values: []string{big}}
		}
		r.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{NodeLabels: labels}}
		check(t, e.store.Tx().Create(r).Commit(t.Context()))
	}
	client := resourcev1.NewResourceServiceClient(e.admin())
	seen := 0
	req := &resourcev1.ListResourcesRequest{Kind: "role", PageSize: 1000}
	for {
		resp, err := client.ListResources(t.Context(), req)
		check(t, err)
		seen += len(resp.GetResources())
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if seen != 203 {
		t.Errorf("%d roles in all pages, want 203", seen)
	}
}
