package audit

// What happens at applications.
var (
	AppSessionStart        = Kind{"app.session.start", "T2007I"}
	AppSessionStartFailure = Kind{"app.session.start", "T2007E"}
	AppSessionChunk        = Kind{"app.session.chunk", "T2008I"}
	AppSessionEnd          = Kind{"app.session.end", "T2011I"}
	AppDialDenied          = Kind{"app.session.target.dial.denied", "T2019E"}
	AppCreate              = Kind{"app.create", "TAP03I"}
	AppUpdate              = Kind{"app.update", "TAP04I"}
	AppDelete              = Kind{"app.delete", "TAP05I"}
)

// What happens at databases, whatever the protocol.
var (
	DatabaseSessionStart          = Kind{"db.session.start", "TDB00I"}
	DatabaseSessionStartFailure   = Kind{"db.session.start", "TDB00W"}
	DatabaseSessionEnd            = Kind{"db.session.end", "TDB01I"}
	DatabaseQuery                 = Kind{"db.session.query", "TDB02I"}
	DatabaseQueryFailure          = Kind{"db.session.query.failed", "TDB02W"}
	DatabaseMalformed             = Kind{"db.session.malformed_packet", "TDB06I"}
	DatabasePermissions           = Kind{"db.session.permissions.update", "TDB07I"}
	DatabaseUserCreate            = Kind{"db.session.user.create", "TDB08I"}
	DatabaseUserCreateFailure     = Kind{"db.session.user.create", "TDB08W"}
	DatabaseUserDeactivate        = Kind{"db.session.user.deactivate", "TDB09I"}
	DatabaseUserDeactivateFailure = Kind{"db.session.user.deactivate", "TDB09W"}
	DatabaseCreate                = Kind{"db.create", "TDB03I"}
	DatabaseUpdate                = Kind{"db.update", "TDB04I"}
	DatabaseDelete                = Kind{"db.delete", "TDB05I"}
)

// What protocols of databases have of their own.
var (
	PostgresParse    = Kind{"db.session.postgres.statements.parse", "TPG00I"}
	PostgresBind     = Kind{"db.session.postgres.statements.bind", "TPG01I"}
	PostgresExecute  = Kind{"db.session.postgres.statements.execute", "TPG02I"}
	PostgresClose    = Kind{"db.session.postgres.statements.close", "TPG03I"}
	PostgresFunction = Kind{"db.session.postgres.function", "TPG04I"}

	MySQLPrepare      = Kind{"db.session.mysql.statements.prepare", "TMY00I"}
	MySQLExecute      = Kind{"db.session.mysql.statements.execute", "TMY01I"}
	MySQLSendLongData = Kind{"db.session.mysql.statements.send_long_data", "TMY02I"}
	MySQLClose        = Kind{"db.session.mysql.statements.close", "TMY03I"}
	MySQLReset        = Kind{"db.session.mysql.statements.reset", "TMY04I"}
	MySQLFetch        = Kind{"db.session.mysql.statements.fetch", "TMY05I"}
	MySQLBulkExecute  = Kind{"db.session.mysql.statements.bulk_execute", "TMY06I"}
	MySQLInitDB       = Kind{"db.session.mysql.init_db", "TMY07I"}
	MySQLCreateDB     = Kind{"db.session.mysql.create_db", "TMY08I"}
	MySQLDropDB       = Kind{"db.session.mysql.drop_db", "TMY09I"}
	MySQLShutDown     = Kind{"db.session.mysql.shut_down", "TMY10I"}
	MySQLProcessKill  = Kind{"db.session.mysql.process_kill", "TMY11I"}
	MySQLDebug        = Kind{"db.session.mysql.debug", "TMY12I"}
	MySQLRefresh      = Kind{"db.session.mysql.refresh", "TMY13I"}

	SQLServerRPC = Kind{"db.session.sqlserver.rpc_request", "TMS00I"}
)

// AppSessionKinds are those that an Application Service sends.
func AppSessionKinds() []Kind {
	return []Kind{AppSessionStart, AppSessionStartFailure, AppSessionChunk, AppSessionEnd, AppDialDenied}
}

// DatabaseSessionKinds are those that a Database Service sends.
func DatabaseSessionKinds() []Kind {
	return []Kind{
		DatabaseSessionStart, DatabaseSessionStartFailure, DatabaseSessionEnd, DatabaseQuery, DatabaseQueryFailure,
		DatabaseMalformed, DatabasePermissions, DatabaseUserCreate, DatabaseUserCreateFailure,
		DatabaseUserDeactivate, DatabaseUserDeactivateFailure,
		PostgresParse, PostgresBind, PostgresExecute, PostgresClose, PostgresFunction,
		MySQLPrepare, MySQLExecute, MySQLSendLongData, MySQLClose, MySQLReset, MySQLFetch, MySQLBulkExecute,
		MySQLInitDB, MySQLCreateDB, MySQLDropDB, MySQLShutDown, MySQLProcessKill, MySQLDebug, MySQLRefresh,
		SQLServerRPC,
	}
}

// resourceKinds are all of them.
func resourceKinds() []Kind {
	out := append(AppSessionKinds(), DatabaseSessionKinds()...)
	return append(out, AppCreate, AppUpdate, AppDelete, DatabaseCreate, DatabaseUpdate, DatabaseDelete)
}
