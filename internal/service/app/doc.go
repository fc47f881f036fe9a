// Package app is the Application Service: it lets the users of the cluster reach web and
// TCP applications that this host reaches. A user comes with a certificate for one
// application; the service believes it by the user CA, decides by the roles, the labels
// and the locks (RBAC at the agent), for each connection and again when one of them
// changes, and passes on what the user sends.
//
// A request of HTTP is passed on as it came: method, path, query and body to the byte, and
// its headers but for those of the connection itself (RFC 9110 section 7.6.1), Host, what
// the configuration of the application says of headers, and headers by which Teleport
// tells an application who asks. Whatever could be read in two ways is refused.
//
// How a connection gets here (reverse tunnel) and how browsers are signed in (the Proxy) is
// not its business.
package app
