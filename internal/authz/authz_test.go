package authz_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	agentv1 "teleport/api/agent/v1"
	appv1 "teleport/api/app/v1"
	auditv1 "teleport/api/audit/v1"
	databasev1 "teleport/api/database/v1"
	joinv1 "teleport/api/join/v1"
	loginv1 "teleport/api/login/v1"
	opensshv1 "teleport/api/openssh/v1"
	resourcev1 "teleport/api/resource/v1"
	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/audit"
	"teleport/internal/authz"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

func user(roles ...string) rpc.Caller {
	return rpc.Caller{Addr: "192.0.2.1:1", Identity: &identity.Identity{Cluster: "c", User: &identity.User{Name: "bob", Roles: roles}}}
}

func host(service types.SystemRole, roles ...types.SystemRole) rpc.Caller {
	return rpc.Caller{Addr: "192.0.2.2:1", Identity: &identity.Identity{Cluster: "c", Host: &identity.Host{ID: "h-1", Name: "n", Roles: roles, Service: service}}}
}

// callers are all that a row of the table tells apart.
func callers() map[string]rpc.Caller {
	return map[string]rpc.Caller{
		"anonymous": {Addr: "192.0.2.9:1"},
		"relayed":   {Addr: "192.0.2.9:1", Via: "proxy-1"},
		"local":     {Local: true},
		"nobody":    user(),
		"access":    user("access"),
		"editor":    user("editor"),
		"auditor":   user("auditor"),
		"process":   host("", types.RoleNode, types.RoleProxy),
		"node":      host(types.RoleNode, types.RoleNode),
		"proxy":     host(types.RoleProxy, types.RoleProxy),
		"auth":      host(types.RoleAuth, types.RoleAuth),
		"app":       host(types.RoleApp, types.RoleApp, types.RoleDB),
		"db":        host(types.RoleDB, types.RoleApp, types.RoleDB),
	}
}

