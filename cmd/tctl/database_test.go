package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	statusv1 "teleport/api/status/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

func TestAuthSignDatabase(t *testing.T) {
	c := setUp(t)
	clients, servers := []byte(c.DatabaseAuthority(types.CADBClient).GetSpec().GetActiveKeys().GetTls()[0].GetCert()),
		[]byte(c.DatabaseAuthority(types.CADB).GetSpec().GetActiveKeys().GetTls()[0].GetCert())
	for format, want := range map[string]struct {
		// files that the format has, and which of them has what.
		files               []string
		key, cert, cas, own string
		advice              string
	}{
		"db":            {[]string{"x.cas", "x.crt", "x.key"}, "x.key", "x.crt", "x.cas", "", "ssl_ca_file = '"},
		"redis":         {[]string{"x.cas", "x.crt", "x.key"}, "x.key", "x.crt", "x.cas", "", "tls-ca-cert-file /"},
		"elasticsearch": {[]string{"x.cas", "x.crt", "x.key"}, "x.key", "x.crt", "x.cas", "", "elasticsearch.yml"},
		"scylla":        {[]string{"x.cas", "x.crt", "x.key"}, "x.key", "x.crt", "x.cas", "", "scylla.yaml"},
		"mongodb":       {[]string{"x.cas", "x.crt"}, "x.crt", "x.crt", "x.cas", "x.cas", "certificateKeyFile: /"},
		"cockroachdb":   {[]string{"x/ca-client.crt", "x/ca.crt", "x/node.crt", "x/node.key"}, "x/node.key", "x/node.crt", "x/ca-client.crt", "x/ca.crt", "--certs-dir=/"},
	} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			out := ok(t, "", "auth", "sign", "--host=DB.example.com, 10.0.0.1", "--format="+format, "--out="+filepath.Join(dir, "x"), "--ttl=2190h")
			if !strings.Contains(out, want.advice) || !strings.Contains(out, "The certificate is good until ") || strings.Contains(out, "%!") {
				t.Errorf("it says %s", out)
			}
			var files []string
			if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					name, _ := filepath.Rel(dir, path)
					files = append(files, name)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(files, want.files) {
				t.Errorf("files %v, want %v", files, want.files)
			}
			read := func(name string) []byte {
				data, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				return data
			}
			pair, err := tls.X509KeyPair(read(want.cert), read(want.key))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"db.example.com", "10.0.0.1"} {
				if err := pair.Leaf.VerifyHostname(name); err != nil {
					t.Error(err)
				}
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(servers)
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
				t.Error(err)
			}
			if format == "cockroachdb" && pair.Leaf.Subject.CommonName != "node" {
				t.Errorf("common name %q", pair.Leaf.Subject.CommonName)
			}
			if !bytes.Contains(read(want.cas), clients) || want.own != "" && !bytes.Contains(read(want.own), servers) {
				t.Error("an authority is missing")
			}
			if want.own == "" && bytes.Contains(read(want.cas), servers) {
				t.Error("servers may log in as clients")
			}
			if info, err := os.Stat(filepath.Join(dir, want.key)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the key has mode %v, %v", info.Mode(), err)
			}
			fails(t, 1, "use --overwrite", "auth", "sign", "--host=a", "--format="+format, "--out="+filepath.Join(dir, "x"))
			ok(t, "", "auth", "sign", "--host=a", "--format="+format, "--out="+filepath.Join(dir, "x"), "--overwrite")
		})
	}
	out := filepath.Join(t.TempDir(), "x")
	fails(t, 2, "use db, mongodb", "auth", "sign", "--host=a", "--format=oracle", "--out="+out)
	fails(t, 2, "use db, mongodb", "auth", "sign", "--host=a", "--out="+out)
	fails(t, 2, "name the server", "auth", "sign", "--host=,", "--format=db", "--out="+out)
	fails(t, 1, `is not allowed`, "auth", "sign", "--host=a\nb", "--format=db", "--out="+out)
	fails(t, 2, "unknown format", "auth", "sign", "--user=bot", "--format=db", "--out="+out)
}

