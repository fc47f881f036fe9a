package internal_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "teleport"

// floors is the table of the house: a package imports only packages of floors
// below its own. A path that ends in "/..." stands for everything below it.
var floors = []struct {
	floor    int
	packages []string
}{
	{1, []string{"internal/fault", "internal/version", "internal/join/jwk", "api/..."}},
	{2, []string{"internal/types", "internal/keys", "internal/retry", "internal/budget", "internal/backend", "internal/join/egress", "internal/pam", "internal/label", "internal/buffer"}},
	{3, []string{
		"internal/backend/memory", "internal/backend/sqlite", "internal/backend/backendtest",
		"internal/keystore", "internal/audit", "internal/identity", "internal/access", "internal/cors", "internal/diag", "internal/join/method", "internal/pam/pamtest",
	}},
	{4, []string{
		"internal/ca", "internal/cache", "internal/store", "internal/refusal",
		"internal/join/jwt", "internal/join/evidence", "internal/join/aws", "internal/join/cms", "internal/join/jointest",
	}},
	{5, []string{
		"internal/rpc", "internal/mux", "internal/state", "internal/hosted", "internal/resume", "internal/websession",
		"internal/join/token", "internal/join/iam", "internal/join/ec2", "internal/join/azure", "internal/join/gcp", "internal/join/kubernetes",
		"internal/join/oracle", "internal/join/oidc", "internal/join/tpm", "internal/join/boundkeypair",
	}},
	{6, []string{
		"internal/join/all", "internal/authz", "internal/tunnel", "internal/client", "internal/control", "internal/client/screen", "internal/client/transfer", "internal/sshd",
	}},
	{7, []string{"internal/authapi", "internal/join", "internal/login", "internal/route", "internal/sshaccess", "internal/webapp", "internal/client/clienttest"}},
	{7, []string{"internal/service/db/engine"}},
	{8, []string{"internal/service/auth", "internal/service/proxy", "internal/service/ssh", "internal/service/db", "internal/service/db/postgres", "internal/service/db/mysql", "internal/service/db/redis", "internal/service/db/clickhouse", "internal/service/db/mongodb", "internal/service/db/sqlserver", "internal/service/db/passthrough", "internal/service/app", "internal/enroll"}},
	{9, []string{"internal/service/db/all", "internal/service/db/dbtest"}},
	{9, []string{"internal/config"}},
	{10, []string{"internal/process", "internal/doctor"}},
	{11, []string{"cmd/teleport", "cmd/tctl", "cmd/tsh", "test/..."}},
}

// ceilings hold where a package must stay further from the roof than its floor
// alone would keep it: config is read by clients too, so it knows no service.
var ceilings = map[string]int{"internal/config": 2}

// thin packages never reach what is below, not even through others: they are
// what people download and start a hundred times a day.
var (
	thin    = []string{"internal/client", "cmd/tsh", "cmd/tctl"}
	notThin = []string{
		"internal/service/...", "internal/process", "internal/backend/...", "internal/store", "internal/authapi", "internal/login",
		"modernc.org/...", "github.com/aws/...", "cloud.google.com/...", "github.com/Azure/...", "k8s.io/...",
	}
)

// proving packages hold what strangers send: they know no store, no Auth Service, no
// transport and no cloud's SDK, and nothing of ours reaches client-go.
var (
	proving = []string{
		"internal/join/method", "internal/join/egress", "internal/join/jwk", "internal/join/jwt", "internal/join/aws", "internal/join/cms",
		"internal/join/token", "internal/join/iam", "internal/join/ec2", "internal/join/azure", "internal/join/gcp", "internal/join/kubernetes",
		"internal/join/oracle", "internal/join/oidc", "internal/join/tpm", "internal/join/boundkeypair", "internal/join/all",
	}
	notProving = []string{
		"internal/store", "internal/backend/...", "internal/ca", "internal/authapi", "internal/join", "internal/rpc", "internal/process", "internal/service/...",
		"google.golang.org/grpc/...", "github.com/aws/...", "cloud.google.com/...", "github.com/Azure/...", "github.com/oracle/...", "k8s.io/...",
	}
)

// goPackage is what the tests of the whole tree need to know of a package.
type goPackage struct {
	name      string
	doc       bool
	generated bool
	imports   map[string]string // import path -> file that has it
}

