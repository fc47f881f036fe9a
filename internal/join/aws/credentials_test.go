package aws_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/aws"
	"teleport/internal/join/egress"
	"teleport/internal/join/method"
	"teleport/test/awsfake"
)

// key makes a key that says by its id where it was found.
func key(where string) awsfake.Key {
	return awsfake.Key{
		ID: "ASIA0000000000000" + where, Secret: "hush" + where, SessionToken: "TOKEN" + where,
		Account: "333333333333", ARN: "arn:aws:sts::333333333333:assumed-role/" + where, UserID: "AROA" + where,
		Expires: time.Now().Add(time.Hour),
	}
}

func keyLines(where string) string {
	k := key(where)
	return "aws_access_key_id = " + k.ID + "\naws_secret_access_key = " + k.Secret + "\naws_session_token = " + k.SessionToken + "\n"
}

// machine is what a process can look at.
type machine struct {
	env      map[string]string
	files    map[string]string
	metadata *awsfake.Metadata
	cloud    *awsfake.Cloud
}

func nowhere(_ context.Context, _, addr string) (net.Conn, error) {
	return nil, errors.New("no way to " + addr)
}

func (m machine) look(t *testing.T) aws.Env {
	t.Helper()
	metadata, out := egress.Config{Dial: nowhere}, egress.Config{Dial: nowhere}
	if m.metadata != nil {
		metadata.Dial = m.metadata.Start(t)
	}
	if m.cloud != nil {
		out = egress.Config{Roots: m.cloud.Roots(), Dial: m.cloud.Start(t)}
	}
	return aws.Env{
		Getenv: func(name string) string { return m.env[name] }, HomeDir: "/home/agent",
		ReadFile: func(name string) ([]byte, error) {
			text, ok := m.files[name]
			if !ok {
				return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
			}
			return []byte(text), nil
		},
		Metadata: egress.Metadata(metadata), Egress: egress.New(out), Now: time.Now,
	}
}

const (
	credentialsFile = "/home/agent/.aws/credentials"
	configFile      = "/home/agent/.aws/config"
	roleARN         = "arn:aws:iam::333333333333:role/node"
)

// everything has all sources at once.
func everything(t *testing.T) machine {
	t.Helper()
	cloud := awsfake.New(t)
	cloud.AddRole(roleARN, key("WEB"), "jwt-of-the-pod")
	return machine{
		env: map[string]string{
			"AWS_ACCESS_KEY_ID": key("ENV").ID, "AWS_SECRET_ACCESS_KEY": key("ENV").Secret, "AWS_SESSION_TOKEN": key("ENV").SessionToken,
			"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "AWS_ROLE_ARN": roleARN,
		},
		files: map[string]string{
			"/var/run/token": "jwt-of-the-pod\n",
			credentialsFile:  "[default]\n" + keyLines("CREDENTIALS"),
			configFile:       "[default]\nregion = eu-west-3\n" + keyLines("CONFIG"),
		},
		metadata: &awsfake.Metadata{Region: "eu-north-1", Role: "teleport-node-role", Key: key("IMDS")},
		cloud:    cloud,
	}
}

// TestOrder takes away one source after the other.
func TestOrder(t *testing.T) {
	m := everything(t)
	steps := []struct {
		want, source string
		remove       func()
	}{
		{key("ENV").ID, "environment", func() { delete(m.env, "AWS_ACCESS_KEY_ID"); delete(m.env, "AWS_SECRET_ACCESS_KEY") }},
		{key("WEB").ID + "SESSION1", "web identity", func() { delete(m.env, "AWS_WEB_IDENTITY_TOKEN_FILE") }},
		{key("CREDENTIALS").ID, "profile default", func() { delete(m.files, credentialsFile) }},
		{key("CONFIG").ID, "profile default", func() { delete(m.files, configFile) }},
		{key("IMDS").ID, "instance metadata, role teleport-node-role", func() { m.metadata = nil }},
	}
	for _, step := range steps {
		c, err := aws.Load(t.Context(), m.look(t))
		if err != nil {
			t.Fatalf("before %s: %v", step.want, err)
		}
		if c.AccessKeyID != step.want || c.Source != step.source {
			t.Errorf("found %s of %s, want %s of %s", c.AccessKeyID, c.Source, step.want, step.source)
		}
		step.remove()
	}
	_, err := aws.Load(t.Context(), m.look(t))
	if fault.Code(err) != method.CodeCredentials {
		t.Fatalf("with nothing left: %v", err)
	}
	last := -1
	for _, want := range []string{
		"environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set", "web identity: AWS_WEB_IDENTITY_TOKEN_FILE is not set",
		"shared credentials file: " + credentialsFile + " does not exist", "shared config file: " + configFile + " does not exist",
		"container endpoint: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "instance metadata: ", "169.254.169.254",
	} {
		at := strings.Index(err.Error(), want)
		if at <= last {
			t.Errorf("the error does not say %q, in order: %v", want, err)
		}
		last = at
	}
}