func TestAuthExportDatabases(t *testing.T) {
	c := setUp(t)
	for _, typ := range []string{types.CADB, types.CADBClient} {
		c.Resources.Put(c.DatabaseAuthority(typ))
		text := strings.TrimSpace(c.DatabaseAuthority(typ).GetSpec().GetActiveKeys().GetTls()[0].GetCert()) + "\n"
		name := strings.ReplaceAll(typ, "_", "-")
		if got := ok(t, "", "auth", "export", "--type="+name); got != text {
			t.Errorf("%s: %q", name, got)
		}
		block, _ := pem.Decode([]byte(text))
		if got := ok(t, "", "auth", "export", "--type="+name+"-der"); got != string(block.Bytes) {
			t.Errorf("%s-der: %q", name, got)
		}
		authority, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "crl")
		ok(t, "", "auth", "crl", "--type="+name, "--out="+path)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if data, _ := pem.Decode(data); data == nil || data.Type != "X509 CRL" {
			t.Fatal("no PEM")
		}
		list, err := x509.ParseRevocationList([]byte(ok(t, "", "auth", "crl", "--type="+typ, "--format=der")))
		if err != nil || list.CheckSignatureFrom(authority) != nil || len(list.RevokedCertificateEntries) != 0 {
			t.Errorf("%s: list %v, %v", typ, list, err)
		}
	}
	fails(t, 2, "use pem or der", "auth", "crl", "--format=text")
	fails(t, 1, "use host, user", "auth", "crl", "--type=jwt")
}

func TestAppsAndDatabasesLs(t *testing.T) {
	c := setUp(t)
	app := types.New(types.KindApp, "grafana").(*typesv1.App)
	app.Spec = &typesv1.AppSpec{Uri: "http://localhost:3000", PublicAddr: "g.example.com"}
	db := types.New(types.KindDatabase, "orders").(*typesv1.Database)
	db.Spec = &typesv1.DatabaseSpec{Protocol: "postgres", Uri: "10.0.0.1:5432"}
	for i, host := range []string{"agent-2", "agent-1"} {
		s := types.New(types.KindAppServer, types.ServerName("grafana", host)).(*typesv1.AppServer)
		s.Metadata.Labels = map[string]string{"env": []string{"prod", "dev"}[i]}
		s.Spec = &typesv1.AppServerSpec{HostId: host, Hostname: "name-" + host, App: app, SoftwareVersion: "1.2.3", Health: "healthy"}
		d := types.New(types.KindDatabaseServer, types.ServerName("orders", host)).(*typesv1.DatabaseServer)
		d.Metadata.Labels = s.Metadata.Labels
		d.Spec = &typesv1.DatabaseServerSpec{HostId: host, Hostname: "name-" + host, Database: db, SoftwareVersion: "1.2.3", Health: "no answer\x1b"}
		c.Resources.Put(s)
		c.Resources.Put(d)
	}
	want := `Host         Name    Public Address URI                   Labels   Version
------------ ------- -------------- --------------------- -------- -------
name-agent-1 grafana g.example.com  http://localhost:3000 env=dev  1.2.3
name-agent-2 grafana g.example.com  http://localhost:3000 env=prod 1.2.3
`
	if diff := cmp.Diff(want, ok(t, "", "apps", "ls")); diff != "" {
		t.Error(diff)
	}
	want = `Host         Name   Protocol URI           Labels   Version Host UUID Health
------------ ------ -------- ------------- -------- ------- --------- -------------
name-agent-2 orders postgres 10.0.0.1:5432 env=prod 1.2.3   agent-2   no answer\x1b
`
	if diff := cmp.Diff(want, ok(t, "", "db", "ls", "-v", "env=prod")); diff != "" {
		t.Error(diff)
	}
	if got := ok(t, "", "db", "ls", "--query=name == \"orders\"", "--search=dev"); !strings.Contains(got, "name-agent-1") || strings.Contains(got, "name-agent-2") {
		t.Errorf("--query and --search: %s", got)
	}
	if got := ok(t, "", "apps", "ls", "--format=yaml"); strings.Count(got, "kind: app_server") != 2 {
		t.Errorf("--format=yaml: %s", got)
	}
}

