package authapi_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	resourcev1 "teleport/api/resource/v1"
	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/authapi"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/types"
)

// nodeTokens is a role that may do everything to tokens that admit Node and App only.
func nodeTokens(verbs ...string) *typesv1.Role {
	r := newRole("node-tokens")
	r.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{Rules: []*typesv1.Rule{{
		Resources: []string{"token"}, Verbs: verbs, Where: `contains_all(set("Node", "App"), resource.spec.roles)`,
	}}}}
	return r
}

// dangerous fails if a token that the holder of node-tokens could have made admits
// more than it may.
func dangerous(t *testing.T, e *env, before []string) {
	t.Helper()
	for _, tok := range tokensOf(t, e) {
		for _, r := range tok.GetSpec().GetRoles() {
			if r != "Node" && r != "App" && !slices.Contains(before, tok.GetMetadata().GetName()) {
				t.Errorf("there is a token %s with the roles %v", tok.GetMetadata().GetName(), tok.GetSpec().GetRoles())
			}
		}
	}
}

func tokensOf(t *testing.T, e *env) []*typesv1.Token {
	t.Helper()
	resp, err := resourcev1.NewResourceServiceClient(e.admin()).ListResources(t.Context(), &resourcev1.ListResourcesRequest{Kind: "token"})
	check(t, err)
	var out []*typesv1.Token
	for _, a := range resp.GetResources() {
		out = append(out, unpacked(t, a).(*typesv1.Token))
	}
	return out
}

func writtenToken(name string, roles ...string) *typesv1.Token {
	r := types.New(types.KindToken, name).(*typesv1.Token)
	r.Spec = &typesv1.TokenSpec{Roles: roles, JoinMethod: "token"}
	return r
}

