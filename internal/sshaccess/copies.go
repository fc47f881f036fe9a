package sshaccess

import (
	"context"
	"path"
	"slices"
	"strings"

	"teleport/internal/sshd"
)

// SubsystemSFTP is the name that clients ask for to copy files.
const SubsystemSFTP = "sftp"

// MayCopy refuses a session that is there to copy files, if mayNot has a reason why the
// user may not do that. Who has a shell finds other ways: it keeps the usual programs
// from doing it.
func (r *Record) MayCopy(ctx context.Context, mayNot func(Privilege) (text, reason string)) error {
	command := r.Session.Command()
	scp, isSCP := parseSCP(command)
	switch r.Session.Kind() {
	case sshd.KindExec:
		if !isSCP && !copiesFiles(command) {
			return nil
		}
	case sshd.KindSubsystem:
		if command != SubsystemSFTP {
			return nil
		}
	default:
		return nil
	}
	p := FileCopies()
	text, reason := mayNot(p)
	if text == "" {
		return nil
	}
	more := map[string]any{"success": false, "error": text, "reason": reason, "command": command}
	if isSCP {
		more["path"], more["action"] = scp.path, scp.action()
	}
	return r.g.Refuse(ctx, r.Event(p.Refused, more), r.ID, text, reason)
}

// copiesFiles recognises the server ends of programs other than scp.
func copiesFiles(command string) bool {
	f := strings.Fields(command)
	if len(f) == 0 {
		return false
	}
	switch path.Base(f[0]) {
	case "rsync":
		return slices.Contains(f[1:], "--server")
	case "sftp-server":
		return true
	}
	return false
}

// scpCommand is the server end of the old scp protocol.
type scpCommand struct {
	path   string
	upload bool
}

func (c scpCommand) action() string {
	if c.upload {
		return "upload"
	}
	return "download"
}

// parseSCP recognises the server end of the old scp protocol.
func parseSCP(command string) (c scpCommand, ok bool) {
	f := strings.Fields(command)
	if len(f) < 2 || path.Base(f[0]) != "scp" {
		return c, false
	}
	for i, arg := range f[1:] {
		if arg == "--" || !strings.HasPrefix(arg, "-") {
			c.path = strings.TrimPrefix(strings.Join(f[i+1:], " "), "-- ")
			return c, ok
		}
		switch {
		case strings.Contains(arg, "t"):
			c.upload, ok = true, true
		case strings.Contains(arg, "f"):
			c.upload, ok = false, true
		}
	}
	return c, ok
}
