package iam_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/egress"
	"teleport/internal/join/iam"
	"teleport/internal/join/jointest"
	"teleport/internal/join/method"
	"teleport/test/awsfake"
)

const (
	account = "333333333333"
	nodeARN = "arn:aws:sts::" + account + ":assumed-role/teleport-node-role/i-0123456789abcdef0"
)

// node is the key of an instance's role.
func node() awsfake.Key {
	return awsfake.Key{
		ID: "ASIAIOSFODNN7EXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", SessionToken: "FwoGZXIvYXdzEBY+/=",
		Account: account, ARN: nodeARN, UserID: "AROAIOSFODNN7EXAMPLE:i-0123456789abcdef0",
	}
}

func environment(k awsfake.Key, more ...string) map[string]string {
	env := map[string]string{
		"AWS_ACCESS_KEY_ID": k.ID, "AWS_SECRET_ACCESS_KEY": k.Secret, "AWS_DEFAULT_REGION": "eu-central-1",
		"AWS_EC2_METADATA_DISABLED": "true",
	}
	if k.SessionToken != "" {
		env["AWS_SESSION_TOKEN"] = k.SessionToken
	}
	for i := 0; i < len(more); i += 2 {
		env[more[i]] = more[i+1]
	}
	return env
}

func nowhere(_ context.Context, _, addr string) (net.Conn, error) {
	return nil, errors.New("no way to " + addr)
}

// attempt is a machine with a key, and a cloud that knows it.
func attempt(t *testing.T, k awsfake.Key) (*jointest.Setup, *awsfake.Cloud) {
	t.Helper()
	cloud := awsfake.New(t)
	cloud.Add(k)
	env := environment(k)
	return &jointest.Setup{
		Spec: &typesv1.TokenSpec{Allow: []*typesv1.AWSRule{{
			AwsAccount: account, AwsArn: "arn:aws:sts::333333333333:assumed-role/teleport-node-role/i-*",
		}}},
		Machine: method.Machine{
			Getenv:   func(name string) string { return env[name] },
			Metadata: egress.Metadata(egress.Config{Dial: nowhere}), Egress: egress.New(egress.Config{Dial: nowhere}),
		},
		Auth: egress.Config{Roots: cloud.Roots(), Dial: cloud.Start(t)},
	}, cloud
}

// lie makes a cloud answer something else.
func lie(t *testing.T, s *jointest.Setup, answer http.HandlerFunc) {
	t.Helper()
	cloud := awsfake.New(t)
	cloud.Answer = answer
	s.Auth = egress.Config{Roots: cloud.Roots(), Dial: cloud.Start(t)}
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
}

func identity(account, arn string) string {
	return `{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"` + account + `","Arn":"` + arn + `","UserId":"AROA:x"},"ResponseMetadata":{"RequestId":"r"}}}`
}

