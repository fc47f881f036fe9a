package clienttest

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	loginv1 "teleport/api/login/v1"
	proxyv1 "teleport/api/proxy/v1"
	resourcev1 "teleport/api/resource/v1"
	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	userv1 "teleport/api/user/v1"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// Login lets one user in.
type Login struct {
	loginv1.UnimplementedLoginServiceServer
	User, Password, Code string
	// Logins are in the certificates.
	Logins []string
	// Invite is the secret of the one invitation there is.
	Invite string
	// TTLs are those that were asked for.
	TTLs []time.Duration
	// Tamper, if set, changes what is answered, as a Proxy could.
	Tamper func(*loginv1.UserCertificates)
	c      *Cluster
}

func (l *Login) certificates(keys *loginv1.PublicKeys, ttl time.Duration) *loginv1.UserCertificates {
	l.TTLs = append(l.TTLs, ttl)
	if ttl == 0 {
		ttl = 12 * time.Hour
	}
	certificates := l.c.Certificates(keys, l.User, ttl, l.Logins...)
	if l.Tamper != nil {
		l.Tamper(certificates)
	}
	return certificates
}

// Login checks password and code.
func (l *Login) Login(_ context.Context, req *loginv1.LoginRequest) (*loginv1.LoginResponse, error) {
	if req.GetUser() != l.User || req.GetPassword() != l.Password || req.GetTotpCode() != l.Code {
		return nil, fault.Unauthenticated("wrong user, password or code")
	}
	return &loginv1.LoginResponse{Certificates: l.certificates(req.GetKeys(), req.GetTtl().AsDuration())}, nil
}

// TOTPKey is the second factor that invitations offer; the code is Login.Code all
// the same.
const TOTPKey = "JBSWY3DPEHPK3PXP"

// GetInvitation knows one invitation.
func (l *Login) GetInvitation(_ context.Context, req *loginv1.GetInvitationRequest) (*loginv1.GetInvitationResponse, error) {
	if req.GetToken() != l.Invite || l.Invite == "" {
		return nil, fault.NotFound("this invitation was used or has expired")
	}
	return &loginv1.GetInvitationResponse{
		User: l.User, TotpSecret: TOTPKey, TotpUrl: "otpauth://totp/" + l.User + "?secret=" + TOTPKey, ClusterName: Name,
	}, nil
}

// RedeemInvitation sets the password.
func (l *Login) RedeemInvitation(_ context.Context, req *loginv1.RedeemInvitationRequest) (*loginv1.RedeemInvitationResponse, error) {
	if req.GetToken() != l.Invite || l.Invite == "" {
		return nil, fault.NotFound("this invitation was used or has expired")
	}
	if req.GetTotpCode() != l.Code {
		return nil, fault.Invalid("the code is wrong")
	}
	l.Invite, l.Password = "", req.GetPassword()
	out := &loginv1.RedeemInvitationResponse{User: l.User}
	if req.GetKeys() != nil {
		out.Certificates = l.certificates(req.GetKeys(), req.GetTtl().AsDuration())
	}
	return out, nil
}

// Resources keeps resources in memory.
type Resources struct {
	resourcev1.UnimplementedResourceServiceServer
	mu       sync.Mutex
	list     []types.Resource
	revision int
	usable   bool
	query    string
}

// Query returns the query of the last listing, which is not looked at.
func (r *Resources) Query() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.query
}

// Usable reports whether the last listing was of what may be used alone.
func (r *Resources) Usable() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.usable
}

// Put adds or replaces a resource.
func (r *Resources) Put(res types.Resource) (created bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.putLocked(res)
}

func (r *Resources) putLocked(res types.Resource) (created bool) {
	r.revision++
	res.GetMetadata().Revision = fmt.Sprint(r.revision)
	if i := r.indexLocked(res.GetKind(), res.GetMetadata().GetName()); i >= 0 {
		r.list[i] = res
		return false
	}
	r.list = append(r.list, res)
	return true
}

// Get returns a resource or nil.
func (r *Resources) Get(kind, name string) types.Resource {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.indexLocked(kind, name); i >= 0 {
		return r.list[i]
	}
	return nil
}

func (r *Resources) indexLocked(kind, name string) int {
	return slices.IndexFunc(r.list, func(x types.Resource) bool { return x.GetKind() == kind && x.GetMetadata().GetName() == name })
}

func missing(kind, name string) error { return fault.NotFound("there is no %s %q", kind, name) }

// GetResource returns one.
func (r *Resources) GetResource(_ context.Context, req *resourcev1.GetResourceRequest) (*resourcev1.GetResourceResponse, error) {
	res := r.Get(req.GetKind(), req.GetName())
	if res == nil {
		return nil, missing(req.GetKind(), req.GetName())
	}
	packed, err := types.ToAny(res)
	return &resourcev1.GetResourceResponse{Resource: packed}, err
}

