package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// daemon is a running program of a script.
type daemon struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
}

// ports are those that were given out: scripts run at the same time.
var ports struct {
	sync.Mutex
	given map[int]bool
}

// freePort returns a port that nobody listens on, below those that the system takes
// for outgoing connections.
func freePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.given == nil {
		ports.given = map[int]bool{}
	}
	for range 1000 {
		port := 15000 + rand.IntN(15000)
		if ports.given[port] {
			continue
		}
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		ports.given[port] = true
		return port, ln.Close()
	}
	return 0, fmt.Errorf("no free port")
}

// freeport VAR... sets each variable to a port that nobody listens on.
func freeport(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		port, err := freePort()
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(port))
	}
}

// cluster NAME starts an Auth and a Proxy Service in one process, with the
// configuration NAME.yaml, and sets $AUTH, $WEB (ports) and $PIN.
func cluster(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: cluster NAME")
	}
	freeport(ts, false, []string{"AUTH", "WEB"})
	name := args[0]
	ts.Check(os.WriteFile(ts.MkAbs(name+".yaml"), []byte(`version: v3
teleport:
  nodename: `+name+`
  data_dir: `+ts.MkAbs(name)+`
auth_service:
  enabled: yes
  cluster_name: `+name+`
  listen_addr: 127.0.0.1:`+ts.Getenv("AUTH")+`
proxy_service:
  enabled: yes
  web_listen_addr: 127.0.0.1:`+ts.Getenv("WEB")+`
  public_addr: localhost:`+ts.Getenv("WEB")+`
ssh_service:
  enabled: no
`), 0o600))
	start(ts, false, []string{name, "teleport", "start", "-c", name + ".yaml"})
	ts.Check(ts.Exec("tctl", "-c", name+".yaml", "status"))
	capture(ts, false, []string{"PIN", "stdout", "sha256:[0-9a-f]{64}"})
}

// spawn NAME PROGRAM ARG... starts a daemon, ours or one of the system; its output is
// in $WORK/NAME.log.
func spawn(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: spawn NAME PROGRAM ARG...")
	}
	d := &daemon{name: args[0], log: ts.MkAbs(args[0] + ".log"), done: make(chan struct{})}
	if old := own(ts).daemons[d.name]; old != nil {
		select {
		case <-old.done:
		default:
			ts.Fatalf("%s runs already", d.name)
		}
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	ts.Check(err)
	program := filepath.Join(binaries, args[1])
	if _, err := os.Stat(program); err != nil {
		program = args[1]
	}
	d.cmd = exec.Command(program, args[2:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Dir = ts.Getenv("WORK")
	d.cmd.Env = environ(ts)
	ts.Check(d.cmd.Start())
	go func() {
		d.err = d.cmd.Wait()
		_ = log.Close()
		close(d.done)
	}()
	own(ts).daemons[d.name] = d
	ts.Defer(d.kill)
}

// ready NAME waits until a daemon says that it is ready. With ! it must end by itself
// first, with an error; its exit code is then in $EXIT.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: ready NAME")
	}
	d := find(ts, args[0])
	deadline := time.After(60 * time.Second)
	for {
		select {
		case <-d.done:
			if !neg {
				ts.Fatalf("%s ended instead of becoming ready: %v\n%s", d.name, d.err, ts.ReadFile(d.log))
			}
			ts.Setenv("EXIT", strconv.Itoa(d.cmd.ProcessState.ExitCode()))
			return
		case <-deadline:
			ts.Fatalf("%s is not ready after a minute:\n%s", d.name, ts.ReadFile(d.log))
		case <-time.After(20 * time.Millisecond):
			if strings.Contains(ts.ReadFile(d.log), "Teleport is ready.") {
				if neg {
					ts.Fatalf("%s became ready and should have failed:\n%s", d.name, ts.ReadFile(d.log))
				}
				return
			}
		}
	}
}

// start is spawn and ready in one.
func start(ts *testscript.TestScript, neg bool, args []string) {
	spawn(ts, false, args)
	ready(ts, neg, args[:1])
}

// hup NAME makes a daemon read its configuration again; what it said before is in
// NAME.before, and its log begins anew.
func hup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hup NAME")
	}
	d := find(ts, args[0])
	ts.Check(os.WriteFile(ts.MkAbs(d.name+".before"), []byte(ts.ReadFile(d.log)), 0o600))
	ts.Check(os.Truncate(d.log, 0))
	ts.Check(d.cmd.Process.Signal(syscall.SIGHUP))
}

// ended NAME waits until a daemon ends by itself; its exit code is then in $EXIT.
func ended(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ended NAME")
	}
	d := find(ts, args[0])
	select {
	case <-d.done:
		ts.Setenv("EXIT", strconv.Itoa(d.cmd.ProcessState.ExitCode()))
	case <-time.After(30 * time.Second):
		ts.Fatalf("%s did not end in 30 s:\n%s", d.name, ts.ReadFile(d.log))
	}
}

// end NAME [SIGNAL] ends a daemon (TERM by default) and waits; ! expects that it
// ends with an error.
func end(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: end NAME [KILL|TERM|INT]")
	}
	d := find(ts, args[0])
	sig := syscall.SIGTERM
	if len(args) > 1 {
		sig = map[string]syscall.Signal{"KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM, "INT": syscall.SIGINT}[args[1]]
	}
	ts.Check(d.cmd.Process.Signal(sig))
	select {
	case <-d.done:
	case <-time.After(20 * time.Second):
		ts.Fatalf("%s did not stop in 20 s", d.name)
	}
	if sig != syscall.SIGKILL && (d.err != nil) != neg {
		ts.Fatalf("%s ended with %v\n%s", d.name, d.err, ts.ReadFile(d.log))
	}
}

func find(ts *testscript.TestScript, name string) *daemon {
	d := own(ts).daemons[name]
	if d == nil {
		ts.Fatalf("no daemon %q", name)
	}
	return d
}

// refused NAME EXIT REASON REGEXP... expects that the daemon ended with the exit code
// and one line on standard error that matches each expression and ends with the reason
// code in brackets ("-" for none). It leaves no other talk than its log.
func refused(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: refused NAME EXIT REASON REGEXP...")
	}
	d := find(ts, args[0])
	if got := strconv.Itoa(d.cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s ended with exit code %s, want %s\n%s", d.name, got, args[1], ts.ReadFile(d.log))
	}
	var said []string
	for line := range strings.Lines(ts.ReadFile(d.log)) {
		if !strings.HasPrefix(line, "time=") {
			said = append(said, line)
		}
	}
	if len(said) != 1 || !strings.HasPrefix(said[0], "ERROR: ") {
		ts.Fatalf("%s said %d lines beside its log, want one error:\n%s", d.name, len(said), ts.ReadFile(d.log))
	}
	line := strings.TrimSuffix(said[0], "\n")
	if reason := " [" + args[2] + "]"; args[2] != "-" && !strings.HasSuffix(line, reason) {
		ts.Fatalf("%s: want the reason%s: %s", d.name, reason, line)
	}
	for _, want := range args[3:] {
		if !regexp.MustCompile(want).MatchString(line) {
			ts.Fatalf("%s: no match for %s: %s", d.name, want, line)
		}
	}
	ts.Logf("%s", line)
}
