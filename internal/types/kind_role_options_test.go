package types_test

import (
	"strings"
	"testing"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// TestRoleOptions has what is refused when a role is written, and at which field.
func TestRoleOptions(t *testing.T) {
	role := func(options string) string {
		return "kind: role\nversion: v8\nmetadata: {name: r}\nspec:\n" + options
	}
	for name, text := range map[string]string{
		"all": `  options:
    forward_agent: true
    port_forwarding: false
    ssh_port_forwarding: {local: {enabled: true}, remote: {enabled: false}}
    ssh_file_copy: false
    permit_x11_forwarding: true
    max_sessions: 3
    max_connections: 2
    client_idle_timeout: 1h30m
    disconnect_expired_cert: true
    pin_source_ip: true
    cert_extensions: [{type: ssh, mode: extension, name: login@github.com, value: '{{external.github}}'}]
    create_host_user_mode: insecure-drop
    create_host_user_default_shell: /bin/bash
  allow:
    host_groups: [docker, '{{external.groups}}']
    host_sudoers: ['ALL=(root) NOPASSWD: /usr/bin/systemctl restart nginx']
  deny:
    host_groups: ['*']
    host_sudoers: ['*']
`,
		"never": "  options: {client_idle_timeout: never}\n", "zero": "  options: {client_idle_timeout: 0s}\n",
	} {
		if _, err := types.ParseYAML(name, []byte(role(text))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for text, path := range map[string]string{
		"  options: {client_idle_timeout: soon}\n":                                      "spec.options.client_idle_timeout",
		"  options: {max_sessions: -1}\n":                                               "spec.options.max_sessions",
		"  options: {max_connections: 99999999}\n":                                      "spec.options.max_connections",
		"  options: {create_host_user_mode: drop}\n":                                    "spec.options.create_host_user_mode",
		"  options: {create_host_user_default_shell: bash}\n":                           "spec.options.create_host_user_default_shell",
		"  options: {cert_extensions: [{name: permit-pty}]}\n":                          "spec.options.cert_extensions[0].name",
		"  options: {cert_extensions: [{name: teleport-user@teleport}]}\n":              "spec.options.cert_extensions[0].name",
		"  options: {cert_extensions: [{name: a@b, value: '{{what}}'}]}\n":              "spec.options.cert_extensions[0].value",
		"  options: {cert_extensions: [{name: a@b, type: tls}]}\n":                      "spec.options.cert_extensions[0].type",
		"  options: {cert_extensions: [{name: a@b, mode: critical}]}\n":                 "spec.options.cert_extensions[0].mode",
		"  allow: {host_groups: ['*']}\n":                                               "spec.allow.host_groups[0]",
		"  allow: {host_groups: ['-o']}\n":                                              "spec.allow.host_groups[0]",
		"  allow: {host_sudoers: ['*']}\n":                                              "spec.allow.host_sudoers[0]",
		"  allow: {host_sudoers: [\"ALL=(ALL) ALL\\nroot ALL=(ALL) NOPASSWD: ALL\"]}\n": "spec.allow.host_sudoers[0]",
		"  allow: {host_sudoers: ['ALL=(ALL) ALL \\']}\n":                               "spec.allow.host_sudoers[0]",
		"  allow: {host_sudoers: ['{{external.sudo}}']}\n":                              "spec.allow.host_sudoers[0]",
	} {
		_, err := types.ParseYAML("r", []byte(role(text)))
		if err == nil || !strings.Contains(err.Error(), path+":") {
			t.Errorf("%s: %v, want a problem at %s", text, err, path)
		}
	}
}

func FuzzSudoersLine(f *testing.F) {
	f.Add("ALL=(ALL) NOPASSWD: ALL")
	f.Add("ALL=(root) /bin/x\nroot ALL=(ALL) ALL")
	f.Add("x=\x00\r")
	f.Fuzz(func(t *testing.T, line string) {
		if types.ValidSudoersLine(line) == nil && strings.ContainsAny(line, "\n\r\x00\v\f") {
			t.Errorf("%q passes as one line", line)
		}
		e := &typesv1.CertExtension{Name: line}
		if types.ValidCertExtension(e.GetName()) == nil && strings.ContainsAny(line, " \n,\x00") {
			t.Errorf("%q passes as the name of an extension", line)
		}
	})
}