// ListResources returns two a page.
func (r *Resources) ListResources(_ context.Context, req *resourcev1.ListResourcesRequest) (*resourcev1.ListResourcesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.usable, r.query = req.GetUsable(), req.GetQuery()
	var all []*anypb.Any
	for _, res := range r.list {
		if res.GetKind() != req.GetKind() {
			continue
		}
		packed, err := types.ToAny(res)
		if err != nil {
			return nil, err
		}
		all = append(all, packed)
	}
	start := len(req.GetPageToken())
	end := min(start+2, len(all))
	out := &resourcev1.ListResourcesResponse{Resources: all[start:end]}
	if end < len(all) {
		out.NextPageToken = strings.Repeat("x", end)
	}
	return out, nil
}

// stored is what becomes of a resource: the name of a token is not its secret.
func stored(a *anypb.Any) (types.Resource, error) {
	res, err := types.FromAny(a)
	if err == nil && res.GetKind() == types.KindToken {
		res.GetMetadata().Name = Derive(res.GetMetadata().GetName())
	}
	return res, err
}

// CreateResource refuses one that is there.
func (r *Resources) CreateResource(_ context.Context, req *resourcev1.CreateResourceRequest) (*resourcev1.CreateResourceResponse, error) {
	res, err := stored(req.GetResource())
	if err != nil {
		return nil, err
	}
	if r.Get(res.GetKind(), res.GetMetadata().GetName()) != nil {
		return nil, fault.Exists("it is there")
	}
	r.Put(res)
	packed, err := types.ToAny(res)
	return &resourcev1.CreateResourceResponse{Resource: packed}, err
}

// UpsertResource takes any.
func (r *Resources) UpsertResource(_ context.Context, req *resourcev1.UpsertResourceRequest) (*resourcev1.UpsertResourceResponse, error) {
	res, err := stored(req.GetResource())
	if err != nil {
		return nil, err
	}
	created := r.Put(res)
	packed, err := types.ToAny(res)
	return &resourcev1.UpsertResourceResponse{Resource: packed, Created: created}, err
}

// UpdateResource checks the revision.
func (r *Resources) UpdateResource(_ context.Context, req *resourcev1.UpdateResourceRequest) (*resourcev1.UpdateResourceResponse, error) {
	res, err := types.FromAny(req.GetResource())
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.indexLocked(res.GetKind(), res.GetMetadata().GetName())
	if i < 0 {
		return nil, missing(res.GetKind(), res.GetMetadata().GetName())
	}
	if r.list[i].GetMetadata().GetRevision() != res.GetMetadata().GetRevision() {
		return nil, fault.Stale("it was changed by somebody else")
	}
	r.putLocked(res)
	packed, err := types.ToAny(res)
	return &resourcev1.UpdateResourceResponse{Resource: packed}, err
}

// DeleteResource deletes one.
func (r *Resources) DeleteResource(_ context.Context, req *resourcev1.DeleteResourceRequest) (*resourcev1.DeleteResourceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.indexLocked(req.GetKind(), req.GetName())
	if i < 0 {
		return nil, missing(req.GetKind(), req.GetName())
	}
	r.list = slices.Delete(r.list, i, i+1)
	return &resourcev1.DeleteResourceResponse{}, nil
}

// Tokens keeps tokens in memory.
type Tokens struct {
	tokenv1.UnimplementedTokenServiceServer
	List []*tokenv1.ListedToken
	// Secret is that of the next token.
	Secret string
	// Requests are those to make a token.
	Requests []*tokenv1.CreateTokenRequest
	// Deleted are the ids that were to be deleted, as sent.
	Deleted []string
}

// CreateToken makes one.
func (s *Tokens) CreateToken(_ context.Context, req *tokenv1.CreateTokenRequest) (*tokenv1.CreateTokenResponse, error) {
	s.Requests = append(s.Requests, req)
	secret := s.Secret
	if req.GetValue() != "" {
		secret = req.GetValue()
	}
	return &tokenv1.CreateTokenResponse{Secret: secret, Token: &typesv1.Token{
		Kind: types.KindToken, Version: "v2",
		Metadata: &typesv1.Metadata{Name: Derive(secret), Expires: timestamppb.New(time.Now().Add(req.GetTtl().AsDuration()))},
		Spec:     &typesv1.TokenSpec{Roles: req.GetRoles(), JoinMethod: "token"},
	}}, nil
}

// ListTokens returns the list.
func (s *Tokens) ListTokens(context.Context, *tokenv1.ListTokensRequest) (*tokenv1.ListTokensResponse, error) {
	return &tokenv1.ListTokensResponse{Tokens: s.List}, nil
}

// DeleteToken takes one off the list.
func (s *Tokens) DeleteToken(_ context.Context, req *tokenv1.DeleteTokenRequest) (*tokenv1.DeleteTokenResponse, error) {
	s.Deleted = append(s.Deleted, req.GetId())
	i := slices.IndexFunc(s.List, func(t *tokenv1.ListedToken) bool { return t.GetId() == req.GetId() })
	if i < 0 {
		return nil, fault.NotFound("there is no token %q", req.GetId())
	}
	s.List = slices.Delete(s.List, i, i+1)
	return &tokenv1.DeleteTokenResponse{}, nil
}