func TestSuite(t *testing.T) {
	bad := []jointest.Case{
		{Name: "expired", Code: method.CodeProofExpired, Bend: func(_ *testing.T, s *jointest.Setup) {
			s.Machine.Now = func() time.Time { return time.Now().Add(-6 * time.Minute) }
		}},
		{Name: "future", Code: method.CodeProofNotYetValid, Bend: func(_ *testing.T, s *jointest.Setup) {
			s.Machine.Now = func() time.Time { return time.Now().Add(6 * time.Minute) }
		}},
		{Name: "wrong_account", Code: method.CodeRuleMismatch, Bend: func(_ *testing.T, s *jointest.Setup) {
			s.Spec.Allow = []*typesv1.AWSRule{{AwsAccount: "333333333334"}}
		}},
		// Vault's CVE-2025-11621: a role of that name in another account.
		{Name: "same role in another account", Code: method.CodeRuleMismatch, Bend: func(t *testing.T, s *jointest.Setup) {
			k := node()
			k.Account, k.ARN = "999999999999", strings.ReplaceAll(k.ARN, account, "999999999999")
			other, _ := attempt(t, k)
			s.Auth = other.Auth
		}},
		{Name: "another role", Code: method.CodeRuleMismatch, Bend: func(_ *testing.T, s *jointest.Setup) {
			s.Spec.Allow[0].AwsArn = "arn:aws:sts::333333333333:assumed-role/teleport-node/i-*"
		}},
		{Name: "wrong_audience", Code: method.CodeCloudRefused, Bend: func(t *testing.T, s *jointest.Setup) {
			// Signed for another transcript: another cluster, token, or keys.
			m := s.Machine
			m.T, m.Now, m.Log = [32]byte{1}, time.Now, slog.New(slog.DiscardHandler)
			foreign, err := iam.Method().Prove(m)(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Tamper = func([]byte) []byte { return foreign }
		}},
		{Name: "cloud_down", Code: method.CodeCloudUnreachable, Bend: func(_ *testing.T, s *jointest.Setup) { s.Auth.Dial = nowhere }},
		{Name: "cloud_lies", Code: method.CodeCloudRefused, Bend: func(t *testing.T, s *jointest.Setup) { lie(t, s, says("<xml/>")) }},
		{Name: "somebody else's certificate", Code: method.CodeCloudUnreachable, Bend: func(_ *testing.T, s *jointest.Setup) { s.Auth.Roots = x509.NewCertPool() }},
		{Name: "no credentials", Code: method.CodeCredentials, Bend: func(_ *testing.T, s *jointest.Setup) {
			s.Machine.Getenv = func(name string) string { return map[string]string{"HOME": "/nonexistent"}[name] }
		}},
		{Name: "region unknown", Code: method.CodeCredentials, Bend: func(_ *testing.T, s *jointest.Setup) {
			env := environment(node(), "AWS_REGION", "us-east-1.evil.example")
			s.Machine.Getenv = func(name string) string { return env[name] }
		}},
	}
	for name, text := range map[string]string{
		"nothing":              "",
		"no members":           `{}`,
		"other action":         `{"GetSessionTokenResponse":{"GetSessionTokenResult":{}}}`,
		"empty result":         `{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{}}}`,
		"other partition":      identity(account, "arn:aws-cn:sts::"+account+":assumed-role/teleport-node-role/i-0"),
		"ARN of another":       identity(account, "arn:aws:sts::999999999999:assumed-role/teleport-node-role/i-0"),
		"account of another":   identity("999999999999", nodeARN),
		"short account":        identity("33", "arn:aws:sts::33:assumed-role/teleport-node-role/i-0"),
		"ARN of a bucket":      identity(account, "arn:aws:s3::"+account+":assumed-role/teleport-node-role/i-0"),
		"ARN with a region":    identity(account, "arn:aws:sts:eu-central-1:"+account+":assumed-role/teleport-node-role/i-0"),
		"ARN of nothing":       identity(account, "arn:aws:sts::"+account+":"),
		"ARN with a newline":   identity(account, nodeARN+`\n`),
		"long ARN":             identity(account, nodeARN+strings.Repeat("0", 2048)),
		"number for account":   strings.Replace(identity(account, nodeARN), `"`+account+`"`, account, 1),
		"two accounts":         strings.Replace(identity(account, nodeARN), `"Arn"`, `"Account":"999999999999","Arn"`, 1),
		"account in small":     strings.Replace(identity(account, nodeARN), `"Arn"`, `"account":"999999999999","Arn"`, 1),
		"two results":          strings.Replace(identity(account, nodeARN), `"ResponseMetadata"`, `"GetCallerIdentityResult":{},"ResponseMetadata"`, 1),
		"something behind":     identity(account, nodeARN) + "{}",
		"half":                 identity(account, nodeARN)[:100],
		"deep":                 strings.Repeat("[", 60000),
		"reflected in a field": `{"Error":"` + strings.ReplaceAll(identity(account, nodeARN), `"`, `\"`) + `"}`,
	} {
		bad = append(bad, jointest.Case{Name: "cloud_lies: " + name, Code: method.CodeCloudRefused, Bend: func(t *testing.T, s *jointest.Setup) { lie(t, s, says(text)) }})
	}
	bad = append(bad, jointest.Case{
		Name: "cloud_lies: too long", Code: method.CodeCloudUnreachable,
		Bend: func(t *testing.T, s *jointest.Setup) {
			lie(t, s, says(identity(account, nodeARN)+strings.Repeat(" ", 64<<10)))
		},
	})
	jointest.Run(t, jointest.Rig{
		Method: iam.Method(),
		Good: func(t *testing.T) *jointest.Setup {
			s, _ := attempt(t, node())
			return s
		},
		Claims: map[string]string{
			"aws_account": account, "aws_arn": nodeARN, "aws_user_id": node().UserID, "aws_partition": "aws", "aws_region": "eu-central-1",
		},
		Bad: bad,
	})
}

// TestWhatIsSent checks that STS gets our request and nothing of the machine's.
func TestWhatIsSent(t *testing.T) {
	for name, k := range map[string]awsfake.Key{
		"role": node(),
		"user": {ID: "AKIAIOSFODNN7EXAMPLE", Secret: "s+/e", Account: account, ARN: "arn:aws:iam::" + account + ":user/ci/alice", UserID: "AIDA"},
	} {
		t.Run(name, func(t *testing.T) {
			s, cloud := attempt(t, k)
			s.Spec.Allow[0].AwsArn = ""
			s.Tamper = func(answer []byte) []byte {
				if bytes.Contains(answer, []byte(k.Secret)) {
					t.Error("the secret key is in the answer")
				}
				return answer
			}
			if _, err := jointest.Attempt(t.Context(), iam.Method(), s, [32]byte{7}); err != nil {
				t.Fatal(err)
			}
			asked := cloud.Asked()
			if len(asked) != 1 {
				t.Fatalf("%d requests, want 1", len(asked))
			}
			got := asked[0]
			if got.Method != "POST" || got.Host != "sts.eu-central-1.amazonaws.com" || got.URI != "/" || got.Body != "Action=GetCallerIdentity&Version=2011-06-15" {
				t.Errorf("sent %s %s%s with %q", got.Method, got.Host, got.URI, got.Body)
			}
			want := []string{"Accept", "Authorization", "Connection", "Content-Length", "Content-Type", "User-Agent", "X-Amz-Date", "X-Teleport-Challenge"}
			if k.SessionToken != "" {
				want = append(want, "X-Amz-Security-Token")
				slices.Sort(want)
			}
			if names := slices.Sorted(maps.Keys(got.Header)); !slices.Equal(names, want) {
				t.Errorf("headers %q, want %q", names, want)
			}
			if challenge := got.Header.Values("X-Teleport-Challenge"); len(challenge) != 1 || challenge[0] != "BwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA" {
				t.Errorf("challenge %q is not the transcript", challenge)
			}
		})
	}
}

// TestNothingIsRelayed bends every part of the proof: what could be more than a part
// of a signature is refused before anybody is asked.
func TestNothingIsRelayed(t *testing.T) {
	set := func(name string, value any) func(map[string]any) {
		return func(m map[string]any) { m[name] = value }
	}
	rows := map[string]func(map[string]any){
		"evil suffix":       set("region", "us-east-1.amazonaws.com.evil"),
		"port":              set("region", "us-east-1:8443"),
		"user info":         set("region", "x@us-east-1"),
		"trailing dot":      set("region", "us-east-1."),
		"address":           set("region", "127.0.0.1"),
		"slash":             set("region", "us-east-1/"),
		"fragment":          set("region", "evil.example/#us-east-1"),
		"query":             set("region", "us-east-1?"),
		"newline":           set("region", "us-east-1\n"),
		"capitals":          set("region", "US-EAST-1"),
		"global":            set("region", ""),
		"wildcard":          set("region", "us-*-1"),
		"two digits":        set("region", "us-east-12"),
		"no fips there":     func(m map[string]any) { m["fips"] = true },
		"key id header":     set("access_key_id", "ASIAIOSFODNN7EXAMPLE\r\nX-Evil: 1"),
		"key id scope":      set("access_key_id", "ASIAIOSFODNN7EXAMPLE/20200101/us-east-1/s3"),
		"key id fields":     set("access_key_id", "ASIAIOSFODNN7EXAMPLE, SignedHeaders=host"),
		"key id short":      set("access_key_id", "ASIA"),
		"key id long":       set("access_key_id", strings.Repeat("A", 129)),
		"date of its own":   set("date", "Sat, 21 Nov 2026 00:00:00 GMT"),
		"date header":       set("date", "20261121T000000Z\r\nX-Evil: 1"),
		"date number":       set("date", 20261121),
		"no date":           set("date", ""),
		"token header":      set("session_token", "x\r\nX-Evil: 1"),
		"token blank":       set("session_token", "x y"),
		"token long":        set("session_token", strings.Repeat("x", 16<<10+1)),
		"signature header":  set("signature", strings.Repeat("0", 64)+"\r\nX-Evil: 1"),
		"signature fields":  set("signature", strings.Repeat("0", 63)+","),
		"signature capital": set("signature", strings.Repeat("A", 64)),
		"no signature":      set("signature", ""),
		"own host":          set("host", "sts.amazonaws.com"),
		"own body":          set("body", "Action=GetSessionToken"),
		"own headers":       set("signed_headers", "host"),
		"own method":        set("method", "GET"),
	}
	for name, bend := range rows {
		t.Run(name, func(t *testing.T) {
			s, cloud := attempt(t, node())
			s.Tamper = func(answer []byte) []byte {
				var m map[string]any
				if err := json.Unmarshal(answer, &m); err != nil {
					t.Fatal(err)
				}
				bend(m)
				out, err := json.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			_, err := jointest.Attempt(t.Context(), iam.Method(), s, [32]byte{7})
			if fault.Code(err) != method.CodeProofMalformed || fault.Kind(err) == nil || strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("error %v, want one line with code %s", err, method.CodeProofMalformed)
			}
			if asked := cloud.Asked(); len(asked) != 0 {
				t.Errorf("AWS was asked: %+v", asked)
			}
		})
	}
	t.Run("something behind", func(t *testing.T) {
		s, cloud := attempt(t, node())
		s.Tamper = func(answer []byte) []byte { return append(answer, "{}"...) }
		_, err := jointest.Attempt(t.Context(), iam.Method(), s, [32]byte{7})
		if fault.Code(err) != method.CodeProofMalformed || len(cloud.Asked()) != 0 {
			t.Errorf("error %v and %d requests", err, len(cloud.Asked()))
		}
	})
}

// TestSignatureCoversAll moves each part of a good proof to another good value: STS
// then sees another request than was signed.
func TestSignatureCoversAll(t *testing.T) {
	other := node()
	other.ID, other.Secret = "ASIAOTHERKEYEXAMPLE0", "another"
	rows := map[string]struct {
		bend func(map[string]any)
		code string
	}{
		"another region": {func(m map[string]any) { m["region"] = "us-east-1" }, "SignatureDoesNotMatch"},
		"another time": {func(m map[string]any) {
			m["date"] = time.Now().Add(-2 * time.Minute).UTC().Format("20060102T150405Z")
		}, "SignatureDoesNotMatch"},
		"another key":   {func(m map[string]any) { m["access_key_id"] = other.ID }, "SignatureDoesNotMatch"},
		"unknown key":   {func(m map[string]any) { m["access_key_id"] = "ASIAUNKNOWNEXAMPLE00" }, "InvalidClientTokenId"},
		"no token":      {func(m map[string]any) { delete(m, "session_token") }, "InvalidClientTokenId"},
		"another token": {func(m map[string]any) { m["session_token"] = "x" }, "InvalidClientTokenId"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s, cloud := attempt(t, node())
			cloud.Add(other)
			s.Tamper = func(answer []byte) []byte {
				var m map[string]any
				if err := json.Unmarshal(answer, &m); err != nil {
					t.Fatal(err)
				}
				row.bend(m)
				out, _ := json.Marshal(m)
				return out
			}
			_, err := jointest.Attempt(t.Context(), iam.Method(), s, [32]byte{7})
			if fault.Code(err) != method.CodeCloudRefused || !strings.Contains(err.Error(), row.code) || !strings.Contains(err.Error(), "sts.") {
				t.Errorf("error %v, want %s with %s and the host", err, method.CodeCloudRefused, row.code)
			}
			if strings.Contains(err.Error(), node().SessionToken) {
				t.Errorf("the error has the session token: %v", err)
			}
		})
	}
}

