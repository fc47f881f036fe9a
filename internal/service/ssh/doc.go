// Package ssh is the SSH Service: it lets the users of the cluster into this host.
// It believes certificates of the user CA, decides by the roles and the labels of
// the host (RBAC at the agent), logs the user in as a local user, and writes what
// happened to the audit log: a session that cannot be recorded there does not start.
// The protocol itself is package sshd; how a connection gets here (listener or
// reverse tunnel) is not its business.
package ssh
