package authapi_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/keys"
	"teleport/internal/types"
)

func TestCreateToken(t *testing.T) {
	e := newEnv(t)
	client := tokenv1.NewTokenServiceClient(e.admin())
	tests := []struct {
		name string
		req  *tokenv1.CreateTokenRequest
		ttl  time.Duration
		uses uint32
	}{
		{"defaults", &tokenv1.CreateTokenRequest{Roles: []string{"node"}}, 30 * time.Minute, 0},
		{"ttl", &tokenv1.CreateTokenRequest{Roles: []string{"Node"}, Ttl: durationpb.New(5 * time.Minute)}, 5 * time.Minute, 0},
		{"all_types", &tokenv1.CreateTokenRequest{Roles: []string{"app", "auth", "db", "discovery", "kube", "node", "proxy", "windowsdesktop"}}, 30 * time.Minute, 0},
		{"own_value", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Value: "sixteen-or-more-characters"}, 30 * time.Minute, 0},
		{"bot_is_single_use", &tokenv1.CreateTokenRequest{Roles: []string{"bot"}}, 30 * time.Minute, 1},
		{"max_uses", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, MaxUses: 3}, 30 * time.Minute, 3},
		{"labels", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Labels: map[string]string{"env": "dev"}}, 30 * time.Minute, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := client.CreateToken(t.Context(), tt.req)
			check(t, err)
			tok := resp.GetToken()
			if keys.TokenID(resp.GetSecret()) != tok.GetMetadata().GetName() {
				t.Error("the id is not that of the secret")
			}
			if tt.req.GetValue() == "" && (len(resp.GetSecret()) != 32 || strings.Trim(resp.GetSecret(), "0123456789abcdef") != "") {
				t.Errorf("secret = %q, want 32 hexadecimal digits", resp.GetSecret())
			}
			if tt.req.GetValue() != "" && resp.GetSecret() != tt.req.GetValue() {
				t.Errorf("secret = %q, want the one that was given", resp.GetSecret())
			}
			if left := time.Until(tok.GetMetadata().GetExpires().AsTime()); left > tt.ttl || left < tt.ttl-time.Minute {
				t.Errorf("expires in %v, want %v", left, tt.ttl)
			}
			if tok.GetSpec().GetMaxUses() != tt.uses || len(tok.GetStatus().GetVerifier()) != 0 || tok.GetStatus().GetCreatedBy() != "admin" {
				t.Errorf("token = %v", tok)
			}
			if len(tok.GetSpec().GetRoles()) != len(tt.req.GetRoles()) {
				t.Errorf("roles = %v", tok.GetSpec().GetRoles())
			}
		})
	}
}

func TestCreateTokenRefuses(t *testing.T) {
	e := newEnv(t)
	client := tokenv1.NewTokenServiceClient(e.admin())
	tests := []struct {
		name string
		req  *tokenv1.CreateTokenRequest
		part string
	}{
		{"no_roles", &tokenv1.CreateTokenRequest{}, "spec.roles"},
		{"unknown_role", &tokenv1.CreateTokenRequest{Roles: []string{"mainframe"}}, "mainframe"},
		{"ttl_too_short", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Ttl: durationpb.New(time.Millisecond)}, "1s"},
		{"ttl_too_long", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Ttl: durationpb.New(169 * time.Hour)}, "168h"},
		{"ttl_negative", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Ttl: durationpb.New(-time.Hour)}, "1s"},
		{"ttl_nonsense", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Ttl: &durationpb.Duration{Seconds: 1, Nanos: -5}}, "ttl"},
		{"short_value", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Value: "short"}, "16 to 256"},
		{"value_with_space", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Value: "sixteen or more characters"}, "spaces"},
		{"bot_many", &tokenv1.CreateTokenRequest{Roles: []string{"bot"}, MaxUses: 2}, "one use"},
		{"bad_label", &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Labels: map[string]string{"a b\n": "x"}}, "labels"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := client.CreateToken(t.Context(), tt.req)
			want(t, err, fault.ErrInvalid, tt.part)
		})
	}
	_, err := client.CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Value: "the-same-value-twice"})
	check(t, err)
	_, err = client.CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Value: "the-same-value-twice"})
	want(t, err, fault.ErrExists, keys.TokenID("the-same-value-twice"))
}

func TestListAndDeleteTokens(t *testing.T) {
	e := newEnv(t)
	client := tokenv1.NewTokenServiceClient(e.admin())
	link := types.New(types.KindUserToken, "invite-1").(*typesv1.UserToken)
	link.Metadata.Expires = timestamppb.New(time.Now().Add(20 * time.Minute))
	link.Spec = &typesv1.UserTokenSpec{User: "bob", Usage: types.UsageInvite, TokenHash: make([]byte, 32)}
	e.put(link)
	long, err := client.CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: []string{"node"}, Ttl: durationpb.New(time.Hour)})
	check(t, err)
	short, err := client.CreateToken(t.Context(), &tokenv1.CreateTokenRequest{Roles: []string{"proxy"}, Ttl: durationpb.New(time.Minute)})
	check(t, err)
	list := func() []string {
		resp, err := client.ListTokens(t.Context(), &tokenv1.ListTokensRequest{})
		check(t, err)
		var ids []string
		for _, tok := range resp.GetTokens() {
			if tok.GetId() == long.GetSecret() || tok.GetId() == short.GetSecret() {
				t.Error("a list shows a secret")
			}
			if tok.GetId() == "invite-1" && (tok.GetUser() != "bob" || tok.GetUsage() != "invite" || len(tok.GetRoles()) != 0) {
				t.Errorf("signup token = %v", tok)
			}
			ids = append(ids, tok.GetId())
		}
		return ids
	}
	longID, shortID := long.GetToken().GetMetadata().GetName(), short.GetToken().GetMetadata().GetName()
	if got := list(); !slices.Equal(got, []string{shortID, "invite-1", longID}) {
		t.Errorf("tokens = %v, want them by expiry", got)
	}
	for _, id := range []string{"invite-1", longID} {
		_, err := client.DeleteToken(t.Context(), &tokenv1.DeleteTokenRequest{Id: id})
		check(t, err)
	}
	if got := list(); !slices.Equal(got, []string{shortID}) {
		t.Errorf("tokens = %v, want one", got)
	}
	_, err = client.DeleteToken(t.Context(), &tokenv1.DeleteTokenRequest{Id: longID})
	want(t, err, fault.ErrNotFound, "tctl tokens ls")
	_, err = client.DeleteToken(t.Context(), &tokenv1.DeleteTokenRequest{})
	want(t, err, fault.ErrInvalid, "id")
	if got := strings.Join(e.codes(), " "); got != "TJT00I TJT00I TJT01I TJT01I" {
		t.Errorf("events = %s", got)
	}
}