// TestTokensOfARoleType: who may make tokens for nodes and apps gets, by no way at
// all, one for anything else.
func TestTokensOfARoleType(t *testing.T) {
	const proxySecret, nodeSecret, staticSecret = "the-secret-of-the-proxies", "the-secret-of-the-nodes", "the-secret-in-the-file"
	e := newEnv(t)
	e.put(nodeTokens("*"))
	admin := resourcev1.NewResourceServiceClient(e.admin())
	_, err := admin.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, writtenToken(proxySecret, "Proxy"))})
	check(t, err)
	check(t, authapi.MirrorStatic(t.Context(), e.store, map[keys.Secret][]types.SystemRole{staticSecret: {types.RoleProxy, types.RoleAuth}}, time.Now()))
	link := types.New(types.KindUserToken, "invite-1").(*typesv1.UserToken)
	link.Metadata.Expires = timestamppb.New(time.Now().Add(20 * time.Minute))
	link.Spec = &typesv1.UserTokenSpec{User: "bob", Usage: types.UsageInvite, TokenHash: make([]byte, 32)}
	e.put(link)
	proxyID, staticID := keys.TokenID(proxySecret), keys.TokenID(staticSecret)
	before := []string{proxyID, staticID}

	conn := e.dial(e.user("eve", "node-tokens"))
	api, tokens := resourcev1.NewResourceServiceClient(conn), tokenv1.NewTokenServiceClient(conn)

	// What it is for works, each way.
	made, err := tokens.CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: []string{"NODE", "app"}})
	check(t, err)
	ownID := made.GetToken().GetMetadata().GetName()
	up, err := api.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, writtenToken(nodeSecret, "node"))})
	check(t, err)
	own := unpacked(t, up.GetResource()).(*typesv1.Token)
	own.Spec.MaxUses = 5
	updated, err := api.UpdateResource(t.Context(), &resourcev1.UpdateResourceRequest{Resource: packed(t, own)})
	check(t, err)
	own = unpacked(t, updated.GetResource()).(*typesv1.Token)

	// What it sees are its own kind of tokens.
	list, err := tokens.ListTokens(t.Context(), &tokenv1.ListTokensRequest{})
	check(t, err)
	var ids []string
	for _, tok := range list.GetTokens() {
		ids = append(ids, tok.GetId())
	}
	if slices.Sort(ids); !slices.Equal(ids, slices.Sorted(slices.Values([]string{ownID, own.GetMetadata().GetName()}))) {
		t.Errorf("it lists %v, want its own two", ids)
	}
	listed, err := api.ListResources(t.Context(), &resourcev1.ListResourcesRequest{Kind: "token"})
	check(t, err)
	if n := len(listed.GetResources()); n != 2 {
		t.Errorf("it lists %d resources, want its own two", n)
	}

	for _, roles := range [][]string{{"Proxy"}, {"auth"}, {"Bot"}, {"node", "PROXY"}, {"App", "Bot"}, {"Kube"}} {
		_, err := tokens.CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: roles})
		want(t, err, fault.ErrDenied, "your roles do not allow you to create this token")
		fresh := writtenToken("a-new-secret-of-a-token", roles...)
		_, err = api.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, fresh)})
		want(t, err, fault.ErrDenied, "create this token")
		_, err = api.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, fresh)})
		want(t, err, fault.ErrDenied, "create this token")
		// Over a token of its own, by secret and by id.
		for _, name := range []string{nodeSecret, own.GetMetadata().GetName()} {
			_, err = api.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, writtenToken(name, roles...))})
			want(t, err, fault.ErrDenied, "this token")
		}
		grown := proto.CloneOf(own)
		grown.Spec.Roles, grown.Spec.MaxUses = roles, 0
		_, err = api.UpdateResource(t.Context(), &resourcev1.UpdateResourceRequest{Resource: packed(t, grown)})
		want(t, err, fault.ErrDenied, "update this token")
	}
	dangerous(t, e, before)

	// Tokens of others can be neither read nor taken over: not even to weaken them.
	for _, id := range before {
		_, err := api.GetResource(t.Context(), &resourcev1.GetResourceRequest{Kind: "token", Name: id})
		want(t, err, fault.ErrNotFound, "does not exist")
		_, err = api.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, writtenToken(id, "Node"))})
		want(t, err, fault.ErrDenied, "update this token")
		stored, err := e.store.Get(t.Context(), "token", id)
		check(t, err)
		weaker := proto.CloneOf(stored.(*typesv1.Token))
		weaker.Spec.Roles = []string{"Node"}
		_, err = api.UpdateResource(t.Context(), &resourcev1.UpdateResourceRequest{Resource: packed(t, weaker)})
		want(t, err, fault.ErrDenied, "update this token")
		_, err = tokens.DeleteToken(t.Context(), &tokenv1.DeleteTokenRequest{Id: id})
		want(t, err, fault.ErrDenied, "delete this token")
		_, err = api.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: "token", Name: id})
		want(t, err, fault.ErrDenied, "delete this token")
	}
	_, err = api.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, writtenToken(proxySecret, "Node"))})
	want(t, err, fault.ErrDenied, "update this token")
	// Nor the invitations of people.
	_, err = tokens.DeleteToken(t.Context(), &tokenv1.DeleteTokenRequest{Id: "invite-1"})
	want(t, err, fault.ErrDenied, "delete this token")
	// What is not about tokens stays closed.
	_, err = api.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, newRole("node-tokens"))})
	want(t, err, fault.ErrDenied, "role")
	dangerous(t, e, before)
	if n := len(tokensOf(t, e)); n != 4 {
		t.Errorf("%d tokens are there, want the four from before", n)
	}

	// Its own can be deleted, each way.
	_, err = tokens.DeleteToken(t.Context(), &tokenv1.DeleteTokenRequest{Id: ownID})
	check(t, err)
	_, err = api.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: "token", Name: own.GetMetadata().GetName()})
	check(t, err)
}

