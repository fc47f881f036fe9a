package aws

import (
	"strings"
	"testing"
)

// FuzzINI checks that no file gives a name or value that goes over a line.
func FuzzINI(f *testing.F) {
	f.Add([]byte("[default]\naws_access_key_id = AKIA\n\n[profile x]\n\ts3 =\n\t\t a=b\n"))
	f.Add([]byte("\xef\xbb\xbf[a]#\r\nx=y ;z"))
	f.Add([]byte("[\n="))
	f.Fuzz(func(t *testing.T, text []byte) {
		sections, err := parseINI(text)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %q is not one line", err)
			}
			return
		}
		for name, s := range sections {
			if strings.Contains(name, "\n") {
				t.Fatalf("section %q", name)
			}
			for k, v := range s {
				if strings.ContainsAny(k+v, "\n") || k != strings.ToLower(k) || v != strings.TrimSpace(v) {
					t.Fatalf("setting %q = %q", k, v)
				}
			}
		}
	})
}

// FuzzAnswers checks that no answer of the services ends the process.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"S","Token":"T","Expiration":"2026-11-21T00:00:00Z"}`))
	f.Add([]byte(`<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>A</AccessKeyId></Credentials></AssumeRoleResult></AssumeRoleResponse>`))
	f.Add([]byte(`<Response><Errors><Error><Code>AuthFailure</Code></Error></Errors></Response>`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, parse := range []func([]byte) (Credentials, error){parseCredentials, parseAssumed} {
			if _, err := parse(body); err != nil && strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %q is not one line", err)
			}
		}
		if text := Refused("sts.us-east-1.amazonaws.com", 403, ErrorCode(body)).Error(); strings.ContainsAny(text, "\n\x1b") {
			t.Fatalf("error %q is not one printable line", text)
		}
	})
}
