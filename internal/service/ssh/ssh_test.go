package ssh_test

import (
	"strings"
	"testing"

	auditv1 "teleport/api/audit/v1"
)

func TestExec(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	tests := []struct {
		name, command string
		want          result
	}{
		{"output", "echo hello", result{"hello\n", "", 0}},
		{"exit_code", "exit 42", result{"", "", 42}},
		{"stderr", "echo oops >&2; exit 1", result{"", "oops\n", 1}},
		{"who", "whoami", result{w.login + "\n", "", 0}},
		{"quotes", `printf '%s|' "a b" c`, result{"a b|c|", "", 0}},
		{"no_descriptors_leak", "ls /proc/self/fd | tr '\\n' ' '", result{"0 1 2 3 ", "", 0}},
		{"session_leader", "ps -o pid=,sid=,pgid= -p $$ | tr -s ' ' '\\n' | sort -u | grep -c .", result{"1\n", "", 0}},
		{"killed", "kill -KILL $$", result{"", "", 255}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := runCmd(t, alice.ssh(w.login, tt.command)); got != tt.want {
				t.Errorf("ssh %q = %+v, want %+v", tt.command, got, tt.want)
			}
		})
	}
}

func TestAuditOfExec(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	runCmd(t, alice.ssh(w.login, "echo hello; exit 3"))
	begin := w.events.wait(t, "T2000I", nil)
	for name, want := range map[string]any{
		"user": "alice", "login": w.login, "server_id": hostID, "server_hostname": node, "proto": "ssh", "namespace": "default", "interactive": false,
	} {
		if got := field(begin, name); got != want {
			t.Errorf("session.start: %s = %v, want %v", name, got, want)
		}
	}
	sid := field(begin, "sid")
	same := func(e *auditv1.Event) bool { return field(e, "sid") == sid }
	run := w.events.wait(t, "T3002E", same)
	if field(run, "command") != "echo hello; exit 3" || field(run, "exitCode") != "3" {
		t.Errorf("exec event = %v", run)
	}
	end := w.events.wait(t, "T2004I", same)
	if field(end, "tx") != 6.0 || field(end, "exitCode") != "3" || end.GetEi() != 4 {
		t.Errorf("session.end = %v, want tx 6, exit code 3, index 4", end)
	}
	w.events.wait(t, "T2003I", same)
	if data := w.events.wait(t, "T2006I", same); field(data, "tx") != 6.0 {
		t.Errorf("session.data = %v, want tx 6", data)
	}
}

func TestNoEventNoSession(t *testing.T) {
	w := start(t, nil)
	alice := w.alice(t)
	w.events.refuse()
	got := runCmd(t, alice.ssh(w.login, "echo hello"))
	if got.out != "" || got.code != 254 || !strings.Contains(got.err, "audit log") {
		t.Errorf("session with a broken audit log = %+v, want it refused with 254", got)
	}
}
