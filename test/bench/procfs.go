package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of /proc/PID/stat, the same on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// stat returns the fields of /proc/PID/stat after the name of the program: [0] is the
// state, [1] the parent.
func stat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(string(text[bytes.LastIndexByte(text, ')')+1:]), " ")
	return strings.Fields(rest)
}

// cpuOf returns the CPU time of processes and of their children that ended.
func cpuOf(pids ...int) time.Duration {
	var ticks int64
	for _, pid := range pids {
		if f := stat(pid); len(f) > 14 {
			for _, field := range f[11:15] { // utime, stime, cutime, cstime
				n, _ := strconv.ParseInt(field, 10, 64)
				ticks += n
			}
		}
	}
	return time.Duration(ticks) * clockTick
}

// memory is what a process has in memory, in KiB.
type memory struct{ rss, anon int }

func (m memory) minus(o memory) memory { return memory{m.rss - o.rss, m.anon - o.anon} }
func (m memory) plus(o memory) memory  { return memory{m.rss + o.rss, m.anon + o.anon} }

// memoryOf reads VmRSS and RssAnon.
func memoryOf(pid int) (memory, error) {
	var m memory
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	m.rss, m.anon = field(text, "VmRSS:"), field(text, "RssAnon:")
	if m.rss == 0 {
		return m, fmt.Errorf("process %d has no memory", pid)
	}
	return m, nil
}

// private returns what only this process has in memory, in KiB.
func private(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	return field(text, "Private_Clean:") + field(text, "Private_Dirty:")
}

// field returns the number after a name at the beginning of a line.
func field(text []byte, name string) int {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}

// descendants returns the processes below one whose program's name begins so.
func descendants(pid int, prefix string) []int {
	children := map[int][]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		child, _ := strconv.Atoi(filepath.Base(dir))
		if f := stat(child); len(f) > 1 {
			parent, _ := strconv.Atoi(f[1])
			children[parent] = append(children[parent], child)
		}
	}
	var out []int
	for next := children[pid]; len(next) > 0; next = next[1:] {
		next = append(next, children[next[0]]...)
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", next[0]))
		if strings.HasPrefix(string(name), prefix) {
			out = append(out, next[0])
		}
	}
	return out
}