// TestContainer is apart from the order: the endpoint has an address that only a
// container has, or one of this machine.
func TestContainer(t *testing.T) {
	m := machine{env: map[string]string{}, files: map[string]string{"/token": "Bearer of the pod\n"}, metadata: &awsfake.Metadata{Role: "node", Key: key("IMDS")}}
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/credentials", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer of the pod" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, key("CONTAINER").JSON(""))
	})
	mux.HandleFunc("/refused", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"Code":"AssumeRoleUnauthorized"}`) })
	mux.HandleFunc("/html", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `<html>`) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/v2/credentials", http.StatusFound) })
	server := httptest.NewServer(mux)
	defer server.Close()
	rows := map[string]struct {
		env  map[string]string
		want string
	}{
		"token":            {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL + "/v2/credentials", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "Bearer of the pod"}, ""},
		"token file":       {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL + "/v2/credentials", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/token", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "old"}, ""},
		"token file gone":  {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/gone"}, "/gone does not exist"},
		"token newline":    {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL, "AWS_CONTAINER_AUTHORIZATION_TOKEN": "x\r\nX-Evil: 1"}, "characters that a header cannot have"},
		"no token":         {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL + "/v2/credentials"}, "HTTP 401"},
		"refused":          {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL + "/refused"}, "AssumeRoleUnauthorized"},
		"html":             {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL + "/html"}, "not the JSON"},
		"redirect":         {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL + "/away"}, "HTTP 302"},
		"plain to another": {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://192.0.2.1/v2/credentials"}, "plain http is for localhost"},
		"instance":         {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.169.254/x"}, "plain http is for localhost"},
		"another scheme":   {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "file:///etc/shadow"}, "not an address"},
		"user info":        {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://localhost@192.0.2.1/"}, "not an address"},
		"relative host":    {map[string]string{"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": ".evil.example/x"}, "not a path"},
		"relative user":    {map[string]string{"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "@evil.example/x"}, "not a path"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			m.env = row.env
			env := m.look(t)
			env.Metadata = egress.Metadata(egress.Config{})
			c, err := aws.Load(t.Context(), env)
			if row.want == "" {
				if err != nil || c.AccessKeyID != key("CONTAINER").ID || c.Source != "container endpoint" {
					t.Fatalf("found %s of %s, %v", c.AccessKeyID, c.Source, err)
				}
				return
			}
			// An endpoint that is set up and fails ends the search: the role of the
			// instance is not that of the container.
			if fault.Code(err) != method.CodeCredentials || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("%s, %v; want an error with %q", c.AccessKeyID, err, row.want)
			}
		})
	}
}

// profileRow is a pair of shared files, and whose key is found: want, or an error
// with fail in it.
type profileRow struct {
	env                 map[string]string
	credentials, config string
	want, fail          string
}

// profileRows covers the two shared files.
func profileRows() map[string]profileRow {
	return map[string]profileRow{
		"named in credentials":  {map[string]string{"AWS_PROFILE": "ci"}, "[default]\n" + keyLines("X") + "[ci]\n" + keyLines("CI"), "", key("CI").ID, ""},
		"named in config":       {map[string]string{"AWS_PROFILE": "ci"}, "", "[profile ci]\n" + keyLines("CI"), key("CI").ID, ""},
		"blanks in the section": {map[string]string{"AWS_PROFILE": "ci"}, "", "[profile   ci]\n" + keyLines("CI"), key("CI").ID, ""},
		"profile default":       {nil, "", "[profile default]\n" + keyLines("P") + "[default]\n" + keyLines("D"), key("P").ID, ""},
		"bare name in config":   {map[string]string{"AWS_PROFILE": "ci"}, "", "[ci]\n" + keyLines("CI"), "", `profile "ci"`},
		"not there":             {map[string]string{"AWS_PROFILE": "ci"}, "[default]\n" + keyLines("X"), "", "", `AWS_PROFILE chooses profile "ci"`},
		"both files":            {nil, "[default]\n" + keyLines("CRED"), "[default]\n" + keyLines("CONF"), key("CRED").ID, ""},
		"windows lines":         {nil, strings.ReplaceAll("[default]\n"+keyLines("X"), "\n", "\r\n"), "", key("X").ID, ""},
		"byte order mark":       {nil, "\xef\xbb\xbf[default]\n" + keyLines("X"), "", key("X").ID, ""},
		"indented":              {nil, "[default]\n  " + strings.ReplaceAll(strings.TrimSpace(keyLines("X")), "\n", "\n  "), "", key("X").ID, ""},
		"comments":              {nil, "# a\n; b\n[default] # c\n\n" + strings.ReplaceAll(keyLines("X"), "\n", " # why\n"), "", key("X").ID, ""},
		"no blanks":             {nil, "[default]\n" + strings.ReplaceAll(keyLines("X"), " = ", "="), "", key("X").ID, ""},
		"capitals":              {nil, "[default]\n" + strings.ReplaceAll(keyLines("X"), "aws_access_key_id", "AWS_ACCESS_KEY_ID"), "", key("X").ID, ""},
		"nested settings":       {nil, "", "[default]\ns3 =\n  aws_access_key_id = NESTED0000000000\n" + keyLines("X"), key("X").ID, ""},
		"half of a key":         {nil, "[default]\naws_access_key_id = ASIA0000000000000X\n", "", "", "needs both aws_access_key_id"},
		"not ini":               {nil, "{}", "", "", "line 1: expected name = value"},
		"open section":          {nil, "[default\n", "", "", "line 1: a section without"},
		"before a section":      {nil, "a = b\n", "", "", "line 1: a setting before"},
		"bad config":            {nil, "[default]\n" + keyLines("X"), "x", "", configFile + ": line 1"},
		"other paths": {
			map[string]string{"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/config"}, "[default]\n" + keyLines("X"), "[default]\n" + keyLines("Y"), key("Y").ID, "",
		},
		"role": {
			map[string]string{"AWS_PROFILE": "node"},
			"[base]\n" + keyLines("BASE"), "[profile node]\nrole_arn = " + roleARN + "\nsource_profile = base\nrole_session_name = host-1\n",
			key("ROLE").ID + "SESSION", "",
		},
		"role before keys": {
			map[string]string{"AWS_PROFILE": "node"},
			"[base]\n" + keyLines("BASE") + "[node]\n" + keyLines("NODE"), "[profile node]\nrole_arn = " + roleARN + "\nsource_profile = base\n",
			key("ROLE").ID + "SESSION", "",
		},
		"role of its own keys": {
			map[string]string{"AWS_PROFILE": "node"},
			"", "[profile node]\nrole_arn = " + roleARN + "\nsource_profile = node\n" + keyLines("BASE"),
			key("ROLE").ID + "SESSION", "",
		},
		"role of the instance": {
			map[string]string{"AWS_PROFILE": "node"},
			"", "[profile node]\nrole_arn = " + roleARN + "\ncredential_source = Ec2InstanceMetadata\n",
			key("ROLE").ID + "SESSION", "",
		},
		"role of a web identity": {
			map[string]string{"AWS_PROFILE": "node"},
			"", "[profile node]\nrole_arn = " + roleARN + "\nweb_identity_token_file = /var/run/token\n",
			key("ROLE").ID + "SESSION", "",
		},
		"role not allowed":  {nil, "[base]\n" + keyLines("BASE"), "[default]\nrole_arn = arn:aws:iam::333333333333:role/other\nsource_profile = base\n", "", "sts.eu-west-3.amazonaws.com answers HTTP 403 AccessDenied"},
		"source unknown":    {nil, "", "[default]\nrole_arn = " + roleARN + "\nsource_profile = gone\n", "", `source_profile "gone"`},
		"source empty":      {nil, "", "[default]\nrole_arn = " + roleARN + "\ncredential_source = EcsContainer\n", "", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"},
		"source of nowhere": {nil, "", "[default]\nrole_arn = " + roleARN + "\ncredential_source = Moon\n", "", `credential_source "Moon"`},
		"circle":            {nil, "", "[default]\nrole_arn = " + roleARN + "\nsource_profile = b\n[profile b]\nrole_arn = " + roleARN + "\nsource_profile = default\n", "", "lead back"},
		"long chain": {
			nil, "", "[default]\nrole_arn = r\nsource_profile = a\n[profile a]\nrole_arn = r\nsource_profile = b\n[profile b]\nrole_arn = r\nsource_profile = c\n" +
				"[profile c]\nrole_arn = r\nsource_profile = d\n[profile d]\nrole_arn = r\nsource_profile = e\n[profile e]\n" + keyLines("E"), "", "more than 5 in a row",
		},
		"second factor": {nil, "", "[default]\nrole_arn = " + roleARN + "\nsource_profile = default\nmfa_serial = x\n", "", "mfa_serial"},
		"two sources":   {nil, "", "[default]\nrole_arn = " + roleARN + "\nsource_profile = a\ncredential_source = Environment\n", "", "exactly one"},
		"program":       {nil, "", "[default]\ncredential_process = /bin/sh -c evil\n", "", "runs no programs"},
		"sign-in":       {nil, "", "[default]\nsso_session = corp\n", "", "for people who sign in"},
		"region only":   {nil, "", "[default]\nregion = eu-west-3\n", key("IMDS").ID, ""},
	}
}

func TestProfiles(t *testing.T) {
	cloud := awsfake.New(t)
	cloud.Add(key("BASE"))
	cloud.AddRole(roleARN, key("ROLE"), "jwt")
	for name, row := range profileRows() {
		t.Run(name, func(t *testing.T) {
			m := machine{
				env: map[string]string{"AWS_REGION": "eu-west-3"}, files: map[string]string{"/var/run/token": "jwt"}, cloud: cloud,
				metadata: &awsfake.Metadata{Role: "node", Key: key("IMDS")},
			}
			cloud.Add(key("IMDS"))
			for k, v := range row.env {
				m.env[k] = v
			}
			if row.credentials != "" {
				m.files[credentialsFile] = row.credentials
			}
			if row.config != "" {
				m.files[configFile] = row.config
			}
			c, err := aws.Load(t.Context(), m.look(t))
			if row.fail != "" {
				if fault.Code(err) != method.CodeCredentials || !strings.Contains(err.Error(), row.fail) || strings.Contains(err.Error(), "hush") {
					t.Fatalf("%s, %v; want an error with %q", c.AccessKeyID, err, row.fail)
				}
				return
			}
			if err != nil || !strings.HasPrefix(c.AccessKeyID, row.want) {
				t.Fatalf("found %s, %v; want %s", c.AccessKeyID, err, row.want)
			}
		})
	}
}

// TestBroken has credentials that no request can be signed with.
func TestBroken(t *testing.T) {
	rows := map[string]struct {
		env  map[string]string
		want string
	}{
		"id alone":        {map[string]string{"AWS_ACCESS_KEY_ID": key("X").ID}, "AWS_SECRET_ACCESS_KEY is not"},
		"secret alone":    {map[string]string{"AWS_SECRET_ACCESS_KEY": "s"}, "AWS_ACCESS_KEY_ID is not"},
		"id with quotes":  {map[string]string{"AWS_ACCESS_KEY_ID": `"` + key("X").ID + `"`, "AWS_SECRET_ACCESS_KEY": "s"}, "the access key id"},
		"secret in two":   {map[string]string{"AWS_ACCESS_KEY_ID": key("X").ID, "AWS_SECRET_ACCESS_KEY": "s s"}, "the secret access key"},
		"token newline":   {map[string]string{"AWS_ACCESS_KEY_ID": key("X").ID, "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "a\nb"}, "the session token"},
		"web without arn": {map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}, "AWS_ROLE_ARN is not"},
		"web file gone":   {map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": roleARN}, "/t does not exist"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			m := machine{env: row.env, metadata: &awsfake.Metadata{Role: "node", Key: key("IMDS")}}
			c, err := aws.Load(t.Context(), m.look(t))
			if fault.Code(err) != method.CodeCredentials || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("found %s, %v; want an error with %q", c.AccessKeyID, err, row.want)
			}
		})
	}
	t.Run("expired", func(t *testing.T) {
		k := key("IMDS")
		k.Expires = time.Now().Add(-time.Minute)
		m := machine{metadata: &awsfake.Metadata{Role: "node", Key: k}}
		if _, err := aws.Load(t.Context(), m.look(t)); fault.Code(err) != method.CodeCredentials || !strings.Contains(err.Error(), "expired at") {
			t.Fatalf("error %v", err)
		}
	})
	t.Run("no role", func(t *testing.T) {
		m := machine{metadata: &awsfake.Metadata{Region: "us-east-1"}}
		if _, err := aws.Load(t.Context(), m.look(t)); fault.Code(err) != method.CodeCredentials || !strings.Contains(err.Error(), "the instance has no IAM role") {
			t.Fatalf("error %v", err)
		}
	})
	t.Run("STS down", func(t *testing.T) {
		m := everything(t)
		m.cloud = nil
		delete(m.env, "AWS_ACCESS_KEY_ID")
		delete(m.env, "AWS_SECRET_ACCESS_KEY")
		if _, err := aws.Load(t.Context(), m.look(t)); !errors.Is(err, fault.ErrUnreachable) || fault.Code(err) != method.CodeCredentials {
			t.Fatalf("error %v, want one of kind unreachable", err)
		}
	})
}

// TestVersion1IsNotSpoken has a metadata service without tokens.
func TestVersion1IsNotSpoken(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			asked++
			fmt.Fprint(w, "node")
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer server.Close()
	env := machine{}.look(t)
	env.Metadata = egress.Metadata(egress.Config{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server.Listener.Addr().String())
	}})
	if _, err := aws.Load(t.Context(), env); fault.Code(err) != method.CodeCredentials || !strings.Contains(err.Error(), "version 2 of it only") {
		t.Errorf("error %v", err)
	}
	if region, source := aws.Region(t.Context(), env); region != "us-east-1" || source != "default" {
		t.Errorf("region %s of %s", region, source)
	}
	if asked != 0 {
		t.Errorf("%d requests without a token", asked)
	}
}

func TestRegion(t *testing.T) {
	m := everything(t)
	m.env["AWS_REGION"], m.env["AWS_DEFAULT_REGION"] = "us-west-1", "us-west-2"
	for _, step := range []struct {
		region, source string
		remove         func()
	}{
		{"us-west-1", "AWS_REGION", func() { delete(m.env, "AWS_REGION") }},
		{"us-west-2", "AWS_DEFAULT_REGION", func() { delete(m.env, "AWS_DEFAULT_REGION") }},
		{"eu-west-3", "profile default", func() { delete(m.files, configFile) }},
		{"eu-north-1", "instance metadata", func() { m.metadata.Region = "eu-north-1.evil" }},
		{"us-east-1", "default", func() { m.env["AWS_EC2_METADATA_DISABLED"] = "true"; m.metadata.Region = "eu-north-1" }},
		{"us-east-1", "default", func() {}},
	} {
		region, source := aws.Region(t.Context(), m.look(t))
		if region != step.region || source != step.source {
			t.Errorf("region %s of %s, want %s of %s", region, source, step.region, step.source)
		}
		step.remove()
	}
}

// TestSecretsAreNotPrinted has no way to show a secret but Reveal.
func TestSecretsAreNotPrinted(t *testing.T) {
	c, err := aws.Load(t.Context(), everything(t).look(t))
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "c", c)
	text := fmt.Sprintf("%v %+v %#v %s", c, c, c, c) + log.String()
	if strings.Contains(text, key("ENV").Secret) || strings.Contains(text, key("ENV").SessionToken) {
		t.Errorf("a secret shows in %s", text)
	}
}
