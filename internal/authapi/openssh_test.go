package authapi_test

import (
	"context"
	"crypto"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	opensshv1 "teleport/api/openssh/v1"
	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/authapi"
	"teleport/internal/ca"
	"teleport/internal/fault"
	"teleport/internal/identity"
	"teleport/internal/keys"
	"teleport/internal/keystore"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

const stockID = "5f0c1a8e-7a0e-4b0e-9a52-1c6f3a0b7d11"

// stock is an env with the handler of OpenSSHService, an OpenSSH server and a user.
type stock struct {
	*env
	*authapi.OpenSSHServer
	openssh *ca.Signer
	trusted *ca.Trust
}

func newStock(t *testing.T) *stock {
	t.Helper()
	s := &stock{env: newEnv(t)}
	var cas []*typesv1.CertAuthority
	for _, typ := range []string{ca.TypeHost, ca.TypeUser, ca.TypeOpenSSH} {
		a, err := ca.Generate(keystore.Software(), cluster, typ, time.Now())
		check(t, err)
		cas = append(cas, a)
	}
	var err error
	s.openssh, err = ca.NewSigner(keystore.Software(), cas, time.Now)
	check(t, err)
	s.trusted, err = ca.NewTrust(cas)
	check(t, err)
	cfg := s.config()
	cfg.Trust = func() *ca.Trust { return s.trusted }
	s.OpenSSHServer, err = authapi.NewOpenSSH(authapi.SigningConfig{Config: cfg, Signer: func() *ca.Signer { return s.openssh }})
	check(t, err)
	role := newRole("dev")
	role.Spec = &typesv1.RoleSpec{
		Allow:   &typesv1.RoleConditions{Logins: []string{"root"}, NodeLabels: map[string]*typesv1.Strings{"env": {Values: []string{"test"}}}},
		Options: &typesv1.RoleOptions{ForwardAgent: proto.Bool(true)},
	}
	s.put(role, newUser("alice", "dev"), stockNode(stockID, "db-8"), newNode("h7", nil))
	return s
}

func stockNode(id, hostname string) *typesv1.Server {
	n := newNode(id, map[string]string{"env": "test"})
	n.SubKind, n.Spec.Hostname, n.Spec.Addr = types.SubKindOpenSSH, hostname, "192.0.2.8:22"
	return n
}

func sshKey(t *testing.T) (crypto.Signer, []byte) {
	t.Helper()
	key, err := keys.Generate(keys.Ed25519)
	check(t, err)
	public, err := ssh.NewPublicKey(key.Public())
	check(t, err)
	return key, public.Marshal()
}

// as is a context of a call by a host.
func as(ctx context.Context, id string, service types.SystemRole, generation uint64, roles ...types.SystemRole) context.Context {
	return rpc.WithCaller(ctx, rpc.Caller{Addr: "192.0.2.8:5", Identity: &identity.Identity{Cluster: cluster, Host: &identity.Host{
		ID: id, Name: "db-8", Roles: roles, Service: service, Generation: generation,
	}}})
}

func (s *stock) proxy() context.Context {
	return as(s.t.Context(), "p1", types.RoleProxy, 0, types.RoleProxy)
}

// loginRequest asks for alice.
func (s *stock) loginRequest(t *testing.T, change func(*ca.UserRequest)) *opensshv1.SignLoginRequest {
	t.Helper()
	_, public := sshKey(t)
	_, der := newKey(t)
	req := ca.UserRequest{
		Identity: identity.Identity{Cluster: cluster, User: &identity.User{Name: "alice", Roles: []string{"dev"}, Logins: []string{"root", "daemon"}}},
		TLSKey:   der, SSHKey: public, TTL: time.Hour, PermitPTY: true, PermitAgentForwarding: true, PermitX11Forwarding: true,
	}
	if change != nil {
		change(&req)
	}
	_, wire, err := s.openssh.User(req)
	check(t, err)
	_, own := sshKey(t)
	return &opensshv1.SignLoginRequest{
		ServerId: stockID, Login: "root", UserCertificate: wire, ClientAddr: "198.51.100.3:50000", PublicKey: own, Sources: []string{"192.0.2.1"},
	}
}

func TestSignLogin(t *testing.T) {
	s := newStock(t)
	resp, err := s.SignLogin(s.proxy(), s.loginRequest(t, nil))
	check(t, err)
	cert, err := ca.ParseSSHCertificate(resp.GetCertificate())
	check(t, err)
	_, agent := cert.Extensions["permit-agent-forwarding"]
	_, display := cert.Extensions["permit-X11-forwarding"]
	if !slices.Equal(cert.ValidPrincipals, []string{"root"}) || cert.CriticalOptions["source-address"] != "192.0.2.1/32" || !agent || display {
		t.Errorf("certificate for %v, %v, %v", cert.ValidPrincipals, cert.CriticalOptions, cert.Extensions)
	}
	if codes := s.codes(); !slices.Contains(codes, "TC000I") {
		t.Errorf("events = %v, want one about the certificate", codes)
	}
}

// Auth does not believe the Proxy: everything that an agent would refuse is refused.
func TestSignLoginThatIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		user   func(*ca.UserRequest)
		change func(*stock, *opensshv1.SignLoginRequest)
		says   string
	}{
		"login_that_no_role_allows": {change: func(_ *stock, r *opensshv1.SignLoginRequest) { r.Login = "daemon" }, says: "your roles do not allow it"},
		"login_not_in_certificate":  {change: func(_ *stock, r *opensshv1.SignLoginRequest) { r.Login = "toor" }, says: "not good for login"},
		"node_with_an_agent":        {change: func(_ *stock, r *opensshv1.SignLoginRequest) { r.ServerId = "h7" }, says: "no OpenSSH server"},
		"no_such_node":              {change: func(_ *stock, r *opensshv1.SignLoginRequest) { r.ServerId = uuid.NewString() }},
		"other_labels": {change: func(s *stock, _ *opensshv1.SignLoginRequest) {
			n := stockNode(stockID, "db-8")
			n.Metadata.Labels = nil
			s.put(n)
		}, says: "your roles do not allow it"},
		"deleted_user": {change: func(s *stock, _ *opensshv1.SignLoginRequest) {
			check(s.t, s.store.Tx().Delete(types.KindUser, "alice", "").Commit(s.t.Context()))
		}, says: "deleted"},
		"locked_user": {change: func(s *stock, _ *opensshv1.SignLoginRequest) {
			s.put(types.NewLock(&typesv1.LockTarget{User: "alice"}, "", "admin", time.Now(), time.Time{}))
		}, says: "lock targeting User"},
		"locked_server": {change: func(s *stock, _ *opensshv1.SignLoginRequest) {
			s.put(types.NewLock(&typesv1.LockTarget{ServerId: stockID}, "", "admin", time.Now(), time.Time{}))
		}, says: "lock targeting"},
		"locked_token": {change: func(s *stock, _ *opensshv1.SignLoginRequest) {
			i := types.New(types.KindInstance, stockID).(*typesv1.Instance)
			i.Spec = &typesv1.InstanceSpec{Hostname: "db-8", Roles: []string{"Node"}, Token: "tok"}
			s.put(i, types.NewLock(&typesv1.LockTarget{JoinToken: "tok"}, "", "admin", time.Now(), time.Time{}))
		}, says: "lock targeting"},
		"wrong_address": {user: func(r *ca.UserRequest) { r.Identity.User.SourceIP = "203.0.113.9" }, says: "may not be used from here"},
		"no_address": {user: func(r *ca.UserRequest) { r.Identity.User.SourceIP = "203.0.113.9" }, change: func(_ *stock, r *opensshv1.SignLoginRequest) {
			r.ClientAddr = "203.0.113.9"
		}, says: "may not be used from here"},
		"unpinned_address": {change: func(s *stock, _ *opensshv1.SignLoginRequest) {
			role := newRole("dev")
			role.Spec = &typesv1.RoleSpec{
				Allow:   &typesv1.RoleConditions{Logins: []string{"root"}, NodeLabels: map[string]*typesv1.Strings{"*": {Values: []string{"*"}}}},
				Options: &typesv1.RoleOptions{PinSourceIp: proto.Bool(true)},
			}
			s.put(role)
		}, says: "bind certificates"},
		"no_sources":        {change: func(_ *stock, r *opensshv1.SignLoginRequest) { r.Sources = nil }},
		"everywhere":        {change: func(_ *stock, r *opensshv1.SignLoginRequest) { r.Sources = []string{"0.0.0.0"} }},
		"many_sources":      {change: func(_ *stock, r *opensshv1.SignLoginRequest) { r.Sources = slices.Repeat([]string{"192.0.2.1"}, 9) }},
		"source_is_a_name":  {change: func(_ *stock, r *opensshv1.SignLoginRequest) { r.Sources = []string{"proxy"} }},
		"not_a_certificate": {change: func(_ *stock, r *opensshv1.SignLoginRequest) { r.UserCertificate = r.GetPublicKey() }},
		"host_certificate": {change: func(s *stock, r *opensshv1.SignLoginRequest) {
			wire, err := s.openssh.OpenSSHHost(ca.OpenSSHHostRequest{ID: stockID, Name: "root", SSHKey: r.GetPublicKey(), TTL: time.Hour})
			check(s.t, err)
			r.UserCertificate = wire
		}},
		"certificate_of_another_login": {change: func(s *stock, r *opensshv1.SignLoginRequest) {
			resp, err := s.SignLogin(s.proxy(), s.loginRequest(&testing.T{}, nil))
			check(s.t, err)
			r.UserCertificate = resp.GetCertificate()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStock(t)
			req := s.loginRequest(t, tt.user)
			if tt.change != nil {
				tt.change(s, req)
			}
			resp, err := s.SignLogin(s.proxy(), req)
			if err == nil || resp != nil || fault.Kind(err) == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("SignLogin = %v, %v, want a refusal with %q", resp, err, tt.says)
			}
		})
	}
}

