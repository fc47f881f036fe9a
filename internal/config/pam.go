package config

import (
	"regexp"

	"teleport/internal/types"
)

// PAMConfig is the pam part of the ssh_service section.
type PAMConfig struct {
	Enabled bool
	// ServiceName names a file of /etc/pam.d.
	ServiceName string
	// UseAuth has modules authenticate, beside what the certificate proves.
	UseAuth bool
	// Environment is for modules and sessions; the values may refer to traits.
	Environment map[string]string
}

// defaultPAMService is what sshd goes by.
const defaultPAMService = "sshd"

const (
	maxPAMVariables = 64
	maxPAMValue     = 1024
)

var (
	// PAM looks for the name in lower case.
	pamService   = regexp.MustCompile(`^[a-z0-9_][a-z0-9_.-]{0,63}$`)
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
)

func pamSchema(p *PAMConfig) schema {
	return schema{
		"enabled": setBool(&p.Enabled),
		"service_name": func(v value) {
			name, ok := v.text("the name of a file in /etc/pam.d")
			if ok && !pamService.MatchString(name) {
				v.bad("bad name of a PAM service %s: expected lower-case letters, digits, _, . and -", quote(name))
			}
			p.ServiceName = name
		},
		"use_pam_auth": setBool(&p.UseAuth),
		"environment":  func(v value) { readEnvironment(v, p) },
	}
}

func readEnvironment(v value, p *PAMConfig) {
	p.Environment = map[string]string{}
	v.entries("variables, such as EMAIL: \"{{external.email}}\"", func(e value, name string) {
		text, ok := e.text("a string")
		switch {
		case !ok:
		case !variableName.MatchString(name):
			e.d.problem(e.keyAt(), e.path, "bad name of a variable: expected letters, digits and _")
		case len(p.Environment) == maxPAMVariables:
			e.bad("more than %d variables", maxPAMVariables)
		case len(text) > maxPAMValue:
			e.bad("too long: expected at most %d bytes", maxPAMValue)
		default:
			e.badIf(types.ValidTemplate(text))
			p.Environment[name] = text
		}
	})
}
