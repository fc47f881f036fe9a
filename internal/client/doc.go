// Package client is what tsh and tctl are made of: the profile directory
// (~/.tsh), identity files, logging in at the Proxy, and connections through the
// Proxy to the Auth API and to nodes:
//
//	tsh login      TLS, ALPN teleport-proxy-grpc    LoginService
//	tsh ls, tctl   TLS, ALPN teleport-auth@<name>   gRPC end to end with Auth
//	tsh ssh        TLS, ALPN teleport-proxy-ssh     DialRequest, DialResponse, SSH end to end with the node
//
// It knows no command line and decides nothing about access: Auth and the agents
// do. Nothing is trusted on first use.
package client
