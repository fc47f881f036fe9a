package client

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc"

	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/access"
	"teleport/internal/fault"
	"teleport/internal/types"
)

const (
	pageSize = 500
	// maxPages bounds a listing: a server that never ends would be wrong.
	maxPages = 10_000
)

// List returns all resources of a kind that the caller may see.
func List(ctx context.Context, conn grpc.ClientConnInterface, kind string) ([]types.Resource, error) {
	return list(ctx, conn, &resourcev1.ListResourcesRequest{Kind: kind})
}

func list(ctx context.Context, conn grpc.ClientConnInterface, req *resourcev1.ListResourcesRequest) ([]types.Resource, error) {
	api := resourcev1.NewResourceServiceClient(conn)
	var out []types.Resource
	req.PageSize = pageSize
	for range maxPages {
		resp, err := api.ListResources(ctx, req)
		if err != nil {
			return nil, fmt.Errorf("list %s resources: %w", req.GetKind(), err)
		}
		for _, a := range resp.GetResources() {
			r, err := types.FromAny(a)
			if err != nil {
				continue // of a newer version than ours
			}
			out = append(out, r)
		}
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			return out, nil
		}
	}
	return nil, fault.Limit("list %s resources: the cluster sends more than %d pages", req.GetKind(), maxPages)
}

// Choice says which resources of a kind are wanted: those that meet all of it.
type Choice struct {
	kind   string
	labels map[string]string
	query  *access.Query
	search []string
	// text is all of it as one query, for Auth to send no others; empty if it is too long
	// for that.
	text string
	// Usable leaves out the servers that the caller may list but not connect to.
	Usable bool
}

// NewChoice reads labels (a=b,c=d), a query (see access.Query) and words to search
// for, as people write them; each may be empty.
func NewChoice(kind, labels, query, search string) (Choice, error) {
	c := Choice{kind: kind}
	var err error
	if c.labels, err = types.ParseLabels(labels); err != nil {
		return c, err
	}
	if query != "" {
		if c.query, err = access.ParseQuery(kind, query); err != nil {
			return c, err
		}
	}
	if c.search, err = words(search); err != nil {
		return c, err
	}
	c.text = c.combined(query)
	return c, nil
}

// Narrowed returns the choice with one more word to search for.
func (c Choice) Narrowed(word string) Choice {
	c.search = append(slices.Clone(c.search), word)
	one := "search(" + strconv.Quote(word) + ")"
	if c.text != "" {
		one = c.text + " && " + one
	}
	if _, err := access.ParseQuery(c.kind, one); err == nil {
		c.text = one
	}
	return c
}

// combined writes the choice as one query, if it fits into one.
func (c Choice) combined(query string) string {
	var parts []string
	if query != "" {
		parts = append(parts, "("+query+")")
	}
	for _, name := range slices.Sorted(maps.Keys(c.labels)) {
		parts = append(parts, fmt.Sprintf("exists(labels[%q]) && labels[%q] == %q", name, name, c.labels[name]))
	}
	if len(c.search) > 0 {
		quoted := make([]string, len(c.search))
		for i, word := range c.search {
			quoted[i] = strconv.Quote(word)
		}
		parts = append(parts, "search("+strings.Join(quoted, ", ")+")")
	}
	text := strings.Join(parts, " && ")
	if _, err := access.ParseQuery(c.kind, text); err != nil {
		return ""
	}
	return text
}

// words cuts a search at commas and spaces; text in double quotes stays together.
func words(s string) ([]string, error) {
	var out []string
	for i, part := range strings.Split(s, `"`) {
		if i%2 == 1 {
			out = append(out, part)
			continue
		}
		out = append(out, strings.FieldsFunc(part, func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	if strings.Count(s, `"`)%2 != 0 {
		return nil, fault.Invalid("search %q: a quotation mark is missing", s)
	}
	return out, nil
}

// Servers returns the servers of a choice in order of their host names.
func (c Choice) Servers(ctx context.Context, conn grpc.ClientConnInterface) ([]*typesv1.Server, error) {
	found, err := list(ctx, conn, &resourcev1.ListResourcesRequest{Kind: c.kind, Usable: c.Usable, Query: c.text})
	if err != nil {
		return nil, err
	}
	out := chosen[*typesv1.Server](c, found)
	slices.SortFunc(out, func(x, y *typesv1.Server) int {
		return cmp.Or(cmp.Compare(x.GetSpec().GetHostname(), y.GetSpec().GetHostname()),
			cmp.Compare(x.GetMetadata().GetName(), y.GetMetadata().GetName()))
	})
	return out, nil
}

// chosen returns those of a type that the choice means: an older Auth Service sends others,
// too.
func chosen[T types.Resource](c Choice, found []types.Resource) []T {
	var out []T
	for _, r := range found {
		typed, ok := r.(T)
		_, labels := access.Described(r)
		if ok && hasAll(labels, c.labels) && c.query.Match(r) && access.Search(r, c.search) {
			out = append(out, typed)
		}
	}
	return out
}

// Servers returns the servers of a kind that have all of the labels, in order of
// their host names.
func Servers(ctx context.Context, conn grpc.ClientConnInterface, kind string, labels map[string]string) ([]*typesv1.Server, error) {
	return Choice{kind: kind, labels: labels}.Servers(ctx, conn)
}

func hasAll(have, want map[string]string) bool {
	for name, value := range want {
		if got, ok := have[name]; !ok || got != value {
			return false
		}
	}
	return true
}
