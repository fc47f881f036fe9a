package oidc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
)

// prove is the machine's half: the token, as the platform gave it.
func (p preset) prove(m method.Machine) method.Exchange {
	return func(ctx context.Context, _ []byte) ([]byte, error) {
		token, err := p.token(ctx, m)
		if err != nil {
			return nil, err
		}
		if token = strings.TrimSpace(token); len(token) > jwt.MaxToken {
			return nil, missing("the token that the platform gave has %d bytes: the most is %d", len(token), jwt.MaxToken)
		}
		return []byte(token), nil
	}
}

// fromEnv returns the first of the variables that is set.
func fromEnv(m method.Machine, hint string, names ...string) (string, error) {
	for _, name := range names {
		if v := m.Getenv(name); v != "" {
			return v, nil
		}
	}
	return "", missing("no token in the environment variable %s: %s", strings.Join(names, " or "), hint)
}

// githubToken asks the runner for a token for this attempt.
func githubToken(ctx context.Context, m method.Machine) (string, error) {
	address, secret := m.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), m.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	if address == "" || secret == "" {
		return "", missing("the environment has no ACTIONS_ID_TOKEN_REQUEST_URL and ACTIONS_ID_TOKEN_REQUEST_TOKEN: give the job permissions: {id-token: write} in the workflow file")
	}
	u, err := withQuery(address, "audience", boundAudience(m.Cluster, m.T))
	if err != nil {
		return "", missing("ACTIONS_ID_TOKEN_REQUEST_URL is not an address")
	}
	var answer struct {
		Value string `json:"value"`
	}
	err = request(ctx, m, egress.Request{URL: u, Header: http.Header{"Authorization": {"Bearer " + secret}, "Accept": {"application/json"}}}, "GitHub", &answer)
	return answer.Value, err
}

// azureDevopsToken asks the pipeline's own service for a token.
func azureDevopsToken(ctx context.Context, m method.Machine) (string, error) {
	address, secret := m.Getenv("SYSTEM_OIDCREQUESTURI"), m.Getenv("SYSTEM_ACCESSTOKEN")
	if address == "" || secret == "" {
		return "", missing("the environment has no SYSTEM_OIDCREQUESTURI and SYSTEM_ACCESSTOKEN: pass the second to the step with env: {SYSTEM_ACCESSTOKEN: $(System.AccessToken)}; the first is set by the agent")
	}
	u, err := withQuery(address, "api-version", "7.1-preview.1")
	if err != nil {
		return "", missing("SYSTEM_OIDCREQUESTURI is not an address")
	}
	var answer struct {
		Token string `json:"oidcToken"`
	}
	err = request(ctx, m, egress.Request{
		Method: http.MethodPost, URL: u,
		Header: http.Header{"Authorization": {"Bearer " + secret}, "Content-Type": {"application/json"}, "Accept": {"application/json"}},
	}, "Azure DevOps", &answer)
	return answer.Token, err
}

// withQuery sets a parameter of an address that has others already.
func withQuery(address, name, value string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// request asks the service that the platform named in the machine's own environment.
func request(ctx context.Context, m method.Machine, req egress.Request, platform string, answer any) error {
	req.Private = true
	resp, err := m.Egress.Do(ctx, req)
	if err != nil {
		return fault.New(fault.ErrUnreachable, "the token of this job cannot be asked for: %w", err).WithCode(method.CodeMetadata)
	}
	if resp.Status != http.StatusOK {
		return missing("%s refused a token for this job with status %d", platform, resp.Status)
	}
	if err := json.Unmarshal(resp.Body, answer); err != nil {
		return missing("%s answered a request for a token with something else than JSON", platform)
	}
	return nil
}

// commandTime is the time that a command has for its token.
const commandTime = 10 * time.Second

// genericToken reads the token from where the administrator of the machine says.
func genericToken(ctx context.Context, m method.Machine) (string, error) {
	env, file, command := m.Settings["oidc.env"], m.Settings["oidc.file"], m.Settings["oidc.command"]
	set := 0
	for _, v := range []string{env, file, command} {
		if v != "" {
			set++
		}
	}
	switch {
	case set != 1:
		return "", missing("where is the token? Set one of teleport.join_params.oidc.env, .file and .command; %d of them are set", set)
	case env != "":
		return fromEnv(m, "teleport.join_params.oidc.env names it", env)
	case file != "":
		return readToken(file)
	default:
		return runToken(ctx, command)
	}
}

func readToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", missing("the token that teleport.join_params.oidc.file names: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 2*jwt.MaxToken))
	if err != nil {
		return "", missing("the token that teleport.join_params.oidc.file names: %w", err)
	}
	return string(b), nil
}

// runToken runs a command, words with spaces between them and no shell, and takes what
// it prints.
func runToken(ctx context.Context, command string) (string, error) {
	words := strings.Fields(command)
	if len(words) == 0 {
		return "", missing("teleport.join_params.oidc.command is empty")
	}
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var out limited
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if out.full {
		return "", missing("the command %q of teleport.join_params.oidc.command prints more than a token", words[0])
	}
	if err != nil {
		// What it printed may be a secret: it stays out of the message.
		return "", missing("the command %q of teleport.join_params.oidc.command: %w", words[0], err)
	}
	return out.buf.String(), nil
}

// limited keeps what is printed, and refuses more than a token. It hides the buffer,
// which would read on by itself.
type limited struct {
	buf  bytes.Buffer
	full bool
}

// Write appends to the buffer, up to its limit.
func (l *limited) Write(p []byte) (int, error) {
	if l.full = l.full || l.buf.Len()+len(p) > 2*jwt.MaxToken; l.full {
		return 0, errors.New("full")
	}
	return l.buf.Write(p)
}

func missing(format string, args ...any) error {
	return fault.New(fault.ErrInvalid, format, args...).WithCode(method.CodeCredentials)
}
