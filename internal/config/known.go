package config

import (
	"slices"
	"strings"
)

// The keys of the real product that this version does not act on. A key that
// asks for something we lack is refused, never ignored; a value that merely
// states what this version does anyway is accepted.

// unsupported refuses a key whatever its value.
func unsupported(v value) {
	v.d.problem(v.keyAt(), v.path, "not supported yet: remove this key")
}

// only accepts a key with one of the values that describe what we do.
func only(accepted ...string) func(value) {
	return func(v value) {
		s, ok := v.text(strings.Join(accepted, " or "))
		if !ok || known(accepted, s) {
			return
		}
		if b, isBool := parseBool(s); isBool {
			for _, a := range accepted {
				if want, ok := parseBool(a); ok && want == b {
					return
				}
			}
		}
		v.bad("the value %s is not supported yet: expected %s", quote(s), strings.Join(accepted, " or "))
	}
}

// onlyList accepts a list of the accepted values.
func onlyList(accepted ...string) func(value) {
	return func(v value) { v.list("values", only(accepted...)) }
}

// part accepts a mapping with these keys.
func part(keys schema) func(value) {
	return func(v value) { v.mapping(keys) }
}

// idle accepts a section of a feature that we lack, as long as it is off: then
// its other keys ask for nothing.
func idle(keys ...string) func(value) {
	return func(v value) {
		s := schema{"enabled": only("no")}
		for _, k := range keys {
			s[k] = func(value) {}
		}
		v.mapping(s)
	}
}

// all maps every name to the same reader.
func all(read func(value), names ...string) schema {
	s := make(schema, len(names))
	for _, n := range names {
		s[n] = read
	}
	return s
}

// withKnown adds keys to a schema.
func withKnown(s, more schema) schema {
	for k, read := range more {
		s[k] = read
	}
	return s
}

func known(words []string, s string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.EqualFold(w, s) })
}

// idleSections are the services of other versions.
func idleSections() schema {
	return schema{
		"kubernetes_service": idle("listen_addr", "public_addr", "kubeconfig_file", "kube_cluster_name", "resources", "labels",
			"commands"),
		"windows_desktop_service": idle("listen_addr", "public_addr", "ldap", "pki_domain", "kdc_address", "static_hosts",
			"hosts", "non_ad_hosts", "discovery", "discovery_configs", "discovery_interval", "host_labels", "labels",
			"show_desktop_wallpaper", "publish_crl_interval", "resources"),
		"discovery_service": idle("discovery_group", "poll_interval", "aws", "azure", "gcp", "kubernetes", "access_graph"),
		"debug_service":     idle(),
		"relay_service": idle("relay_group", "target_connection_count", "public_hostnames", "transport_listen_addr",
			"peer_listen_addr", "tunnel_listen_addr", "transport", "peer", "tunnel"),
		"okta_service":    idle("api_endpoint", "api_token_path", "sync_period", "sync"),
		"jamf_service":    idle("api_endpoint", "username", "password_file", "client_id", "client_secret_file", "inventory", "name", "sync_delay", "exit_on_sync"),
		"metrics_service": idle("listen_addr", "mtls", "keypairs", "ca_certs", "grpc_server_latency", "grpc_client_latency"),
		"tracing_service": idle("exporter_url", "sampling_rate_per_million", "ca_certs", "keypairs"),
		"access_graph":    idle("endpoint", "ca", "insecure", "audit_log"),
	}
}

func knownTeleport() schema {
	s := all(unsupported, "relay_server", "connection_limits", "auth_connection_config", "ciphers", "kex_algos", "mac_algos",
		"ciphersuites", "keys")
	s["shutdown_delay"] = only("0s", "0")
	s["cache"] = part(schema{"enabled": only("yes"), "max_backoff": unsupported, "ttl": unsupported, "type": unsupported})
	return s
}

func knownStorage() schema {
	s := all(unsupported, "peers", "tls_cert_file", "tls_key_file", "tls_ca_file", "username", "password_file", "prefix",
		"etcd_max_client_msg_size_bytes", "insecure", "conn_string", "change_feed_conn_string", "auth_mode",
		"gcp_connection_name", "region", "table_name", "continuous_backups", "auto_scaling", "retention_period", "billing_mode",
		"read_capacity_units", "write_capacity_units", "read_min_capacity", "read_max_capacity", "read_target_value",
		"write_min_capacity", "write_max_capacity", "write_target_value", "project_id", "collection_name", "database_id",
		"credentials_path", "audit_events_uri", "audit_sessions_uri", "audit_retention_period", "busy_timeout", "poll_stream_period")
	s["sync"] = only("FULL")
	s["journal"] = only("WAL")
	return s
}

