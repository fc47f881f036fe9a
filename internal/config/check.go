package config

import "fmt"

// position is a place in a file.
type position struct{ line, column int }

// source remembers where the keys of a file stand, so that Check can point at
// them.
type source struct {
	file string
	at   map[string]position
}

// Check looks at the configuration as a whole. It is for a Config that is
// complete: file and flags. It fills in what follows from other fields.
func (c *Config) Check() error {
	ck := checker{source: c.source}
	ck.services(c)
	ck.cluster(c)
	ck.listeners(c)
	if err := asError(ck.problems); err != nil {
		return err
	}
	if !c.Auth.Enabled && c.Version != V3 && c.AuthServer == "" && c.ProxyServer == "" {
		c.AuthServer = fmt.Sprintf("127.0.0.1:%d", DefaultAuthPort)
	}
	return nil
}

type checker struct {
	source
	problems []Problem
}

// add reports a problem with the first of the keys that the file has.
func (ck *checker) add(keys []string, format string, args ...any) {
	p := Problem{File: ck.file, Key: keys[0], Text: fmt.Sprintf(format, args...)}
	for _, k := range keys {
		if at, ok := ck.at[k]; ok {
			p.Key, p.Line, p.Column = k, at.line, at.column
			break
		}
	}
	ck.problems = append(ck.problems, p)
}

func (ck *checker) services(c *Config) {
	if !c.Auth.Enabled && !c.Proxy.Enabled && !c.SSH.Enabled {
		ck.add([]string{"ssh_service.enabled", "proxy_service.enabled", "auth_service.enabled"},
			"nothing to run: expected at least one of auth_service, proxy_service and ssh_service to be enabled")
	}
}

func (ck *checker) cluster(c *Config) {
	const auth, proxy = "teleport.auth_server", "teleport.proxy_server"
	switch {
	case c.AuthServer != "" && c.ProxyServer != "":
		ck.add([]string{proxy}, "expected either proxy_server or auth_server, not both: keep proxy_server unless this host must reach the Auth Service directly")
	case c.Auth.Enabled && c.ProxyServer != "":
		ck.add([]string{proxy}, "the Auth Service of this process is on (it is by default), so there is no cluster to reach through a Proxy: set auth_service.enabled to no, or remove proxy_server")
	case !c.Auth.Enabled && c.Version == V3 && c.AuthServer == "" && c.ProxyServer == "":
		ck.add([]string{proxy, "teleport"}, "missing: expected the cluster's address in proxy_server (host:port of the Proxy) or auth_server, because auth_service is not enabled")
	}
}

func (ck *checker) listeners(c *Config) {
	type listener struct {
		key, addr string
		on        bool
	}
	all := []listener{
		{"auth_service.listen_addr", c.Auth.ListenAddr, c.Auth.Enabled},
		{"proxy_service.web_listen_addr", c.Proxy.WebListenAddr, c.Proxy.Enabled},
		{"ssh_service.listen_addr", c.SSH.ListenAddr, c.SSH.Enabled},
		{"teleport.diag_addr", c.DiagAddr, c.DiagAddr != ""},
	}
	seen := map[string]string{}
	for _, l := range all {
		if !l.on || anyPort(l.addr) {
			continue
		}
		if other, taken := seen[l.addr]; taken {
			ck.add([]string{l.key, other}, "%s is the address of %s as well: expected a port of its own", l.addr, other)
			continue
		}
		seen[l.addr] = l.key
	}
}
