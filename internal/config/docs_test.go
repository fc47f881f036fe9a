package config

import (
	"os"
	"strings"
	"testing"
)

// The reference names every key that this version acts on, and every section.
func TestReferenceIsComplete(t *testing.T) {
	data, err := os.ReadFile("../../docs/reference/config.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	cfg := Default()
	acted := map[string][]string{
		"teleport": {
			"nodename", "data_dir", "pid_file", "join_params.token_name", "join_params.method", "auth_token", "ca_pin", "proxy_server",
			"auth_server", "advertise_ip", "diag_addr", "log.output", "log.severity", "log.format.output", "log.format.extra_fields",
			"storage.type", "storage.path",
		},
		"auth_service":  {"enabled", "listen_addr", "public_addr", "cluster_name", "tokens"},
		"proxy_service": {"enabled", "web_listen_addr", "public_addr", "https_keypairs", "https_keypairs_reload_interval", "openssh_source_addrs"},
		"ssh_service": {
			"enabled", "listen_addr", "public_addr", "labels", "commands", "port_forwarding", "ssh_file_copy", "disable_create_host_user", "x11.enabled",
			"x11.display_offset", "x11.max_display", "pam.enabled", "pam.service_name", "pam.use_pam_auth", "pam.environment",
		},
		"app_service": {
			"enabled", "debug_app", "resources[].labels", "apps[].name", "apps[].description", "apps[].uri", "apps[].public_addr", "apps[].labels",
			"apps[].commands", "apps[].insecure_skip_verify", "apps[].required_apps", "apps[].cors", "apps[].rewrite.redirect", "apps[].rewrite.headers",
			"apps[].rewrite.jwt_claims",
		},
		"db_service": {
			"enabled", "resources[].labels", "databases[].name", "databases[].description", "databases[].protocol", "databases[].uri", "databases[].static_labels",
			"databases[].dynamic_labels", "databases[].tls.mode", "databases[].tls.server_name", "databases[].tls.ca_cert_file",
			"databases[].tls.trust_system_cert_pool", "databases[].mysql.server_version", "databases[].admin_user.name",
			"databases[].admin_user.default_database", "databases[].refuse_unknown_messages",
		},
	}
	for _, sec := range sectionSchemas(cfg) {
		_, text, found := strings.Cut(doc, "\n## "+sec.name+"\n")
		if !found {
			t.Errorf("no chapter for %s", sec.name)
			continue
		}
		text, _, _ = strings.Cut(text, "\n## ")
		for _, key := range acted[sec.name] {
			if top, _, _ := strings.Cut(key, "."); sec.keys[strings.TrimSuffix(top, "[]")] == nil {
				t.Errorf("%s.%s is documented but not a key", sec.name, key)
			}
			if !strings.Contains(text, "\n| `"+key+"` |") {
				t.Errorf("%s.%s has no row", sec.name, key)
			}
		}
	}
	for name := range idleSections() {
		if !strings.Contains(doc, "`"+name+"`") {
			t.Errorf("section %s is not named", name)
		}
	}
}

// Every section and key that this version knows but lacks is refused in words
// that say so, when it asks for something.
func TestKnownKeysSayNotSupportedYet(t *testing.T) {
	for section, keys := range map[string]schema{
		"teleport": knownTeleport(), "auth_service": knownAuth(), "proxy_service": knownProxy(), "ssh_service": knownSSH(),
		"app_service": knownApp(), "db_service": knownDB(),
	} {
		for key := range keys {
			for _, val := range []string{"something-else", "{enabled: perhaps}", "[a]"} {
				_, err := Parse("t", []byte("version: v3\n"+section+":\n  "+key+": "+val+"\n"))
				if err == nil {
					t.Errorf("%s.%s: %s is accepted", section, key, val)
				} else if strings.Contains(err.Error(), section+"."+key+": unknown key") {
					t.Errorf("%s.%s: %s is called unknown: %v", section, key, val, err)
				}
			}
		}
	}
	for list, keys := range map[string]schema{"app_service: {apps": knownOneApp(), "db_service: {databases": knownOneDB()} {
		for key := range keys {
			_, err := Parse("t", []byte("version: v3\n"+list+": [{name: x, "+key+": {a: b}}]}\n"))
			if err == nil || strings.Contains(err.Error(), key+": unknown key") {
				t.Errorf("%s: %s: %v", list, key, err)
			}
		}
	}
	for section := range idleSections() {
		_, err := Parse("t", []byte("version: v3\n"+section+": {enabled: yes}\n"))
		if err == nil || !strings.Contains(err.Error(), "not supported yet") {
			t.Errorf("%s: %v", section, err)
		}
		if _, err := Parse("t", []byte("version: v3\n"+section+": {enabled: no}\n")); err != nil {
			t.Errorf("%s off: %v", section, err)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"labels", "labels", 0},
		{"lables", "labels", 1},
		{"label", "labels", 1},
		{"enabeld", "enabled", 1},
		{"", "abc", 3},
		{"kitten", "sitting", 3},
	} {
		if got := editDistance(tt.a, tt.b); got != tt.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := editDistance(tt.b, tt.a); got != tt.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", tt.b, tt.a, got, tt.want)
		}
	}
}
