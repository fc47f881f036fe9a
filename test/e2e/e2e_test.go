// Package e2e runs the built binaries the way people do: each script in testdata
// is a session at a terminal (see rogpeppe/go-internal/testscript), with a few
// commands added: for daemons, for waiting, for answering the questions of tsh and
// for terminals. The scripts are also documentation that cannot go stale. They run
// as any user, on free ports, at the same time.
//
// TELEPORT_BIN names a folder with teleport, tctl and tsh to run instead of building
// them.
package e2e

import (
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"teleport/internal/pam/pamtest"
	"teleport/test/e2e/ownhome"
)

// binaries is the folder of the programs under test.
var binaries string

var update = flag.Bool("update", false, "rewrite the scripts' expected output")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(ownhome.Run(func() int { return run(m) }))
}

func run(m *testing.M) int {
	if binaries = os.Getenv("TELEPORT_BIN"); binaries != "" {
		return m.Run()
	}
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
	if _, err := pamtest.Compile(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binaries = dir
	return m.Run()
}

func TestScripts(t *testing.T) { testscript.Run(t, scripts("testdata")) }

// scripts are those of a folder.
func scripts(dir string) testscript.Params {
	return testscript.Params{
		Dir:                 dir,
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"browse":      browse,
			"capture":     capture,
			"certificate": certificate,
			"cluster":     cluster,
			"echoes":      echoes,
			"expand":      expand,
			"expect":      expect,
			"fetch":       fetch,
			"freeport":    freeport,
			"jwt":         jwtOf,
			"keys":        pressKeys,
			"login":       login,
			"mode":        mode,
			"postgres":    postgres,
			"pamservice":  pamService,
			"ready":       ready,
			"redeem":      redeem,
			"refused":     refused,
			"rewrite":     rewrite,
			"served":      served,
			"spawn":       spawn,
			"start":       start,
			"end":         end,
			"ended":       ended,
			"hup":         hup,
			"terminal":    openTerminal,
			"totp":        totpCode,
			"type":        typeLine,
			"webpage":     webpage,
			"website":     website,
			"within":      within,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			if cond == "fuse" {
				f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
				if err == nil {
					_ = f.Close()
				}
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	}
}

// scriptKey is where a script's own state is kept.
type scriptKey struct{}

// script is what a script has running.
type script struct {
	daemons   map[string]*daemon
	terminals map[string]*terminal
	browser   *browser
	// given are variables that its daemons get beside the usual ones.
	given []string
	// rewrites are pairs of old and new.
	rewrites []string
	// authority and serial are of the certificates that it made.
	authority *authority
	serial    *big.Int
}

func own(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

// setup gives each script a home of its own. $LOGIN is the local user that runs the
// test; $PASSWORD is long enough to be one.
func setup(env *testscript.Env) error {
	home := filepath.Join(env.WorkDir, "home")
	if err := os.MkdirAll(filepath.Join(home, ".ssh"), 0o700); err != nil {
		return err
	}
	me, err := user.Current()
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		"PATH":          binaries + string(filepath.ListSeparator) + os.Getenv("PATH"),
		"BIN":           binaries,
		"HOME":          home,
		"TELEPORT_HOME": filepath.Join(home, ".tsh"),
		"USER":          me.Username,
		"LOGIN":         me.Username,
		"PASSWORD":      "correct horse battery",
	} {
		env.Setenv(name, value)
	}
	env.Values[scriptKey{}] = &script{daemons: map[string]*daemon{}, terminals: map[string]*terminal{}}
	return nil
}

// environ is the environment of a script's programs.
func environ(ts *testscript.TestScript) []string {
	var out []string
	names := []string{"PATH", "HOME", "TELEPORT_HOME", "USER", "WORK", "TMPDIR", "TELEPORT_PROXY", "TELEPORT_USER", "SSL_CERT_FILE"}
	for _, name := range append(names, own(ts).given...) {
		if value := ts.Getenv(name); value != "" {
			out = append(out, name+"="+value)
		}
	}
	return out
}