type statusService struct {
	statusv1.UnimplementedStatusServiceServer
	c *Cluster
}

// GetStatus returns the status.
func (s statusService) GetStatus(context.Context, *statusv1.GetStatusRequest) (*statusv1.GetStatusResponse, error) {
	return s.c.Status, nil
}

type auditService struct {
	auditv1.UnimplementedAuditServiceServer
	c *Cluster
}

// SearchEvents filters by type and time and returns two a page.
func (s auditService) SearchEvents(_ context.Context, req *auditv1.SearchEventsRequest) (*auditv1.SearchEventsResponse, error) {
	var all []*auditv1.Event
	for _, e := range s.c.Events {
		old := req.GetFrom() != nil && e.GetTime().AsTime().Before(req.GetFrom().AsTime())
		late := req.GetTo() != nil && !e.GetTime().AsTime().Before(req.GetTo().AsTime())
		if old || late || len(req.GetTypes()) > 0 && !slices.Contains(req.GetTypes(), e.GetEvent()) {
			continue
		}
		all = append(all, e)
	}
	start := len(req.GetPageToken())
	end := min(start+min(2, int(req.GetLimit())), len(all))
	out := &auditv1.SearchEventsResponse{Events: all[start:end]}
	if end < len(all) {
		out.NextPageToken = strings.Repeat("x", end)
	}
	return out, nil
}

type userService struct {
	userv1.UnimplementedUserServiceServer
	c *Cluster
}

func (s userService) invitation(d time.Duration) *userv1.Invitation {
	return &userv1.Invitation{
		Token: "inv1te", Expires: timestamppb.New(time.Now().Add(d)), Url: "https://" + s.c.Addr + "/web/invite/inv1te#" + s.c.Trust.Pins()[0],
	}
}

// CreateUser keeps the user.
func (s userService) CreateUser(_ context.Context, req *userv1.CreateUserRequest) (*userv1.CreateUserResponse, error) {
	s.c.Resources.Put(req.GetUser())
	return &userv1.CreateUserResponse{Invitation: s.invitation(req.GetTtl().AsDuration())}, nil
}

// ResetUser makes a link.
func (s userService) ResetUser(_ context.Context, req *userv1.ResetUserRequest) (*userv1.ResetUserResponse, error) {
	if s.c.Resources.Get(types.KindUser, req.GetUser()) == nil {
		return nil, missing(types.KindUser, req.GetUser())
	}
	return &userv1.ResetUserResponse{Invitation: s.invitation(req.GetTtl().AsDuration())}, nil
}

// SignUser signs, for MaxTTL at most.
func (s userService) SignUser(_ context.Context, req *userv1.SignUserRequest) (*userv1.SignUserResponse, error) {
	ttl := req.GetTtl().AsDuration()
	if s.c.MaxTTL > 0 {
		ttl = min(ttl, s.c.MaxTTL)
	}
	return &userv1.SignUserResponse{Certificates: s.c.Certificates(req.GetKeys(), req.GetUser(), ttl, "root")}, nil
}

// ping answers /webapi/ping and nothing else.
func (c *Cluster) ping(conn *tls.Conn) {
	buf := make([]byte, 4096)
	n, _ := conn.Read(buf)
	status, body := "404 Not Found", ""
	if strings.HasPrefix(string(buf[:n]), "GET /webapi/ping HTTP/1.1\r\n") {
		status, body = "200 OK", `{"server_version":"0.1.0","cluster_name":"`+Name+`"}`
	}
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, len(body), body)
}

// dial answers a DialRequest and then is the node.
func (c *Cluster) dial(conn *tls.Conn) {
	var req proxyv1.DialRequest
	if rpc.ReadFrame(conn, &req, rpc.MaxFrame) != nil {
		return
	}
	c.Node.add(&req)
	if req.GetService() != "" {
		c.Agent.dial(conn, &req)
		return
	}
	host := strings.TrimSuffix(req.GetHost(), "."+Name)
	if host != NodeName && host != NodeID {
		err := fmt.Sprintf("there is no node %q that you may use", req.GetHost())
		_ = rpc.WriteFrame(conn, &proxyv1.DialResponse{Error: err, ErrorKind: fault.ErrNotFound.Error()})
		return
	}
	name := NodeName
	if c.HostName != "" {
		name = c.HostName
	}
	id := NodeID
	switch {
	case c.HostID != "":
		id = c.HostID
	case c.HostName != "":
		id = "another"
	}
	if rpc.WriteFrame(conn, &proxyv1.DialResponse{HostId: id, HostName: name}) == nil {
		c.Node.serve(conn)
	}
}
