package dbtest

import (
	"os/exec"
	"testing"
)

// Redis runs a Redis server with TLS and client certificates, until the test ends. It has
// the users default, without a password, and alice, whose password is "wonder"; more come
// from the lines, which are added to redis.conf.
func Redis(t testing.TB, lines string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal("redis-server is missing: apt-get install redis-server")
	}
	s := NewServer(t, "redis")
	f := s.Files(t)
	conf := s.Write(t, "redis.conf", "bind 127.0.0.1\nport 0\ntls-port "+s.Port+"\ndir "+s.Dir+"\nsave \"\"\ndaemonize no\n"+
		"tls-cert-file "+f.Cert+"\ntls-key-file "+f.Key+"\ntls-ca-cert-file "+f.CA+"\ntls-auth-clients yes\nuser alice on >wonder ~* &* +@all\n"+lines)
	s.Start(t, s.Listens, "redis-server", conf)
	return s
}