// TestAnswersOfAWS checks what people are told about errors of AWS.
func TestAnswersOfAWS(t *testing.T) {
	status := func(code int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://sts.us-east-1.amazonaws.com/again")
			w.WriteHeader(code)
			_, _ = w.Write([]byte(text))
		}
	}
	rows := map[string]struct {
		answer http.HandlerFunc
		code   string
		want   string
	}{
		"expired token":  {status(403, `{"Error":{"Code":"ExpiredToken","Message":"m","Type":"Sender"},"RequestId":"r"}`), method.CodeCloudRefused, "HTTP 403 ExpiredToken: the temporary credentials"},
		"as XML":         {status(403, `<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>`), method.CodeCloudRefused, "HTTP 403 AccessDenied: a policy"},
		"without a code": {status(400, ``), method.CodeCloudRefused, "HTTP 400"},
		"hostile code":   {status(403, `{"Error":{"Code":"x\u001b[2J"}}`), method.CodeCloudRefused, "HTTP 403"},
		"redirect 307":   {status(307, ``), method.CodeCloudUnreachable, "redirect"},
		"redirect 308":   {status(308, identity(account, nodeARN)), method.CodeCloudUnreachable, "redirect"},
		"throttled":      {status(400, `{"Error":{"Code":"Throttling"}}`), method.CodeCloudUnreachable, "Throttling"},
		"too many":       {status(429, ``), method.CodeCloudUnreachable, "try again"},
		"broken":         {status(503, `<html>`), method.CodeCloudUnreachable, "HTTP 503"},
		"created":        {status(201, identity(account, nodeARN)), method.CodeCloudRefused, "HTTP 201"},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			s, _ := attempt(t, node())
			cloud := awsfake.New(t)
			cloud.Answer = row.answer
			s.Auth = egress.Config{Roots: cloud.Roots(), Dial: cloud.Start(t)}
			_, err := jointest.Attempt(t.Context(), iam.Method(), s, [32]byte{7})
			if fault.Code(err) != row.code || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "sts.eu-central-1.amazonaws.com") {
				t.Errorf("error %v, want code %s, %q and the host", err, row.code, row.want)
			}
			if strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("error %q is not one printable line", err)
			}
			if n := len(cloud.Asked()); n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
		})
	}
}

