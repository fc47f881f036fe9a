package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/config"
	"teleport/internal/types"
)

func texts(values ...string) *typesv1.Strings { return &typesv1.Strings{Values: values} }

// everyApp is the app_service section of everything.yaml.
func everyApp() config.AppConfig {
	app := func(name string, spec *typesv1.AppSpec) *typesv1.App {
		a := types.New(types.KindApp, name).(*typesv1.App)
		a.Spec = spec
		return a
	}
	grafana := app("grafana", &typesv1.AppSpec{
		Uri: "https://grafana.internal:3000", PublicAddr: "grafana.example.com", InsecureSkipVerify: true, RequiredApps: []string{"wiki"},
		DynamicLabels: map[string]*typesv1.CommandLabel{"os": {Command: []string{"uname", "-s"}, Period: "5m0s"}},
		Cors: &typesv1.AppCORS{
			AllowedOrigins: []string{"https://a.example.com"}, AllowedMethods: []string{"GET", "POST"}, AllowedHeaders: []string{"X-One"},
			ExposedHeaders: []string{"X-Two"}, AllowCredentials: true, MaxAge: 600,
		},
		Rewrite: &typesv1.AppRewrite{
			Redirect:  []string{"grafana.internal", "10.0.0.1"},
			Headers:   []*typesv1.AppHeader{{Name: "X-Env", Value: "{{external.env}}"}, {Name: "Authorization", Value: "Basic abc:def"}},
			JwtClaims: types.JWTClaimsRoles,
		},
	})
	grafana.Metadata.Description, grafana.Metadata.Labels = "What happens", map[string]string{"env": "prod", "count": "10"}
	return config.AppConfig{
		Enabled: true, Debug: true,
		Matchers: []map[string]*typesv1.Strings{{"env": texts("prod", "dev-*"), "site": texts("^(paris|rome)$")}, {"*": texts("*")}},
		Apps: []*typesv1.App{
			grafana, app("wiki", &typesv1.AppSpec{Uri: "http://localhost:8080"}), app("echo", &typesv1.AppSpec{Uri: "tcp://localhost:7"}),
		},
	}
}

// everyDatabase is the db_service section of everything.yaml.
func everyDatabase() config.DatabaseConfig {
	db := func(name string, spec *typesv1.DatabaseSpec) *typesv1.Database {
		d := types.New(types.KindDatabase, name).(*typesv1.Database)
		d.Spec = spec
		return d
	}
	sales := db("Sales", &typesv1.DatabaseSpec{
		Protocol: types.ProtocolPostgres, Uri: "sales.internal:5432",
		DynamicLabels:         map[string]*typesv1.CommandLabel{"os": {Command: []string{"uname"}, Period: "1m0s"}},
		Tls:                   &typesv1.DatabaseTLS{Mode: types.TLSVerifyCA, ServerName: "db.internal", TrustSystemCertPool: true},
		AdminUser:             &typesv1.DatabaseAdminUser{Name: "teleport-admin", DefaultDatabase: "postgres"},
		RefuseUnknownMessages: true,
	})
	sales.Metadata.Description, sales.Metadata.Labels = "Orders", map[string]string{"env": "prod"}
	return config.DatabaseConfig{
		Enabled: true, Matchers: []map[string]*typesv1.Strings{{"env": texts("prod")}},
		Databases: []*typesv1.Database{
			sales,
			db("shop", &typesv1.DatabaseSpec{Protocol: types.ProtocolMySQL, Uri: "localhost:3306", Mysql: &typesv1.DatabaseMySQL{ServerVersion: "8.0.4"}}),
			db("documents", &typesv1.DatabaseSpec{Protocol: types.ProtocolMongoDB, Uri: "mongodb://a.internal:27017/?replicaSet=rs0"}),
		},
	}
}

// certificate returns a certificate in PEM.
func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestCertificatesOfDatabases(t *testing.T) {
	dir := t.TempDir()
	good := certificate(t)
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tt := range map[string]struct{ path, want string }{
		"good":    {file("good.pem", good), ""},
		"two":     {file("two.pem", good+good), ""},
		"no_pem":  {file("no.pem", "hello"), "test.yaml:9:7: db_service.databases[0].tls.ca_cert_file: expected certificates in PEM"},
		"empty":   {file("empty.pem", ""), "test.yaml:9:21: db_service.databases[0].tls.ca_cert_file: "},
		"huge":    {file("huge.pem", strings.Repeat(good, 1000)), "more than 256 KiB"},
		"missing": {filepath.Join(dir, "none.pem"), "cannot read the file"},
		"folder":  {dir, "cannot read the file"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := config.Parse("test.yaml", []byte("version: v3\ndb_service:\n  enabled: yes\n  databases:\n  - name: sales\n    protocol: postgres\n    uri: db:1\n"+
				"    tls:\n      ca_cert_file: "+tt.path+"\n"))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Fatalf("Parse = %v, want %q", err, tt.want)
			}
			if err == nil && !strings.HasPrefix(cfg.DB.Databases[0].GetSpec().GetTls().GetCaCert(), good) {
				t.Error("the certificates are not there")
			}
		})
	}
}

func TestServesNothing(t *testing.T) {
	for text, want := range map[string]int{
		"app_service: {enabled: yes}\ndb_service: {enabled: yes}":                             2,
		"app_service: {enabled: yes, debug_app: yes}":                                         0,
		"app_service: {enabled: no}":                                                          0,
		"db_service: {enabled: yes, resources: [{labels: {env: prod}}]}":                      0,
		"db_service: {enabled: yes, databases: [{name: a, protocol: redis, uri: localhost}]}": 0,
	} {
		if cfg := parse(t, "version: v3\n"+text); len(cfg.Warnings) != want {
			t.Errorf("%s: warnings %q, want %d", text, cfg.Warnings, want)
		}
	}
}

func TestUnknownProtocol(t *testing.T) {
	for text, want := range map[string]string{
		"{name: a, protocol: oracle-19, uri: localhost}": `t.yaml:2:50: db_service.databases[0].protocol: unknown protocol "oracle-19": use one of `,
		"{name: a, uri: localhost}":                      `t.yaml:2:40: db_service.databases[0].protocol: unknown protocol ""`,
	} {
		_, err := config.Parse("t.yaml", []byte("version: v3\ndb_service: {enabled: yes, databases: ["+text+"]}\n"))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
