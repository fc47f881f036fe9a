// Package sshd is the skeleton of an SSH server: handshake limits and deadlines,
// strict algorithms, channels, requests and sessions with their processes and
// terminals. Who may log in, as whom and what is written to the audit log are
// callbacks: the package knows nothing of roles, certificates or the cluster.
//
// A connection goes like this:
//
//	version, key exchange      strict algorithms, one deadline for all of it
//	publickey offered          Config.Authenticate: could this key log in?
//	publickey proved           Config.Authorize: may it? (never called for a mere offer)
//	channel "session"          env, pty-req, then one of shell, exec, subsystem
//	                           Config.Session runs it; its Exit becomes exit-status
//	channel "direct-..."       Forwarding.Dial, then bytes both ways
//	"tcpip-forward" and alike  Forwarding.Listen; each connection is a channel back
//	"auth-agent-req", "x11-req" in a session: Forwarding.Agent, Forwarding.X11
//	anything else              refused
package sshd
