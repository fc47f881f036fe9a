package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestQuantiles(t *testing.T) {
	var hundred samples
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i))
	}
	for _, tc := range []struct {
		name string
		in   samples
		q    float64
		want time.Duration
	}{
		{"nothing", nil, 0.5, 0},
		{"one", samples{7}, 0.99, 7},
		{"odd", samples{9, 1, 5}, 0.5, 5},
		{"even", samples{4, 1, 3, 10}, 0.5, 3},
		{"p99", hundred, 0.99, 99},
		{"slowest", hundred, 1, 100},
		{"fastest", hundred, 0, 1},
	} {
		if got := tc.in.quantile(tc.q); got != tc.want {
			t.Errorf("%s: quantile %v is %d, want %d", tc.name, tc.q, got, tc.want)
		}
	}
}

func TestReport(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	r.table("Speed", []string{"way", "ms"}, []string{"a longer one", "4"})
	r.atMost("ratio", 0.2, 0.12, " x")
	r.atLeast("copies", 1.5, 1, " x")
	r.finish()
	path := t.TempDir() + "/bench.md"
	if err := os.WriteFile(path, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeTo(path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "before\n" + beginMark + `
### Speed

| way          | ms  |
|--------------|-----|
| a longer one | 4   |

### Goals

| what   | goal       | seen    |        |
|--------|------------|---------|--------|
| ratio  | <= 0.120 x | 0.200 x | MISSED |
| copies | >= 1 x     | 1.50 x  | met    |
` + endMark + "\nafter\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if err := os.WriteFile(path, []byte("no marks\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeTo(path); err == nil {
		t.Error("a file without marks was written to")
	}
}

func TestFlags(t *testing.T) {
	if o, err := parse([]string{"-only", "latency,bulk", "-rounds", "3"}); err != nil || o.rounds != 3 {
		t.Errorf("parse: %+v, %v", o, err)
	}
	for _, args := range [][]string{{"-only", "nonsense"}, {"-rounds", "0"}, {"-agents", "-1"}, {"-nonsense"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}

// TestMeter holds what a meter is for: it counts processes that their parents left
// behind, and reports the exit code and the time of the command itself.
func TestMeter(t *testing.T) {
	if os.Getenv("BENCH_METER") != "" {
		os.Exit(meterMain([]string{"sh", "-c", "(i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done) & exit 3"}))
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestMeter$")
	cmd.Env = append(os.Environ(), "BENCH_METER=1")
	report, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{w}
	out, err := cmd.CombinedOutput()
	_ = w.Close()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(report); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), `"Exit":3`) {
		t.Errorf("reported %s, want exit code 3", text.String())
	}
	var r reading
	if err := json.Unmarshal(text.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if r.CPU < 20*time.Millisecond || r.CPU < r.Elapsed {
		t.Errorf("CPU %s in %s: what went on in the background was not counted", r.CPU, r.Elapsed)
	}
}

func TestProcesses(t *testing.T) {
	if m, err := memoryOf(os.Getpid()); err != nil || m.rss < 1000 || m.anon == 0 || m.anon > m.rss {
		t.Errorf("memory of this process: %+v, %v", m, err)
	}
	if _, err := memoryOf(1 << 30); err == nil {
		t.Error("a process that does not exist has memory")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	deadline := time.Now().Add(5 * time.Second)
	for len(descendants(os.Getpid(), "sleep")) != 1 {
		if time.Now().After(deadline) {
			t.Fatalf("descendants: %v, want %d", descendants(os.Getpid(), "sleep"), cmd.Process.Pid)
		}
	}
	if got := descendants(os.Getpid(), "nonsense"); len(got) != 0 {
		t.Errorf("descendants of another name: %v", got)
	}
}
