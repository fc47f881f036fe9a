package config

import (
	"io"
	"os"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// DatabaseConfig is the db_service section.
type DatabaseConfig struct {
	Enabled bool
	// Matchers choose databases of the cluster by their labels: those that meet one of
	// them are served.
	Matchers []map[string]*typesv1.Strings
	// Databases are those that the file has, checked. Certificates that they name have
	// been read.
	Databases []*typesv1.Database
}

func dbSchema(c *DatabaseConfig) schema {
	s := schema{
		"enabled":   setBool(&c.Enabled),
		"resources": readMatchers(&c.Matchers),
		"databases": func(v value) {
			v.list("databases", func(e value) {
				db := readDatabase(e)
				for _, other := range c.Databases {
					if name := db.GetMetadata().GetName(); name != "" && other.GetMetadata().GetName() == name {
						e.bad("a second database of the name %s: expected one", quote(name))
					}
				}
				c.Databases = append(c.Databases, db)
			})
		},
	}
	return withKnown(s, knownDB())
}

// readDatabase reads one database and checks it as if it came from elsewhere.
func readDatabase(v value) *typesv1.Database {
	db := types.New(types.KindDatabase, "").(*typesv1.Database)
	md, spec := db.GetMetadata(), &typesv1.DatabaseSpec{}
	db.Spec = spec
	before := len(v.d.problems)
	v.mapping(withKnown(schema{
		"name":           setText(&md.Name, "a name"),
		"description":    setText(&md.Description, "a description"),
		"protocol":       setText(&spec.Protocol, "a protocol such as postgres"),
		"uri":            setText(&spec.Uri, "host:port"),
		"static_labels":  readLabelsTo(&md.Labels),
		"dynamic_labels": readCommandLabels(&spec.DynamicLabels),
		"tls": func(e value) {
			spec.Tls = &typesv1.DatabaseTLS{}
			e.mapping(schema{
				"mode":                   setText(&spec.Tls.Mode, "verify-full, verify-ca or insecure"),
				"server_name":            setText(&spec.Tls.ServerName, "a host name"),
				"ca_cert_file":           readCertificates(&spec.Tls.CaCert),
				"trust_system_cert_pool": setBool(&spec.Tls.TrustSystemCertPool),
			})
		},
		"mysql": func(e value) {
			spec.Mysql = &typesv1.DatabaseMySQL{}
			e.mapping(schema{"server_version": setText(&spec.Mysql.ServerVersion, "a version")})
		},
		"admin_user": func(e value) {
			spec.AdminUser = &typesv1.DatabaseAdminUser{}
			e.mapping(schema{
				"name":             setText(&spec.AdminUser.Name, "a database user"),
				"default_database": setText(&spec.AdminUser.DefaultDatabase, "a database of the server"),
			})
		},
		"refuse_unknown_messages": setBool(&spec.RefuseUnknownMessages),
	}, knownOneDB()))
	if len(v.d.problems) == before {
		checkRead(v, db, []rename{
			{"metadata.labels", "static_labels"}, {"metadata.", ""}, {"spec.tls.ca_cert", "tls.ca_cert_file"}, {"spec.", ""},
		})
	}
	return db
}

// maxCertificates is far more than a file with certificates has.
const maxCertificates = 256 << 10

// readCertificates reads the file that is named, unless this is another machine's
// configuration. What is in it is checked with the rest of the resource.
func readCertificates(to *string) func(value) {
	return func(v value) {
		path, ok := v.absPath()
		if !ok || v.d.elsewhere {
			return
		}
		text, err := certificatesFile(path)
		if err != nil {
			v.bad("%s", err)
			return
		}
		*to = text
	}
}

// certificatesFile returns what is in a file.
func certificatesFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", badf("cannot read the file: %s", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCertificates+1))
	switch {
	case err != nil:
		return "", badf("cannot read the file: %s", err)
	case len(data) > maxCertificates:
		return "", badf("%s has more than %d KiB: expected certificates in PEM", quote(path), maxCertificates>>10)
	case len(data) == 0:
		return "", badf("%s is empty: expected certificates in PEM", quote(path))
	}
	return string(data), nil
}
