package aws

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"teleport/internal/fault"
	"teleport/internal/keys"
)

// sharedFiles are the two files that AWS's tools share, and the chosen profile.
type sharedFiles struct {
	credentials, config         map[string]section
	credentialsPath, configPath string
	// credentialsMissing and configMissing: the file is not there.
	credentialsMissing, configMissing bool
	name                              string
	// explicit: AWS_PROFILE chose the name.
	explicit bool
}

// maxChain bounds how many roles are assumed one after the other.
const maxChain = 5

func (e Env) shared() (sharedFiles, error) {
	f := sharedFiles{name: firstOf(e.Getenv, "AWS_PROFILE", "AWS_DEFAULT_PROFILE")}
	f.explicit = f.name != ""
	if !f.explicit {
		f.name = "default"
	}
	var err error
	if f.credentialsPath, f.credentials, f.credentialsMissing, err = e.sharedFile("AWS_SHARED_CREDENTIALS_FILE", "credentials"); err != nil {
		return f, err
	}
	f.configPath, f.config, f.configMissing, err = e.sharedFile("AWS_CONFIG_FILE", "config")
	return f, err
}

func (e Env) sharedFile(variable, name string) (path string, sections map[string]section, missing bool, err error) {
	path = e.Getenv(variable)
	if rest, ok := strings.CutPrefix(path, "~/"); ok && e.HomeDir != "" {
		path = filepath.Join(e.HomeDir, rest)
	}
	if path == "" {
		if e.HomeDir == "" {
			return "~/.aws/" + name, nil, true, nil
		}
		path = filepath.Join(e.HomeDir, ".aws", name)
	}
	text, err := e.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path, nil, true, nil
	}
	if err != nil {
		return path, nil, false, fault.Invalid("%w", err)
	}
	if sections, err = parseINI(text); err != nil {
		return path, nil, false, fault.Invalid("%s: %w", path, err)
	}
	return path, sections, false, nil
}

// inConfig returns the section of a profile in the config file: [profile NAME], and
// [default] for the default one.
func (f sharedFiles) inConfig(name string) section {
	s := f.config["profile "+name]
	if name == "default" && s == nil {
		s = f.config["default"]
	}
	return s
}

// profile returns the settings of a profile out of both files; those of the
// credentials file count where both have them.
func (f sharedFiles) profile(name string) (section, bool) {
	inConfig, inCredentials := f.inConfig(name), f.credentials[name]
	out := section{}
	for _, s := range []section{inConfig, inCredentials} {
		for k, v := range s {
			out[k] = v
		}
	}
	return out, inConfig != nil || inCredentials != nil
}

// fromCredentialsFile takes the keys, or the role, that the credentials file has.
func (e Env) fromCredentialsFile(ctx context.Context) (Credentials, error) {
	f, err := e.shared()
	if err != nil {
		return Credentials{}, err
	}
	if f.credentialsMissing {
		return Credentials{}, none("%s does not exist", f.credentialsPath)
	}
	s := f.credentials[f.name]
	if s == nil {
		return Credentials{}, none("%s has no profile %q", f.credentialsPath, f.name)
	}
	// A role of the config file goes before keys: that is what AWS's tools do.
	if f.inConfig(f.name)["role_arn"] != "" || !s.hasCredentials() {
		return Credentials{}, none("profile %q of %s has no keys of its own to use", f.name, f.credentialsPath)
	}
	return e.fromProfile(ctx, f, f.name, nil)
}

// fromConfigFile takes them out of the config file, which is always read.
func (e Env) fromConfigFile(ctx context.Context) (Credentials, error) {
	f, err := e.shared()
	if err != nil {
		return Credentials{}, err
	}
	_, known := f.profile(f.name)
	switch {
	case f.explicit && !known:
		return Credentials{}, fault.Invalid("AWS_PROFILE chooses profile %q, and neither %s nor %s has it", f.name, f.credentialsPath, f.configPath)
	case f.configMissing:
		return Credentials{}, none("%s does not exist", f.configPath)
	case f.inConfig(f.name) == nil:
		return Credentials{}, none("%s has no profile %q", f.configPath, f.name)
	case !f.inConfig(f.name).hasCredentials():
		return Credentials{}, none("profile %q of %s has no keys and no role", f.name, f.configPath)
	}
	return e.fromProfile(ctx, f, f.name, nil)
}

