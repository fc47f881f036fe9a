// Package e2e runs the built binaries the way people do: each script in testdata
// is a session at a terminal (see rogpeppe/go-internal/testscript), with a few
// commands added for starting daemons and for waiting. The scripts are also
// documentation that cannot go stale.
package e2e

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
	"github.com/rogpeppe/go-internal/testscript"
)

// binaries is the folder of the programs under test.
var binaries string

var update = flag.Bool("update", false, "rewrite the scripts' expected output")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "teleport-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir, "teleport/cmd/teleport", "teleport/cmd/tctl", "teleport/cmd/tsh")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	binaries = dir
	return m.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"freeport": freeport,
			"start":    start,
			"stop":     stop,
			"within":   within,
			"capture":  capture,
			"totp":     totpCode,
			"expand":   expand,
			"mode":     mode,
		},
	})
}

func setup(env *testscript.Env) error {
	home := filepath.Join(env.WorkDir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	user := "root"
	if out, err := exec.Command("id", "-un").Output(); err == nil {
		user = strings.TrimSpace(string(out))
	}
	env.Setenv("PATH", binaries+string(filepath.ListSeparator)+os.Getenv("PATH"))
	env.Setenv("HOME", home)
	env.Setenv("TELEPORT_HOME", filepath.Join(home, ".tsh"))
	env.Setenv("LOGIN", user)
	env.Values[daemonsKey{}] = daemons{}
	return nil
}

type daemonsKey struct{}

// daemons are the running processes of a script, by name.
type daemons map[string]*daemon

type daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

func running(ts *testscript.TestScript) daemons { return ts.Value(daemonsKey{}).(daemons) }

// freeport VAR... sets each variable to a port that nobody listens on.
func freeport(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
		ts.Check(ln.Close())
	}
}

// start NAME PROGRAM ARG... runs a daemon and waits until it says that it is
// ready; its output is in $WORK/NAME.log. With ! it must end by itself first, with
// an error; its exit code is then in $EXIT.
func start(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: start NAME PROGRAM ARG...")
	}
	name := args[0]
	logPath := ts.MkAbs(name + ".log")
	log, err := os.Create(logPath)
	ts.Check(err)
	cmd := exec.Command(filepath.Join(binaries, args[1]), args[2:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = ts.Getenv("WORK")
	for _, k := range []string{"PATH", "HOME", "TELEPORT_HOME", "WORK"} {
		cmd.Env = append(cmd.Env, k+"="+ts.Getenv(k))
	}
	ts.Check(cmd.Start())
	d := &daemon{cmd: cmd, done: make(chan struct{})}
	go func() {
		d.err = cmd.Wait()
		_ = log.Close()
		close(d.done)
	}()
	running(ts)[name] = d
	ts.Defer(func() { d.kill() })
	deadline := time.After(60 * time.Second)
	for {
		select {
		case <-d.done:
			if !neg {
				ts.Fatalf("%s ended instead of becoming ready: %v\n%s", name, d.err, ts.ReadFile(logPath))
			}
			ts.Setenv("EXIT", strconv.Itoa(cmd.ProcessState.ExitCode()))
			return
		case <-deadline:
			ts.Fatalf("%s is not ready after a minute:\n%s", name, ts.ReadFile(logPath))
		case <-time.After(20 * time.Millisecond):
			if strings.Contains(ts.ReadFile(logPath), "Teleport is ready.") {
				if neg {
					ts.Fatalf("%s became ready and should have failed:\n%s", name, ts.ReadFile(logPath))
				}
				return
			}
		}
	}
}

// stop NAME [SIGNAL] ends a daemon (TERM by default) and waits; ! expects that it
// ends with an error.
func stop(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: stop NAME [KILL|TERM|INT]")
	}
	d := running(ts)[args[0]]
	if d == nil {
		ts.Fatalf("no daemon %q", args[0])
	}
	sig := syscall.SIGTERM
	if len(args) > 1 {
		sig = map[string]syscall.Signal{"KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM, "INT": syscall.SIGINT}[args[1]]
	}
	ts.Check(d.cmd.Process.Signal(sig))
	select {
	case <-d.done:
	case <-time.After(20 * time.Second):
		ts.Fatalf("%s did not stop in 20 s", args[0])
	}
	if sig != syscall.SIGKILL && (d.err != nil) != neg {
		ts.Fatalf("%s ended with %v\n%s", args[0], d.err, ts.ReadFile(args[0]+".log"))
	}
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
}

// within DURATION PROGRAM ARG... runs a program until it succeeds; the last output
// goes to $WORK/within.out.
func within(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: within DURATION PROGRAM ARG...")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	deadline := time.Now().Add(limit)
	for {
		err := ts.Exec(args[1], args[2:]...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: still %v after %s", strings.Join(args[1:], " "), err, limit)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// capture VAR FILE REGEXP sets the variable to the first group (or the whole match)
// in a file, "stdout" or "stderr".
func capture(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: capture VAR FILE REGEXP")
	}
	m := regexp.MustCompile(args[2]).FindStringSubmatch(ts.ReadFile(args[1]))
	if m == nil {
		ts.Fatalf("no match for %s in %s:\n%s", args[2], args[1], ts.ReadFile(args[1]))
	}
	ts.Setenv(args[0], m[len(m)-1])
}

// totp VAR SECRET [STEPS] sets the variable to the code of now, or of so many
// 30-second steps later.
func totpCode(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: totp VAR SECRET [STEPS]")
	}
	at := time.Now()
	if len(args) > 2 {
		steps, err := strconv.Atoi(args[2])
		ts.Check(err)
		at = at.Add(time.Duration(steps) * 30 * time.Second)
	}
	code, err := totp.GenerateCode(args[1], at)
	ts.Check(err)
	ts.Setenv(args[0], code)
}

// expand FILE replaces $VARIABLES in a file by their values.
func expand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

// mode OCTAL FILE checks the permissions of a file.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: mode OCTAL FILE")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}
