package config

import (
	"fmt"
	"slices"

	typesv1 "teleport/api/types/v1"
)

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
	ck.values(c)
	ck.services(c)
	ck.cluster(c)
	ck.listeners(c)
	if err := asError(ck.problems); err != nil {
		return err
	}
	if !c.Auth.Enabled && c.Version != V3 && c.AuthServer == "" && c.ProxyServer == "" {
		c.AuthServer = fmt.Sprintf("127.0.0.1:%d", DefaultAuthPort)
	}
	for section, idle := range map[string]bool{
		"app_service": c.App.Enabled && !c.App.Debug && len(c.App.Apps)+len(c.App.Matchers) == 0,
		"db_service":  c.DB.Enabled && len(c.DB.Databases)+len(c.DB.Matchers) == 0,
	} {
		if idle {
			c.Warnings = append(c.Warnings, section+" is enabled and serves nothing: name what it is to serve, or say by resources which of the cluster's it takes")
		}
	}
	return nil
}

// Wrong returns the error that a key has a value that this host cannot do with, in the
// form and with the place of those that Check finds.
func (c *Config) Wrong(key, format string, args ...any) error {
	ck := checker{source: c.source}
	ck.add([]string{key}, format, args...)
	return asError(ck.problems)
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

// values checks what flags may have set; what came from a file is good already,
// so these problems have no place in it.
func (ck *checker) values(c *Config) {
	bad := func(key string, err error) {
		if err != nil {
			ck.problems = append(ck.problems, Problem{Key: key, Text: err.Error()})
		}
	}
	addrs := []struct {
		key    string
		addr   *string
		port   int
		listen bool
	}{
		{"teleport.auth_server", &c.AuthServer, DefaultAuthPort, false},
		{"teleport.proxy_server", &c.ProxyServer, DefaultProxyPort, false},
		{"teleport.diag_addr", &c.DiagAddr, 0, true},
		{"auth_service.listen_addr", &c.Auth.ListenAddr, DefaultAuthPort, true},
		{"proxy_service.web_listen_addr", &c.Proxy.WebListenAddr, DefaultProxyPort, true},
		{"ssh_service.listen_addr", &c.SSH.ListenAddr, DefaultSSHPort, true},
	}
	for _, a := range addrs {
		if *a.addr == "" {
			continue
		}
		addr, err := parseAddr(*a.addr, a.port, a.listen)
		bad(a.key, err)
		if err == nil {
			*a.addr = addr
		}
	}
	bad("teleport.data_dir", checkPath(c.DataDir))
	if c.PIDFile != "" {
		bad("teleport.pid_file", checkPath(c.PIDFile))
	}
	bad("teleport.nodename", checkNodename(c.Nodename))
	if c.AdvertiseIP != "" {
		bad("teleport.advertise_ip", checkAdvertised(c.AdvertiseIP))
	}
}

func (ck *checker) services(c *Config) {
	if !c.Auth.Enabled && !c.Proxy.Enabled && !c.SSH.Enabled && !c.App.Enabled && !c.DB.Enabled {
		ck.add([]string{"ssh_service.enabled", "app_service.enabled", "db_service.enabled", "proxy_service.enabled", "auth_service.enabled"},
			"nothing to run: expected at least one of auth_service, proxy_service, ssh_service, app_service and db_service to be enabled")
	}
	for _, s := range []struct {
		name string
		on   bool
	}{{"app_service", c.App.Enabled}, {"db_service", c.DB.Enabled}} {
		if s.on && c.Auth.Enabled && !c.Proxy.Enabled {
			ck.add([]string{s.name + ".enabled", s.name}, "it is reached through a Proxy only, and this process runs an Auth Service without one: "+
				"set proxy_service.enabled to yes, or run it in a process of its own with teleport.proxy_server")
		}
	}
	if c.App.Enabled && c.App.Debug && slices.ContainsFunc(c.App.Apps, func(a *typesv1.App) bool { return a.GetMetadata().GetName() == DebugApp }) {
		ck.add([]string{"app_service.debug_app"}, "the name of the debugging application, %q, is another application's: rename that one", DebugApp)
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
