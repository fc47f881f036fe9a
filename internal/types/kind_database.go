package types

import (
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// Protocols of databases. DatabaseProtocols are those that there is an engine for.
const (
	ProtocolPostgres       = "postgres"
	ProtocolCockroachDB    = "cockroachdb"
	ProtocolMySQL          = "mysql"
	ProtocolRedis          = "redis"
	ProtocolMongoDB        = "mongodb"
	ProtocolSQLServer      = "sqlserver"
	ProtocolClickHouse     = "clickhouse"
	ProtocolClickHouseHTTP = "clickhouse-http"
	// ProtocolTLS is any other one: its bytes are passed on, inside TLS with a client
	// certificate on both sides.
	ProtocolTLS = "tls"
)

// DatabaseProtocols lists the protocols.
func DatabaseProtocols() []string {
	return []string{
		ProtocolPostgres, ProtocolCockroachDB, ProtocolMySQL, ProtocolRedis, ProtocolMongoDB, ProtocolClickHouseHTTP, ProtocolTLS,
	}
}

// otherProtocols says what to use in place of those without an engine.
var otherProtocols = map[string]string{
	ProtocolSQLServer:  "SQL Server is not served by this version: its protocol has TLS inside of itself, so that " + ProtocolTLS + " does not fit either",
	ProtocolClickHouse: "the native protocol of ClickHouse is not read by the agent: use " + ProtocolClickHouseHTTP + ", or " + ProtocolTLS + " with the server's tcp_port_secure, which records sessions without their queries",
}

// DatabaseNamesMatter reports whether the databases of a server are walls that roles can
// be about (db_names). In other protocols who is logged in reaches all that the user may
// see there.
func DatabaseNamesMatter(protocol string) bool {
	switch protocol {
	case ProtocolPostgres, ProtocolCockroachDB, ProtocolMongoDB:
		return true
	}
	return false
}

// Modes of a database's tls.
const (
	TLSVerifyFull = "verify-full"
	TLSVerifyCA   = "verify-ca"
	TLSInsecure   = "insecure"
)

// Values of a role's create_db_user_mode.
const (
	DatabaseUserOff            = "off"
	DatabaseUserKeep           = "keep"
	DatabaseUserBestEffortDrop = "best_effort_drop"
)

func databaseKind() KindInfo {
	return KindInfo{
		Name: KindDatabase, Plural: "dbs", Aliases: []string{"database", "databases"},
		New:      func() Resource { return &typesv1.Database{} },
		Defaults: defaults(defaultDatabase),
		Validate: validate(validateDatabase),
		Columns: []Column{
			nameColumn("Name"),
			column("Protocol", func(d *typesv1.Database) string { return d.GetSpec().GetProtocol() }),
			column("URI", func(d *typesv1.Database) string { return d.GetSpec().GetUri() }),
			column("Labels", func(d *typesv1.Database) string { return labelText(DatabaseLabels(d)) }),
		},
		Writable: true, Served: true,
		versions: []string{"v3"},
		name:     ValidDatabaseName,
	}
}

func defaultDatabase(d *typesv1.Database) {
	if d.Spec == nil {
		d.Spec = &typesv1.DatabaseSpec{}
	}
	d.Spec.Protocol = strings.ToLower(d.Spec.Protocol)
	if t := d.Spec.Tls; t != nil && t.Mode == "" {
		t.Mode = TLSVerifyFull
	}
}

// ValidDatabaseName checks the name of a database resource, which people type and
// clients put into file names.
func ValidDatabaseName(s string) error {
	if err := sized("a name", s, 63); err != nil {
		return err
	}
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || (r < '0' || r > '9') && (r != '-' || i == len(s)-1)) {
			return fault.Invalid("database name %q: use letters, digits and dashes between them, with a letter first", s)
		}
	}
	return nil
}

func validateDatabase(d *typesv1.Database, c *checker) {
	spec := d.GetSpec()
	if p := spec.GetProtocol(); otherProtocols[p] != "" {
		c.add("spec.protocol", "%s", otherProtocols[p])
	} else if !slices.Contains(DatabaseProtocols(), p) {
		c.add("spec.protocol", "unknown protocol %q: use one of %s", p, strings.Join(DatabaseProtocols(), ", "))
	}
	_, err := DatabaseAddr(spec.GetUri(), "1")
	c.check("spec.uri", err)
	switch t := spec.GetTls(); t.GetMode() {
	case "", TLSVerifyFull, TLSVerifyCA, TLSInsecure:
		if t.GetServerName() != "" {
			c.check("spec.tls.server_name", validServerName(t.GetServerName()))
		}
		if t.GetCaCert() != "" {
			c.check("spec.tls.ca_cert", validCertificates(t.GetCaCert()))
		}
	default:
		c.add("spec.tls.mode", "unknown mode %q: use %s, %s or %s", t.GetMode(), TLSVerifyFull, TLSVerifyCA, TLSInsecure)
	}
	c.text("spec.mysql.server_version", spec.GetMysql().GetServerVersion(), 64)
	if spec.GetMysql() != nil && spec.GetProtocol() != ProtocolMySQL {
		c.add("spec.mysql", "only means something for the protocol %s", ProtocolMySQL)
	}
	if admin := spec.GetAdminUser(); admin != nil {
		c.check("spec.admin_user.name", ValidDatabaseUser(admin.GetName()))
		if admin.GetDefaultDatabase() != "" {
			c.check("spec.admin_user.default_database", ValidDatabaseUser(admin.GetDefaultDatabase()))
		}
	}
	validateCommandLabels("spec.dynamic_labels", spec.GetDynamicLabels(), c)
}

