// Package config reads teleport.yaml: strictly, with the file, line, column and
// key of every problem in one go, into values that services can use as they
// are. It also writes the file that `teleport configure` prints. It knows no
// service and starts nothing; package process turns a Config into services.
//
// Reading is two steps. Parse turns text into a Config and refuses what is
// misspelt, malformed or not supported by this version. Check then looks at the
// whole, after command-line flags had their say, for fields that do not go
// together. Load does both.
package config

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"teleport/internal/types"
)

// Paths and ports that hold when the configuration says nothing else.
const (
	DefaultPath    = "/etc/teleport.yaml"
	DefaultDataDir = "/var/lib/teleport"

	DefaultAuthPort  = 3025
	DefaultProxyPort = 3080
	DefaultSSHPort   = 3022
)

// Versions of the file's format. A file without one is V1.
const (
	V1 = "v1"
	V2 = "v2"
	V3 = "v3"
)

// minPeriod is the shortest time between two runs of a label command.
const minPeriod = time.Minute

// Config is one process's configuration. Addresses are "host:port" (IPv6 hosts
// in brackets), paths are absolute, and the zero value of an optional field
// means that it was not given.
type Config struct {
	// Version is V1, V2 or V3.
	Version string
	// Nodename is the name of this host in the cluster.
	Nodename string
	DataDir  string
	PIDFile  string
	// Join says how the process gets in; auth_token ends up here as well.
	Join JoinParams
	// CAPins are "sha256:" pins of the cluster's host CA.
	CAPins []string
	// AuthServer and ProxyServer are where to find the cluster. At most one is
	// set. The auth_servers of V1 and V2 end up in AuthServer, and there it may
	// be the address of a Proxy.
	AuthServer  string
	ProxyServer string
	// AdvertiseIP is an IP address or host name, without a port.
	AdvertiseIP string
	// DiagAddr is where to serve health and metrics, or empty.
	DiagAddr string
	Log      Log
	Storage  Storage
	Auth     AuthConfig
	Proxy    ProxyConfig
	SSH      SSHConfig
	App      AppConfig
	DB       DatabaseConfig
	// Warnings are one-line remarks for the operator, to be logged at start.
	Warnings []string

	source source
}

// JoinParams says how a process proves that it may join.
type JoinParams struct {
	// Method is the join method; empty leaves it to the token.
	Method string
	// TokenName is the name of the token or, for method token, the secret, or the
	// absolute path of a file with it (see ReadToken). Empty means that nothing was
	// configured.
	TokenName string
	// Settings are the other keys, by their path below join_params ("azure.client_id").
	Settings map[string]string
}

// String returns the method only, because TokenName is a secret.
func (j JoinParams) String() string {
	name := j.Method
	if name == "" {
		name = "method of the token"
	}
	if j.TokenName == "" {
		return name + " (no token)"
	}
	return name + " (token redacted)"
}

// LogValue keeps the token out of logs.
func (j JoinParams) LogValue() slog.Value { return slog.StringValue(j.String()) }

// Storage says where an Auth Service keeps the cluster's state.
type Storage struct {
	// Type is "sqlite".
	Type string
	// Path is the directory of the database, or empty for <data_dir>/backend.
	Path string
}

// AuthConfig is the auth_service section.
type AuthConfig struct {
	Enabled     bool
	ListenAddr  string
	PublicAddrs []string
	// ClusterName is empty when Auth may choose one at its first start.
	ClusterName string
	Tokens      []StaticToken
}

// StaticToken is a join token from the file: it is in force as long as the file
// says so. A value that was a path has been read.
type StaticToken struct {
	Roles []types.SystemRole
	Value string
}

// String returns the roles only, because the value is a secret.
func (t StaticToken) String() string { return fmt.Sprintf("%v (token redacted)", t.Roles) }

// LogValue keeps the value out of logs.
func (t StaticToken) LogValue() slog.Value { return slog.StringValue(t.String()) }

// ProxyConfig is the proxy_service section.
type ProxyConfig struct {
	Enabled       bool
	WebListenAddr string
	PublicAddrs   []string
	HTTPSKeypairs []Keypair
	// HTTPSKeypairsReloadInterval is how often to read the key pairs again; zero
	// means never.
	HTTPSKeypairsReloadInterval time.Duration
	// OpenSSHSources are the addresses that OpenSSH servers see the Proxy come from,
	// where address translation makes them others than its own.
	OpenSSHSources []netip.Addr
}

// Keypair names the files of a certificate and its key.
type Keypair struct {
	KeyFile  string
	CertFile string
}

// SSHConfig is the ssh_service section.
type SSHConfig struct {
	Enabled     bool
	ListenAddr  string
	PublicAddrs []string
	Labels      map[string]string
	Commands    []Command
	// PortForwarding, FileCopy and CreateHostUsers let roles decide; without them the
	// host refuses to everybody.
	PortForwarding  bool
	FileCopy        bool
	CreateHostUsers bool
	X11             X11Config
	PAM             PAMConfig
}

// X11Config is the x11 part of the ssh_service section.
type X11Config struct {
	Enabled bool
	// DisplayOffset is the first display, MaxDisplay the last.
	DisplayOffset, MaxDisplay int
}

// Command is a label whose value is the output of a command.
type Command struct {
	Name    string
	Command []string
	Period  time.Duration
}

// The displays of X11 forwarding, if the file does not say.
const (
	defaultDisplay = 10
	displays       = 1000
	// lastDisplay is the last whose port is one.
	lastDisplay = 59535
)

// Default returns the configuration of `teleport start` with no file: a whole
// cluster (auth, proxy and ssh) in one process.
func Default() *Config { return defaults(V3) }

func defaults(version string) *Config {
	return &Config{
		Version:  version,
		Nodename: hostname(),
		DataDir:  DefaultDataDir,
		Log:      defaultLog(),
		Storage:  Storage{Type: "sqlite"},
		Auth:     AuthConfig{Enabled: true, ListenAddr: anyAddr(DefaultAuthPort)},
		Proxy:    ProxyConfig{Enabled: true, WebListenAddr: anyAddr(DefaultProxyPort)},
		SSH: SSHConfig{
			Enabled: true, ListenAddr: anyAddr(DefaultSSHPort), Labels: map[string]string{},
			PortForwarding: true, FileCopy: true, CreateHostUsers: true, X11: X11Config{DisplayOffset: defaultDisplay, MaxDisplay: defaultDisplay + displays},
			PAM: PAMConfig{ServiceName: defaultPAMService},
		},
	}
}

func anyAddr(port int) string { return net.JoinHostPort("0.0.0.0", fmt.Sprint(port)) }

// DatabaseFile returns the path of the Auth Service's database.
func (c *Config) DatabaseFile() string {
	dir := c.Storage.Path
	if dir == "" {
		dir = filepath.Join(c.DataDir, "backend")
	}
	return filepath.Join(dir, "sqlite.db")
}

// LocalSocket returns the path of the Auth Service's socket for administration
// on its own host.
func (c *Config) LocalSocket() string { return filepath.Join(c.DataDir, "auth.sock") }

// File returns the path the configuration was read from, or "".
func (c *Config) File() string { return c.source.file }
