package main

import (
	"testing"

	"teleport/internal/client/clienttest"
)

func TestSSHForwards(t *testing.T) {
	c := setUp(t)
	signIn(t, c)
	// The server that is jumped to proves who it is like any other.
	if code, out, talk := tsh(t, "", "ssh", "-J", "ubuntu@web-1", "root@web-1", "exit", "7"); code != 7 || out != "" {
		t.Errorf("jump: %d, %q, %q, want 7", code, out, talk)
	}
	if got := c.Node.Logins(); len(got) != 2 || got[0] != "ubuntu" || got[1] != "root" {
		t.Errorf("logged in as %v, want ubuntu and then root", got)
	}
	ok(t, "", "ssh", "-J", "ubuntu@web-1,ubuntu@"+clienttest.NodeName, "root@web-1", "true")
	fails(t, 1, "host certificate", "ssh", "-J", "ubuntu@web-1", "root@web-2", "true")
	fails(t, 1, `your roles do not allow login "bob"`, "ssh", "-J", "bob@web-1", "root@web-1", "true")
	if code, out, _ := tsh(t, "", "ssh", "--local", "root@web-1", "sh", "-c", "echo here; exit 5"); code != 5 || out != "here\n" {
		t.Errorf("--local: %d, %q, want 5 and here", code, out)
	}
	for _, tt := range []struct {
		want string
		args []string
	}{
		{"expected [bind:]port:host:port", []string{"-L", "web:80", "root@web-1"}},
		{"does not fit", []string{"-L", "8080", "root@web-1"}},
		{"does not fit", []string{"-D", "8080:web:80", "root@web-1"}},
		{"-f needs a command or -N", []string{"-f", "root@web-1"}},
		{"--local needs a command", []string{"--local", "root@web-1"}},
		{"-N runs nothing", []string{"-N", "root@web-1", "true"}},
		{"always checked", []string{"-o", "StrictHostKeyChecking=no", "root@web-1", "true"}},
		{"not supported", []string{"-o", "PermitLocalCommand=yes", "root@web-1", "true"}},
		{"expected Name=value", []string{"-o", "ForwardAgent", "root@web-1", "true"}},
		{`not to "other"`, []string{"-c", "other", "root@web-1", "true"}},
	} {
		fails(t, 2, tt.want, append([]string{"ssh"}, tt.args...)...)
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	fails(t, 1, "SSH_AUTH_SOCK", "ssh", "-A", "root@web-1", "true")
	t.Setenv("DISPLAY", "")
	fails(t, 1, "DISPLAY", "ssh", "-X", "root@web-1", "true")
	// The server of this test forwards nothing: it has to be said.
	fails(t, 1, "the node does not forward", "ssh", "-R", "0:localhost:1", "root@web-1", "true")
	ok(t, "", "ssh", "-o", "ExitOnForwardFailure=no", "-R", "0:localhost:1", "root@web-1", "true")
}
