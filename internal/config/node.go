package config

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"

	"teleport/internal/types"
)

// value is one value of the file, with the path of its key. Its methods read it
// as a type; on a mismatch they report a problem and return false.
type value struct {
	d    *decoder
	node ast.Node
	path string
}

// schema maps the keys of a section to what reads each.
type schema map[string]func(value)

// bad reports a problem at the value.
func (v value) bad(format string, args ...any) {
	v.d.problem(nodePosition(v.node), v.path, format, args...)
}

// badIf reports the error, if there is one, as a problem at the value.
func (v value) badIf(err error) {
	if err != nil {
		v.bad("%s", err)
	}
}

// resolve follows anchors and aliases, within limits. It returns nil when the
// value cannot be used, and has then reported why.
func (v value) resolve() ast.Node {
	node := v.node
	for {
		if v.d.visits++; v.d.visits > maxVisits {
			if v.d.visits == maxVisits+1 {
				v.bad("too many values: expected at most %d", maxVisits)
			}
			return nil
		}
		switch n := node.(type) {
		case *ast.AnchorNode:
			v.d.anchors[keyText(n.Name)] = n.Value
			node = n.Value
		case *ast.AliasNode:
			target, ok := v.d.anchors[keyText(n.Value)]
			if v.d.aliases++; !ok || v.d.aliases > maxAliases {
				v.bad("bad alias %s: expected the name of an anchor above it, and at most %d aliases", quote("*"+keyText(n.Value)), maxAliases)
				return nil
			}
			node = target
		case *ast.TagNode:
			v.bad("YAML tags are not supported: remove %s", quote(n.GetToken().Value))
			return nil
		case nil:
			return &ast.NullNode{BaseNode: &ast.BaseNode{}}
		default:
			return node
		}
	}
}

// mapping reads a section. Nothing at all is an empty section.
func (v value) mapping(s schema) {
	v.entries("keys and values", func(e value, name string) {
		read, ok := s[name]
		if !ok {
			v.d.problem(e.keyAt(), e.path, "unknown key%s", suggest(name, v.path, s))
			return
		}
		read(e)
	})
}

// entries calls each for every key of a mapping and reports keys that repeat.
func (v value) entries(what string, each func(e value, name string)) {
	node := v.resolve()
	var list []*ast.MappingValueNode
	switch n := node.(type) {
	case nil, *ast.NullNode:
		return
	case *ast.MappingNode:
		list = n.Values
	case *ast.MappingValueNode:
		list = []*ast.MappingValueNode{n}
	default:
		v.bad("expected %s, found %s", what, describe(node))
		return
	}
	if len(list) > maxEntries {
		v.bad("too many keys: expected at most %d", maxEntries)
		return
	}
	seen := map[string]position{}
	for _, entry := range list {
		at := tokenPosition(entry.Key.GetToken())
		name := keyText(entry.Key)
		path := joinPath(v.path, name)
		if entry.Key.IsMergeKey() {
			v.d.problem(at, v.path, "merge keys (<<) are not supported: write the keys out")
			continue
		}
		if name == "" {
			v.d.problem(at, v.path, "bad key: expected a name")
			continue
		}
		if first, twice := seen[name]; twice {
			v.d.problem(at, path, "duplicate key: it stands on line %d already", first.line)
			continue
		}
		seen[name] = at
		v.d.at[path] = at
		each(value{d: v.d, node: entry.Value, path: path}, name)
	}
}

// keyAt returns where the key of a value stands.
func (v value) keyAt() position { return v.d.at[v.path] }

// list calls each for every element. Nothing at all is an empty list.
func (v value) list(what string, each func(value)) {
	switch n := v.resolve().(type) {
	case nil, *ast.NullNode:
	case *ast.SequenceNode:
		if len(n.Values) > maxEntries {
			v.bad("too long: expected at most %d elements", maxEntries)
			return
		}
		for i, e := range n.Values {
			path := v.path + "[" + strconv.Itoa(i) + "]"
			v.d.at[path] = nodePosition(e)
			each(value{d: v.d, node: e, path: path})
		}
	default:
		v.bad("expected a list of %s, found %s", what, describe(n))
	}
}

