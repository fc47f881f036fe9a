package config

import (
	"net/netip"
	"strconv"

	"teleport/internal/types"
)

func authSchema(a *AuthConfig) schema {
	s := schema{
		"enabled":     setBool(&a.Enabled),
		"listen_addr": setAddr(&a.ListenAddr, DefaultAuthPort, true),
		"public_addr": addAddrs(&a.PublicAddrs),
		"cluster_name": func(v value) {
			name, ok := v.text("a cluster name")
			if ok && !validHostname(name) {
				v.bad("bad cluster name %s: expected a DNS name such as teleport.example.com", quote(name))
				return
			}
			a.ClusterName = name
		},
		"tokens": func(v value) {
			v.list("tokens", func(e value) {
				s, ok := e.text("\"role,role:token\"")
				if !ok {
					return
				}
				tok, warning, err := parseStaticToken(s)
				if err != nil {
					e.bad("%s", err)
					return
				}
				if warning != "" {
					e.d.warnings = append(e.d.warnings, warning)
				}
				a.Tokens = append(a.Tokens, tok)
			})
		},
	}
	return withKnown(s, knownAuth())
}

func proxySchema(p *ProxyConfig) schema {
	s := schema{
		"openssh_source_addrs": openSSHSources(p),

		"enabled":         setBool(&p.Enabled),
		"web_listen_addr": setAddr(&p.WebListenAddr, DefaultProxyPort, true),
		"public_addr":     addAddrs(&p.PublicAddrs),
		"https_keypairs": func(v value) {
			v.list("key_file and cert_file pairs", func(e value) { p.HTTPSKeypairs = append(p.HTTPSKeypairs, keypair(e)) })
		},
		"https_keypairs_reload_interval": func(v value) {
			if t, ok := v.duration(); ok {
				p.HTTPSKeypairsReloadInterval = t
			}
		},
	}
	return withKnown(s, knownProxy())
}

func openSSHSources(p *ProxyConfig) func(value) {
	return func(v value) {
		v.oneOrList("IP addresses", func(e value) {
			text, ok := e.text("an IP address")
			if !ok {
				return
			}
			addr, err := netip.ParseAddr(text)
			switch {
			case err != nil || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast():
				e.bad("%s is no IP address that servers can see: expected one such as 203.0.113.7", quote(text))
			case len(p.OpenSSHSources) == maxSources:
				e.bad("more than %d addresses", maxSources)
			default:
				p.OpenSSHSources = append(p.OpenSSHSources, addr.Unmap())
			}
		})
	}
}

// maxSources, and the address that a Proxy knows itself, fit a certificate.
const maxSources = 7

func keypair(v value) Keypair {
	var k Keypair
	before := len(v.d.problems)
	v.mapping(schema{"key_file": setPath(&k.KeyFile), "cert_file": setPath(&k.CertFile)})
	if len(v.d.problems) == before && (k.KeyFile == "" || k.CertFile == "") {
		v.bad("expected both key_file and cert_file")
	}
	return k
}

func sshSchema(c *SSHConfig) schema {
	s := schema{
		"enabled":     setBool(&c.Enabled),
		"listen_addr": setAddr(&c.ListenAddr, DefaultSSHPort, true),
		"public_addr": addAddrs(&c.PublicAddrs),
		"labels":      func(v value) { readLabels(v, c.Labels) },
		"commands": func(v value) {
			v.list("commands", func(e value) {
				cmd := labelCommand(e)
				for _, other := range c.Commands {
					if other.Name == cmd.Name && cmd.Name != "" {
						e.bad("a second command for the label %s: expected one", quote(cmd.Name))
					}
				}
				c.Commands = append(c.Commands, cmd)
			})
		},
		"port_forwarding": setBool(&c.PortForwarding),
		"ssh_file_copy":   setBool(&c.FileCopy),
		"disable_create_host_user": func(v value) {
			if off, ok := v.boolean(); ok {
				c.CreateHostUsers = !off
			}
		},
		"x11": func(v value) { readX11(v, &c.X11) },
		"pam": part(pamSchema(&c.PAM)),
	}
	return withKnown(s, knownSSH())
}

// readX11 reads the displays of X11 forwarding. The last is so many after the first if
// only the first is given.
func readX11(v value, x *X11Config) {
	last := false
	v.mapping(schema{
		"enabled":        setBool(&x.Enabled),
		"display_offset": setDisplay(&x.DisplayOffset),
		"max_display": func(e value) {
			last = true
			setDisplay(&x.MaxDisplay)(e)
		},
	})
	if !last {
		x.MaxDisplay = min(x.DisplayOffset+displays, lastDisplay)
	}
	if x.MaxDisplay < x.DisplayOffset {
		v.bad("max_display %d is before display_offset %d", x.MaxDisplay, x.DisplayOffset)
	}
}

func setDisplay(to *int) func(value) {
	return func(v value) {
		s, ok := v.text("a number")
		if !ok {
			return
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > lastDisplay {
			v.bad("bad number of a display %s: expected 0 to %d", quote(s), lastDisplay)
			return
		}
		*to = n
	}
}

func readLabels(v value, to map[string]string) {
	v.entries("labels, such as env: prod", func(e value, name string) {
		if err := types.ValidLabelKey(name); err != nil {
			e.d.problem(e.keyAt(), e.path, "bad label name: %s", err)
			return
		}
		s, ok := e.text("a string")
		if ok && len(s) > maxLabelValue {
			e.bad("too long: expected at most %d bytes", maxLabelValue)
		}
		to[name] = s
	})
}

// maxLabelValue is what the cluster accepts.
const maxLabelValue = 1024

func labelCommand(v value) Command {
	c := Command{Period: minPeriod}
	before := len(v.d.problems)
	v.mapping(schema{
		"name": func(e value) {
			s, ok := e.text("a label name")
			if !ok {
				return
			}
			if err := types.ValidLabelKey(s); err != nil {
				e.bad("bad label name: %s", err)
			}
			c.Name = s
		},
		"command": func(e value) {
			e.list("words, such as [hostname]", func(w value) {
				if s, ok := w.text("a string"); ok {
					c.Command = append(c.Command, s)
				}
			})
		},
		"period": func(e value) {
			t, ok := e.duration()
			if ok && t < minPeriod {
				e.bad("period %s is too short: expected at least %s", t, minPeriod)
			}
			c.Period = t
		},
	})
	if len(v.d.problems) == before && (c.Name == "" || len(c.Command) == 0 || c.Command[0] == "") {
		v.bad("expected a name and a command, such as {name: hostname, command: [hostname], period: 1m0s}")
	}
	return c
}