// TestPartitions joins from each kind of region.
func TestPartitions(t *testing.T) {
	rows := []struct{ region, fips, partition, host string }{
		{"us-east-1", "", "aws", "sts.us-east-1.amazonaws.com"},
		{"us-west-2", "true", "aws", "sts-fips.us-west-2.amazonaws.com"},
		{"cn-northwest-1", "", "aws-cn", "sts.cn-northwest-1.amazonaws.com.cn"},
		{"us-gov-west-1", "true", "aws-us-gov", "sts.us-gov-west-1.amazonaws.com"},
	}
	for _, row := range rows {
		t.Run(row.region, func(t *testing.T) {
			k := node()
			k.ARN = strings.Replace(k.ARN, "arn:aws:", "arn:"+row.partition+":", 1)
			s, cloud := attempt(t, k)
			env := environment(k, "AWS_REGION", row.region, "AWS_USE_FIPS_ENDPOINT", row.fips)
			s.Machine.Getenv = func(name string) string { return env[name] }
			s.Spec.Allow[0].AwsArn = "arn:" + row.partition + ":sts::333333333333:assumed-role/teleport-node-role/i-*"
			claims, err := jointest.Attempt(t.Context(), iam.Method(), s, [32]byte{7})
			if err != nil {
				t.Fatal(err)
			}
			if got := claims.Get("aws_partition"); got != row.partition {
				t.Errorf("partition %q, want %q", got, row.partition)
			}
			if got := cloud.Asked()[0].Host; got != row.host {
				t.Errorf("asked %s, want %s", got, row.host)
			}
		})
	}
}

// BenchmarkJoin is both halves, with an STS on this machine that is asked over TLS.
func BenchmarkJoin(b *testing.B) {
	k := node()
	cloud := awsfake.New(b)
	cloud.Add(k)
	env := environment(k)
	s := &jointest.Setup{
		Spec:    &typesv1.TokenSpec{Allow: []*typesv1.AWSRule{{AwsAccount: account}}},
		Machine: method.Machine{Getenv: func(name string) string { return env[name] }},
		Auth:    egress.Config{Roots: cloud.Roots(), Dial: cloud.Start(b)},
	}
	for b.Loop() {
		if _, err := jointest.Attempt(b.Context(), iam.Method(), s, [32]byte{7}); err != nil {
			b.Fatal(err)
		}
	}
}