func presets(_ context.Context, names []string) ([]*typesv1.Role, error) {
	var out []*typesv1.Role
	for _, r := range types.PresetRoles() {
		for _, name := range names {
			if r.GetMetadata().GetName() == name {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

const (
	everybody = "access anonymous app auditor auth db editor local nobody node process proxy relayed"
	people    = "access auditor editor local nobody"
	machines  = "app auth db node process proxy"
)

// allowed is the whole API: who may call what with the preset roles.
func allowed() map[string]string {
	return map[string]string{
		agentv1.AgentService_Control_FullMethodName:               machines,
		appv1.AppService_CertifyUser_FullMethodName:               "access auditor editor nobody",
		appv1.AppService_OpenSession_FullMethodName:               "proxy",
		appv1.AppService_EndSession_FullMethodName:                "proxy",
		appv1.AppService_SignProxy_FullMethodName:                 "proxy",
		appv1.AppService_SignToken_FullMethodName:                 "app",
		auditv1.AuditService_EmitEvents_FullMethodName:            machines,
		auditv1.AuditService_SearchEvents_FullMethodName:          "auditor editor local",
		databasev1.DatabaseService_CertifyUser_FullMethodName:     "access auditor editor nobody",
		databasev1.DatabaseService_SignClient_FullMethodName:      "db",
		databasev1.DatabaseService_SignServer_FullMethodName:      "editor local",
		databasev1.DatabaseService_SignRevocations_FullMethodName: "editor local",
		joinv1.JoinService_Join_FullMethodName:                    everybody,
		joinv1.JoinService_Renew_FullMethodName:                   "process",
		loginv1.LoginService_GetInvitation_FullMethodName:         everybody,
		loginv1.LoginService_RedeemInvitation_FullMethodName:      everybody,
		loginv1.LoginService_Login_FullMethodName:                 everybody,
		loginv1.LoginService_CreateWebSession_FullMethodName:      "proxy",
		opensshv1.OpenSSHService_EnrollServer_FullMethodName:      "process",
		opensshv1.OpenSSHService_SignServer_FullMethodName:        "editor local",
		opensshv1.OpenSSHService_SignProxy_FullMethodName:         "proxy",
		opensshv1.OpenSSHService_SignLogin_FullMethodName:         "proxy",
		resourcev1.ResourceService_GetResource_FullMethodName:     people,
		resourcev1.ResourceService_ListResources_FullMethodName:   people,
		resourcev1.ResourceService_CreateResource_FullMethodName:  people,
		resourcev1.ResourceService_UpdateResource_FullMethodName:  people,
		resourcev1.ResourceService_UpsertResource_FullMethodName:  people,
		resourcev1.ResourceService_DeleteResource_FullMethodName:  people,
		statusv1.StatusService_GetStatus_FullMethodName:           people,
		tokenv1.TokenService_CreateToken_FullMethodName:           "editor local",
		tokenv1.TokenService_ListTokens_FullMethodName:            "editor local",
		tokenv1.TokenService_DeleteToken_FullMethodName:           "editor local",
		userv1.UserService_CreateUser_FullMethodName:              "editor local",
		userv1.UserService_ResetUser_FullMethodName:               "editor local",
		userv1.UserService_SignUser_FullMethodName:                "editor local",
		"/teleport.user.v1.UserService/NoSuchMethod":              "",
		"":                                     "",
		"teleport.login.v1.LoginService/Login": "",
		loginv1.LoginService_Login_FullMethodName + "/":            "",
		strings.ToLower(loginv1.LoginService_Login_FullMethodName): "",
	}
}

func TestAuthorize(t *testing.T) {
	a := authz.New(presets)
	for method, names := range allowed() {
		may := map[string]bool{}
		for name := range strings.FieldsSeq(names) {
			may[name] = true
		}
		for name, caller := range callers() {
			err := a.Authorize(t.Context(), caller, method)
			switch {
			case may[name] && err != nil:
				t.Errorf("%s calling %s: %v, want allowed", name, method, err)
			case !may[name] && err == nil:
				t.Errorf("%s calling %s: allowed, want refused", name, method)
			case err != nil && !errors.Is(err, fault.ErrDenied) && (!errors.Is(err, fault.ErrUnauthenticated) || !caller.Anonymous()):
				t.Errorf("%s calling %s: %v of kind %v", name, method, err, fault.Kind(err))
			}
		}
	}
}

// TestDeletedUsersAreRefused has a user whose certificate outlives the account.
func TestDeletedUsersAreRefused(t *testing.T) {
	broken := errors.New("disk is full")
	var have error
	a := authz.New(presets).WithUsers(func(_ context.Context, name string) error {
		if name != "bob" {
			t.Errorf("asked about user %q", name)
		}
		return have
	}).WithLog(slog.New(slog.DiscardHandler))
	methods := []string{userv1.UserService_CreateUser_FullMethodName, statusv1.StatusService_GetStatus_FullMethodName}
	for _, tt := range []struct {
		name       string
		have, want error
	}{
		{"exists", nil, nil},
		{"deleted", fault.NotFound("no user"), fault.ErrDenied},
		{"unknown", broken, broken},
	} {
		have = tt.have
		for _, method := range methods {
			if err := a.Authorize(t.Context(), user("editor"), method); !errors.Is(err, tt.want) {
				t.Errorf("%s: %s = %v, want %v", tt.name, method, err, tt.want)
			}
			if err := a.Authorize(t.Context(), rpc.Caller{Local: true}, method); err != nil {
				t.Errorf("%s: the local administrator: %v", tt.name, err)
			}
		}
	}
}

// TestRoutedCertificatesOpenNothing: they are for one agent only, whatever the user may
// do otherwise.
func TestRoutedCertificatesOpenNothing(t *testing.T) {
	a := authz.New(presets)
	for name, change := range map[string]func(*identity.User){
		"app": func(u *identity.User) { u.App = &identity.AppRoute{Name: "grafana"} },
		"db":  func(u *identity.User) { u.Database = &identity.DatabaseRoute{Service: "pg", Protocol: "postgres"} },
	} {
		for method := range allowed() {
			caller := user("editor", "auditor", "access")
			change(caller.Identity.User)
			if err := a.Authorize(t.Context(), caller, method); !errors.Is(err, fault.ErrDenied) {
				t.Errorf("%s: %s = %v, want a refusal", name, method, err)
			} else if authz.HasRow(method) && fault.Code(err) != "certificate_routed" {
				t.Errorf("%s: %s = %v with code %q", name, method, err, fault.Code(err))
			}
		}
	}
}

// TestPinnedCertificates has certificates that are good from one address only.
func TestPinnedCertificates(t *testing.T) {
	yes := true
	a := authz.New(func(ctx context.Context, names []string) ([]*typesv1.Role, error) {
		roles, err := presets(ctx, names)
		if slices.Contains(names, "bound") {
			bound := types.New(types.KindRole, "bound").(*typesv1.Role)
			bound.Spec = &typesv1.RoleSpec{Options: &typesv1.RoleOptions{PinSourceIp: &yes}}
			roles = append(roles, bound)
		}
		return roles, err
	})
	for name, tt := range map[string]struct {
		source, addr string
		roles        []string
		want         error
	}{
		"its_address":      {"192.0.2.1", "192.0.2.1:7", []string{"editor", "bound"}, nil},
		"mapped":           {"192.0.2.1", "[::ffff:192.0.2.1]:7", []string{"editor", "bound"}, nil},
		"another":          {"192.0.2.1", "192.0.2.2:7", []string{"editor", "bound"}, fault.ErrDenied},
		"another_no_role":  {"192.0.2.1", "192.0.2.2:7", []string{"editor"}, fault.ErrDenied},
		"unknown":          {"192.0.2.1", "", []string{"editor"}, fault.ErrDenied},
		"no_address":       {"192.0.2.1", "@", []string{"editor"}, fault.ErrDenied},
		"names_none":       {"", "192.0.2.1:7", []string{"editor", "bound"}, fault.ErrDenied},
		"names_none_needs": {"", "192.0.2.1:7", []string{"editor"}, nil},
	} {
		caller := user(tt.roles...)
		caller.Identity.User.SourceIP, caller.Addr = tt.source, tt.addr
		for _, method := range []string{userv1.UserService_CreateUser_FullMethodName, statusv1.StatusService_GetStatus_FullMethodName} {
			if err := a.Authorize(t.Context(), caller, method); !errors.Is(err, tt.want) {
				t.Errorf("%s: %s = %v, want %v", name, method, err, tt.want)
			}
		}
	}
}

// TestEveryRPCHasARow reads the contracts themselves: an RPC that is added
// without a row fails here, before it is refused at run time.
func TestEveryRPCHasARow(t *testing.T) {
	files, err := filepath.Glob("../../api/proto/teleport/*/v1/*.proto")
	if err != nil || len(files) == 0 {
		t.Fatalf("no contracts found: %v", err)
	}
	packageForm := regexp.MustCompile(`(?m)^package ([a-z0-9.]+);`)
	serviceForm := regexp.MustCompile(`(?m)^service (\w+) \{`)
	rpcForm := regexp.MustCompile(`(?m)^\s+rpc (\w+)\s*\(`)
	rows := allowed()
	found := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		pkg := packageForm.FindStringSubmatch(text)[1]
		services := serviceForm.FindAllStringSubmatchIndex(text, -1)
		for i, s := range services {
			end := len(text)
			if i+1 < len(services) {
				end = services[i+1][0]
			}
			for _, m := range rpcForm.FindAllStringSubmatch(text[s[0]:end], -1) {
				found++
				method := "/" + pkg + "." + text[s[2]:s[3]] + "/" + m[1]
				if _, ok := rows[method]; !ok {
					t.Errorf("%s: this test does not say who may call %s", file, method)
				}
				if !authz.HasRow(method) {
					t.Errorf("%s: the table has no row for %s", file, method)
				}
			}
		}
	}
	if found != authz.Rows() {
		t.Errorf("the contracts have %d RPCs, the table has %d rows", found, authz.Rows())
	}
}

func TestVerb(t *testing.T) {
	a := authz.New(presets)
	for _, tt := range []struct {
		caller     string
		kind, verb string
		want       error
	}{
		{"local", types.KindToken, types.VerbDelete, nil},
		{"editor", types.KindToken, types.VerbDelete, nil},
		{"auditor", types.KindToken, types.VerbList, fault.ErrDenied},
		{"auditor", types.KindNode, types.VerbList, nil},
		{"nobody", types.KindNode, types.VerbList, fault.ErrDenied},
		{"process", types.KindRole, types.VerbRead, fault.ErrDenied},
		{"auth", types.KindRole, types.VerbRead, fault.ErrDenied},
		{"proxy", types.KindNode, types.VerbList, fault.ErrDenied},
		{"anonymous", types.KindNode, types.VerbList, fault.ErrUnauthenticated},
		{"relayed", types.KindNode, types.VerbList, fault.ErrUnauthenticated},
	} {
		t.Run(tt.caller+"_"+tt.verb+"_"+tt.kind, func(t *testing.T) {
			err := a.Verb(t.Context(), callers()[tt.caller], tt.kind, tt.verb)
			if !errors.Is(err, tt.want) {
				t.Errorf("Verb = %v, want kind %v", err, tt.want)
			}
		})
	}
}

func TestReasonIsForTheLog(t *testing.T) {
	var log bytes.Buffer
	a := authz.New(presets).WithLog(slog.New(slog.NewTextHandler(&log, nil)))
	err := a.Authorize(t.Context(), user("access"), userv1.UserService_CreateUser_FullMethodName)
	if got := err.Error(); got != "access denied: your roles do not allow you to create user" {
		t.Errorf("the caller is told %q", got)
	}
	if fault.Code(err) != "access_denied" {
		t.Errorf("code %q", fault.Code(err))
	}
	want := `no role of user "bob" allows create on kind "user" by allow.rules`
	if got := authz.Reason(err); got != want {
		t.Errorf("Reason = %q, want %q", got, want)
	}
	for _, want := range []string{"caller=bob", "no role of user", "192.0.2.1:1"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q: %s", want, log.String())
		}
	}
	if authz.Reason(nil) != "" || authz.Reason(errors.New("x")) != "x" {
		t.Error("Reason of an error without a cause is not its message")
	}
}

func TestRolesAreAskedEachTime(t *testing.T) {
	have := []*typesv1.Role{}
	var fail error
	a := authz.New(func(context.Context, []string) ([]*typesv1.Role, error) { return have, fail })
	method := userv1.UserService_CreateUser_FullMethodName
	if err := a.Authorize(t.Context(), user("editor"), method); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("a role that does not exist: %v, want denied", err)
	}
	have, _ = presets(t.Context(), []string{"editor"})
	if err := a.Authorize(t.Context(), user("editor"), method); err != nil {
		t.Errorf("a role that was made meanwhile: %v", err)
	}
	fail = errors.New("store is down")
	if err := a.Authorize(t.Context(), user("editor"), method); !errors.Is(err, fail) {
		t.Errorf("roles that cannot be read: %v, want %v", err, fail)
	}
	subject, err := authz.New(presets).Subject(t.Context(), user("access", "gone"))
	if err != nil || subject.User != "bob" || len(subject.Roles) != 1 {
		t.Errorf("Subject = %+v, %v", subject, err)
	}
	if _, err := a.Subject(t.Context(), host("", types.RoleNode)); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("Subject of a host: %v, want denied", err)
	}
}