func TestSignLoginRecordsRefusals(t *testing.T) {
	s := newStock(t)
	req := s.loginRequest(t, nil)
	req.Login = "daemon"
	_, err := s.SignLogin(s.proxy(), req)
	want(t, err, fault.ErrDenied, "access denied to daemon connecting to db-8")
	if codes := s.codes(); len(codes) != 1 || codes[0] != "T3007W" {
		t.Errorf("events = %v, want the refusal", codes)
	}
	s.put(types.NewLock(&typesv1.LockTarget{User: "alice"}, "stop", "admin", time.Now(), time.Time{}))
	if _, err := s.SignLogin(s.proxy(), s.loginRequest(t, nil)); fault.Code(err) != access.CodeLocked {
		t.Errorf("a locked user: %v", err)
	}
}

// A Proxy answers for OpenSSH servers and for nobody else.
func TestSignProxy(t *testing.T) {
	s := newStock(t)
	_, public := sshKey(t)
	resp, err := s.SignProxy(s.proxy(), &opensshv1.SignProxyRequest{ServerId: stockID, PublicKey: public})
	check(t, err)
	cert, err := ca.ParseSSHCertificate(resp.GetCertificate())
	check(t, err)
	id, err := identity.FromSSH(cert)
	check(t, err)
	if !id.Host.OpenSSH || id.Host.Proxy != "p1" || id.Host.ID != stockID || time.Until(id.Expires) > time.Hour {
		t.Errorf("certificate of %+v until %s", id.Host, id.Expires)
	}
	if err := s.trusted.HostKeyCallback(types.RoleNode, "db-8", stockID)("", nil, cert); err != nil {
		t.Errorf("a user does not believe it: %v", err)
	}
	for _, id := range []string{"h7", "p1", uuid.NewString(), ""} {
		if resp, err := s.SignProxy(s.proxy(), &opensshv1.SignProxyRequest{ServerId: id, PublicKey: public}); err == nil || resp != nil {
			t.Errorf("a Proxy may answer for %q", id)
		}
	}
}

