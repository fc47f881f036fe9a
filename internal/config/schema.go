package config

import (
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"teleport/internal/types"
)

// section is a part of the file with its keys.
type section struct {
	name string
	keys schema
}

// sectionSchemas lists the sections that this version acts on.
func sectionSchemas(c *Config) []section {
	return []section{
		{"teleport", teleportSchema(c)},
		{"auth_service", authSchema(&c.Auth)},
		{"proxy_service", proxySchema(&c.Proxy)},
		{"ssh_service", sshSchema(&c.SSH)},
		{"app_service", appSchema(&c.App)},
		{"db_service", dbSchema(&c.DB)},
	}
}

// topSchema reads the whole file into c, which holds the defaults.
func topSchema(c *Config) schema {
	s := idleSections()
	s["version"] = func(v value) { v.oneOf(V1, V2, V3) }
	for _, sec := range sectionSchemas(c) {
		s[sec.name] = func(v value) { v.mapping(sec.keys) }
	}
	return s
}

func teleportSchema(c *Config) schema {
	s := schema{
		"nodename": func(v value) {
			if name, ok := v.text("a host name"); ok {
				v.badIf(checkNodename(name))
				c.Nodename = name
			}
		},
		"data_dir":     setPath(&c.DataDir),
		"pid_file":     setPath(&c.PIDFile),
		"auth_token":   joinToken(c),
		"join_params":  func(v value) { v.mapping(joinSchema(c)) },
		"ca_pin":       func(v value) { v.oneOrList("CA pins", addPins(c)) },
		"auth_server":  clusterAddr(c, &c.AuthServer, DefaultAuthPort),
		"proxy_server": clusterAddr(c, &c.ProxyServer, DefaultProxyPort),
		"auth_servers": authServers(c),
		"advertise_ip": advertiseIP(c),
		"diag_addr": func(v value) {
			if s, ok := v.text("host:port"); ok && s != "" {
				setAddr(&c.DiagAddr, 0, true)(v)
			}
		},
		"log":     func(v value) { v.mapping(logSchema(&c.Log)) },
		"storage": func(v value) { v.mapping(storageSchema(&c.Storage)) },
	}
	return withKnown(s, knownTeleport())
}

func joinSchema(c *Config) schema {
	s := schema{
		"method": func(v value) {
			m, ok := v.text("a join method")
			if !ok {
				return
			}
			c.Join.Method = strings.ToLower(m)
			if !slices.Contains(types.JoinMethodNames(), c.Join.Method) {
				v.bad("unknown join method %s: expected one of %s", quote(m), strings.Join(types.JoinMethodNames(), ", "))
			}
		},
		"token_name": joinToken(c),
	}
	for section, keys := range joinSettings() {
		inner := schema{}
		for _, key := range keys {
			inner[key] = func(v value) {
				text, ok := v.text("text")
				switch {
				case !ok:
				case text == "" || len(text) > maxSetting:
					v.bad("expected 1 to %d characters", maxSetting)
				default:
					c.Join.set(section+"."+key, text)
				}
			}
		}
		s[section] = func(v value) { v.mapping(inner) }
	}
	return withKnown(s, map[string]func(value){"token_secret": unsupported})
}

// maxSetting bounds the text of a setting of a join method.
const maxSetting = 4096

// joinSettings are the keys that join methods have on the machine, by section.
func joinSettings() map[string][]string {
	return map[string][]string{
		types.JoinMethodAzure:          {"client_id"},
		types.JoinMethodGitLab:         {"token_env_var_name"},
		types.JoinMethodTerraformCloud: {"audience_tag"},
		types.JoinMethodTPM:            {"device"},
		types.JoinMethodOIDC:           {"env", "file", "command"},
		types.JoinMethodBoundKeypair:   {"registration_secret", "registration_secret_path", "key_path"},
	}
}

func (j *JoinParams) set(key, text string) {
	if j.Settings == nil {
		j.Settings = map[string]string{}
	}
	j.Settings[key] = text
}

// joinToken reads the token of auth_token or join_params; one of them is enough.
func joinToken(c *Config) func(value) {
	return func(v value) {
		s, ok := v.text("a join token or the absolute path of a file with it")
		switch {
		case !ok:
		case strings.TrimSpace(s) == "":
			v.bad("empty: expected a join token or the absolute path of a file with it")
		case c.Join.TokenName != "":
			v.bad("a token is given twice: expected either auth_token or join_params.token_name")
		default:
			c.Join.TokenName = strings.TrimSpace(s)
		}
	}
}

func addPins(c *Config) func(value) {
	return func(v value) {
		s, ok := v.text("a CA pin")
		if !ok {
			return
		}
		pins, err := readPins(s)
		if err != nil {
			v.bad("%s", err)
			return
		}
		c.CAPins = append(c.CAPins, pins...)
	}
}

