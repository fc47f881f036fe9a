package authz

import (
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
	userv1 "teleport/api/user/v1"
	"teleport/internal/audit"
	"teleport/internal/fault"
	"teleport/internal/rpc"
	"teleport/internal/types"
)

// who is a set of callers.
type who int

const (
	// anybody needs no certificate: the call itself carries the proof.
	anybody who = 1 << iota
	// users have a user certificate.
	users
	// hosts have a host certificate, of the process or of one of its services.
	hosts
	// processes have a process-level host certificate.
	processes
	// proxies have the certificate of a Proxy Service, apps that of an Application
	// Service and databases that of a Database Service.
	proxies
	apps
	databases
	// local is the administrator on the Auth Service's own host. It has full rights,
	// but cannot act as a host: a call that needs one is not open to it.
	local
)

// row says who may call an RPC. If it names a kind, users also need a role that
// allows the verb on it; with resource, on some of it: the handler then asks Verb
// about the resource itself.
type row struct {
	who        who
	kind, verb string
	resource   bool
}

// table has a row for every RPC. The handlers of the generic resource calls get
// the kind with the request and ask Verb themselves.
//
// SignUser makes certificates for any user, so whoever may create users may act
// as each of them: who creates users can give them any role anyway. The preset
// editor and the local administrator may.
var table = map[string]row{
	agentv1.AgentService_Control_FullMethodName: {who: hosts},

	appv1.AppService_CertifyUser_FullMethodName: {who: users},
	appv1.AppService_OpenSession_FullMethodName: {who: proxies},
	appv1.AppService_EndSession_FullMethodName:  {who: proxies},
	appv1.AppService_SignProxy_FullMethodName:   {who: proxies},
	appv1.AppService_SignToken_FullMethodName:   {who: apps},

	auditv1.AuditService_EmitEvents_FullMethodName:   {who: hosts},
	auditv1.AuditService_SearchEvents_FullMethodName: {who: users | local, kind: types.KindEvent, verb: types.VerbList},

	databasev1.DatabaseService_CertifyUser_FullMethodName: {who: users},
	databasev1.DatabaseService_SignClient_FullMethodName:  {who: databases},
	databasev1.DatabaseService_SignServer_FullMethodName:  {who: users | local, kind: types.KindDatabase, verb: types.VerbUpdate},
	// What it signs says nothing of anybody.
	databasev1.DatabaseService_SignRevocations_FullMethodName: {who: users | local, kind: types.KindCertAuthority, verb: types.VerbRead},

	joinv1.JoinService_Join_FullMethodName:  {who: anybody},
	joinv1.JoinService_Renew_FullMethodName: {who: processes},

	loginv1.LoginService_GetInvitation_FullMethodName:    {who: anybody},
	loginv1.LoginService_RedeemInvitation_FullMethodName: {who: anybody},
	loginv1.LoginService_Login_FullMethodName:            {who: anybody},
	loginv1.LoginService_CreateWebSession_FullMethodName: {who: proxies},

	opensshv1.OpenSSHService_EnrollServer_FullMethodName: {who: processes},
	opensshv1.OpenSSHService_SignServer_FullMethodName:   {who: users | local, kind: types.KindNode, verb: types.VerbUpdate, resource: true},
	opensshv1.OpenSSHService_SignProxy_FullMethodName:    {who: proxies},
	opensshv1.OpenSSHService_SignLogin_FullMethodName:    {who: proxies},

	resourcev1.ResourceService_GetResource_FullMethodName:    {who: users | local},
	resourcev1.ResourceService_ListResources_FullMethodName:  {who: users | local},
	resourcev1.ResourceService_CreateResource_FullMethodName: {who: users | local},
	resourcev1.ResourceService_UpdateResource_FullMethodName: {who: users | local},
	resourcev1.ResourceService_UpsertResource_FullMethodName: {who: users | local},
	resourcev1.ResourceService_DeleteResource_FullMethodName: {who: users | local},

	statusv1.StatusService_GetStatus_FullMethodName: {who: users | local},

	tokenv1.TokenService_CreateToken_FullMethodName: {who: users | local, kind: types.KindToken, verb: types.VerbCreate, resource: true},
	tokenv1.TokenService_ListTokens_FullMethodName:  {who: users | local, kind: types.KindToken, verb: types.VerbList, resource: true},
	tokenv1.TokenService_DeleteToken_FullMethodName: {who: users | local, kind: types.KindToken, verb: types.VerbDelete, resource: true},

	userv1.UserService_CreateUser_FullMethodName: {who: users | local, kind: types.KindUser, verb: types.VerbCreate, resource: true},
	userv1.UserService_ResetUser_FullMethodName:  {who: users | local, kind: types.KindUser, verb: types.VerbUpdate, resource: true},
	userv1.UserService_SignUser_FullMethodName:   {who: users | local, kind: types.KindUser, verb: types.VerbCreate, resource: true},
}