// instance makes the record of a host that joined.
func (s *stock) instance(id, token string, labels map[string]string) {
	i := types.New(types.KindInstance, id).(*typesv1.Instance)
	i.Spec = &typesv1.InstanceSpec{Hostname: "db-8", Roles: []string{"Node"}, Token: token, Labels: labels}
	i.Status = &typesv1.InstanceStatus{Generation: 3}
	s.put(i)
}

func TestEnrollServer(t *testing.T) {
	s := newStock(t)
	id := uuid.NewString()
	s.instance(id, "tok", map[string]string{"team": "db", "env": "forced"})
	ctx := as(t.Context(), id, "", 3, types.RoleNode)
	_, one := sshKey(t)
	_, two := sshKey(t)
	req := &opensshv1.EnrollServerRequest{
		Addr: "192.0.2.20:2222", Labels: map[string]string{"env": "mine", "a": "b"}, Principals: []string{"db-8.example.net"}, HostKeys: [][]byte{one, two},
	}
	resp, err := s.EnrollServer(ctx, req)
	check(t, err)
	if len(resp.GetCertificates()) != 2 || !slices.Equal(resp.GetTrustedKeys(), s.trusted.OpenSSHKeys()) || resp.GetHostId() != id {
		t.Errorf("EnrollServer = %v", resp)
	}
	for i, key := range req.GetHostKeys() {
		cert, err := ca.ParseSSHCertificate(resp.GetCertificates()[i])
		check(t, err)
		if string(cert.Key.Marshal()) != string(key) || !slices.Contains(cert.ValidPrincipals, "192.0.2.20") || !slices.Contains(cert.ValidPrincipals, "db-8.example.net") {
			t.Errorf("certificate %d for %v", i, cert.ValidPrincipals)
		}
		check(t, s.trusted.OpenSSHServerKey(id, func(time.Time) {})("", nil, cert))
	}
	r, err := s.store.Get(t.Context(), types.KindNode, id)
	check(t, err)
	node := r.(*typesv1.Server)
	labels := node.GetMetadata().GetLabels()
	if node.GetSubKind() != "openssh" || node.GetSpec().GetAddr() != "192.0.2.20:2222" || labels["env"] != "forced" || labels["a"] != "b" || labels["team"] != "db" {
		t.Errorf("node = %v", node)
	}
	if !node.GetMetadata().GetExpires().AsTime().Equal(resp.GetExpires().AsTime()) {
		t.Errorf("the node expires at %v, its certificates at %v", node.GetMetadata().GetExpires().AsTime(), resp.GetExpires().AsTime())
	}
	if codes := s.codes(); !slices.Equal(codes, []string{"TND01I", "TC000I"}) {
		t.Errorf("events = %v", codes)
	}
	// Again.
	_, err = s.EnrollServer(ctx, req)
	check(t, err)
	if codes := s.codes(); !slices.Contains(codes, "TND02I") {
		t.Errorf("events of the second time = %v", codes)
	}
}

