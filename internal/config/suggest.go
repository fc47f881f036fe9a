package config

import (
	"slices"
	"strings"
)

// suggest returns what to append to "unknown key": the nearest key of the same
// section, or the section where the key belongs.
func suggest(name, section string, s schema) string {
	if where := belongs(name, section); where != "" {
		return ": it belongs " + where
	}
	best, distance := "", 0
	for _, k := range sortedKeys(s) {
		d := editDistance(strings.ToLower(name), k)
		if best == "" || d < distance {
			best, distance = k, d
		}
	}
	if best != "" && distance <= max(1, len(best)/3) {
		return ": did you mean " + best + "?"
	}
	if len(s) == 0 {
		return ""
	}
	return ": expected one of " + strings.Join(sortedKeys(s), ", ")
}

// belongs says where else a key of exactly this name stands, or "".
func belongs(name, section string) string {
	cfg := Default()
	if _, top := topSchema(cfg)[name]; top && section != "" {
		return "at the top level of the file, without indentation"
	}
	for _, sec := range sectionSchemas(cfg) {
		_, ok := sec.keys[name]
		if ok && sec.name != section && name != "enabled" {
			return "in section " + sec.name
		}
	}
	return ""
}

func sortedKeys(s schema) []string {
	keys := make([]string, 0, len(s))
	for k := range s {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// editDistance counts the letters to insert, delete, replace or swap to turn a
// into b. Long names are not compared.
func editDistance(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return longest
	}
	prev2 := make([]int, len(b)+1)
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(prev[j]+cost, prev[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], prev2[j-1]+1)
			}
		}
		prev2, prev = prev, row
	}
	return prev[len(b)]
}
