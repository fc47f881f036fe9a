package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"teleport/internal/fault"
	"teleport/internal/types"
)

// GenerateParams is what a new configuration file should say. The zero value is
// a whole cluster on one host.
type GenerateParams struct {
	// Version is V3, the default, and nothing else.
	Version string
	// Roles are those of Auth, Proxy, Node, App and Db; none means the first three.
	Roles []types.SystemRole
	// Token is a join token or the absolute path of a file with it.
	Token string
	// JoinMethod is "token" if empty.
	JoinMethod string
	// ProxyServer and AuthServer are where to find the cluster; at most one is set,
	// and only without the Auth role.
	ProxyServer string
	AuthServer  string
	CAPins      []string
	// ClusterName needs the Auth role.
	ClusterName string
	DataDir     string
	NodeName    string
	// NodeLabels need the Node role.
	NodeLabels map[string]string
	// PublicAddr, CertFile and KeyFile are the Proxy's and need its role.
	PublicAddr string
	CertFile   string
	KeyFile    string
	// App is served by the Application Service, and DB by the Database Service; they need
	// its role. Without one, and without a matcher, those services serve what the cluster
	// has.
	App AppParams
	DB  DatabaseParams
}

func (p *GenerateParams) has(r types.SystemRole) bool { return slices.Contains(p.Roles, r) }

// Generate writes a configuration file. What it returns is always accepted by
// Parse, if the files that it names are there; when the parameters do not go together, it says which.
func Generate(p GenerateParams) ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	var w yamlWriter
	w.line(0, "version: "+V3)
	p.writeTeleport(&w)
	p.writeAuth(&w)
	p.writeProxy(&w)
	p.writeSSH(&w)
	p.writeApp(&w)
	p.writeDB(&w)
	if w.odd != "" {
		return nil, fault.Invalid("bad value for %s: line breaks and control characters are not allowed", w.odd)
	}
	if _, err := parse(&decoder{elsewhere: true}, w.Bytes()); err != nil {
		return nil, withoutPlaces(err)
	}
	return w.Bytes(), nil
}

// withoutPlaces drops the lines of a text that nobody will see.
func withoutPlaces(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	out := &Error{}
	for _, p := range e.Problems {
		out.Problems = append(out.Problems, Problem{Key: p.Key, Text: p.Text})
	}
	return out
}

func (p *GenerateParams) check() error {
	if p.Version != "" && p.Version != V3 {
		return fault.Invalid("--version=%s cannot be generated: expected %s", p.Version, V3)
	}
	if len(p.Roles) == 0 {
		p.Roles = []types.SystemRole{types.RoleAuth, types.RoleProxy, types.RoleNode}
	}
	for _, r := range p.Roles {
		if !slices.Contains(runnable(), r) {
			return fault.Unsupported("--roles: %s is not supported yet: expected some of %s", r.Flag(), Runnable())
		}
	}
	if p.JoinMethod == "" {
		p.JoinMethod = types.JoinMethodToken
	}
	if !slices.Contains(types.JoinMethodNames(), p.JoinMethod) {
		return fault.Invalid("--join-method=%s: expected one of %s", p.JoinMethod, strings.Join(types.JoinMethodNames(), ", "))
	}
	if p.DataDir == "" {
		p.DataDir = DefaultDataDir
	}
	if p.NodeName == "" {
		p.NodeName = hostname()
	}
	auth := p.has(types.RoleAuth)
	switch {
	case auth && (p.ProxyServer != "" || p.AuthServer != ""):
		return fault.Invalid("--proxy and --auth-server are for joining a cluster, but the roles include auth, which makes one: add --roles=node (or --roles=proxy)")
	case p.ProxyServer != "" && p.AuthServer != "":
		return fault.Invalid("expected either --proxy or --auth-server, not both")
	case !auth && p.ProxyServer == "" && p.AuthServer == "":
		return fault.Invalid("without the auth role, --proxy=host:port or --auth-server=host:port must say where the cluster is")
	case !auth && p.ClusterName != "":
		return fault.Invalid("--cluster-name needs the auth role: other services get the name from the cluster")
	case !p.has(types.RoleProxy) && (p.PublicAddr != "" || p.CertFile != "" || p.KeyFile != ""):
		return fault.Invalid("--public-addr, --cert-file and --key-file are the Proxy Service's: they need the proxy role")
	case (p.CertFile == "") != (p.KeyFile == ""):
		return fault.Invalid("expected both --cert-file and --key-file, or neither")
	case !p.has(types.RoleNode) && len(p.NodeLabels) > 0:
		return fault.Invalid("--node-labels needs the node role")
	}
	if err := p.checkServed(); err != nil {
		return err
	}
	for _, path := range []string{p.CertFile, p.KeyFile, p.DataDir, p.DB.CACertFile} {
		if path != "" && !filepath.IsAbs(path) {
			return fault.Invalid("bad path %q: expected an absolute path", path)
		}
	}
	return nil
}