func TestEnrollServerThatIsRefused(t *testing.T) {
	id := uuid.NewString()
	for name, tt := range map[string]struct {
		ctx    func(context.Context) context.Context
		before func(*stock)
		change func(*opensshv1.EnrollServerRequest)
		kind   error
		says   string
	}{
		"only_a_proxy":       {ctx: func(ctx context.Context) context.Context { return as(ctx, id, "", 3, types.RoleProxy) }, kind: fault.ErrDenied, says: "role Node"},
		"removed":            {ctx: func(ctx context.Context) context.Context { return as(ctx, uuid.NewString(), "", 3, types.RoleNode) }, kind: fault.ErrDenied, says: "removed"},
		"replaced":           {ctx: func(ctx context.Context) context.Context { return as(ctx, id, "", 2, types.RoleNode) }, kind: fault.ErrUnauthenticated, says: "newer certificate"},
		"runs_an_agent":      {before: func(s *stock) { s.put(newNode(id, nil)) }, kind: fault.ErrExists, says: "SSH Service"},
		"no_address":         {change: func(r *opensshv1.EnrollServerRequest) { r.Addr = "" }, kind: fault.ErrInvalid, says: "spec.addr"},
		"bad_label":          {change: func(r *opensshv1.EnrollServerRequest) { r.Labels = map[string]string{"a b\n": ""} }, kind: fault.ErrInvalid},
		"no_keys":            {change: func(r *opensshv1.EnrollServerRequest) { r.HostKeys = nil }, kind: fault.ErrInvalid, says: "host keys"},
		"many_keys":          {change: func(r *opensshv1.EnrollServerRequest) { r.HostKeys = slices.Repeat(r.GetHostKeys(), 9) }, kind: fault.ErrInvalid, says: "host keys"},
		"no_key_at_all":      {change: func(r *opensshv1.EnrollServerRequest) { r.HostKeys = [][]byte{[]byte("key")} }, kind: fault.ErrInvalid},
		"name_of_a_node":     {change: func(r *opensshv1.EnrollServerRequest) { r.Principals = []string{"HOST-h7"} }, kind: fault.ErrDenied, says: "another node"},
		"name_in_cluster":    {change: func(r *opensshv1.EnrollServerRequest) { r.Principals = []string{"host-h7." + cluster} }, kind: fault.ErrDenied, says: "another node"},
		"name_of_cluster":    {change: func(r *opensshv1.EnrollServerRequest) { r.Principals = []string{cluster} }, kind: fault.ErrDenied, says: "reserved"},
		"name_of_a_service":  {change: func(r *opensshv1.EnrollServerRequest) { r.Principals = []string{"auth.teleport.cluster.local"} }, kind: fault.ErrDenied, says: "reserved"},
		"id_of_another":      {change: func(r *opensshv1.EnrollServerRequest) { r.Principals = []string{stockID} }, kind: fault.ErrDenied, says: "reserved"},
		"address_of_a_proxy": {change: func(r *opensshv1.EnrollServerRequest) { r.Principals = []string{"teleport.example.org"} }, kind: fault.ErrDenied, says: "another proxy"},
		"not_in_the_token":   {change: func(r *opensshv1.EnrollServerRequest) { r.Principals = []string{"free.example.net"} }, before: limitToken, kind: fault.ErrDenied, says: "spec.principals"},
		"many_names":         {change: func(r *opensshv1.EnrollServerRequest) { r.Principals = slices.Repeat([]string{"a.example.net"}, 33) }, kind: fault.ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStock(t)
			s.instance(id, "tok", nil)
			proxy := types.New(types.KindProxy, "p1").(*typesv1.Server)
			proxy.Spec = &typesv1.ServerSpec{Hostname: "p1", PublicAddrs: []string{"teleport.example.org:443"}}
			s.put(proxy)
			if tt.before != nil {
				tt.before(s)
			}
			_, key := sshKey(t)
			req := &opensshv1.EnrollServerRequest{Addr: "192.0.2.20:22", HostKeys: [][]byte{key}}
			if tt.change != nil {
				tt.change(req)
			}
			ctx := as(t.Context(), id, "", 3, types.RoleNode)
			if tt.ctx != nil {
				ctx = tt.ctx(t.Context())
			}
			resp, err := s.EnrollServer(ctx, req)
			if resp != nil {
				t.Fatalf("EnrollServer = %v, want a refusal", resp)
			}
			want(t, err, tt.kind, tt.says)
			if codes := s.codes(); len(codes) != 0 {
				t.Errorf("events = %v, want none: nothing was done", codes)
			}
		})
	}
}