// oneOrList calls each for a single value or for every element of a list.
func (v value) oneOrList(what string, each func(value)) {
	if _, ok := v.peek().(*ast.SequenceNode); ok {
		v.list(what, each)
		return
	}
	each(v)
}

// peek looks at the value without following aliases.
func (v value) peek() ast.Node {
	if a, ok := v.node.(*ast.AnchorNode); ok {
		return a.Value
	}
	if a, ok := v.node.(*ast.AliasNode); ok {
		return v.d.anchors[keyText(a.Value)]
	}
	return v.node
}

// text reads a string; numbers and booleans count as the text they are written as.
func (v value) text(what string) (string, bool) {
	node := v.resolve()
	if node == nil {
		return "", false
	}
	s, ok := scalarText(node)
	if !ok {
		v.bad("expected %s, found %s", what, describe(node))
		return "", false
	}
	if len(s) > maxString {
		v.bad("too long: expected at most %d bytes", maxString)
		return "", false
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		v.bad("line breaks and control characters are not allowed: expected %s", what)
		return "", false
	}
	return s, true
}

// boolean reads yes, no, on, off, true or false, in any case, quoted or not.
func (v value) boolean() (b, ok bool) {
	s, ok := v.text("yes or no")
	if !ok {
		return false, false
	}
	if b, ok = parseBool(s); !ok {
		v.bad("expected yes or no, found %s", quote(s))
	}
	return b, ok
}

func parseBool(s string) (b, ok bool) {
	switch strings.ToLower(s) {
	case "yes", "y", "on", "true":
		return true, true
	case "no", "n", "off", "false":
		return false, true
	}
	return false, false
}

// duration reads a time such as "1m30s", or zero.
func (v value) duration() (time.Duration, bool) {
	s, ok := v.text("a duration such as 30s or 1h")
	if !ok {
		return 0, false
	}
	if t, err := time.ParseDuration(s); err == nil && t == 0 {
		return 0, true
	}
	t, err := types.ParseDuration(s)
	if err != nil {
		v.bad("bad duration %s: expected a number with a unit, such as 30s, 5m or 1h30m", quote(s))
		return 0, false
	}
	return t, true
}

// absPath reads an absolute path.
func (v value) absPath() (string, bool) {
	s, ok := v.text("an absolute path")
	if !ok {
		return "", false
	}
	if err := checkPath(s); err != nil {
		v.badIf(err)
		return "", false
	}
	return s, true
}

// oneOf reads one of a few words, in any case, and returns it in the given case.
func (v value) oneOf(words ...string) (string, bool) {
	s, ok := v.text(strings.Join(words, " or "))
	if !ok {
		return "", false
	}
	i := slices.IndexFunc(words, func(w string) bool { return strings.EqualFold(w, s) })
	if i < 0 {
		v.bad("expected %s, found %s", strings.Join(words, " or "), quote(s))
		return "", false
	}
	return words[i], true
}

// scalarText returns the text of a scalar as it was written.
func scalarText(n ast.Node) (string, bool) {
	switch s := n.(type) {
	case *ast.StringNode:
		return s.Value, true
	case *ast.LiteralNode:
		if s.Value == nil {
			return "", true
		}
		return strings.TrimSpace(s.Value.Value), true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// keyText returns the name of a key, or "" for a key that is not plain.
func keyText(n ast.Node) string {
	switch k := n.(type) {
	case nil, *ast.MergeKeyNode:
		return ""
	case *ast.MappingKeyNode:
		return keyText(k.Value)
	}
	s, _ := scalarText(n)
	return s
}

// describe names the kind of a value for "expected ..., found ...".
func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode, nil:
		return "nothing"
	case *ast.BoolNode:
		return "true or false"
	case *ast.IntegerNode, *ast.FloatNode:
		return "a number"
	}
	return "a single value"
}

// joinPath appends a key to a path; a key that is not a plain word goes into
// brackets.
func joinPath(path, key string) string {
	plain := !strings.ContainsFunc(key, func(r rune) bool {
		return r >= utf8.RuneSelf || !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_' && r != '-'
	})
	switch {
	case !plain:
		return path + "[" + quote(key) + "]"
	case path == "":
		return key
	}
	return path + "." + key
}
