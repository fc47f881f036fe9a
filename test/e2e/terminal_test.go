package e2e

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// terminal is a shell on a real terminal, as a person has one in front of them.
type terminal struct {
	name, file string
	pty        *os.File
	cmd        *exec.Cmd
	done       chan struct{}

	mu sync.Mutex
	// shown is what the terminal showed since the last line was typed.
	shown []byte
}

// prompt ends with the exit code of the last command.
var prompt = regexp.MustCompile(`<exit ([0-9]+)> $`)

// terminal NAME opens a terminal with bash in $WORK.
func openTerminal(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: terminal NAME")
	}
	t := &terminal{name: args[0], file: ts.MkAbs(args[0] + ".out"), done: make(chan struct{})}
	t.cmd = exec.Command("bash", "--norc", "--noprofile", "--noediting", "-i")
	t.cmd.Dir = ts.Getenv("WORK")
	t.cmd.Env = append(environ(ts), "PS1=<exit $?> ", "TERM=dumb", "LANG=C.UTF-8")
	var err error
	t.pty, err = pty.StartWithSize(t.cmd, &pty.Winsize{Rows: 100, Cols: 400})
	ts.Check(err)
	go t.read()
	own(ts).terminals[t.name] = t
	// Hanging up ends what runs in the terminal.
	ts.Defer(func() {
		_ = t.pty.Close()
		_ = syscall.Kill(-t.cmd.Process.Pid, syscall.SIGHUP)
		_ = t.cmd.Wait()
	})
	t.await(ts, prompt)
}

func (t *terminal) read() {
	defer close(t.done)
	buf := make([]byte, 4096)
	for {
		n, err := t.pty.Read(buf)
		t.mu.Lock()
		t.shown = append(t.shown, buf[:n]...)
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// screen returns what was shown, without carriage returns, and keeps it in a file.
func (t *terminal) screen(ts *testscript.TestScript) string {
	t.mu.Lock()
	text := strings.ReplaceAll(string(t.shown), "\r", "")
	t.mu.Unlock()
	ts.Check(os.WriteFile(t.file, []byte(text), 0o600))
	return text
}

// await waits until the terminal shows a match.
func (t *terminal) await(ts *testscript.TestScript, re *regexp.Regexp) []string {
	deadline := time.Now().Add(20 * time.Second)
	for {
		text := t.screen(ts)
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		if time.Now().After(deadline) {
			ts.Fatalf("terminal %s shows no match for %s after 20 s:\n%s", t.name, re, text)
		}
		select {
		case <-t.done:
			ts.Fatalf("terminal %s ended:\n%s", t.name, t.screen(ts))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (t *terminal) send(ts *testscript.TestScript, text string) {
	t.mu.Lock()
	t.shown = t.shown[:0]
	t.mu.Unlock()
	_, err := t.pty.WriteString(text)
	ts.Check(err)
}

func findTerminal(ts *testscript.TestScript, args []string) *terminal {
	if len(args) < 2 {
		ts.Fatalf("expected a terminal and a text")
	}
	t := own(ts).terminals[args[0]]
	if t == nil {
		ts.Fatalf("no terminal %q", args[0])
	}
	return t
}

// type NAME LINE... types a command line, of several lines if it goes on, and waits
// for the prompt; the command has to succeed, with ! to fail. What it showed is in
// $WORK/NAME.out.
func typeLine(ts *testscript.TestScript, neg bool, args []string) {
	t := findTerminal(ts, args)
	line := rewritten(ts, strings.Join(args[1:], "\n"))
	t.await(ts, prompt)
	began := time.Now()
	t.send(ts, line+"\n")
	code := t.await(ts, prompt)[1]
	ts.Logf("%s(%.1fs)", t.screen(ts), time.Since(began).Seconds())
	if (code != "0") != neg {
		ts.Fatalf("exit code %s of %s", code, line)
	}
}

// keys NAME TEXT types something and Enter, and waits for nothing; ^C is Ctrl-C.
func pressKeys(ts *testscript.TestScript, _ bool, args []string) {
	t := findTerminal(ts, args)
	text := rewritten(ts, strings.Join(args[1:], "\n")) + "\n"
	if args[1] == "^C" {
		text = "\x03"
	}
	t.send(ts, text)
}

// rewrite OLD NEW changes what is typed from now on.
func rewrite(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: rewrite OLD NEW")
	}
	s := own(ts)
	s.rewrites = append(s.rewrites, args...)
}

func rewritten(ts *testscript.TestScript, line string) string {
	return strings.NewReplacer(own(ts).rewrites...).Replace(line)
}

// expect NAME REGEXP waits until the terminal shows it, after what was typed last.
func expect(ts *testscript.TestScript, _ bool, args []string) {
	t := findTerminal(ts, args)
	t.await(ts, regexp.MustCompile("(?m)"+args[1]))
	ts.Logf("%s", t.screen(ts))
}