// emits lists the events that a service may send.
var emits = map[types.SystemRole][]audit.Kind{
	types.RoleNode: {
		audit.SessionStart, audit.SessionJoin, audit.SessionResize, audit.SessionLeave, audit.SessionEnd, audit.SessionData, audit.SessionRejected,
		audit.SessionConnect, audit.SessionResume, audit.SessionResumeDenied, audit.AuthAttemptFailure, audit.Subsystem, audit.SubsystemFailure, audit.Exec, audit.ExecFailure,
		audit.SCPDownload, audit.SCPUpload, audit.SCPDenied,
		audit.PortForward, audit.PortForwardFailure, audit.PortForwardStop, audit.AgentForward, audit.AgentForwardFailure,
		audit.X11Forward, audit.X11ForwardFailure, audit.ClientDisconnect,
	},
	// Sessions with OpenSSH servers are recorded by the Proxy that carries them.
	types.RoleProxy: {
		audit.SessionStart, audit.SessionResize, audit.SessionLeave, audit.SessionEnd, audit.SessionData,
		audit.SessionConnect, audit.SessionRejected, audit.AuthAttemptFailure, audit.ClientDisconnect,
		audit.Subsystem, audit.Exec, audit.ExecFailure, audit.SCPDownload, audit.SCPUpload, audit.SCPDenied,
		audit.PortForward, audit.PortForwardFailure, audit.PortForwardStop, audit.AgentForward, audit.AgentForwardFailure,
		audit.X11Forward, audit.X11ForwardFailure,
	},
	types.RoleApp: audit.AppSessionKinds(),
	types.RoleDB:  audit.DatabaseSessionKinds(),
}

// announces names the kind of server resource that a service announces.
var announces = map[types.SystemRole]string{
	types.RoleNode:  types.KindNode,
	types.RoleProxy: types.KindProxy,
	types.RoleAuth:  types.KindAuthServer,
	types.RoleApp:   types.KindAppServer,
	types.RoleDB:    types.KindDatabaseServer,
}

// serviceOf names the one service that each of these callers has the certificate of.
var serviceOf = map[who]types.SystemRole{proxies: types.RoleProxy, apps: types.RoleApp, databases: types.RoleDB}

// admits decides by what the caller is, before any role is asked.
func (r row) admits(c rpc.Caller) error {
	host := c.Host()
	switch {
	case r.who&anybody != 0,
		r.who&local != 0 && c.Local,
		r.who&users != 0 && c.User() != nil,
		r.who&(hosts|processes) != 0 && host != nil && host.Service == "",
		r.who&hosts != 0 && host != nil:
		return nil
	}
	wanted, one := serviceOf[r.who]
	switch {
	case one && host.Serves(wanted):
		return nil
	case c.Anonymous():
		return unauthenticated()
	case r.who&(hosts|processes) != 0 && host == nil:
		return refusal("only services of the cluster may make this call")
	case one:
		return refusal("only services of the type %s may make this call, with their own certificate", wanted)
	case r.who&processes != 0:
		return refusal("use the certificate of the process, not of its service %s", host.Service)
	}
	return refusal("only users may make this call")
}

func refusal(format string, args ...any) error {
	return fault.New(fault.ErrDenied, "access denied: "+format, args...).WithCode("access_denied")
}