// TestEachVerbHasItsCondition: a condition on one verb helps with no other.
func TestEachVerbHasItsCondition(t *testing.T) {
	e := newEnv(t)
	e.put(nodeTokens("create"))
	conn := e.dial(e.user("eve", "node-tokens"))
	made, err := tokenv1.NewTokenServiceClient(conn).CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: []string{"node"}})
	check(t, err)
	id := made.GetToken().GetMetadata().GetName()
	for name, call := range map[string]func(*grpc.ClientConn) error{
		"list": func(c *grpc.ClientConn) error {
			_, err := tokenv1.NewTokenServiceClient(c).ListTokens(t.Context(), &tokenv1.ListTokensRequest{})
			return err
		},
		"read": func(c *grpc.ClientConn) error {
			_, err := resourcev1.NewResourceServiceClient(c).GetResource(t.Context(), &resourcev1.GetResourceRequest{Kind: "token", Name: id})
			return err
		},
		"delete": func(c *grpc.ClientConn) error {
			_, err := tokenv1.NewTokenServiceClient(c).DeleteToken(t.Context(), &tokenv1.DeleteTokenRequest{Id: id})
			return err
		},
		"update": func(c *grpc.ClientConn) error {
			_, err := resourcev1.NewResourceServiceClient(c).UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, writtenToken("another-secret-here", "Node"))})
			return err
		},
	} {
		want(t, call(conn), fault.ErrDenied, "your roles do not allow you to "+name)
	}
}

// TestWhereIsCheckedWhenWritten: a condition that could never be decided is not stored.
func TestWhereIsCheckedWhenWritten(t *testing.T) {
	e := newEnv(t)
	api := resourcev1.NewResourceServiceClient(e.admin())
	r := nodeTokens("create")
	r.Spec.Allow.Rules[0].Where = `contains(resource.spec.role, "Node")`
	_, err := api.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, r)})
	want(t, err, fault.ErrInvalid, `spec.allow.rules[0].where: resource.spec.role: kind token has no field "role"`)
	_, err = api.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, nodeTokens("create"))})
	check(t, err)
}

// TestWhereUnderDeny: whoever may do everything but one thing may not do it in any way.
func TestWhereUnderDeny(t *testing.T) {
	e := newEnv(t)
	r := newRole("no-proxies")
	r.Spec = &typesv1.RoleSpec{Deny: &typesv1.RoleConditions{Rules: []*typesv1.Rule{{
		Resources: []string{"token"}, Verbs: []string{"*"}, Where: `contains_any(resource.spec.roles, set("Proxy", "Auth"))`,
	}}}}
	e.put(r)
	conn := e.dial(e.user("eve", "editor", "no-proxies"))
	tokens := tokenv1.NewTokenServiceClient(conn)
	_, err := tokens.CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: []string{"node", "proxy"}})
	want(t, err, fault.ErrDenied, "create this token")
	_, err = tokens.CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: []string{"node", "kube"}})
	check(t, err)
	_, err = tokenv1.NewTokenServiceClient(e.admin()).CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: []string{"proxy"}})
	check(t, err)
	list, err := tokens.ListTokens(t.Context(), &tokenv1.ListTokensRequest{})
	check(t, err)
	if len(list.GetTokens()) != 1 {
		t.Errorf("it lists %v, want the one that it may", list.GetTokens())
	}
}

// TestWhereOnNodes: a condition adds to what the labels of nodes let somebody see.
func TestWhereOnNodes(t *testing.T) {
	e := newEnv(t)
	r := newRole("own-nodes")
	r.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{
		NodeLabels: map[string]*typesv1.Strings{"env": {Values: []string{"dev"}}},
		Rules:      []*typesv1.Rule{{Resources: []string{"node"}, Verbs: []string{"list", "delete"}, Where: `resource.metadata.labels["owner"] == user.metadata.name`}},
	}}
	e.put(r, newNode("a", map[string]string{"owner": "eve"}), newNode("b", map[string]string{"env": "dev"}), newNode("c", map[string]string{"owner": "bob"}))
	api := resourcev1.NewResourceServiceClient(e.dial(e.user("eve", "own-nodes")))
	list, err := api.ListResources(t.Context(), &resourcev1.ListResourcesRequest{Kind: "node"})
	check(t, err)
	var ids []string
	for _, a := range list.GetResources() {
		ids = append(ids, unpacked(t, a).GetMetadata().GetName())
	}
	if !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("it sees %v, want a by the condition and b by its label", ids)
	}
	_, err = api.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: "node", Name: "b"})
	want(t, err, fault.ErrDenied, "delete this node")
	_, err = api.DeleteResource(t.Context(), &resourcev1.DeleteResourceRequest{Kind: "node", Name: "a"})
	check(t, err)
}