func TestMayEmit(t *testing.T) {
	on := func(k audit.Kind, server string) *auditv1.Event {
		return audit.New(k, map[string]any{"server_id": server})
	}
	by := func(k audit.Kind, server, proxy string) *auditv1.Event {
		return audit.New(k, map[string]any{"server_id": server, "proxy_id": proxy})
	}
	for _, tt := range []struct {
		name   string
		caller rpc.Caller
		event  *auditv1.Event
		want   error
	}{
		{"node_session", host(types.RoleNode, types.RoleNode), on(audit.SessionStart, "h-1"), nil},
		{"process_of_node", host("", types.RoleNode), on(audit.Exec, "h-1"), nil},
		{"node_without_server", host(types.RoleNode, types.RoleNode), audit.New(audit.Exec, nil), nil},
		{"other_server", host(types.RoleNode, types.RoleNode), on(audit.SessionStart, "h-2"), fault.ErrDenied},
		{"server_is_no_string", host(types.RoleNode, types.RoleNode), audit.New(audit.Exec, map[string]any{"server_id": 1}), fault.ErrDenied},
		{"node_forges_login", host(types.RoleNode, types.RoleNode), audit.New(audit.UserLogin, nil), fault.ErrDenied},
		{"node_forges_join", host("", types.RoleNode), audit.New(audit.InstanceJoin, nil), fault.ErrDenied},
		{"proxy_hides_behind_a_server", host(types.RoleProxy, types.RoleProxy), on(audit.SessionStart, "h-1"), fault.ErrDenied},
		{"proxy_names_another_proxy", host(types.RoleProxy, types.RoleProxy), by(audit.SessionStart, "h-9", "h-2"), fault.ErrDenied},
		{"proxy_session_of_nobody", host(types.RoleProxy, types.RoleProxy), audit.New(audit.SessionStart, map[string]any{"proxy_id": "h-1"}), fault.ErrDenied},
		{"proxy_carried_session", host(types.RoleProxy, types.RoleProxy), by(audit.SessionStart, "h-9", "h-1"), nil},
		{"process_of_node_and_proxy", host("", types.RoleNode, types.RoleProxy), by(audit.SessionStart, "h-9", "h-1"), nil},
		{"node_as_proxy", host("", types.RoleNode), by(audit.SessionStart, "h-9", "h-1"), fault.ErrDenied},
		{"proxy_certificate_of_a_node", host(types.RoleProxy, types.RoleNode, types.RoleProxy), on(audit.SessionStart, "h-1"), fault.ErrDenied},
		{"proxy_forges_login", host(types.RoleProxy, types.RoleProxy), by(audit.UserLogin, "h-9", "h-1"), fault.ErrDenied},
		{"proxy_refusal", host(types.RoleProxy, types.RoleProxy), by(audit.AuthAttemptFailure, "h-9", "h-1"), nil},
		{"proxy_refusal_of_nobody", host(types.RoleProxy, types.RoleProxy), on(audit.AuthAttemptFailure, "h-9"), fault.ErrDenied},
		{"app", host(types.RoleApp, types.RoleApp), on(audit.SessionStart, "h-1"), fault.ErrDenied},
		{"app_session", host(types.RoleApp, types.RoleApp), on(audit.AppSessionStart, "h-1"), nil},
		{"app_without_server", host(types.RoleApp, types.RoleApp), audit.New(audit.AppSessionChunk, nil), nil},
		{"app_other_server", host(types.RoleApp, types.RoleApp), on(audit.AppSessionStart, "h-2"), fault.ErrDenied},
		{"app_forges_query", host(types.RoleApp, types.RoleApp, types.RoleDB), on(audit.DatabaseQuery, "h-1"), fault.ErrDenied},
		{"app_forges_its_resource", host(types.RoleApp, types.RoleApp), on(audit.AppDelete, "h-1"), fault.ErrDenied},
		{"db_query", host(types.RoleDB, types.RoleDB), on(audit.DatabaseQuery, "h-1"), nil},
		{"db_protocol", host("", types.RoleDB, types.RoleApp), on(audit.PostgresParse, "h-1"), nil},
		{"db_other_server", host(types.RoleDB, types.RoleDB), on(audit.MySQLPrepare, "h-2"), fault.ErrDenied},
		{"db_as_proxy", host("", types.RoleProxy), by(audit.DatabaseQuery, "h-2", "h-1"), fault.ErrDenied},
		{"db_forges_its_resource", host(types.RoleDB, types.RoleDB), on(audit.DatabaseCreate, "h-1"), fault.ErrDenied},
		{"node_forges_query", host("", types.RoleNode), on(audit.DatabaseQuery, "h-1"), fault.ErrDenied},
		{"user", user("editor"), on(audit.SessionStart, "h-1"), fault.ErrDenied},
		{"local", rpc.Caller{Local: true}, on(audit.SessionStart, "h-1"), fault.ErrDenied},
		{"anonymous", rpc.Caller{}, on(audit.SessionStart, "h-1"), fault.ErrDenied},
		{"unknown_code", host("", types.RoleNode), &auditv1.Event{Event: "session.start", Code: "T1000I"}, fault.ErrInvalid},
		{"empty", host("", types.RoleNode), nil, fault.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := authz.MayEmit(tt.caller, tt.event); !errors.Is(err, tt.want) {
				t.Errorf("MayEmit = %v, want kind %v", err, tt.want)
			}
		})
	}
}