// TestTokensAddServes: the command that is printed serves what was named.
func TestTokensAddServes(t *testing.T) {
	c := setUp(t)
	c.Tokens.Secret = secret
	c.Status = &statusv1.GetStatusResponse{CaPins: []string{pin}, ProxyAddrs: []string{"proxy.example.com:443"}}
	want := `The invite token: ` + secret + `
This token will expire in 30 minutes.

Run this on a machine that reaches it, to make it available in the cluster:

> teleport app start \
   --name=grafana \
   --uri=http://localhost:3000 \
   --token=` + secret + ` \
   --ca-pin=` + pin + ` \
   --auth-server=proxy.example.com:443

Please note:

  - This invitation token will expire in 30 minutes
  - proxy.example.com:443 must be reachable from the new node
`
	if diff := cmp.Diff(want, ok(t, "", "tokens", "add", "--type=app", "--app-name=grafana", "--app-uri=http://localhost:3000")); diff != "" {
		t.Error(diff)
	}
	got := ok(t, "", "tokens", "add", "--type=DB", "--db-name=orders", "--db-protocol=mongodb", "--db-uri=mongodb://a:27017/?replicaSet=rs0")
	for _, part := range []string{"> teleport db start \\\n", "   --name=orders \\\n", "   --protocol=mongodb \\\n", "   --uri='mongodb://a:27017/?replicaSet=rs0' \\\n", "   --token=" + secret + " \\\n"} {
		if !strings.Contains(got, part) {
			t.Errorf("%q is not in %s", part, got)
		}
	}
	if got := ok(t, "", "tokens", "add", "--type=app", "--app-name=grafana", "--app-uri=http://localhost:3000", "--format=text"); got != secret+"\n" {
		t.Errorf("--format=text: %q", got)
	}
	fails(t, 2, "go with --type=app alone", "tokens", "add", "--type=node,app", "--app-name=a", "--app-uri=http://b")
	fails(t, 2, "go with --type=db alone", "tokens", "add", "--type=app", "--db-name=a")
	fails(t, 2, "needed together", "tokens", "add", "--type=app", "--app-name=a")
	fails(t, 2, "needed together", "tokens", "add", "--type=db", "--db-name=a", "--db-uri=b:1")
	fails(t, 1, "unknown protocol", "tokens", "add", "--type=db", "--db-name=a", "--db-protocol=dbase", "--db-uri=b:1")
	fails(t, 1, "spec.uri", "tokens", "add", "--type=app", "--app-name=a", "--app-uri=b")
	if n := len(c.Tokens.Requests); n != 3 {
		t.Errorf("%d tokens were made, want 3: none when something is wrong", n)
	}
}

// TestOpenSSLReadsWhatDatabasesGet: it is in most of them.
func TestOpenSSLReadsWhatDatabasesGet(t *testing.T) {
	c := setUp(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, typ := range []string{types.CADB, types.CADBClient} {
		c.Resources.Put(c.DatabaseAuthority(typ))
		if err := os.WriteFile(at(typ+".pem"), []byte(ok(t, "", "auth", "export", "--type="+strings.ReplaceAll(typ, "_", "-"))), 0o600); err != nil {
			t.Fatal(err)
		}
		ok(t, "", "auth", "crl", "--type="+typ, "--out="+at(typ+".crl"))
	}
	ok(t, "", "auth", "sign", "--host=db.example.com", "--format=db", "--out="+at("x"))
	openssl := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
			t.Errorf("openssl %q: %v\n%s", args, err, out)
		}
	}
	for _, purpose := range []string{"sslserver", "sslclient"} {
		openssl("verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", "db.example.com", "-CAfile", at("db.pem"), "-crl_check", "-CRLfile", at("db.crl"), at("x.crt"))
	}
	openssl("crl", "-in", at("db_client.crl"), "-CAfile", at("db_client.pem"), "-noout")
	openssl("rsa", "-in", at("x.key"), "-check", "-noout")
}