// hasCredentials reports whether the section says anything of credentials.
func (s section) hasCredentials() bool {
	for _, name := range []string{"aws_access_key_id", "aws_secret_access_key", "role_arn", "credential_process", "sso_session", "sso_start_url", "login_session"} {
		if s[name] != "" {
			return true
		}
	}
	return false
}

// fromProfile takes the credentials of a profile; chain has the profiles that lead
// to it.
func (e Env) fromProfile(ctx context.Context, f sharedFiles, name string, chain []string) (Credentials, error) {
	for _, seen := range chain {
		// A profile may name itself as its source: then its own keys are meant.
		if seen == name && chain[len(chain)-1] != name {
			return Credentials{}, fault.Invalid("profiles %s lead back to %q", strings.Join(chain, ", "), name)
		}
	}
	if len(chain) >= maxChain {
		return Credentials{}, fault.Invalid("profiles %s: more than %d in a row", strings.Join(chain, ", "), maxChain)
	}
	p, ok := f.profile(name)
	if !ok {
		return Credentials{}, fault.Invalid("source_profile %q is neither in %s nor in %s", name, f.credentialsPath, f.configPath)
	}
	self := len(chain) > 0 && chain[len(chain)-1] == name
	switch {
	case p["role_arn"] != "" && !self:
		return e.fromRole(ctx, f, p, name, chain)
	case p["aws_access_key_id"] != "" || p["aws_secret_access_key"] != "":
		if p["aws_access_key_id"] == "" || p["aws_secret_access_key"] == "" {
			return Credentials{}, fault.Invalid("profile %q needs both aws_access_key_id and aws_secret_access_key", name)
		}
		return Credentials{
			AccessKeyID: p["aws_access_key_id"], SecretAccessKey: keys.Secret(p["aws_secret_access_key"]),
			SessionToken: keys.Secret(p["aws_session_token"]), Source: "profile " + name,
		}, nil
	case p["credential_process"] != "":
		return Credentials{}, fault.Invalid("profile %q uses credential_process, and Teleport runs no programs for credentials: give keys or a role", name)
	case p["sso_session"] != "" || p["sso_start_url"] != "" || p["login_session"] != "":
		return Credentials{}, fault.Invalid("profile %q is for people who sign in; a service needs keys or a role", name)
	}
	return Credentials{}, fault.Invalid("profile %q has no keys and no role", name)
}

// fromRole assumes the role of a profile, with what the profile names as the source.
func (e Env) fromRole(ctx context.Context, f sharedFiles, p section, name string, chain []string) (Credentials, error) {
	source, from, file := p["source_profile"], p["credential_source"], p["web_identity_token_file"]
	set := 0
	for _, v := range []string{source, from, file} {
		if v != "" {
			set++
		}
	}
	switch {
	case p["mfa_serial"] != "":
		return Credentials{}, fault.Invalid("profile %q needs a second factor, which a service has not: remove mfa_serial", name)
	case set != 1:
		return Credentials{}, fault.Invalid("profile %q has role_arn and needs exactly one of source_profile, credential_source and web_identity_token_file", name)
	case file != "":
		return e.webIdentity(ctx, "profile "+name, file, p["role_arn"], p["role_session_name"])
	}
	var base Credentials
	var err error
	if source != "" {
		base, err = e.fromProfile(ctx, f, source, append(chain, name))
	} else {
		base, err = e.fromSource(ctx, from)
	}
	if err == nil {
		err = base.check(e.Now())
	}
	if err != nil {
		return Credentials{}, fault.Invalid("profile %q: the credentials to assume %s with: %w", name, p["role_arn"], hideNone(err))
	}
	region, _ := Region(ctx, e)
	c, err := AssumeRole(ctx, e.Egress, base, Role{
		ARN: p["role_arn"], Session: p["role_session_name"], ExternalID: p["external_id"], Region: region, FIPS: FIPS(e),
	}, e.Now())
	c.Source = "profile " + name
	return c, err
}

// fromSource is credential_source of a profile.
func (e Env) fromSource(ctx context.Context, source string) (Credentials, error) {
	switch source {
	case "Environment":
		return e.fromEnvironment(ctx)
	case "EcsContainer":
		return e.fromContainer(ctx)
	case "Ec2InstanceMetadata":
		return e.fromInstance(ctx)
	}
	return Credentials{}, fault.Invalid("credential_source %q: expected Environment, EcsContainer or Ec2InstanceMetadata", source)
}

// hideNone makes of "this source has nothing" an error that ends the search.
func hideNone(err error) error { return errors.New(err.Error()) }
