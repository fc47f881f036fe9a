// Package db is the Database Service: it lets the users of the cluster into databases
// that this host reaches. A user comes with a certificate for one database; the service
// believes it by the user CA, decides by the roles, the labels and the locks (RBAC at the
// agent), logs in to the database with a certificate of its own for the database user,
// and writes every query to the audit log: what cannot be recorded there is ended.
//
// It speaks no protocol: that is what the engines do, one package each next to this one,
// by the contract in package engine. How a connection gets here (reverse tunnel) is not
// its business either.
package db