func knownAuth() schema {
	s := all(unsupported, "client_idle_timeout_message", "web_idle_timeout", "keep_alive_interval", "keep_alive_count_max",
		"session_control_timeout", "ssh_dial_timeout", "proxy_ping_interval", "message_of_the_day", "license_file",
		"ca_key_params", "access_monitoring", "hosted_plugins", "reverse_tunnels", "trusted_clusters", "oidc_connectors",
		"kubeconfig_file")
	s["authentication"] = part(knownAuthentication())
	s["session_recording"] = only("off")
	s["session_recording_config"] = part(schema{"mode": only("off"), "encryption": idle("manual_key_management")})
	s["proxy_checks_host_keys"] = only("yes")
	s["client_idle_timeout"] = only("never", "0s", "0")
	s["disconnect_expired_cert"] = only("no")
	s["routing_strategy"] = only("unambiguous_match")
	s["case_insensitive_routing"] = only("no")
	s["load_all_cas"] = only("no")
	s["proxy_listener_mode"] = only("multiplex")
	s["tunnel_strategy"] = part(schema{"type": only("agent_mesh"), "agent_connection_count": unsupported})
	s["proxy_protocol"] = only("off")
	return s
}

func knownAuthentication() schema {
	s := all(unsupported, "webauthn", "u2f", "connector_name", "default_kubernetes_users", "stable_unix_user_config", "hardware_key")
	s["type"] = only("local")
	s["local_auth"] = only("yes")
	s["second_factor"] = only("otp")
	s["second_factors"] = onlyList("otp")
	s["passwordless"] = only("no")
	s["headless"] = only("no")
	s["require_session_mfa"] = only("no")
	s["locking_mode"] = only("best_effort")
	s["device_trust"] = part(schema{"mode": only("off"), "auto_enroll": only("no"), "ekcert_allowed_cas": unsupported})
	s["default_session_ttl"] = only("12h", "12h0m0s", "12h0m")
	s["signature_algorithm_suite"] = only("balanced-v1")
	return s
}

func knownProxy() schema {
	s := all(unsupported, "listen_addr", "tunnel_listen_addr", "kube_listen_addr", "mysql_listen_addr", "postgres_listen_addr",
		"mongo_listen_addr", "peer_listen_addr", "ssh_public_addr", "tunnel_public_addr", "kube_public_addr",
		"mysql_public_addr", "postgres_public_addr", "mongo_public_addr", "peer_public_addr", "https_key_file",
		"https_cert_file", "ui", "automatic_upgrades_channels", "mysql_server_version", "proxy_group_id",
		"proxy_group_generation")
	s["acme"] = idle("email", "uri")
	s["proxy_protocol"] = only("off")
	s["trust_x_forwarded_for"] = only("no")
	s["idp"] = part(schema{"saml": part(schema{"enabled": only("no")})})
	s["kubernetes"] = idle("listen_addr", "public_addr", "kubeconfig_file", "cluster_name")
	s["proxy_protocol_allow_downgrade"] = only("no")
	return s
}

func knownSSH() schema {
	return schema{
		"permit_user_env": only("no"),
		"force_listen":    only("no"),
		"enhanced_recording": idle("command_buffer_size", "disk_buffer_size", "network_buffer_size", "cgroup_path", "root_path",
			"root_cgroup"),
		"restricted_session": idle("events_buffer_size"),
		"public_key_path":    unsupported,
		"reverse_tunnels":    unsupported,
	}
}

func knownApp() schema { return schema{"mcp_demo_server": only("no")} }

func knownOneApp() schema {
	s := all(unsupported, "cloud", "aws", "tcp_ports", "mcp", "identity_center")
	s["use_any_proxy_public_addr"] = only("no")
	return s
}

func knownDB() schema { return all(nothing, "aws", "azure", "gcp") }

func knownOneDB() schema {
	s := all(unsupported, "aws", "gcp", "ad", "azure", "oracle")
	s["ca_cert_file"] = func(v value) { v.d.problem(v.keyAt(), v.path, "not a key of this place: it stands under tls") }
	s["labels"] = func(v value) {
		v.d.problem(v.keyAt(), v.path, "not a key of this place: the labels of a database are static_labels and dynamic_labels")
	}
	return s
}

// nothing accepts a list of what we lack, as long as it is empty.
func nothing(v value) {
	v.list("nothing", func(e value) { e.bad("not supported yet: remove this key, and name the resources one by one") })
}
