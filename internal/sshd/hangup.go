package sshd

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lookAgain is the pause between two looks at the processes that should end.
const lookAgain = 50 * time.Millisecond

// hangUp ends the process when its client is gone: the groups of the leader and of
// the terminal's foreground get the hang-up signal, and what is left of them after
// killAfter is killed. Background jobs of an interactive shell that ignore the
// signal (nohup) have a group of their own and live on, as people expect. It
// returns when the leader has ended; the leader must not be released before.
func (p *process) hangUp(ended <-chan struct{}, killAfter time.Duration) {
	p.leader.Abandon()
	var groups []int
	id := p.leader.ID()
	if id > 1 {
		groups = append(groups, id)
	}
	if p.terminal != nil {
		if fg := p.terminal.foreground(); fg > 1 && fg != id {
			groups = append(groups, fg)
		}
		// The kernel then signals the leader, and the foreground when the leader has
		// ended. To do it ourselves as well would be once too often: a shell that is
		// signalled twice ends without passing it on to its jobs.
		p.terminal.close()
	} else {
		_ = p.signal(unix.SIGHUP)
		// A stopped process only acts on the signal when it goes on.
		_ = p.signal(unix.SIGCONT)
	}
	deadline := time.NewTimer(killAfter)
	defer deadline.Stop()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case <-deadline.C:
			waiting = false
		case <-tick.C:
			select {
			case <-ended:
				waiting = len(p.members(groups)) > 0
			default:
			}
		}
	}
	_ = p.signal(unix.SIGKILL)
	p.signalMembers(groups, unix.SIGKILL)
	<-ended
}

// signalMembers signals the members of groups that belong to the session.
func (p *process) signalMembers(groups []int, sig unix.Signal) {
	if len(groups) == 0 {
		return
	}
	for _, pid := range p.members(groups) {
		_ = unix.Kill(pid, sig)
	}
}

// members are the living processes of our session in one of the groups. As long
// as the leader is not released, nobody else can have its session id.
func (p *process) members(groups []int) []int {
	id := p.leader.ID()
	if id <= 1 {
		return nil
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var out []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid <= 1 {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		group, session, alive := parseStat(string(stat))
		if !alive || session != id {
			continue
		}
		for _, g := range groups {
			if group == g {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}

// parseStat reads process group and session of /proc/PID/stat. The command name
// in parentheses may contain anything.
func parseStat(s string) (group, session int, alive bool) {
	i := strings.LastIndexByte(s, ')')
	if i < 0 {
		return 0, 0, false
	}
	f := strings.Fields(s[i+1:])
	if len(f) < 4 || f[0] == "Z" || f[0] == "X" {
		return 0, 0, false
	}
	group, err := strconv.Atoi(f[2])
	if err != nil {
		return 0, 0, false
	}
	session, err = strconv.Atoi(f[3])
	return group, session, err == nil
}