// limitToken lists the names that hosts of the token may have.
func limitToken(s *stock) {
	tok := types.New(types.KindToken, "tok").(*typesv1.Token)
	tok.Spec = &typesv1.TokenSpec{Roles: []string{"Node"}, JoinMethod: "token", Principals: []string{"*.db.example.net"}}
	s.put(tok)
}

func TestSignServer(t *testing.T) {
	s := newStock(t)
	_, key := sshKey(t)
	admin := rpc.WithCaller(t.Context(), rpc.Caller{Local: true})
	for _, name := range []string{stockID, "DB-8"} {
		resp, err := s.SignServer(admin, &opensshv1.SignServerRequest{Server: name, HostKeys: [][]byte{key}, Ttl: durationpb.New(time.Hour)})
		check(t, err)
		if left := time.Until(resp.GetExpires().AsTime()); left > time.Hour || len(resp.GetCertificates()) != 1 {
			t.Errorf("%s: %v", name, resp)
		}
	}
	s.put(stockNode(uuid.NewString(), "twin"), stockNode(uuid.NewString(), "twin"))
	user := rpc.WithCaller(t.Context(), rpc.Caller{Identity: &identity.Identity{Cluster: cluster, User: &identity.User{Name: "alice", Roles: []string{"dev"}}}})
	for name, tt := range map[string]struct {
		ctx  context.Context
		req  *opensshv1.SignServerRequest
		kind error
	}{
		"two_of_the_name": {admin, &opensshv1.SignServerRequest{Server: "twin"}, fault.ErrInvalid},
		"nobody":          {admin, &opensshv1.SignServerRequest{Server: "made-up"}, fault.ErrNotFound},
		"agent":           {admin, &opensshv1.SignServerRequest{Server: "h7"}, fault.ErrDenied},
		"two_years":       {admin, &opensshv1.SignServerRequest{Server: stockID, Ttl: durationpb.New(2 * ca.MaxOpenSSHServerTTL)}, fault.ErrInvalid},
		"name_of_another": {admin, &opensshv1.SignServerRequest{Server: stockID, Principals: []string{"host-h7"}}, fault.ErrDenied},
		"no_rights":       {user, &opensshv1.SignServerRequest{Server: stockID}, fault.ErrDenied},
	} {
		tt.req.HostKeys = [][]byte{key}
		if resp, err := s.SignServer(tt.ctx, tt.req); !errors.Is(err, tt.kind) || resp != nil {
			t.Errorf("%s: %v, %v, want %v", name, resp, err, tt.kind)
		}
	}
}

