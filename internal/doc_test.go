package internal_test

import (
	"maps"
	"path"
	"slices"
	"testing"
)

// nonNouns are names that say nothing about what a package is for.
var nonNouns = []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "core", "lib", "pkg", "shared"}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	tree := readTree(t)
	for _, p := range slices.Sorted(maps.Keys(tree)) {
		if pkg := tree[p]; !pkg.doc && !pkg.generated {
			t.Errorf("package %s (%s) has no doc comment: say what it is, what it is for and what it is not", pkg.name, p)
		}
	}
}

func TestPackagesAreNamedByNouns(t *testing.T) {
	tree := readTree(t)
	for _, p := range slices.Sorted(maps.Keys(tree)) {
		if pkg := tree[p]; slices.Contains(nonNouns, pkg.name) || slices.Contains(nonNouns, path.Base(p)) {
			t.Errorf("package %s (%s): name it after what it holds", pkg.name, p)
		}
	}
}