func TestFloors(t *testing.T) {
	tree := readTree(t)
	for _, p := range slices.Sorted(maps.Keys(tree)) {
		own, known := floorOf(p)
		if !known {
			t.Errorf("%s has no floor: add it to a row of the table in internal/floors_test.go", p)
			continue
		}
		for _, imp := range slices.Sorted(maps.Keys(tree[p].imports)) {
			below, ours := strings.CutPrefix(imp, module+"/")
			if !ours || sameTree("api/", p, below) || sameTree("test/", p, below) {
				continue
			}
			floor, known := floorOf(below)
			limit := own - 1
			if c, ok := ceilings[p]; ok {
				limit = c
			}
			if known && floor > limit {
				t.Errorf("%s: %s (floor %d) imports %s (floor %d); it may import floors up to %d",
					tree[p].imports[imp], p, own, below, floor, limit)
			}
		}
	}
}

func TestThin(t *testing.T) {
	checkReach(t, thin, notThin, "must stay thin")
}

func TestJoinMethodsOnlyProve(t *testing.T) {
	checkReach(t, proving, notProving, "must know only proofs")
}

// checkReach fails for every root that reaches a package it must not, however far.
func checkReach(t *testing.T, roots, forbidden []string, why string) {
	t.Helper()
	tree := readTree(t)
	for _, root := range roots {
		if _, ok := tree[root]; !ok {
			continue
		}
		seen := map[string]bool{}
		var walk func(p string, chain []string)
		walk = func(p string, chain []string) {
			if seen[p] {
				return
			}
			seen[p] = true
			chain = append(slices.Clone(chain), p)
			if matches(forbidden, p) {
				t.Errorf("%s %s but reaches %s: %s", root, why, p, strings.Join(chain, " -> "))
				return
			}
			pkg, ok := tree[p]
			if !ok {
				return
			}
			for _, imp := range slices.Sorted(maps.Keys(pkg.imports)) {
				walk(strings.TrimPrefix(imp, module+"/"), chain)
			}
		}
		walk(root, nil)
	}
}

func TestServicesDoNotKnowEachOther(t *testing.T) {
	for p, pkg := range readTree(t) {
		if !strings.HasPrefix(p, "internal/service/") {
			continue
		}
		for imp, file := range pkg.imports {
			if other, ok := strings.CutPrefix(imp, module+"/internal/service/"); ok && serviceOf(other) != serviceOf(strings.TrimPrefix(p, "internal/service/")) {
				t.Errorf("%s: %s imports %s", file, p, imp)
			}
		}
	}
}

// serviceOf is the first part of a path below internal/service.
func serviceOf(p string) string {
	service, _, _ := strings.Cut(p, "/")
	return service
}

func TestNoInit(t *testing.T) {
	root := repoRoot(t)
	forEachFile(t, func(dir, file string) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if ast.IsGenerated(f) {
			return
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: %s has an init function: pass what is needed instead", file, dir)
			}
		}
	})
}

// sameTree reports whether both packages stand below the folder: generated code
// and tests may import their own kind.
func sameTree(folder, a, b string) bool {
	return strings.HasPrefix(a, folder) && strings.HasPrefix(b, folder)
}

func floorOf(p string) (int, bool) {
	for _, row := range floors {
		if matches(row.packages, p) {
			return row.floor, true
		}
	}
	return 0, false
}

// matches reports whether p is one of the patterns; "a/..." is a and all below.
func matches(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		prefix, deep := strings.CutSuffix(pattern, "/...")
		return p == prefix || deep && strings.HasPrefix(p, prefix+"/")
	})
}

// readTree reads the imports of every package of the module, without tests.
func readTree(t *testing.T) map[string]*goPackage {
	t.Helper()
	root := repoRoot(t)
	tree := map[string]*goPackage{}
	forEachFile(t, func(dir, file string) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		pkg := tree[dir]
		if pkg == nil {
			pkg = &goPackage{name: f.Name.Name, imports: map[string]string{}}
			tree[dir] = pkg
		}
		pkg.doc = pkg.doc || f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != ""
		pkg.generated = pkg.generated || ast.IsGenerated(f)
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			pkg.imports[imp] = file
		}
	})
	if len(tree) == 0 {
		t.Fatal("found no packages")
	}
	return tree
}

// forEachFile calls visit for every Go file that is not a test, with paths
// relative to the root of the repository.
func forEachFile(t *testing.T, visit func(dir, file string)) {
	t.Helper()
	root := repoRoot(t)
	for _, top := range []string{"api", "cmd", "internal", "test"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(file string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			if d.IsDir() && (d.Name() == "testdata" || d.Name() == "node_modules") {
				return filepath.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
				return nil
			}
			rel, err := filepath.Rel(root, file)
			if err != nil {
				return err
			}
			rel = filepath.ToSlash(rel)
			visit(path.Dir(rel), rel)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// repoRoot is the folder above this one.
func repoRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return root
}
