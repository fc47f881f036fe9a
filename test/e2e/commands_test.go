package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pquerna/otp/totp"
	"github.com/rogpeppe/go-internal/testscript"
)

// within DURATION PROGRAM ARG... runs a program until it succeeds, with ! until it
// fails.
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
	m := regexp.MustCompile("(?m)" + args[2]).FindStringSubmatch(ts.ReadFile(args[1]))
	if m == nil {
		ts.Fatalf("no match for %s in %s:\n%s", args[2], args[1], ts.ReadFile(args[1]))
	}
	ts.Setenv(args[0], m[len(m)-1])
}

// codeAt returns the code of now, or of so many steps of 30 seconds later. A code of
// before is good until the end of this step, so it waits if that is near.
func codeAt(secret string, steps int) (string, error) {
	const step = 30 * time.Second
	if left := step - time.Duration(time.Now().UnixNano())%step; steps < 0 && left < 5*time.Second {
		time.Sleep(left)
	}
	return totp.GenerateCode(secret, time.Now().Add(time.Duration(steps)*30*time.Second))
}

// totp VAR SECRET [STEPS] sets the variable to the code of now, or of so many
// 30-second steps later.
func totpCode(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: totp VAR SECRET [STEPS]")
	}
	steps := 0
	if len(args) > 2 {
		var err error
		steps, err = strconv.Atoi(args[2])
		ts.Check(err)
	}
	code, err := codeAt(args[1], steps)
	ts.Check(err)
	ts.Setenv(args[0], code)
}

// redeem VAR LINK [ARG...] redeems an invitation with tsh, choosing $PASSWORD, and
// sets the variable to the secret of the second factor. It uses a code of 30 seconds
// ago: those of now and of the next step are left.
func redeem(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: redeem VAR LINK [ARG...]")
	}
	cmd := exec.Command(filepath.Join(binaries, "tsh"), append([]string{"login", "--invite=" + args[1]}, args[2:]...)...)
	cmd.Env, cmd.Dir = environ(ts), ts.Getenv("WORK")
	stdin, err := cmd.StdinPipe()
	ts.Check(err)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		_ = w.Close()
		ended <- err
	}()
	_, err = fmt.Fprintf(stdin, "%s\n%s\n", ts.Getenv("PASSWORD"), ts.Getenv("PASSWORD"))
	ts.Check(err)
	said := ""
	for lines := bufio.NewScanner(r); lines.Scan(); {
		said += lines.Text() + "\n"
		m := regexp.MustCompile(`^Secret key: ([A-Z2-7]{26,})$`).FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		ts.Setenv(args[0], m[1])
		code, err := codeAt(m[1], -1)
		ts.Check(err)
		_, err = fmt.Fprintln(stdin, code)
		ts.Check(err)
	}
	ts.Check(os.WriteFile(ts.MkAbs("redeem.out"), []byte(said), 0o600))
	if err := <-ended; (err != nil) != neg {
		ts.Fatalf("tsh login: %v\n%s", err, said)
	}
}

// login USER SECRET STEPS [ARG...] logs in with tsh as the Teleport user with
// $PASSWORD and the code of so many steps later; what it said is in login.out.
func login(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: login USER SECRET STEPS [ARG...]")
	}
	steps, err := strconv.Atoi(args[2])
	ts.Check(err)
	code, err := codeAt(args[1], steps)
	ts.Check(err)
	cmd := exec.Command(filepath.Join(binaries, "tsh"), append([]string{"login", "--user=" + args[0]}, args[3:]...)...)
	cmd.Env, cmd.Dir = environ(ts), ts.Getenv("WORK")
	cmd.Stdin = strings.NewReader(ts.Getenv("PASSWORD") + "\n" + code + "\n")
	out, err := cmd.CombinedOutput()
	ts.Check(os.WriteFile(ts.MkAbs("login.out"), out, 0o600))
	if (err != nil) != neg {
		ts.Fatalf("tsh login: %v\n%s", err, out)
	}
}

// expand FILE... replaces $VARIABLES in files by their values.
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

// fetch URL [HOST] gets a page, with the status in its first line, into fetch.out; a
// certificate is not checked. HOST is asked for by name while the connection goes to
// the address in the URL.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: fetch URL [HOST]")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, args[0], nil)
	ts.Check(err)
	if len(args) > 1 {
		req.Host = args[1]
	}
	resp, err := transport.RoundTrip(req)
	if neg {
		if err == nil {
			_ = resp.Body.Close()
			ts.Fatalf("%s answered %s", args[0], resp.Status)
		}
		return
	}
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	text := fmt.Sprintf("%s\n%s", resp.Status, body)
	ts.Check(os.WriteFile(ts.MkAbs("fetch.out"), []byte(text), 0o600))
	ts.Logf("%s", text[:min(len(text), 2000)])
}
