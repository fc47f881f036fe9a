package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine describes what it was measured on and how.
func machine(bin string, args []string) []string {
	var name unix.Utsname
	_ = unix.Uname(&name)
	version := firstLine(exec.Command(filepath.Join(bin, "teleport"), "version"))
	load, _ := os.ReadFile("/proc/loadavg")
	memTotal, _ := os.ReadFile("/proc/meminfo")
	return []string{
		"Date: " + time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		"Command: `make bench`, which runs `" + strings.Join(append([]string{"go run ./test/bench"}, args...), " ") + "`",
		"Programs: " + version + "; " + firstLine(exec.Command("ssh", "-V")),
		fmt.Sprintf("Machine: %s, %d cores, %.0f GiB, kernel %s, load before the run %s", processor(), runtime.NumCPU(),
			float64(field(memTotal, "MemTotal:"))/(1<<20), unix.ByteSliceToString(name.Release[:]), strings.Join(strings.Fields(string(load))[:1], "")),
	}
}

func firstLine(cmd *exec.Cmd) string {
	out, _ := cmd.CombinedOutput()
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return string(bytes.TrimSpace(line))
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
