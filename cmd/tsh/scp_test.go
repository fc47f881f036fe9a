package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teleport/internal/client/clienttest"
	"teleport/internal/client/transfer"
)

// files makes a folder for this machine, which becomes the working directory, and one
// for the server.
func files(t *testing.T, c *clienttest.Cluster) (here, there string) {
	t.Helper()
	here, there = t.TempDir(), t.TempDir()
	c.Node.Dir = there
	t.Chdir(here)
	for name, text := range map[string]string{
		here + "/one": "first", here + "/two": "second", here + "/dir/sub/three": "third", here + "/a:b": "colon",
		there + "/x.log": "x", there + "/y.log": "y", there + "/z.txt": "z",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return here, there
}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

func TestScp(t *testing.T) {
	c := fleet(t)
	here, there := files(t, c)
	for name, tt := range map[string]struct {
		args []string
		path string
		want string
	}{
		"up":            {[]string{"one", "root@web-1:"}, there + "/one", "first"},
		"up_name":       {[]string{"-q", "one", "root@web-1:new"}, there + "/new", "first"},
		"up_absolute":   {[]string{"one", "root@web-1:" + there + "/abs"}, there + "/abs", "first"},
		"up_tilde":      {[]string{"two", "root@web-1:~/tilde"}, there + "/tilde", "second"},
		"up_dir":        {[]string{"-r", "dir", "root@" + clienttest.NodeID + ":."}, there + "/dir/sub/three", "third"},
		"up_several":    {[]string{"-p", "one", "two", "./a:b", "root@web-1:."}, there + "/a:b", "colon"},
		"up_by_label":   {[]string{"one", "root@os=linux:labelled"}, there + "/labelled", "first"},
		"down":          {[]string{"root@web-1:x.log", "."}, here + "/x.log", "x"},
		"down_name":     {[]string{"-P", "3022", "-c", clienttest.Name, "root@web-1:z.txt", "zed"}, here + "/zed", "z"},
		"down_pattern":  {[]string{"root@web-1:*.log", "dir"}, here + "/dir/y.log", "y"},
		"down_by_label": {[]string{"root@os=linux:z.txt", "label.txt"}, here + "/label.txt", "z"},
		"jump":          {[]string{"-J", "ubuntu@web-1,root@web-1", "one", "root@web-1:jumped"}, there + "/jumped", "first"},
		"across":        {[]string{"root@web-1:z.txt", "ubuntu@web-1:across"}, there + "/across", "z"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, talk := tsh(t, "", append([]string{"scp"}, tt.args...)...)
			if code != 0 || out+talk != "" {
				t.Fatalf("exit code %d, %q, %q", code, out, talk)
			}
			if got := content(t, tt.path); got != tt.want {
				t.Errorf("%s holds %q, want %q", tt.path, got, tt.want)
			}
		})
	}
	t.Setenv("TELEPORT_LOGIN", "root")
	ok(t, "", "scp", "web-1:z.txt", "by-env")
	if got := content(t, here+"/by-env"); got != "z" {
		t.Errorf("TELEPORT_LOGIN: %q", got)
	}
}

