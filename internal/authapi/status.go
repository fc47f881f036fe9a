package authapi

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	statusv1 "teleport/api/status/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/ca"
	"teleport/internal/store"
	"teleport/internal/types"
	"teleport/internal/version"
)

// StatusServer says what the cluster is.
type StatusServer struct {
	statusv1.UnimplementedStatusServiceServer
	cfg Config
}

// NewStatus returns the handler of StatusService.
func NewStatus(cfg Config) (*StatusServer, error) {
	cfg, err := cfg.checked()
	return &StatusServer{cfg: cfg}, err
}

// GetStatus returns name, version, pins, authorities and addresses.
func (s *StatusServer) GetStatus(ctx context.Context, _ *statusv1.GetStatusRequest) (*statusv1.GetStatusResponse, error) {
	trust := s.cfg.Trust()
	resp := &statusv1.GetStatusResponse{
		ClusterName: s.cfg.Cluster(), SoftwareVersion: version.Version, CaPins: trust.Pins(), Clock: timestamppb.New(s.cfg.Now()),
	}
	authorities := trust.Authorities()
	for _, typ := range ca.Types() {
		for _, a := range authorities {
			if a.GetSpec().GetType() == typ {
				resp.Authorities = append(resp.Authorities, &statusv1.AuthorityStatus{Type: typ, LastRotated: a.GetSpec().GetLastRotated()})
			}
		}
	}
	var err error
	if resp.ProxyAddrs, err = s.addrs(ctx, types.KindProxy); err != nil {
		return nil, err
	}
	resp.AuthAddrs, err = s.addrs(ctx, types.KindAuthServer)
	return resp, err
}

// addrs returns the public addresses of the servers of a kind, or the others of
// those that have none.
func (s *StatusServer) addrs(ctx context.Context, kind string) ([]string, error) {
	servers, err := store.All[*typesv1.Server](ctx, s.cfg.Store, kind)
	if err != nil {
		return nil, err
	}
	var out []string
	add := func(addr string) {
		if addr != "" && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	for _, server := range servers {
		for _, addr := range server.GetSpec().GetPublicAddrs() {
			add(addr)
		}
		if len(server.GetSpec().GetPublicAddrs()) == 0 {
			add(server.GetSpec().GetAddr())
		}
	}
	return out, nil
}
