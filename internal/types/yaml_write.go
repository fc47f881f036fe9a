package types

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// MarshalYAML writes resources as YAML documents, in the order of the docs: kind,
// sub_kind, version, metadata, spec, status. ParseYAML reads them back.
func MarshalYAML(rs ...Resource) ([]byte, error) {
	var b bytes.Buffer
	for i, r := range rs {
		if i > 0 {
			b.WriteString("---\n")
		}
		writeYAML(&b, resourceTree(r), 0)
	}
	return b.Bytes(), nil
}

// MarshalJSON writes resources as one JSON array, with the field names of the docs.
func MarshalJSON(rs ...Resource) ([]byte, error) {
	list := &node{kind: listNode}
	for _, r := range rs {
		list.items = append(list.items, resourceTree(r))
	}
	var compact, out bytes.Buffer
	if err := writeJSON(&compact, list); err != nil {
		return nil, err
	}
	if err := json.Indent(&out, compact.Bytes(), "", "    "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func writeJSON(b *bytes.Buffer, n *node) error {
	text := func(s string) error {
		quoted, err := json.Marshal(s)
		b.Write(quoted)
		return err
	}
	open, end := byte('['), byte(']')
	switch n.kind {
	case plainNode:
		b.WriteString(n.text)
		return nil
	case textNode:
		return text(n.text)
	case mapNode:
		open, end = '{', '}'
	case listNode:
	}
	b.WriteByte(open)
	for i, item := range n.items {
		if i > 0 {
			b.WriteByte(',')
		}
		if n.kind == mapNode {
			if err := text(n.keys[i]); err != nil {
				return err
			}
			b.WriteByte(':')
		}
		if err := writeJSON(b, item); err != nil {
			return err
		}
	}
	b.WriteByte(end)
	return nil
}

const indentStep = 2

// writeYAML writes a map or list in block style at the indent.
func writeYAML(b *bytes.Buffer, n *node, indent int) {
	pad := strings.Repeat(" ", indent)
	for i, item := range n.items {
		if n.kind == mapNode {
			b.WriteString(pad + scalar(n.keys[i]) + ":")
			writeYAMLValue(b, item, indent)
			continue
		}
		if item.kind == mapNode && len(item.items) > 0 {
			// The first key stands on the line of the dash.
			var inner bytes.Buffer
			writeYAML(&inner, item, indent+indentStep)
			b.WriteString(pad + "- ")
			b.Write(inner.Bytes()[indent+indentStep:])
			continue
		}
		b.WriteString(pad + "-")
		writeYAMLValue(b, item, indent)
	}
}

// writeYAMLValue writes what comes after a colon or dash.
func writeYAMLValue(b *bytes.Buffer, n *node, indent int) {
	switch {
	case n.kind == plainNode:
		b.WriteString(" " + n.text + "\n")
	case n.kind == textNode:
		b.WriteString(" " + scalar(n.text) + "\n")
	case n.folded && len(n.items) == 1:
		b.WriteString(" " + scalar(n.items[0].text) + "\n")
	case len(n.items) == 0 && n.kind == listNode:
		b.WriteString(" []\n")
	case len(n.items) == 0:
		b.WriteString(" {}\n")
	case n.kind == listNode:
		b.WriteString("\n")
		writeYAML(b, n, indent)
	default:
		b.WriteString("\n")
		writeYAML(b, n, indent+indentStep)
	}
}

var (
	plainText = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+-]+)*$`)
	})
	// durations start with a digit and are still no number.
	plainDuration = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^([0-9]+[dhms])+$`)
	})
)

// scalar writes a text so that every YAML reader takes it for that text.
func scalar(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		return "'" + s + "'"
	}
	if plainText().MatchString(s) || plainDuration().MatchString(s) {
		return s
	}
	quotable := utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsPrint(r) || r == '\ufeff'
	})
	if quotable {
		return "'" + strings.ReplaceAll(s, "'", "''") + "'"
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(r) && r != '\ufeff':
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
