// Package aws is what the join methods of AWS share, in the standard library's terms:
// where a process finds its credentials and region, Signature Version 4, the names of
// AWS's hosts, and the one form of call to its older services. It knows no join and
// no rule, and every host it speaks to comes from its own table or from the person
// who set the process up.
package aws

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/internal/keys"
)

// Credentials sign requests to AWS.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey keys.Secret
	// SessionToken is empty for the keys of an IAM user.
	SessionToken keys.Secret
	// Source says where they were found, for people.
	Source string
	// Expires is zero if they do not, or if the source does not say.
	Expires time.Time
}

// Env is what a process can look at to find credentials and region.
type Env struct {
	// Getenv reads the environment: AWS_PROFILE, AWS_CONFIG_FILE and the others are
	// taken from here.
	Getenv func(string) string
	// HomeDir is where .aws is looked for; empty if there is none.
	HomeDir string
	// ReadFile reads a whole file.
	ReadFile func(string) ([]byte, error)
	// Metadata reaches the link-local services of the machine, Egress STS.
	Metadata, Egress *egress.Client
	Now              func() time.Time
}

// errNone is wrapped by a source that has nothing: the search goes on. Any other error
// ends it, since the next source would give another identity than the one meant.
var errNone = errors.New("nothing there")

// none says why a source has nothing.
func none(format string, args ...any) error {
	return fault.New(errNone, format, args...)
}

// Load finds the credentials of the process. The order: environment, web identity,
// shared credentials file, shared config file, container endpoint, instance metadata
// (version 2 only). The first that is set up counts, and if that one does not work the
// search ends: the next would be somebody else. The error has the code
// credentials_missing and says of each source that was tried why it gave nothing.
func Load(ctx context.Context, env Env) (Credentials, error) {
	sources := []struct {
		name string
		load func(context.Context) (Credentials, error)
	}{
		{"environment", env.fromEnvironment},
		{"web identity", env.fromWebIdentity},
		{"shared credentials file", env.fromCredentialsFile},
		{"shared config file", env.fromConfigFile},
		{"container endpoint", env.fromContainer},
		{"instance metadata", env.fromInstance},
	}
	var tried []string
	for _, s := range sources {
		c, err := s.load(ctx)
		if err == nil {
			err = c.check(env.Now())
		}
		if err == nil {
			return c, nil
		}
		tried = append(tried, s.name+": "+err.Error())
		if !errors.Is(err, errNone) {
			kind := fault.ErrDenied
			if errors.Is(err, fault.ErrUnreachable) {
				kind = fault.ErrUnreachable // a later attempt may go well
			}
			return Credentials{}, fault.New(kind, "the AWS credentials that this machine is set up with do not work; tried in order: %s. Correct the last one, or remove it so that the next source is asked",
				strings.Join(tried, "; ")).WithCode(method.CodeCredentials)
		}
	}
	return Credentials{}, fault.New(fault.ErrDenied, "this machine has no AWS credentials; tried in order: %s. Attach an IAM role to the instance (it needs no policy), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in /etc/default/teleport",
		strings.Join(tried, "; ")).WithCode(method.CodeCredentials)
}

// Limits of the parts of credentials, the same on the machine and at Auth.
const (
	maxAccessKeyID  = 128
	maxSessionToken = 16 << 10
)

// CheckAccessKeyID finds what is wrong with the id of an access key.
func CheckAccessKeyID(id string) error {
	if len(id) < 16 || len(id) > maxAccessKeyID || strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_'
	}) {
		return fault.Invalid("the access key id is not one: expected 16 to %d letters and digits, got %d bytes", maxAccessKeyID, len(id))
	}
	return nil
}

// CheckSessionToken finds what is wrong with a session token; empty is good.
func CheckSessionToken(token keys.Secret) error {
	text := token.Reveal()
	if len(text) > maxSessionToken || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fault.Invalid("the session token is not one: expected at most %d printable characters without blanks, got %d bytes", maxSessionToken, len(text))
	}
	return nil
}

func (c Credentials) check(now time.Time) error {
	if err := CheckAccessKeyID(c.AccessKeyID); err != nil {
		return err
	}
	if secret := c.SecretAccessKey.Reveal(); secret == "" || strings.ContainsAny(secret, " \t\r\n") {
		return fault.Invalid("the secret access key is empty or has blanks in it")
	}
	if err := CheckSessionToken(c.SessionToken); err != nil {
		return err
	}
	if !c.Expires.IsZero() && !now.Before(c.Expires) {
		return fault.Invalid("the credentials expired at %s, and it is %s by this machine's clock", c.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

func (e Env) fromEnvironment(context.Context) (Credentials, error) {
	id := firstOf(e.Getenv, "AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY")
	secret := firstOf(e.Getenv, "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY")
	switch {
	case id == "" && secret == "":
		return Credentials{}, none("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")
	case id == "":
		return Credentials{}, fault.Invalid("AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not")
	case secret == "":
		return Credentials{}, fault.Invalid("AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not")
	}
	return Credentials{
		AccessKeyID: id, SecretAccessKey: keys.Secret(secret), SessionToken: keys.Secret(e.Getenv("AWS_SESSION_TOKEN")),
		Source: "environment",
	}, nil
}

func firstOf(getenv func(string) string, names ...string) string {
	for _, name := range names {
		if v := getenv(name); v != "" {
			return v
		}
	}
	return ""
}

// Region finds the region of the process, and says where: the variables AWS_REGION
// and AWS_DEFAULT_REGION, the shared files, the instance metadata, and us-east-1 if
// none of them says.
func Region(ctx context.Context, env Env) (region, source string) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if v := env.Getenv(name); v != "" {
			return v, name
		}
	}
	if files, err := env.shared(); err == nil {
		if p, ok := files.profile(files.name); ok && p["region"] != "" {
			return p["region"], "profile " + files.name
		}
	}
	if v, err := env.instanceRegion(ctx); err == nil {
		return v, "instance metadata"
	}
	return "us-east-1", "default"
}

// FIPS reports whether the process is to speak to the FIPS hosts of AWS.
func FIPS(env Env) bool {
	return strings.EqualFold(env.Getenv("AWS_USE_FIPS_ENDPOINT"), "true")
}

// readText reads a small file that the environment or a profile names.
func (e Env) readText(name string) (string, error) {
	text, err := e.ReadFile(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", fault.Invalid("%s does not exist", name)
		}
		return "", fault.Invalid("%w", err)
	}
	if len(text) > maxToken {
		return "", fault.Invalid("%s is longer than %d bytes", name, maxToken)
	}
	return strings.TrimSpace(string(text)), nil
}

// maxToken bounds a token that stands in a file.
const maxToken = 20 << 10