// People write the resources of OpenSSH servers, and no others' nodes.
func TestWriteOpenSSHNodes(t *testing.T) {
	e := newEnv(t)
	client := resourcev1.NewResourceServiceClient(e.admin())
	id, agent, joined := uuid.NewString(), uuid.NewString(), uuid.NewString()
	i := types.New(types.KindInstance, joined).(*typesv1.Instance)
	i.Spec = &typesv1.InstanceSpec{Hostname: "j", Roles: []string{"Node"}}
	e.put(newNode(agent, nil), i)
	create := func(n *typesv1.Server) error {
		_, err := client.CreateResource(t.Context(), &resourcev1.CreateResourceRequest{Resource: packed(t, n)})
		return err
	}
	upsert := func(n *typesv1.Server) error {
		_, err := client.UpsertResource(t.Context(), &resourcev1.UpsertResourceRequest{Resource: packed(t, n)})
		return err
	}
	check(t, create(stockNode(id, "db-8")))
	check(t, upsert(stockNode(id, "db-9")))
	want(t, upsert(stockNode(agent, "db-8")), fault.ErrUnsupported, "kept by the agent")
	want(t, create(stockNode(joined, "db-8")), fault.ErrExists, "host that joined")
	want(t, upsert(newNode(id, nil)), fault.ErrUnsupported, "kept by the agent")
	want(t, create(stockNode(uuid.NewString(), cluster)), fault.ErrInvalid, "reserved")
	want(t, create(stockNode(uuid.NewString(), "db."+cluster)), fault.ErrInvalid, "reserved")
	want(t, create(stockNode(uuid.NewString(), id)), fault.ErrInvalid, "reserved")
	bare := stockNode(uuid.NewString(), "db-10")
	bare.Spec.Addr = ""
	want(t, create(bare), fault.ErrInvalid, "spec.addr")
	tunnel := stockNode(uuid.NewString(), "db-10")
	tunnel.Spec.UseTunnel = true
	want(t, create(tunnel), fault.ErrInvalid, "spec.use_tunnel")
	if codes := e.codes(); !slices.Equal(codes, []string{"TND01I", "TND02I"}) {
		t.Errorf("events = %v", codes)
	}
}
