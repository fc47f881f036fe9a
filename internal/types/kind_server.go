package types

import (
	"net"
	"strconv"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// serverKind is the row of a kind whose message is Server.
func serverKind(name, plural string, subKinds ...string) KindInfo {
	return KindInfo{
		Name: name, Plural: plural, Aliases: serverAliases(name),
		New:      func() Resource { return &typesv1.Server{} },
		Defaults: defaults(defaultServer),
		Validate: validate(validateServer),
		Columns: []Column{
			column("Host", func(s *typesv1.Server) string { return s.GetSpec().GetHostname() }),
			nameColumn("UUID"),
			column("Public Address", func(s *typesv1.Server) string {
				if pub := s.GetSpec().GetPublicAddrs(); len(pub) > 0 {
					return strings.Join(pub, ",")
				}
				return s.GetSpec().GetAddr()
			}),
			column("Labels", func(s *typesv1.Server) string { return labelText(ServerLabels(s)) }),
			column("Version", func(s *typesv1.Server) string { return s.GetSpec().GetVersion() }),
		},
		Served:   true,
		versions: []string{"v2"},
		subKinds: subKinds,
		name:     ValidName,
	}
}

// SubKindOpenSSH is the sub_kind of nodes that run only OpenSSH: no agent of ours keeps
// them, and the Proxy logs users in to them. The others are those of agents.
const (
	SubKindOpenSSH  = "openssh"
	subKindTeleport = "teleport"
)

// sshNodeKind is the row of nodes. People write those of sub_kind openssh.
func sshNodeKind() KindInfo {
	k := serverKind(KindNode, "nodes", subKindTeleport, SubKindOpenSSH)
	k.Writable = true
	k.Validate = validate(func(s *typesv1.Server, c *checker) {
		validateServer(s, c)
		if s.GetSubKind() != SubKindOpenSSH {
			return
		}
		if s.GetSpec().GetAddr() == "" {
			c.add("spec.addr", "missing: an OpenSSH server is reached at host:port")
		}
		if s.GetSpec().GetUseTunnel() {
			c.add("spec.use_tunnel", "an OpenSSH server has no tunnel")
		}
		if len(s.GetSpec().GetCmdLabels()) > 0 {
			c.add("spec.cmd_labels", "an OpenSSH server runs no commands for labels: use metadata.labels")
		}
	})
	return k
}

func serverAliases(kind string) []string {
	switch kind {
	case KindNode:
		return []string{"server", "servers"}
	case KindAuthServer:
		return []string{"auth", "auths"}
	}
	return nil
}

func defaultServer(s *typesv1.Server) {
	if s.Spec == nil {
		s.Spec = &typesv1.ServerSpec{}
	}
}

func validateServer(s *typesv1.Server, c *checker) {
	spec := s.GetSpec()
	c.check("spec.hostname", ValidHostname(spec.GetHostname()))
	if spec.GetAddr() != "" {
		c.check("spec.addr", validAddr(spec.GetAddr()))
	}
	c.names("spec.public_addrs", spec.GetPublicAddrs(), validAddr)
	c.text("spec.version", spec.GetVersion(), maxName)
	validateCommandLabels("spec.cmd_labels", spec.GetCmdLabels(), c)
}

// validateCommandLabels checks labels that are results of commands.
func validateCommandLabels(path string, labels map[string]*typesv1.CommandLabel, c *checker) {
	if len(labels) > maxLabels {
		c.add(path, "%d labels, the most is %d", len(labels), maxLabels)
		return
	}
	for _, k := range sortedKeys(labels) {
		at := path + "[" + k + "]"
		if err := ValidLabelKey(k); err != nil {
			c.add(at, "%v", err)
			continue
		}
		label := labels[k]
		c.text(at+".result", label.GetResult(), maxLabelValue)
		if p := label.GetPeriod(); p != "" {
			_, err := ParseDuration(p)
			c.check(at+".period", err)
		}
	}
}

// validAddr checks host:port, where host is a name or an IP address.
func validAddr(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fault.Invalid("%q is not an address: write it as host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fault.Invalid("%q: the port must be a number from 1 to 65535", s)
	}
	if net.ParseIP(host) != nil {
		return nil
	}
	return ValidHostname(host)
}

func instanceKind() KindInfo {
	return KindInfo{
		Name: KindInstance, Plural: "instances",
		New:      func() Resource { return &typesv1.Instance{} },
		Defaults: defaults(defaultInstance),
		Validate: validate(validateInstance),
		Columns: []Column{
			nameColumn("Host ID"),
			column("Host", func(i *typesv1.Instance) string { return i.GetSpec().GetHostname() }),
			column("Services", func(i *typesv1.Instance) string { return strings.Join(i.GetSpec().GetRoles(), ",") }),
			column("Join Method", func(i *typesv1.Instance) string { return i.GetSpec().GetJoinMethod() }),
		},
		Served:   true,
		versions: []string{"v1"},
		name:     ValidName,
	}
}

func defaultInstance(i *typesv1.Instance) {
	if i.Spec == nil {
		i.Spec = &typesv1.InstanceSpec{}
	}
	for n, name := range i.Spec.Roles {
		if r, err := ParseSystemRole(name); err == nil {
			i.Spec.Roles[n] = string(r)
		}
	}
}

func validateInstance(i *typesv1.Instance, c *checker) {
	s := i.GetSpec()
	c.check("spec.hostname", ValidHostname(s.GetHostname()))
	c.names("spec.roles", s.GetRoles(), func(name string) error {
		_, err := ParseSystemRole(name)
		return err
	})
	c.labels("spec.labels", s.GetLabels())
	c.time("status.joined", i.GetStatus().GetJoined())
	c.time("status.renewed", i.GetStatus().GetRenewed())
}
