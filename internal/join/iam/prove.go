package iam

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/user"
	"time"

	"teleport/internal/fault"
	"teleport/internal/join/aws"
	"teleport/internal/join/method"
)

// prove is the machine's half.
func prove(m method.Machine) method.Exchange {
	return func(ctx context.Context, _ []byte) ([]byte, error) {
		env := aws.Env{
			Getenv: m.Getenv, HomeDir: homeDir(m.Getenv), ReadFile: readFile,
			Metadata: m.Metadata, Egress: m.Egress, Now: m.Now,
		}
		creds, err := aws.Load(ctx, env)
		if err != nil {
			return nil, err
		}
		region, source := aws.Region(ctx, env)
		fips := aws.FIPS(env)
		host, err := aws.Host("sts", region, fips)
		if err != nil {
			return nil, fault.New(fault.ErrInvalid, "region of %s: %w", source, err).WithCode(method.CodeCredentials)
		}
		m.Log.InfoContext(ctx, "aws credentials found", "source", creds.Source, "access_key_id", creds.AccessKeyID,
			"region", region, "region_source", source, "host", host)
		req, scope := request(host, region, m.T, m.Now())
		return json.Marshal(answer{
			Region: region, FIPS: fips, AccessKeyID: creds.AccessKeyID, Date: scope.Time.UTC().Format(aws.DateLayout),
			SessionToken: creds.SessionToken.Reveal(), Signature: aws.Sign(req, scope, creds),
		})
	}
}

// homeDir returns the home directory, which systemd does not tell its services.
func homeDir(getenv func(string) string) string {
	if dir := getenv("HOME"); dir != "" {
		return dir
	}
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return ""
}

// maxFile bounds what is read of a file; the readers have limits of their own.
const maxFile = 2 << 20

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// parseDate reads the time of the signature, which is whole seconds in one form.
func parseDate(s string) (time.Time, error) {
	at, err := time.Parse(aws.DateLayout, s)
	if err != nil || at.Format(aws.DateLayout) != s {
		return time.Time{}, malformed("the date is not of the form %s", aws.DateLayout)
	}
	return at, nil
}
