package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"teleport/internal/join/iam"
	"teleport/internal/join/method"
	"teleport/test/awsfake"
	"teleport/test/oidcfake"
)

// Where the STS of the run is: an address of the public network, on this machine. The
// Auth Service asks nobody on a private one.
const (
	stsAddr, stsHost = "198.51.100.1", "sts.eu-central-1.amazonaws.com"
	awsAccount       = "333333333333"
	podAccount       = "teleport-agents:teleport-agent"
)

// vouchers are those who say what machines are: an STS that verifies signatures, and a
// Kubernetes cluster that signs the tokens of pods.
type vouchers struct {
	key     awsfake.Key
	cluster *oidcfake.Issuer
	// noSTS says why there is none.
	noSTS error
	pods  atomic.Int64
}

// bystander is what the fakes are given for a test: it fails the run.
type bystander struct{ testing.TB }

func (bystander) Helper()           {}
func (bystander) Cleanup(func())    {}
func (bystander) Fatal(args ...any) { panic(fmt.Sprint(args...)) }
func (bystander) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// startVouchers starts both. What is started from now on trusts the STS.
func startVouchers(dir string) (v *vouchers, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("vouchers: %v", p)
		}
	}()
	v = &vouchers{
		key: awsfake.Key{
			ID: "ASIAIOSFODNN7EXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", SessionToken: "FwoGZXIvYXdzEBY+/=",
			Account: awsAccount, ARN: "arn:aws:sts::" + awsAccount + ":assumed-role/teleport-node-role/i-0123456789abcdef0",
			UserID: "AROAIOSFODNN7EXAMPLE:i-0123456789abcdef0", Expires: time.Now().Add(12 * time.Hour),
		},
		cluster: oidcfake.New(bystander{}, "https://kubernetes.default.svc.cluster.local", "RS256"),
	}
	if os.Getenv(insideVar) == "" {
		v.noSTS = errors.New("only root can put an STS in the place of AWS's, in a network namespace")
		return v, nil
	}
	hosts := filepath.Join(dir, "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"+stsAddr+" "+stsHost+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("own /etc/hosts: %w", err)
	}
	if err := loopbackAddress(stsAddr); err != nil {
		return nil, fmt.Errorf("address of the STS: %w", err)
	}
	ln, err := net.Listen("tcp", stsAddr+":443")
	if err != nil {
		return nil, err
	}
	cloud := awsfake.New(bystander{})
	cloud.Add(v.key)
	cloud.Serve(bystander{}, ln)
	roots := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(roots, cloud.RootPEM(), 0o600); err != nil {
		return nil, err
	}
	return v, os.Setenv("SSL_CERT_FILE", roots)
}

// tokens are the files of the tokens of both methods.
func (v *vouchers) tokens() map[string]string {
	return map[string]string{
		"iam": "kind: token\nversion: v2\nmetadata: {name: bench-iam}\nspec:\n  roles: [Node]\n  join_method: iam\n  allow: [{aws_account: '" + awsAccount +
			"', aws_arn: 'arn:aws:sts::" + awsAccount + ":assumed-role/teleport-node-role/i-*'}]\n",
		"kubernetes": "kind: token\nversion: v2\nmetadata: {name: bench-kubernetes}\nspec:\n  roles: [Node]\n  join_method: kubernetes\n" +
			"  kubernetes: {type: static_jwks, static_jwks: {jwks: '" + v.cluster.JWKS() + "'}, allow: [{service_account: '" + podAccount + "'}]}\n",
	}
}

// environment is what a machine finds around it, by method.
func (v *vouchers) environment(name string) map[string]string {
	if name != "iam" {
		return nil
	}
	return map[string]string{
		"AWS_ACCESS_KEY_ID": v.key.ID, "AWS_SECRET_ACCESS_KEY": v.key.Secret, "AWS_SESSION_TOKEN": v.key.SessionToken,
		"AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true",
	}
}

// signer proves machines by their signature.
func (v *vouchers) signer() func(ctx context.Context, m method.Machine, question []byte) ([]byte, error) {
	env := v.environment("iam")
	iam := iam.Method()
	return func(ctx context.Context, m method.Machine, question []byte) ([]byte, error) {
		m.Getenv = func(name string) string { return env[name] }
		return iam.Prove(m)(ctx, question)
	}
}

// pod makes the token of a new pod.
func (v *vouchers) pod(cluster string) string {
	n := v.pods.Add(1)
	return v.cluster.Mint(time.Now(), map[string]any{
		"aud": []string{cluster}, "sub": "system:serviceaccount:" + podAccount, "exp": time.Now().Add(30 * time.Minute).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": "teleport-agents", "serviceaccount": map[string]any{"name": "teleport-agent", "uid": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"},
			"pod": map[string]any{"name": fmt.Sprintf("agent-%d", n), "uid": fmt.Sprintf("9a0c0305-4f89-41d3-9a0c-%012x", n)},
		},
	})
}

// errNoPods ends a measurement whose pods have all joined.
var errNoPods = errors.New("every pod has joined")

// podsAhead proves machines by tokens that are made now, one each.
func (v *vouchers) podsAhead(cluster string, n int) func(context.Context, method.Machine, []byte) ([]byte, error) {
	tokens := make(chan []byte, n)
	for range n {
		tokens <- []byte(v.pod(cluster))
	}
	return func(context.Context, method.Machine, []byte) ([]byte, error) {
		select {
		case t := <-tokens:
			return t, nil
		default:
			return nil, errNoPods
		}
	}
}
