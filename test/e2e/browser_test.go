package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// browser is a Chromium that a script drives, by the WebDriver protocol
// (https://www.w3.org/TR/webdriver2/).
type browser struct {
	// at is the address of the session at ChromeDriver.
	at   string
	file string
}

// element is the key of an element's reference.
const element = "element-6066-11e4-a52e-4f735466cecf"

// browse does something in the script's browser, which the first use starts. Hosts under
// localhost are this machine, and certificates are not checked.
//
//	browse open URL            opens a page
//	browse fill SELECTOR TEXT  types into a field
//	browse click SELECTOR      clicks
//	browse shows REGEXP        waits until the page's text matches; the text is in browser.out
//	browse at REGEXP           waits until the page's address matches
//	browse tab NUMBER          goes to another tab, which it opens if there are not so many
//	browse run SCRIPT          runs a function's body and prints what it returns into browser.out
func browse(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || (args[0] == "fill") != (len(args) == 3) {
		ts.Fatalf("usage: browse open|fill|click|shows|at|tab|run ARG [TEXT]")
	}
	s := own(ts)
	if s.browser == nil {
		s.browser = openBrowser(ts)
	}
	b := s.browser
	switch args[0] {
	case "open":
		b.must(ts, "POST", "/url", map[string]any{"url": args[1]}, nil)
	case "fill":
		id := b.find(ts, args[1])
		b.must(ts, "POST", "/element/"+id+"/clear", map[string]any{}, nil)
		b.must(ts, "POST", "/element/"+id+"/value", map[string]any{"text": args[2]}, nil)
	case "click":
		b.must(ts, "POST", "/element/"+b.find(ts, args[1])+"/click", map[string]any{}, nil)
	case "shows":
		b.wait(ts, args[1], "return document.title + '\\n' + (document.body ? document.body.innerText : '')")
	case "at":
		b.wait(ts, args[1], "return location.href")
	case "tab":
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		b.tab(ts, n)
	case "run":
		text, err := b.run(args[1])
		ts.Check(err)
		ts.Check(os.WriteFile(b.file, []byte(text), 0o600))
		ts.Logf("%s", text)
	default:
		ts.Fatalf("browse knows no %q", args[0])
	}
}

// openBrowser starts ChromeDriver, and a browser with an empty profile.
func openBrowser(ts *testscript.TestScript) *browser {
	port, err := freePort()
	ts.Check(err)
	log, err := os.Create(ts.MkAbs("chromedriver.log"))
	ts.Check(err)
	cmd := exec.Command("chromedriver", fmt.Sprintf("--port=%d", port))
	cmd.Env, cmd.Dir = environ(ts), ts.Getenv("WORK")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		ts.Fatalf("%v: apt-get install chromium chromium-driver", err)
	}
	b := &browser{at: fmt.Sprintf("http://127.0.0.1:%d", port), file: ts.MkAbs("browser.out")}
	ts.Defer(func() {
		// ChromeDriver ends the browser; what is left ends with the group.
		_ = b.call("DELETE", "", nil, nil)
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_ = log.Close()
	})
	var session struct {
		SessionID string `json:"sessionId"`
	}
	options := map[string]any{"args": []string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--disable-dev-shm-usage", "--user-data-dir=" + ts.MkAbs("chromium"),
	}}
	capabilities := map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{"acceptInsecureCerts": true, "goog:chromeOptions": options}}}
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := b.call("POST", "/session", capabilities, &session)
		if err == nil {
			b.at += "/session/" + session.SessionID
			return b
		}
		// Only a ChromeDriver that does not listen yet is waited for.
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(deadline) {
			ts.Fatalf("chromedriver: %v\n%s", err, ts.ReadFile("chromedriver.log"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// call sends a command.
func (b *browser) call(method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, b.at+path, body)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 60 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", answer.Value)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, out)
}

func (b *browser) must(ts *testscript.TestScript, method, path string, in, out any) {
	if err := b.call(method, path, in, out); err != nil {
		ts.Fatalf("browser: %v", err)
	}
}

// find waits for an element.
func (b *browser) find(ts *testscript.TestScript, selector string) string {
	deadline := time.Now().Add(20 * time.Second)
	for {
		var found map[string]string
		err := b.call("POST", "/element", map[string]any{"using": "css selector", "value": selector}, &found)
		if err == nil {
			return found[element]
		}
		if time.Now().After(deadline) {
			text, _ := b.run("return location.href + '\\n' + document.body.innerText")
			ts.Fatalf("browser: %v; it shows\n%s", err, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// tab goes to a tab.
func (b *browser) tab(ts *testscript.TestScript, n int) {
	for {
		var all []string
		b.must(ts, "GET", "/window/handles", nil, &all)
		if n < len(all) {
			b.must(ts, "POST", "/window", map[string]any{"handle": all[n]}, nil)
			return
		}
		b.must(ts, "POST", "/window/new", map[string]any{"type": "tab"}, nil)
	}
}

// run runs a script in the page; what it returns may be a promise.
func (b *browser) run(script string) (string, error) {
	var out any
	if err := b.call("POST", "/execute/sync", map[string]any{"script": script, "args": []any{}}, &out); err != nil {
		return "", err
	}
	if text, ok := out.(string); ok {
		return text, nil
	}
	data, err := json.Marshal(out)
	return string(data), err
}

// wait waits until what a script returns matches.
func (b *browser) wait(ts *testscript.TestScript, expr, script string) {
	re := regexp.MustCompile("(?m)" + expr)
	deadline := time.Now().Add(20 * time.Second)
	for {
		text, err := b.run(script)
		if err == nil && re.MatchString(text) {
			ts.Check(os.WriteFile(b.file, []byte(text), 0o600))
			ts.Logf("%s", strings.TrimSpace(text))
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("browser: no match for %s after 20 s: %v\n%s", expr, err, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
