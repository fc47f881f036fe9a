package kube_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"teleport/test/cluster"
	"teleport/test/kube"
)

// build returns the folder of the programs under test.
func build(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("TELEPORT_BIN"); dir != "" {
		return dir
	}
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir, "teleport/cmd/teleport", "teleport/cmd/tctl", "teleport/cmd/tsh")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

// TestJoin starts the programs: an Auth Service that asks the API server, and a machine
// that shows the token of a pod, as docs/how-to/join-with-kubernetes.md has it.
func TestJoin(t *testing.T) {
	k := kube.Start(t)
	c, err := cluster.New(cluster.Config{Bin: build(t), Name: "kube.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	write := func(name, text string) string {
		t.Helper()
		path := c.Path(name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", k.Host)
	t.Setenv("KUBERNETES_SERVICE_PORT", k.Port)
	t.Setenv("KUBERNETES_CA_PATH", write("ca.crt", string(k.CA)))
	t.Setenv("KUBERNETES_TOKEN_PATH", write("auth.token", k.Reviewer(t, "teleport", "teleport-auth")))
	if _, err := c.Launch(t.Context(), cluster.Services{Name: "hub", Auth: true, Proxy: true}); err != nil {
		t.Fatal(err)
	}
	tctl := func(args ...string) string {
		t.Helper()
		out, err := c.Tctl(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// create makes a token for the service account of the agents.
	create := func(name, kind string) {
		t.Helper()
		tctl("create", "-f", write(name+".yaml", `kind: token
version: v2
metadata:
  name: `+name+`
spec:
  roles: [Node]
  join_method: kubernetes
  kubernetes:
    type: `+kind+`
    allow:
    - service_account: "teleport-agents:teleport-agent"
`))
	}
	create("kubernetes-token", "in_cluster")
	invitation, err := c.Token(t.Context(), "node", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	agent := func(name, token string) string {
		return write(name+".yaml", fmt.Sprintf(`version: v3
teleport:
  nodename: %s
  data_dir: %s
  proxy_server: %s
  ca_pin: %s
  join_params:
    method: kubernetes
    token_name: %s
auth_service:
  enabled: no
proxy_service:
  enabled: no
ssh_service:
  enabled: yes
`, name, c.Path(name), c.ProxyAddr, invitation.Pin, token))
	}
	pod := k.Pod(t, "teleport-agents", "teleport-agent-0", "teleport-agent")
	t.Setenv("KUBERNETES_TOKEN_PATH", write("pod.token", k.Token(t, pod, "kube.example.com", 10*time.Minute)))
	if _, err := c.Start(t.Context(), "agent-0", agent("agent-0", "kubernetes-token")); err != nil {
		t.Fatal(err)
	}
	if events := tctl("audit", "ls", "--type=instance.join", "--format=json"); !strings.Contains(events, pod.UID) {
		t.Errorf("no event has the uid %s of the pod:\n%s", pod.UID, events)
	}
	// A second machine with the token of the first, as a thief would have it.
	if _, err := c.Start(t.Context(), "agent-1", agent("agent-1", "kubernetes-token")); err == nil || !strings.Contains(err.Error(), "proof_replayed") {
		t.Errorf("a token that was used: %v, want proof_replayed", err)
	}
	// A pod that was deleted: the API server knows.
	gone := k.Pod(t, "teleport-agents", "teleport-agent-2", "teleport-agent")
	write("pod.token", k.Token(t, gone, "kube.example.com", 10*time.Minute))
	k.Delete(t, gone)
	if _, err := c.Start(t.Context(), "agent-2", agent("agent-2", "kubernetes-token")); err == nil || !strings.Contains(err.Error(), "cloud_refused") {
		t.Errorf("a pod that was deleted: %v, want cloud_refused", err)
	}
	// An Auth Service elsewhere: with the keys of the cluster, and with its issuer.
	k.Publish(t)
	for name, kind := range map[string]string{
		"keys":   "static_jwks\n    static_jwks: {jwks: '" + k.JWKS(t) + "'}",
		"issuer": "oidc\n    oidc:\n      issuer: " + k.URL + "\n      ca: |\n        " + strings.ReplaceAll(strings.TrimSpace(string(k.CA)), "\n", "\n        "),
	} {
		create(name, kind)
		write("pod.token", k.Token(t, k.Pod(t, "teleport-agents", "teleport-agent-"+name, "teleport-agent"), "kube.example.com", 10*time.Minute))
		if _, err := c.Start(t.Context(), name, agent(name, name)); err != nil {
			t.Error(err)
		}
	}
}