func TestMayAnnounce(t *testing.T) {
	for _, tt := range []struct {
		name   string
		caller rpc.Caller
		kind   string
		server string
		want   error
	}{
		{"node", host(types.RoleNode, types.RoleNode), types.KindNode, "h-1", nil},
		{"process", host("", types.RoleNode, types.RoleProxy), types.KindProxy, "h-1", nil},
		{"auth", host(types.RoleAuth, types.RoleAuth), types.KindAuthServer, "h-1", nil},
		{"app", host(types.RoleApp, types.RoleApp), types.KindAppServer, "grafana@h-1", nil},
		{"db_of_process", host("", types.RoleDB), types.KindDatabaseServer, "pg@h-1", nil},
		{"app_of_another", host(types.RoleApp, types.RoleApp), types.KindAppServer, "grafana@h-2", fault.ErrDenied},
		{"app_of_nobody", host(types.RoleApp, types.RoleApp), types.KindAppServer, "grafana", fault.ErrDenied},
		{"app_twice", host(types.RoleApp, types.RoleApp), types.KindAppServer, "grafana@h-2@h-1", fault.ErrDenied},
		{"app_by_db", host(types.RoleDB, types.RoleDB, types.RoleApp), types.KindAppServer, "grafana@h-1", fault.ErrDenied},
		{"db_by_node", host("", types.RoleNode), types.KindDatabaseServer, "pg@h-1", fault.ErrDenied},
		{"node_named_as_app", host("", types.RoleNode, types.RoleApp), types.KindNode, "grafana@h-1", fault.ErrDenied},
		{"other_name", host(types.RoleNode, types.RoleNode), types.KindNode, "h-2", fault.ErrDenied},
		{"other_kind", host(types.RoleNode, types.RoleNode), types.KindProxy, "h-1", fault.ErrDenied},
		{"no_kind", host(types.RoleApp, types.RoleApp), "", "h-1", fault.ErrDenied},
		{"other_service", host(types.RoleNode, types.RoleNode, types.RoleProxy), types.KindProxy, "h-1", fault.ErrDenied},
		{"user", user("editor"), types.KindNode, "h-1", fault.ErrDenied},
		{"anonymous", rpc.Caller{}, types.KindNode, "", fault.ErrDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := authz.MayAnnounce(tt.caller, tt.kind, tt.server); !errors.Is(err, tt.want) {
				t.Errorf("MayAnnounce = %v, want kind %v", err, tt.want)
			}
		})
	}
}

