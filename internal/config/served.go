package config

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/types"
)

// What app_service and db_service have in common: resources in a file, and matchers of
// those that the cluster has.

// setText reads a text as it is written; what it may be is checked with the rest of the
// resource.
func setText(to *string, what string) func(value) {
	return func(v value) {
		if s, ok := v.text(what); ok {
			*to = s
		}
	}
}

// addTexts reads one text or several.
func addTexts(to *[]string, what string) func(value) {
	return func(v value) {
		v.oneOrList(what, func(e value) {
			if s, ok := e.text("a string"); ok {
				*to = append(*to, s)
			}
		})
	}
}

// setCount reads a number that is not negative.
func setCount(to *uint32) func(value) {
	return func(v value) {
		s, ok := v.text("a number")
		if !ok {
			return
		}
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			v.bad("bad number %s: expected a whole number", quote(s))
			return
		}
		*to = uint32(n)
	}
}

// readLabelsTo reads labels into a map that it makes.
func readLabelsTo(to *map[string]string) func(value) {
	return func(v value) {
		if *to == nil {
			*to = map[string]string{}
		}
		readLabels(v, *to)
	}
}

// readCommandLabels reads labels that are results of commands.
func readCommandLabels(to *map[string]*typesv1.CommandLabel) func(value) {
	return func(v value) {
		v.list("commands", func(e value) {
			cmd := labelCommand(e)
			if cmd.Name == "" {
				return
			}
			if (*to)[cmd.Name] != nil {
				e.bad("a second command for the label %s: expected one", quote(cmd.Name))
			}
			if *to == nil {
				*to = map[string]*typesv1.CommandLabel{}
			}
			(*to)[cmd.Name] = &typesv1.CommandLabel{Command: cmd.Command, Period: cmd.Period.String()}
		})
	}
}

// readMatchers reads `resources`: a list of labels.
func readMatchers(to *[]map[string]*typesv1.Strings) func(value) {
	return func(v value) {
		v.list("matchers, such as {labels: {env: prod}}", func(e value) {
			labels := map[string]*typesv1.Strings{}
			before := len(e.d.problems)
			e.mapping(withKnown(schema{"labels": func(l value) { readSelector(l, labels) }}, all(unsupported, "aws", "azure", "gcp")))
			if len(labels) == 0 && len(e.d.problems) == before {
				e.bad(`expected labels; {labels: {"*": "*"}} is for all`)
			}
			*to = append(*to, labels)
		})
	}
}

// readSelector reads labels of which each may have several values, or patterns.
func readSelector(v value, to map[string]*typesv1.Strings) {
	v.entries("labels, such as env: prod", func(e value, name string) {
		values := &typesv1.Strings{}
		before := len(e.d.problems)
		addTexts(&values.Values, "values")(e)
		if len(e.d.problems) == before {
			e.badIf(checkSelector(name, values))
		}
		to[name] = values
	})
}

// checkSelector holds one label of a matcher to what a role may say.
func checkSelector(name string, values *typesv1.Strings) error {
	if slices.ContainsFunc(values.GetValues(), func(s string) bool { return strings.Contains(s, "{{") }) {
		return badf("a matcher is about no user: expected a value or a pattern, not a template")
	}
	role := types.New(types.KindRole, "matcher").(*typesv1.Role)
	role.Spec = &typesv1.RoleSpec{Allow: &typesv1.RoleConditions{AppLabels: map[string]*typesv1.Strings{name: values}}}
	var problems types.Problems
	if err := types.Check(role); errors.As(err, &problems) {
		return errText(problems[0].Text)
	} else if err != nil {
		return err
	}
	return nil
}

// rename says which keys of the file stand for a field of the resource.
type rename struct{ field, key string }

// checkRead holds a resource that was read at v to what the cluster takes, and reports what
// is wrong at the keys of the file.
func checkRead(v value, r types.Resource, renames []rename) {
	err := types.Check(r)
	if err == nil {
		return
	}
	var problems types.Problems
	if !errors.As(err, &problems) {
		v.bad("%s", err)
		return
	}
	for _, p := range problems {
		key := p.Path
		for _, rn := range renames {
			if rest, ok := strings.CutPrefix(key, rn.field); ok {
				key = rn.key + rest
				break
			}
		}
		path := v.path + "." + key
		v.d.problem(v.d.nearest(path, nodePosition(v.node)), path, "%s", p.Text)
	}
}

// nearest returns where a key stands in the file, or the one that it is in.
func (d *decoder) nearest(path string, otherwise position) position {
	for path != "" {
		if at, ok := d.at[path]; ok {
			return at
		}
		path = path[:max(strings.LastIndexByte(path, '.'), strings.LastIndexByte(path, '['), 0)]
	}
	return otherwise
}
