package iam

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"teleport/internal/fault"
	"teleport/internal/join/method"
)

const goodAnswer = `{"region":"eu-central-1","access_key_id":"ASIAIOSFODNN7EXAMPLE","date":"20261121T000000Z","session_token":"a+/=",` +
	`"signature":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}`

// FuzzAnswer checks that nothing gets into a request that is more than it stands for.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(goodAnswer))
	f.Add([]byte(strings.Replace(goodAnswer, "eu-central-1", "us-gov-west-1", 1)))
	f.Add([]byte(`{"region":"us-east-1.evil","fips":true}`))
	host := regexp.MustCompile(`\Asts(-fips)?\.[a-z]+(-[a-z]+)+-[1-9]\.(amazonaws\.com(\.cn)?|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov|amazonaws\.eu)\z`)
	plain := regexp.MustCompile(`\A[!-~]*\z`)
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := parseAnswer(raw)
		if err != nil {
			if fault.Code(err) != method.CodeProofMalformed {
				t.Fatalf("error without its code: %v", err)
			}
			return
		}
		if !host.MatchString(p.host) || !plain.MatchString(p.accessKeyID+p.sessionToken.Reveal()+p.signature) || strings.ContainsAny(p.accessKeyID, ",/= ") {
			t.Fatalf("accepted %q as %q, %q", raw, p.host, p.accessKeyID)
		}
	})
}

// FuzzIdentity checks that an answer of STS that is accepted has one reading only.
func FuzzIdentity(f *testing.F) {
	const good = `{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"333333333333","Arn":"arn:aws:sts::333333333333:assumed-role/n/i","UserId":"A:i"}}}`
	f.Add([]byte(good))
	f.Add([]byte(strings.Replace(good, `"Arn"`, `"account":"1","Arn"`, 1)))
	f.Add([]byte(strings.Replace(good, `"Arn"`, `"\u0041rn":"x","Arn"`, 1)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		claims, err := parseIdentity(raw, "us-east-1")
		_ = errorCode(raw)
		if err != nil {
			if fault.Kind(err) == nil || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %q is not one line of a kind", err)
			}
			return
		}
		// A reader that takes names in any capitals, and the last of two.
		var other struct {
			GetCallerIdentityResponse struct {
				GetCallerIdentityResult struct{ Account, Arn string }
			}
		}
		if err := json.Unmarshal(raw, &other); err != nil {
			t.Fatal(err)
		}
		result := other.GetCallerIdentityResponse.GetCallerIdentityResult
		if claims.Get("aws_account") != result.Account || claims.Get("aws_arn") != result.Arn {
			t.Fatalf("%q reads as %v and as %v", raw, claims.Attributes, result)
		}
		if !strings.HasPrefix(claims.Get("aws_arn"), "arn:aws:") || !strings.Contains(claims.Get("aws_arn"), ":"+claims.Get("aws_account")+":") {
			t.Fatalf("accepted %v", claims.Attributes)
		}
	})
}
