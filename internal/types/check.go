package types

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"teleport/internal/fault"
)

// Limits of a resource.
const (
	maxResource    = 512 << 10
	maxName        = 256
	maxDescription = 4096
	maxLabels      = 256
	maxLabelKey    = 256
	maxLabelValue  = 1024
	maxList        = 1024
)

// Problem is one thing that is wrong with a resource.
type Problem struct {
	// Path is the field, e.g. `spec.allow.node_labels[env][0]`.
	Path string
	// Text says what is wrong, what was expected and what to do.
	Text string
}

// Error returns "path: text".
func (p Problem) Error() string {
	if p.Path == "" {
		return p.Text
	}
	return p.Path + ": " + p.Text
}

// Problems is an error of kind fault.ErrInvalid that lists all that is wrong.
type Problems []Problem

// Error returns the problems in one line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "; ")
}

// Unwrap makes errors.Is find fault.ErrInvalid.
func (ps Problems) Unwrap() error { return fault.ErrInvalid }

// Check makes a resource fit to be stored: it fills in defaults, then reports
// every problem as Problems (fault.ErrInvalid). It is for what people and other
// processes write; what we stored ourselves is never checked again.
func Check(r Resource) error {
	if r == nil || !r.ProtoReflect().IsValid() {
		return Problems{{Text: "no resource was given"}}
	}
	k, ok := row(r.GetKind())
	if !ok {
		return Problems{unknownKind(r.GetKind())}
	}
	c := &checker{}
	if k.New().ProtoReflect().Descriptor() != r.ProtoReflect().Descriptor() {
		c.add("kind", "%q is not what the message %s holds", k.Name, r.ProtoReflect().Descriptor().FullName())
		return c.err()
	}
	if n := proto.Size(r); n > maxResource {
		c.add("", "the resource has %d bytes, the most is %d", n, maxResource)
		return c.err()
	}
	fill(k, r)
	c.head(k, r)
	c.merge(k.Validate(r))
	c.unknown("", r.ProtoReflect())
	return c.err()
}

// fill applies the defaults that all kinds share, then the kind's own.
func fill(k KindInfo, r Resource) {
	if r.GetVersion() == "" {
		setHead(r, k.Name, k.Version())
	}
	if r.GetMetadata() == nil {
		name := ""
		if k.Singleton {
			name = k.Name
		}
		md := New(k.Name, name).GetMetadata()
		setMetadata(r, md)
	}
	if k.Defaults != nil {
		k.Defaults(r)
	}
}

func unknownKind(kind string) Problem {
	if kind == "" {
		return Problem{Path: "kind", Text: "missing: use one of " + strings.Join(servedKinds(), ", ")}
	}
	return Problem{Path: "kind", Text: fmt.Sprintf("unknown kind %q: use one of %s", kind, strings.Join(servedKinds(), ", "))}
}

func servedKinds() []string {
	var out []string
	for _, k := range Kinds() {
		if k.Served {
			out = append(out, k.Name)
		}
	}
	slices.Sort(out)
	return out
}

// checker collects problems.
type checker struct{ list Problems }

func (c *checker) add(path, format string, args ...any) {
	c.list = append(c.list, Problem{Path: path, Text: fmt.Sprintf(format, args...)})
}

func (c *checker) err() error {
	if len(c.list) == 0 {
		return nil
	}
	return c.list
}

// merge adds the problems of err, which Validate returned.
func (c *checker) merge(err error) {
	switch e := err.(type) { //nolint:errorlint // Validate returns Problems as they are.
	case nil:
	case Problems:
		c.list = append(c.list, e...)
	default:
		c.add("", "%v", err)
	}
}

// check adds the problem of err under path, if there is one.
func (c *checker) check(path string, err error) {
	if err != nil {
		c.add(path, "%v", err)
	}
}

// head checks what every kind has: version, sub_kind and metadata.
func (c *checker) head(k KindInfo, r Resource) {
	if !slices.Contains(k.versions, r.GetVersion()) {
		c.add("version", "%q is not a version of %s: use %s", r.GetVersion(), k.Name, strings.Join(k.versions, ", "))
	}
	if s := r.GetSubKind(); s != "" && !slices.Contains(k.subKinds, s) {
		c.add("sub_kind", "%q is not a sub_kind of %s: leave it out", s, k.Name)
	}
	md := r.GetMetadata()
	switch {
	case k.Singleton && md.GetName() != k.Name:
		c.add("metadata.name", "%q: there is one %s only, and its name is %q", md.GetName(), k.Name, k.Name)
	case !k.Singleton:
		c.check("metadata.name", k.name(md.GetName()))
	}
	c.text("metadata.description", md.GetDescription(), maxDescription)
	c.labels("metadata.labels", md.GetLabels())
	c.time("metadata.expires", md.GetExpires())
	c.text("metadata.revision", md.GetRevision(), maxName)
}

// labels checks the labels that a resource carries (not a selector).
func (c *checker) labels(path string, labels map[string]string) {
	if len(labels) > maxLabels {
		c.add(path, "%d labels, the most is %d", len(labels), maxLabels)
		return
	}
	for _, k := range sortedKeys(labels) {
		at := path + "[" + k + "]"
		if err := ValidLabelKey(k); err != nil {
			c.add(at, "%v", err)
			continue
		}
		c.text(at, labels[k], maxLabelValue)
	}
}

// text checks a text for people: valid UTF-8 that a terminal can show.
func (c *checker) text(path, s string, limit int) {
	switch {
	case len(s) > limit:
		c.add(path, "%d bytes, the most is %d", len(s), limit)
	case !utf8.ValidString(s):
		c.add(path, "not valid UTF-8")
	default:
		for _, r := range s {
			if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
				c.add(path, "the character %q is not printable", r)
				return
			}
		}
	}
}

func (c *checker) time(path string, t *timestamppb.Timestamp) {
	if t != nil && !t.IsValid() {
		c.add(path, "not a valid time: write it like 2030-01-02T15:04:05Z")
	}
}

// names checks a list of names: each valid, none twice.
func (c *checker) names(path string, list []string, valid func(string) error) {
	if len(list) > maxList {
		c.add(path, "%d entries, the most is %d", len(list), maxList)
		return
	}
	seen := make(map[string]bool, len(list))
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		if seen[s] {
			c.add(at, "%q is there twice", s)
			continue
		}
		seen[s] = true
		c.check(at, valid(s))
	}
}

// unknown reports protobuf fields that this version does not know: what would be
// ignored is refused, since it may be the field that restricts.
func (c *checker) unknown(path string, m protoreflect.Message) {
	if len(m.GetUnknown()) > 0 {
		at := strings.TrimPrefix(path, ".")
		c.add(at, "has fields that this version does not know: upgrade the Auth Service or leave them out")
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := path + "." + string(f.Name())
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(k protoreflect.MapKey, mv protoreflect.Value) bool {
					c.unknown(at+"["+k.String()+"]", mv.Message())
					return true
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				c.unknown(fmt.Sprintf("%s[%d]", at, i), v.List().Get(i).Message())
			}
		default:
			c.unknown(at, v.Message())
		}
		return true
	})
}