func TestScpRefusals(t *testing.T) {
	c := fleet(t)
	here, there := files(t, c)
	fails(t, 2, "use cp", "scp", "one", "two")
	fails(t, 2, "argument is missing", "scp", "one")
	fails(t, 2, "no user before the @", "scp", "one", "@web-1:")
	fails(t, 2, "name one", "scp", "root@env=prod:x", "here")
	fails(t, 1, `do not allow login "bob"`, "scp", "one", "bob@web-1:")
	fails(t, 1, "there is no node", "scp", "one", "root@nope:")
	fails(t, 1, "home directory of another user", "scp", "one", "root@web-1:~bob/x")
	fails(t, 1, "not a directory", "scp", "one", "two", "root@web-1:nowhere")
	fails(t, 2, "-J leads to one host by its name", "scp", "-J", "root@web-1", "one", "root@os=linux:labelled")
	fails(t, 1, `do not allow login "bob"`, "scp", "-J", "bob@web-1", "one", "root@web-1:")
	fails(t, 2, "not to", "scp", "-c", "other", "one", "root@web-1:")
	fails(t, 1, "dir: it is a directory: use -r", "scp", "dir", "root@web-1:")
	// What can be copied is.
	code, out, talk := tsh(t, "", "scp", "none", "one", "root@web-1:")
	if code != 1 || out != "" || talk != "tsh: none: no such file or directory\r\n" || content(t, there+"/one") != "first" {
		t.Errorf("%d, %q, %q", code, out, talk)
	}
	// Of several servers those that cannot be reached are named.
	code, _, talk = tsh(t, "", "scp", "two", "root@env=prod:both")
	if code != 1 || !strings.Contains(talk, "db-1: there is no node") || content(t, there+"/both") != "second" {
		t.Errorf("%d, %q", code, talk)
	}
	c.Node.NoSFTP = true
	fails(t, 1, "does not transfer files", "scp", "root@web-1:x.log", here+"/no")
	if _, err := os.Stat(here + "/no"); err == nil {
		t.Error("a file was made for nothing")
	}
}

func TestParsePlace(t *testing.T) {
	for in, want := range map[string]place{
		"file":          {path: "file"},
		"./a:b":         {path: "./a:b"},
		"/a:b":          {path: "/a:b"},
		"host:":         {remote: true, target: target{host: "host"}, path: "."},
		"u@host:a:b":    {remote: true, target: target{login: "u", host: "host"}, path: "a:b"},
		"u@host:~/x":    {remote: true, target: target{login: "u", host: "host"}, path: "x"},
		"u@a=b,c=d:/x":  {remote: true, target: target{login: "u", host: "a=b,c=d"}, path: "/x"},
		"a@b@host:path": {remote: true, target: target{login: "a@b", host: "host"}, path: "path"},
	} {
		if got, err := parsePlace(in); err != nil || got != want {
			t.Errorf("parsePlace(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, bad := range []string{"", ":x", "@h:x", "-o:x", "a b:x"} {
		if got, err := parsePlace(bad); err == nil {
			t.Errorf("parsePlace(%q) = %+v", bad, got)
		}
	}
}

func FuzzParsePlace(f *testing.F) {
	f.Add("u@host:a:b")
	f.Add("./a:b")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePlace(s)
		if err == nil && (p.path == "" || p.remote != (p.target.host != "") || strings.ContainsAny(p.target.host, " /\t:")) {
			t.Errorf("parsePlace(%q) = %+v", s, p)
		}
	})
}