func validServerName(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	return ValidHostname(s)
}

// validCertificates checks a text of certificates in PEM.
func validCertificates(text string) error {
	rest := []byte(text)
	for n := 0; ; n++ {
		block, more := pem.Decode(rest)
		if block == nil {
			if n == 0 || strings.TrimSpace(string(rest)) != "" {
				return fault.Invalid("expected certificates in PEM, each between -----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----")
			}
			return nil
		}
		if block.Type != "CERTIFICATE" {
			return fault.Invalid("expected certificates only, found a %s", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fault.Invalid("certificate %d cannot be read: %v", n+1, err)
		}
		rest = more
	}
}

// ValidDatabaseUser checks the name of a user, a role or a database on a database
// server: any text of one line.
func ValidDatabaseUser(s string) error {
	if err := sized("a name", s, maxName); err != nil {
		return err
	}
	c := &checker{}
	c.text("", s, maxName)
	if strings.ContainsAny(s, "\n\t") {
		return fault.Invalid("%q has a line break or a tab", s)
	}
	return c.err()
}

// DatabaseAddr returns host:port of a database's uri: host:port, or a URI such as
// mongodb://host:port/?replicaSet=rs0, whose scheme and query are the engine's to read.
// Port is that of a uri without one.
func DatabaseAddr(uri, port string) (string, error) {
	if uri == "" {
		return "", fault.Invalid("missing: say where the database is, such as localhost:5432")
	}
	if len(uri) > maxLabelValue {
		return "", fault.Invalid("uri of %d bytes, the most is %d", len(uri), maxLabelValue)
	}
	hostport := uri
	if strings.Contains(uri, "://") {
		u, err := url.Parse(uri)
		if err != nil {
			return "", fault.Invalid("%q is no URI", uri)
		}
		if u.User != nil {
			return "", fault.Invalid("a user or password does not belong into the uri of a database: the agent logs in with a certificate")
		}
		hostport = u.Host
	}
	host, p, err := net.SplitHostPort(hostport)
	if err != nil {
		host, p = strings.Trim(hostport, "[]"), port
	}
	addr := net.JoinHostPort(host, p)
	return addr, validAddr(addr)
}

// DatabaseLabels returns the labels of a database: its own and the results of its
// dynamic labels. A command cannot replace a label of its own.
func DatabaseLabels(d *typesv1.Database) map[string]string {
	return withResults(d.GetMetadata().GetLabels(), d.GetSpec().GetDynamicLabels())
}

func databaseServerKind() KindInfo {
	return KindInfo{
		Name: KindDatabaseServer, Plural: "db_servers",
		New: func() Resource { return &typesv1.DatabaseServer{} },
		Defaults: defaults(func(s *typesv1.DatabaseServer) {
			if s.Spec == nil {
				s.Spec = &typesv1.DatabaseServerSpec{}
			}
		}),
		Validate: validate(func(s *typesv1.DatabaseServer, c *checker) {
			spec := s.GetSpec()
			validateServed(s.GetMetadata().GetName(), spec.GetDatabase().GetMetadata().GetName(), spec.GetHostId(), spec.GetHostname(), c)
			c.text("spec.software_version", spec.GetSoftwareVersion(), maxName)
			c.text("spec.health", spec.GetHealth(), maxDescription)
			if err := Check(spec.GetDatabase()); err != nil {
				c.add("spec.database", "%v", err)
			}
		}),
		Columns: []Column{
			column("Host", func(s *typesv1.DatabaseServer) string { return s.GetSpec().GetHostname() }),
			column("Name", func(s *typesv1.DatabaseServer) string { return s.GetSpec().GetDatabase().GetMetadata().GetName() }),
			column("Protocol", func(s *typesv1.DatabaseServer) string { return s.GetSpec().GetDatabase().GetSpec().GetProtocol() }),
			column("URI", func(s *typesv1.DatabaseServer) string { return s.GetSpec().GetDatabase().GetSpec().GetUri() }),
			column("Labels", func(s *typesv1.DatabaseServer) string { return labelText(DatabaseServerLabels(s)) }),
			column("Version", func(s *typesv1.DatabaseServer) string { return s.GetSpec().GetSoftwareVersion() }),
		},
		Served:   true,
		versions: []string{"v3"},
		name:     ValidName,
	}
}

// DatabaseServerLabels returns the labels that decide access to a database where the
// host serves it.
func DatabaseServerLabels(s *typesv1.DatabaseServer) map[string]string {
	return s.GetMetadata().GetLabels()
}

func webSessionKind() KindInfo {
	return KindInfo{
		Name: KindWebSession, Plural: "web_sessions",
		New: func() Resource { return &typesv1.WebSession{} },
		Defaults: defaults(func(s *typesv1.WebSession) {
			if s.Spec == nil {
				s.Spec = &typesv1.WebSessionSpec{}
			}
		}),
		Validate: validate(func(s *typesv1.WebSession, c *checker) {
			c.check("spec.user", ValidName(s.GetSpec().GetUser()))
			if len(s.GetSpec().GetTokenHash()) != 32 {
				c.add("spec.token_hash", "expected 32 bytes")
			}
			c.time("spec.created", s.GetSpec().GetCreated())
			if app := s.GetSpec().GetApp(); app != "" {
				c.check("spec.app", ValidAppName(app))
			}
		}),
		Secret:   secret(func(s *typesv1.WebSession) { s.Spec.TokenHash = nil }),
		Columns:  []Column{nameColumn("ID"), column("User", func(s *typesv1.WebSession) string { return s.GetSpec().GetUser() })},
		versions: []string{"v1"},
		name:     ValidName,
	}
}