func clusterAddr(c *Config, to *string, port int) func(value) {
	return func(v value) {
		if c.Version != V3 {
			v.bad("needs \"version: v3\" at the top of the file: in %s the address stands in auth_servers", c.Version)
			return
		}
		setAddr(to, port, false)(v)
	}
}

func authServers(c *Config) func(value) {
	return func(v value) {
		if c.Version == V3 {
			v.bad("not part of version v3: expected proxy_server or auth_server")
			return
		}
		n := 0
		v.oneOrList("addresses", func(e value) {
			if n++; n == 2 {
				e.bad("more than one address is not supported yet: expected one")
			}
			if n == 1 {
				setAddr(&c.AuthServer, DefaultAuthPort, false)(e)
			}
		})
	}
}

func advertiseIP(c *Config) func(value) {
	return func(v value) {
		if s, ok := v.text("an IP address or host name"); ok {
			v.badIf(checkAdvertised(s))
			c.AdvertiseIP = s
		}
	}
}

func logSchema(l *Log) schema {
	return schema{
		"output": func(v value) {
			s, ok := v.text("stderr, stdout or a path")
			switch strings.ToLower(s) {
			case LogStderr, "err":
				l.Output = LogStderr
			case LogStdout, "out":
				l.Output = LogStdout
			case "syslog":
				v.bad("output syslog is not supported yet: expected stderr, stdout or the absolute path of a file")
			default:
				if ok && !strings.HasPrefix(s, "/") {
					v.bad("bad output %s: expected stderr, stdout or the absolute path of a file", quote(s))
				}
				l.Output = s
			}
		},
		"severity": func(v value) { logSeverity(l, v) },
		"format":   func(v value) { v.mapping(logFormatSchema(l)) },
	}
}

func logSeverity(l *Log, v value) {
	s, ok := v.text("DEBUG, INFO, WARN or ERROR")
	if !ok {
		return
	}
	switch strings.ToLower(s) {
	case "debug":
		l.Severity = slog.LevelDebug
	case "info":
		l.Severity = slog.LevelInfo
	case "warn", "warning":
		l.Severity = slog.LevelWarn
	case "err", "error":
		l.Severity = slog.LevelError
	case "trace":
		v.bad("severity TRACE is not supported yet: expected DEBUG, INFO, WARN or ERROR")
	default:
		v.bad("expected DEBUG, INFO, WARN or ERROR, found %s", quote(s))
	}
}

func logFormatSchema(l *Log) schema {
	return schema{
		"output": func(v value) {
			if s, ok := v.oneOf(LogText, LogJSON); ok {
				l.Format = s
			}
		},
		"extra_fields": func(v value) {
			l.ExtraFields = []string{}
			v.list("field names", func(e value) {
				if s, ok := e.oneOf(LogFields()...); ok {
					l.ExtraFields = append(l.ExtraFields, s)
				}
			})
		},
	}
}

func storageSchema(st *Storage) schema {
	s := schema{
		"type": func(v value) {
			t, ok := v.text("sqlite")
			switch {
			case !ok || strings.EqualFold(t, "sqlite") || strings.EqualFold(t, "dir"):
			case known([]string{"etcd", "postgresql", "dynamodb", "firestore", "cockroachdb"}, t):
				v.bad("storage %s is not supported yet: expected sqlite", quote(t))
			default:
				v.bad("unknown storage %s: expected sqlite", quote(t))
			}
		},
		"path": setPath(&st.Path),
	}
	return withKnown(s, knownStorage())
}

func setBool(to *bool) func(value) {
	return func(v value) {
		if b, ok := v.boolean(); ok {
			*to = b
		}
	}
}

func setPath(to *string) func(value) {
	return func(v value) {
		if s, ok := v.absPath(); ok {
			*to = s
		}
	}
}

func setAddr(to *string, defaultPort int, listen bool) func(value) {
	return func(v value) {
		s, ok := v.text("host:port")
		if !ok {
			return
		}
		addr, err := parseAddr(s, defaultPort, listen)
		if err != nil {
			v.bad("%s", err)
			return
		}
		*to = addr
	}
}

// addAddrs reads public addresses. One without a port gets the port of the
// listener, which may stand further down: until fillPorts it is 0.
func addAddrs(to *[]string) func(value) {
	return func(v value) {
		v.oneOrList("addresses", func(e value) {
			addr := ""
			if setAddr(&addr, portLater, false)(e); addr != "" {
				*to = append(*to, addr)
			}
		})
	}
}

// fillPorts gives the public addresses without a port that of the listener.
func fillPorts(addrs []string, listen string, otherwise int) {
	port := portOf(listen)
	if port == 0 {
		port = otherwise
	}
	for i, a := range addrs {
		if host, ok := strings.CutSuffix(a, ":0"); ok {
			addrs[i] = host + ":" + strconv.Itoa(port)
		}
	}
}
