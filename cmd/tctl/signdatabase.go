package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	databasev1 "teleport/api/database/v1"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/keys"
)

// databaseFiles are what is written for a database server: its key, its certificate, what
// signs those who log in to it, and what signed the certificate; all PEM.
type databaseFiles struct{ key, cert, clients, servers []byte }

// databaseFormat is a form in which database servers read that.
type databaseFormat struct {
	files func(out string, f databaseFiles) []outFile
	// hosts are names that the certificate has to have besides, before the others.
	hosts []string
	// folder says that out is one.
	folder bool
	// advice is how to set the server up. In its place-holders stand the paths.
	advice string
}

// databaseFormatNames lists them.
const databaseFormatNames = "db, mongodb, cockroachdb, redis, elasticsearch, scylla"

func databaseFormats() map[string]databaseFormat {
	return map[string]databaseFormat{
		"db": {files: separate, advice: `
PostgreSQL, in postgresql.conf and pg_hba.conf:

  ssl = on
  ssl_cert_file = '%[2]s.crt'
  ssl_key_file = '%[2]s.key'
  ssl_ca_file = '%[2]s.cas'

  hostssl all all 0.0.0.0/0 cert
  hostssl all all ::/0      cert

MySQL and MariaDB, in the section [mysqld], with users that are made
with REQUIRE SUBJECT '/CN=name':

  ssl-cert = %[2]s.crt
  ssl-key  = %[2]s.key
  ssl-ca   = %[2]s.cas
`},
		"redis": {files: separate, advice: `
Redis and Valkey, in redis.conf:

  tls-port 6379
  port 0
  tls-cert-file %[2]s.crt
  tls-key-file %[2]s.key
  tls-ca-cert-file %[2]s.cas
  tls-protocols "TLSv1.2 TLSv1.3"
`},
		"mongodb": {files: combined, advice: `
MongoDB, in mongod.conf, with users that are made in $external as CN=name:

  net:
    tls:
      mode: requireTLS
      certificateKeyFile: %[2]s.crt
      CAFile: %[2]s.cas
`},
		"cockroachdb": {files: cockroach, folder: true, hosts: []string{"node"}, advice: `
CockroachDB:

  cockroach start --certs-dir=%[2]s ...
`},
		"elasticsearch": {files: separate, advice: `
Elasticsearch, in elasticsearch.yml:

  xpack.security.http.ssl:
    enabled: true
    certificate: %[2]s.crt
    key: %[2]s.key
    certificate_authorities: ["%[2]s.cas"]
    client_authentication: required
`},
		"scylla": {files: separate, advice: `
Scylla, in scylla.yaml:

  client_encryption_options:
    enabled: true
    certificate: %[2]s.crt
    keyfile: %[2]s.key
    truststore: %[2]s.cas
    require_client_auth: True
`},
	}
}

func separate(out string, f databaseFiles) []outFile {
	return []outFile{{out + ".key", f.key, 0o600}, {out + ".crt", f.cert, 0o644}, {out + ".cas", f.clients, 0o644}}
}

// combined has key and certificate in one file; members of a replica set also show their
// certificates to each other.
func combined(out string, f databaseFiles) []outFile {
	return []outFile{{out + ".crt", slices.Concat(f.cert, f.key), 0o600}, {out + ".cas", slices.Concat(f.clients, f.servers), 0o644}}
}

func cockroach(out string, f databaseFiles) []outFile {
	return []outFile{
		{filepath.Join(out, "node.key"), f.key, 0o600},
		{filepath.Join(out, "node.crt"), f.cert, 0o644},
		{filepath.Join(out, "ca.crt"), f.servers, 0o644},
		{filepath.Join(out, "ca-client.crt"), f.clients, 0o644},
	}
}

// runAuthSignDatabase writes what a database server needs to be believed by the Database
// Service and to believe it.
func runAuthSignDatabase(ctx context.Context, a *app, o signOptions, ttlSet bool) error {
	format := databaseFormats()[o.format]
	hosts := clean(strings.Split(o.host, ","))
	if len(hosts) == 0 {
		return screen.Usage("tctl auth sign --host: name the server as the Database Service will reach it")
	}
	key, err := keys.Generate(keys.RSA2048)
	if err != nil {
		return err
	}
	public, err := keys.PublicDER(key.Public())
	if err != nil {
		return err
	}
	var files databaseFiles
	if files.key, err = keys.MarshalPrivate(key); err != nil {
		return err
	}
	req := &databasev1.SignServerRequest{TlsKey: public, Hosts: slices.Concat(format.hosts, hosts)}
	if ttlSet {
		req.Ttl = durationpb.New(o.ttl)
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		resp, err := databasev1.NewDatabaseServiceClient(conn).SignServer(ctx, req)
		if err != nil {
			return fmt.Errorf("sign a certificate for the database server %q: %w", hosts[0], err)
		}
		files.cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: resp.GetCertificate()})
		files.clients, files.servers = []byte(resp.GetClientAuthorities()), []byte(resp.GetAuthorities())
		if format.folder {
			if err := os.MkdirAll(o.out, 0o700); err != nil {
				return fault.Invalid("make the folder: %w", err)
			}
		}
		if err := a.writeFiles(o.overwrite, format.files(o.out, files)); err != nil {
			return err
		}
		at, err := filepath.Abs(o.out)
		if err != nil {
			at = o.out
		}
		return a.print("The certificate is good until %s\n"+format.advice,
			resp.GetExpires().AsTime().UTC().Format(time.RFC3339), screen.Escape(at))
	})
}
