package access

import (
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
)

// field is a field of the user or of the resource.
type field struct {
	// path is whole, e.g. ["resource", "spec", "roles"].
	path []string
	// key is that of a map; has says that one was given.
	key string
	has bool
}

// compileField reads `resource.spec.roles` and `user.spec.traits["team"]`.
func compileField(e ast.Expr) (node, error) {
	var f field
	if index, ok := e.(*ast.IndexExpr); ok {
		lit, ok := index.Index.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return nil, fault.Invalid(`between [ and ] stands a text, such as labels["env"]`)
		}
		key, err := strconv.Unquote(lit.Value)
		if err != nil {
			return nil, fault.Invalid("%s is not a text", lit.Value)
		}
		f.key, f.has, e = key, true, index.X
	}
	for {
		switch x := e.(type) {
		case *ast.SelectorExpr:
			f.path = append(f.path, x.Sel.Name)
			e = x.X
			continue
		case *ast.Ident:
			f.path = append(f.path, x.Name)
			slices.Reverse(f.path)
			return f, f.checkRoot()
		}
		return nil, fault.Invalid("a condition is made of functions, of fields such as resource.spec.roles, and of texts in double quotes")
	}
}

// checkRoot refuses what is a field of neither.
func (f field) checkRoot() error {
	switch {
	case f.path[0] == "resource" && len(f.path) > 1:
		switch f.path[1] {
		case "kind", "sub_kind", "metadata", "spec", "status":
			return nil
		}
	case f.path[0] == "user":
		if _, err := f.ofUser(scope{}); err != nil {
			return err
		}
		return nil
	}
	return fault.Invalid("unknown name %q: use user.metadata.name, user.spec.roles, user.spec.traits[\"name\"], or a field of the resource such as resource.spec.roles", f)
}

func (f field) String() string {
	s := strings.Join(f.path, ".")
	if f.has {
		s += "[" + strconv.Quote(f.key) + "]"
	}
	return s
}

func (f field) eval(s scope) (value, error) {
	if f.path[0] == "user" {
		return f.ofUser(s)
	}
	if s.resource == nil {
		return value{}, fault.Invalid("%s: no resource is at hand", f)
	}
	m := s.resource.ProtoReflect()
	descs, t, err := f.resolve(m.Descriptor())
	if err != nil {
		return value{}, err
	}
	for _, d := range descs[:len(descs)-1] {
		m = m.Get(d).Message()
	}
	last := descs[len(descs)-1]
	return read(m.Get(last), last, f.key, t), nil
}

func (f field) check(about []protoreflect.MessageDescriptor) (valueType, error) {
	if f.path[0] == "user" {
		v, err := f.ofUser(scope{})
		return v.typ, err
	}
	if len(about) == 0 {
		return typeBool, fault.Invalid("%s: what the rule is about has no fields: use those of user only", f)
	}
	var first valueType
	for i, md := range about {
		_, t, err := f.resolve(md)
		if err != nil {
			return t, err
		}
		if i > 0 && t != first {
			return t, fault.Invalid("%s is %s for one kind and %s for another: write a rule for each", f, first, t)
		}
		first = t
	}
	return first, nil
}

// ofUser returns a field of the caller.
func (f field) ofUser(s scope) (value, error) {
	switch path := strings.Join(f.path[1:], "."); {
	case path == "metadata.name" && !f.has:
		return value{typ: typeString, text: s.user}, nil
	case path == "spec.roles" && !f.has:
		return value{typ: typeList, list: s.roles}, nil
	case path == "spec.traits" && f.has:
		return value{typ: typeList, list: s.traits[f.key]}, nil
	}
	return value{}, fault.Invalid(`unknown field %q of the user: use user.metadata.name, user.spec.roles or user.spec.traits["name"]`, f)
}

// resolve finds the field in a message; the texts of lists and maps are reached,
// messages inside them are not.
func (f field) resolve(md protoreflect.MessageDescriptor) ([]protoreflect.FieldDescriptor, valueType, error) {
	var out []protoreflect.FieldDescriptor
	for i, name := range f.path[1:] {
		d := md.Fields().ByName(protoreflect.Name(name))
		if d == nil {
			return nil, 0, fault.Invalid("%s: kind %s has no field %q", f, strings.ToLower(string(kindMessage(out, md).Name())), name)
		}
		out = append(out, d)
		if last := i == len(f.path)-2; last {
			t, err := f.typeOf(d)
			return out, t, err
		}
		if d.Kind() != protoreflect.MessageKind || d.IsList() || d.IsMap() {
			return nil, 0, fault.Invalid("%s: %s has no fields of its own", f, name)
		}
		md = d.Message()
	}
	return nil, 0, fault.Invalid("%s is not a field", f)
}

// kindMessage is the message that the path began in.
func kindMessage(path []protoreflect.FieldDescriptor, md protoreflect.MessageDescriptor) protoreflect.MessageDescriptor {
	if len(path) > 0 {
		return path[0].ContainingMessage()
	}
	return md
}

func (f field) typeOf(d protoreflect.FieldDescriptor) (valueType, error) {
	switch {
	case d.IsMap() != f.has:
		return 0, fault.Invalid(`%s: write a key after a map, such as resource.metadata.labels["env"], and only there`, f)
	case d.IsMap() && d.MapValue().Kind() == protoreflect.StringKind:
		return typeString, nil
	case d.IsMap() && d.MapValue().Kind() == protoreflect.MessageKind && d.MapValue().Message().FullName() == (&typesv1.Strings{}).ProtoReflect().Descriptor().FullName():
		return typeList, nil
	case d.IsMap():
	case d.IsList() && d.Kind() == protoreflect.StringKind:
		return typeList, nil
	case d.IsList():
	case d.Kind() == protoreflect.StringKind:
		return typeString, nil
	case d.Kind() == protoreflect.BoolKind:
		return typeBool, nil
	case d.Kind() == protoreflect.Int32Kind, d.Kind() == protoreflect.Int64Kind, d.Kind() == protoreflect.Uint32Kind:
		return typeNumber, nil
	}
	return 0, fault.Invalid("%s is neither a text nor a number nor a list of texts, so a condition cannot look at it", f)
}

// read turns what the message holds into a value of the type; what is not set is
// empty.
func read(v protoreflect.Value, d protoreflect.FieldDescriptor, key string, t valueType) value {
	out := value{typ: t}
	if d.IsMap() {
		v = v.Map().Get(protoreflect.ValueOfString(key).MapKey())
		switch {
		case !v.IsValid():
		case t == typeString:
			out.text = v.String()
		default:
			if list, ok := v.Message().Interface().(*typesv1.Strings); ok {
				out.list = list.GetValues()
			}
		}
		return out
	}
	switch t {
	case typeBool:
		out.bool = v.Bool()
	case typeString:
		out.text = v.String()
	case typeList:
		for i := range v.List().Len() {
			out.list = append(out.list, v.List().Get(i).String())
		}
	case typeNumber:
		if d.Kind() == protoreflect.Uint32Kind {
			out.number = int64(v.Uint())
		} else {
			out.number = v.Int()
		}
	}
	return out
}
