// Package ec2 is the join method of EC2 instances: AWS signs a document that says which
// instance it is, in which account and region, and when it was started. The machine
// sends it; Auth checks it with the certificate that AWS publishes for the region, and
// asks EC2 whether the instance runs.
//
// The document names no attempt, so whoever gets hold of it can use it: it is good for
// a short time after the start of the instance, and admits once.
package ec2

import (
	"context"
	"encoding/base64"
	"os"
	"strings"
	"unicode"

	"teleport/internal/fault"
	"teleport/internal/join/aws"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// Method returns the method.
func Method() method.Method {
	return method.Method{Name: types.JoinMethodEC2, Bearer: true, Prove: prove, Verify: verify}
}

// documentPath is where the metadata service has the document with its signature by
// the RSA key of 2048 bits.
const documentPath = "/latest/dynamic/instance-identity/rsa2048"

// prove answers with the signed document of the instance.
func prove(m method.Machine) method.Exchange {
	return func(ctx context.Context, _ []byte) ([]byte, error) {
		instance, err := aws.OpenInstance(ctx, aws.Env{
			Getenv: m.Getenv, ReadFile: os.ReadFile, Metadata: m.Metadata, Egress: m.Egress, Now: m.Now,
		})
		if err != nil {
			return nil, fault.New(fault.Kind(err), "join method ec2 works on EC2 instances only: %w", err).WithCode(fault.Code(err))
		}
		text, err := instance.Get(ctx, documentPath)
		if err != nil {
			return nil, err
		}
		return decode(text)
	}
}

// decode reads what the metadata service gives: base64 in lines, without a frame.
func decode(text []byte) ([]byte, error) {
	joined := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, string(text))
	document, err := base64.StdEncoding.DecodeString(joined)
	if err != nil || len(document) == 0 {
		return nil, fault.New(fault.ErrInvalid, "the instance metadata service gives no identity document at %s: expected base64, got %d bytes of something else", documentPath, len(text)).WithCode(method.CodeMetadata)
	}
	return document, nil
}
