package iam_test

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/join/egress"
	"teleport/internal/join/iam"
	"teleport/internal/join/jointest"
	"teleport/internal/join/method"
	"teleport/test/awsfake"
	"teleport/test/netns"
)

// TestOnAnInstance joins on a machine whose network is that of an instance: the
// metadata service at its true address, STS under its true name and port, and nothing
// told to either half. Debian's awscli is asked the same on the same machine, with the
// same STS: what it signs and what we sign is accepted by the same check.
func TestOnAnInstance(t *testing.T) {
	const host = "sts.eu-north-1.amazonaws.com"
	netns.Run(t, netns.Network{Addresses: []string{"169.254.169.254/32", "169.254.170.2/32"}, Hosts: map[string]string{host: "127.0.0.1"}}, func(t *testing.T) {
		k := node()
		k.Expires = time.Now().Add(time.Hour)
		cloud := awsfake.New(t)
		cloud.Add(k)
		cloud.Serve(t, listen(t, "127.0.0.1:443"))
		metadata := &awsfake.Metadata{Region: "eu-north-1", Role: "teleport-node-role", Key: k}
		serve(t, "169.254.169.254:80", metadata)
		home := t.TempDir()
		bundle := filepath.Join(home, "roots.pem")
		if err := os.WriteFile(bundle, cloud.RootPEM(), 0o600); err != nil {
			t.Fatal(err)
		}
		env := map[string]string{"HOME": home, "PATH": "/usr/bin:/bin", "AWS_CA_BUNDLE": bundle}

		t.Run("role of the instance", func(t *testing.T) { bothAgree(t, cloud, env, k) })
		if n := metadata.Untold(); n != 0 {
			t.Errorf("%d requests in the manner of version 1", n)
		}
		t.Run("role of the task", func(t *testing.T) {
			task := k
			task.ID, task.ARN = "ASIATASKEXAMPLE00000", "arn:aws:sts::"+account+":assumed-role/teleport-node-role/i-task"
			cloud.Add(task)
			serve(t, "169.254.170.2:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v2/credentials/0" {
					http.NotFound(w, r)
					return
				}
				_, _ = w.Write([]byte(task.JSON("")))
			}))
			env := maps.Clone(env)
			env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/v2/credentials/0"
			bothAgree(t, cloud, env, task)
		})
		t.Run("profile", func(t *testing.T) {
			user := awsfake.Key{ID: "AKIAUSEREXAMPLE00000", Secret: "s/+=", Account: account, ARN: "arn:aws:iam::" + account + ":user/alice", UserID: "AIDA"}
			cloud.Add(user)
			if err := os.Mkdir(filepath.Join(home, ".aws"), 0o700); err != nil {
				t.Fatal(err)
			}
			text := "[default]\naws_access_key_id = AKIANOBODY0000000000\naws_secret_access_key = x\n\n[ci]\naws_access_key_id = " + user.ID + "\naws_secret_access_key = " + user.Secret + "\n"
			if err := os.WriteFile(filepath.Join(home, ".aws", "credentials"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			env := maps.Clone(env)
			env["AWS_PROFILE"] = "ci"
			bothAgree(t, cloud, env, user)
		})
	})
}

// bothAgree asks awscli who this machine is, and joins.
func bothAgree(t *testing.T, cloud *awsfake.Cloud, env map[string]string, want awsfake.Key) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/bin/aws", "--region", "eu-north-1", "--output", "json", "sts", "get-caller-identity")
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("Debian's awscli: %v\n%s", err, stderr.String())
	}
	var says struct {
		Account, Arn string
		UserID       string `json:"UserId"`
	}
	if err := json.Unmarshal(out, &says); err != nil {
		t.Fatalf("awscli printed %s", out)
	}
	if says.Arn != want.ARN || says.Account != want.Account {
		t.Fatalf("awscli is %+v, want %s", says, want.ARN)
	}

	claims, err := jointest.Attempt(t.Context(), iam.Method(), &jointest.Setup{
		Spec: &typesv1.TokenSpec{Allow: []*typesv1.AWSRule{{AwsAccount: account, AwsArn: want.ARN}}},
		Machine: method.Machine{
			Getenv:   func(name string) string { return env[name] },
			Metadata: egress.Metadata(egress.Config{}), Egress: egress.New(egress.Config{Roots: cloud.Roots()}),
		},
		Auth: egress.Config{Roots: cloud.Roots()},
	}, [32]byte{9})
	if err != nil {
		t.Fatal(err)
	}
	if claims.Get("aws_arn") != says.Arn || claims.Get("aws_account") != says.Account || claims.Get("aws_user_id") != says.UserID {
		t.Errorf("the join proves %v, awscli says %+v", claims.Attributes, says)
	}
	asked := cloud.Asked()
	if last := asked[len(asked)-2:]; slices.ContainsFunc(last, func(a awsfake.Asked) bool { return a.Host != "sts.eu-north-1.amazonaws.com" }) {
		t.Errorf("STS was asked as %+v", last)
	}
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(context.WithoutCancel(t.Context()), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func serve(t *testing.T, address string, h http.Handler) {
	t.Helper()
	l := listen(t, address)
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // ends with Close
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
}
