package jwk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Limits of what Object reads.
const (
	maxDepth = 16
	maxNodes = 8192
)

// Object reads one JSON object, the way that leaves nothing open: a name that stands
// twice in an object, at any depth, is an error, since two readers could take two
// different values for it; so are text that is not UTF-8, anything after the object,
// and nesting beyond 16. Numbers come as json.Number.
func Object(data []byte) (map[string]any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	if !json.Valid(data) {
		return nil, errors.New("not JSON")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	r := reader{d: d}
	v, err := r.value(0)
	if err != nil {
		return nil, err
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	return o, nil
}

type reader struct {
	d     *json.Decoder
	nodes int
}

func (r *reader) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("JSON nested deeper than %d", maxDepth)
	}
	if r.nodes++; r.nodes > maxNodes {
		return nil, fmt.Errorf("JSON of more than %d values", maxNodes)
	}
	t, err := r.d.Token()
	if err != nil {
		return nil, errors.New("not JSON")
	}
	switch t {
	case json.Delim('{'):
		return r.object(depth)
	case json.Delim('['):
		return r.list(depth)
	}
	return t, nil
}

func (r *reader) object(depth int) (any, error) {
	out := map[string]any{}
	for r.d.More() {
		t, err := r.d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, errors.New("not JSON")
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("the name %q stands twice in one object", name)
		}
		if out[name], err = r.value(depth + 1); err != nil {
			return nil, err
		}
	}
	return out, r.end()
}

func (r *reader) list(depth int) (any, error) {
	out := []any{}
	for r.d.More() {
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, r.end()
}

func (r *reader) end() error {
	if _, err := r.d.Token(); err != nil {
		return errors.New("not JSON")
	}
	return nil
}