func TestProgressLine(t *testing.T) {
	p := &progress{app: &app{}, meter: &transfer.Meter{}, begin: time.Unix(0, 0)}
	p.meter.Total.Store(4 << 20)
	p.meter.Done.Store(1 << 20)
	want := "                                      25%     1.0MB   512.0KB/s 6s left"
	if diff := cmp.Diff(want, p.line(time.Unix(2, 0))); diff != "" {
		t.Error(diff)
	}
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1.0KB", 5 << 30: "5.0GB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestSftp(t *testing.T) {
	c := fleet(t)
	here, there := files(t, c)
	commands := `
# what is there
pwd
ls
ls -l x.log
cd ` + there + `
mkdir deep "with space"
mkdir -p p/q/r
put one deep
put -r dir
mput *wo
get "z.txt" here.txt
mget *.log
get -r dir back
rename z.txt 'with space/zed'
ln -s x.log link
chmod 600 y.log
stat y.log
rm x.log p/../y.log
rmdir p/q/r
-rm nothing
rm -r p
lls .
lmkdir local
lcd local
lpwd
cd
help
quit
rm one
`
	code, out, talk := tsh(t, commands, "sftp", "root@web-1")
	if code != 0 {
		t.Fatalf("exit code %d\n%s%s", code, out, talk)
	}
	for _, want := range []string{there + "\n", "x.log\ny.log\nz.txt\n", "-rw-r--r--", "y.log: -rw-------, 1 bytes", here + "/local\n", "rename from to"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}
	if code, out, talk := tsh(t, "pwd\n", "sftp", "-J", "ubuntu@web-1", "root@web-1"); code != 0 || out != there+"\n" {
		t.Errorf("sftp -J: %d, %q, %q", code, out, talk)
	}
	if want := "tsh: " + there + "/nothing: file does not exist\r\n"; talk != want {
		t.Errorf("said %q, want %q", talk, want)
	}
	for path, want := range map[string]string{
		there + "/deep/one": "first", there + "/dir/sub/three": "third", there + "/two": "second", there + "/with space/zed": "z",
		here + "/here.txt": "z", here + "/x.log": "x", here + "/y.log": "y", here + "/back/sub/three": "third",
	} {
		if got := content(t, path); got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
	for _, gone := range []string{"x.log", "y.log", "z.txt", "p"} {
		if _, err := os.Lstat(filepath.Join(there, gone)); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
}

func TestSftpFailures(t *testing.T) {
	c := fleet(t)
	here, there := files(t, c)
	for name, tt := range map[string]struct{ commands, says string }{
		"unknown":       {"nope", `unknown command "nope"`},
		"missing":       {"get nothing", "nothing: file does not exist"},
		"too_many":      {"pwd x", "expected: pwd"},
		"too_few":       {"rename x", "expected: rename from to"},
		"no_name":       {"get -r", "expected the name of a file"},
		"bad_flag":      {"ls -Z", "flag"},
		"quote":         {`ls "x`, "quotation mark"},
		"dir":           {"rm " + there, "rm -r or rmdir"},
		"cd_file":       {"cd x.log", "not a directory"},
		"cd_nowhere":    {"cd nowhere", "nowhere"},
		"bad_mode":      {"chmod rw x.log", "octal"},
		"hard_link":     {"ln x.log y", "ln -s"},
		"dir_without_r": {"put dir", "use -r"},
	} {
		code, _, talk := tsh(t, tt.commands+"\nrm z.txt\n", "sftp", "root@web-1")
		if code != 1 || !strings.Contains(talk, tt.says) {
			t.Errorf("%s: %d, %q, want %q", name, code, talk, tt.says)
		}
		if content(t, there+"/z.txt") != "z" {
			t.Fatalf("%s: it went on", name)
		}
	}
	batch := filepath.Join(here, "batch")
	if err := os.WriteFile(batch, []byte("-cd nowhere\nget x.log\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ok(t, "", "sftp", "-b", batch, "root@web-1")
	if got := content(t, here+"/x.log"); got != "x" {
		t.Errorf("-b: %q", got)
	}
	// A path to a file fetches it, and one to a directory begins there.
	ok(t, "", "sftp", "root@web-1:y.log")
	if got := content(t, here+"/y.log"); got != "y" {
		t.Errorf("host:file: %q", got)
	}
	if got := ok(t, "pwd\n", "sftp", "root@web-1:"+filepath.Dir(there)); got != filepath.Dir(there)+"\n" {
		t.Errorf("host:directory: %q", got)
	}
	fails(t, 1, "nowhere", "sftp", "root@web-1:nowhere")
	fails(t, 1, "read the commands", "sftp", "-b", here+"/none", "root@web-1")
	fails(t, 2, "name one", "sftp", "root@env=prod")
}

func TestSplitCommand(t *testing.T) {
	for in, want := range map[string][]string{
		"":                   nil,
		"  ls  -l x ":        {"ls", "-l", "x"},
		`get "a b" 'c "d"'`:  {"get", "a b", `c "d"`},
		`get a\ b \*`:        {"get", "a b", `\*`},
		`put "" x`:           {"put", "", "x"},
		`rm 'it'"'"'s' "\""`: {"rm", "it's", `"`},
	} {
		got, err := splitCommand(in)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("splitCommand(%q): %v %s", in, err, diff)
		}
	}
	for _, bad := range []string{`"x`, `'x`, `x\`} {
		if got, err := splitCommand(bad); err == nil {
			t.Errorf("splitCommand(%q) = %q", bad, got)
		}
	}
}
