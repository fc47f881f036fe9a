package client

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
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
	api := resourcev1.NewResourceServiceClient(conn)
	var out []types.Resource
	token := ""
	for range maxPages {
		resp, err := api.ListResources(ctx, &resourcev1.ListResourcesRequest{Kind: kind, PageSize: pageSize, PageToken: token})
		if err != nil {
			return nil, fmt.Errorf("list %s resources: %w", kind, err)
		}
		for _, a := range resp.GetResources() {
			r, err := types.FromAny(a)
			if err != nil {
				continue // of a newer version than ours
			}
			out = append(out, r)
		}
		if token = resp.GetNextPageToken(); token == "" {
			return out, nil
		}
	}
	return nil, fault.Limit("list %s resources: the cluster sends more than %d pages", kind, maxPages)
}

// Servers returns the servers of a kind that have all of the labels, in order of
// their host names.
func Servers(ctx context.Context, conn grpc.ClientConnInterface, kind string, labels map[string]string) ([]*typesv1.Server, error) {
	list, err := List(ctx, conn, kind)
	if err != nil {
		return nil, err
	}
	var out []*typesv1.Server
	for _, r := range list {
		if s, ok := r.(*typesv1.Server); ok && hasAll(types.ServerLabels(s), labels) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(x, y *typesv1.Server) int {
		return cmp.Or(cmp.Compare(x.GetSpec().GetHostname(), y.GetSpec().GetHostname()),
			cmp.Compare(x.GetMetadata().GetName(), y.GetMetadata().GetName()))
	})
	return out, nil
}

func hasAll(have, want map[string]string) bool {
	for name, value := range want {
		if got, ok := have[name]; !ok || got != value {
			return false
		}
	}
	return true
}