func (p *GenerateParams) writeTeleport(w *yamlWriter) {
	w.line(0, "teleport:")
	w.pair(1, "nodename", p.NodeName)
	w.pair(1, "data_dir", p.DataDir)
	if p.Token != "" {
		w.line(1, "join_params:")
		w.pair(2, "token_name", p.Token)
		w.line(2, "method: "+p.JoinMethod)
	}
	if p.ProxyServer != "" {
		w.pair(1, "proxy_server", p.ProxyServer)
	}
	if p.AuthServer != "" {
		w.pair(1, "auth_server", p.AuthServer)
	}
	w.line(1, "log:")
	w.line(2, "output: stderr")
	w.line(2, "severity: INFO")
	w.line(2, "format:")
	w.line(3, "output: text")
	switch len(p.CAPins) {
	case 0:
		w.pair(1, "ca_pin", "")
	case 1:
		w.pair(1, "ca_pin", p.CAPins[0])
	default:
		w.line(1, "ca_pin:")
		for _, pin := range p.CAPins {
			w.line(1, "- "+strconv.Quote(pin))
		}
	}
}

func (p *GenerateParams) writeAuth(w *yamlWriter) {
	w.enabled("auth_service", p.has(types.RoleAuth))
	if !p.has(types.RoleAuth) {
		return
	}
	w.pair(1, "listen_addr", anyAddr(DefaultAuthPort))
	if p.ClusterName != "" {
		w.pair(1, "cluster_name", p.ClusterName)
	}
}

func (p *GenerateParams) writeProxy(w *yamlWriter) {
	w.enabled("proxy_service", p.has(types.RoleProxy))
	if !p.has(types.RoleProxy) {
		return
	}
	listen := anyAddr(DefaultProxyPort)
	if _, port, err := net.SplitHostPort(p.PublicAddr); err == nil {
		listen = net.JoinHostPort("0.0.0.0", port)
	}
	w.pair(1, "web_listen_addr", listen)
	if p.PublicAddr != "" {
		w.pair(1, "public_addr", p.PublicAddr)
	}
	if p.CertFile != "" {
		w.line(1, "https_keypairs:")
		w.pair(1, "- cert_file", p.CertFile)
		w.pair(2, "key_file", p.KeyFile)
	}
}

func (p *GenerateParams) writeSSH(w *yamlWriter) {
	w.enabled("ssh_service", p.has(types.RoleNode))
	if !p.has(types.RoleNode) {
		return
	}
	w.labels(1, "labels", p.NodeLabels)
	w.line(1, "commands:")
	w.line(1, "- name: hostname")
	w.line(2, "command: [hostname]")
	w.line(2, "period: 1m0s")
}

// yamlWriter writes the little YAML that a configuration needs, two spaces a
// level and every value from outside in double quotes.
type yamlWriter struct {
	bytes.Buffer
	// odd is the key of a value that cannot be written, or empty.
	odd string
}

func (w *yamlWriter) line(level int, text string) {
	fmt.Fprintf(w, "%s%s\n", strings.Repeat("  ", level), text)
}

func (w *yamlWriter) pair(level int, key, val string) {
	if !utf8.ValidString(val) || strings.ContainsFunc(val, unicode.IsControl) {
		w.odd = key
	}
	w.line(level, key+": "+quoteYAML(val))
}

func (w *yamlWriter) labels(level int, key string, labels map[string]string) {
	if len(labels) == 0 {
		return
	}
	w.line(level, key+":")
	w.labelLines(level+1, labels)
}

func (w *yamlWriter) labelLines(level int, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		w.pair(level, strconv.Quote(k), labels[k])
	}
}

func (w *yamlWriter) enabled(section string, on bool) {
	w.line(0, section+":")
	w.line(1, "enabled: "+map[bool]string{true: "yes", false: "no"}[on])
}

// quoteYAML returns the value in double quotes, where only the quote and the
// backslash need an escape once control characters are out.
func quoteYAML(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
