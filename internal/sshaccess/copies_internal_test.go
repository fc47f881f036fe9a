package sshaccess

import "testing"

func TestParseSCP(t *testing.T) {
	tests := []struct {
		command, path string
		upload, ok    bool
	}{
		{"scp -t /tmp/x", "/tmp/x", true, true},
		{"scp -v -r -p -f /etc/hosts", "/etc/hosts", false, true},
		{"/usr/bin/scp -rt -- a b", "a b", true, true},
		{"scp", "", false, false},
		{"scp a b:", "a b:", false, false},
		{"scpx -t /", "", false, false},
		{"echo scp -t x", "", false, false},
	}
	for _, tt := range tests {
		c, ok := parseSCP(tt.command)
		if ok != tt.ok || (ok && (c.path != tt.path || c.upload != tt.upload)) {
			t.Errorf("parseSCP(%q) = %+v, %t, want %q, %t, %t", tt.command, c, ok, tt.path, tt.upload, tt.ok)
		}
	}
}

func TestCopiesFiles(t *testing.T) {
	for command, want := range map[string]bool{
		"rsync --server --sender . /srv": true, "/usr/bin/rsync --server . x": true, "rsync a b": false,
		"/usr/lib/openssh/sftp-server": true, "echo sftp-server": false, "": false, "  ": false,
	} {
		if got := copiesFiles(command); got != want {
			t.Errorf("copiesFiles(%q) = %t, want %t", command, got, want)
		}
	}
}

func FuzzParseSCP(f *testing.F) {
	f.Add("scp -r -t -- a b")
	f.Add("rsync --server")
	f.Fuzz(func(t *testing.T, command string) {
		c, ok := parseSCP(command)
		if action := c.action(); ok && action != "upload" && action != "download" {
			t.Errorf("parseSCP(%q) = %+v", command, c)
		}
		_ = copiesFiles(command)
	})
}