// TestConditions: a role with a condition passes the table, and is asked about each
// resource.
func TestConditions(t *testing.T) {
	a := authz.New(func(context.Context, []string) ([]*typesv1.Role, error) {
		return []*typesv1.Role{{Metadata: &typesv1.Metadata{Name: "r"}, Spec: &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{Rules: []*typesv1.Rule{
			{Resources: []string{types.KindToken}, Verbs: []string{types.VerbCreate}, Where: `contains_all(set("Node"), resource.spec.roles)`},
			{Resources: []string{types.KindRole}, Verbs: []string{types.VerbList}},
		}}}}}, nil
	})
	token := func(roles ...string) types.Resource { return &typesv1.Token{Spec: &typesv1.TokenSpec{Roles: roles}} }
	ctx, bob := t.Context(), user("r")
	for name, tt := range map[string]struct {
		err  error
		want error
	}{
		"row":             {a.Authorize(ctx, bob, tokenv1.TokenService_CreateToken_FullMethodName), nil},
		"row_of_another":  {a.Authorize(ctx, bob, tokenv1.TokenService_ListTokens_FullMethodName), fault.ErrDenied},
		"met":             {a.Verb(ctx, bob, types.KindToken, types.VerbCreate, token("Node")), nil},
		"not_met":         {a.Verb(ctx, bob, types.KindToken, types.VerbCreate, token("Proxy")), fault.ErrDenied},
		"one_of_two":      {a.Verb(ctx, bob, types.KindToken, types.VerbCreate, token("Node"), token("Proxy")), fault.ErrDenied},
		"no_resource":     {a.Verb(ctx, bob, types.KindToken, types.VerbCreate), fault.ErrDenied},
		"nil_resource":    {a.Verb(ctx, bob, types.KindToken, types.VerbCreate, nil), fault.ErrDenied},
		"local":           {a.Verb(ctx, rpc.Caller{Local: true}, types.KindToken, types.VerbCreate, token("Auth")), nil},
		"host":            {a.Verb(ctx, host("", types.RoleNode), types.KindToken, types.VerbCreate, token("Node")), fault.ErrDenied},
		"anonymous":       {a.Verb(ctx, rpc.Caller{}, types.KindToken, types.VerbCreate, token("Node")), fault.ErrUnauthenticated},
		"without_a_where": {a.Verb(ctx, bob, types.KindRole, types.VerbList, token("Proxy")), nil},
	} {
		if !errors.Is(tt.err, tt.want) || tt.want == nil && tt.err != nil {
			t.Errorf("%s: %v, want %v", name, tt.err, tt.want)
		}
	}
	if _, err := a.Some(ctx, bob, types.KindToken, types.VerbDelete); !errors.Is(err, fault.ErrDenied) {
		t.Errorf("Some(delete) = %v, want a refusal", err)
	}
	may, err := a.Some(ctx, bob, types.KindToken, types.VerbCreate)
	if err != nil || may == nil || !may(token("Node")) || may(token("Proxy")) {
		t.Errorf("Some(create) does not tell tokens apart (%v)", err)
	}
	if may, err := a.Some(ctx, bob, types.KindRole, types.VerbList); may != nil || err != nil {
		t.Errorf("Some(list roles) = a filter %v, %v; want all of them", may != nil, err)
	}
}
