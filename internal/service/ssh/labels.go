package ssh

import (
	"context"
	"log/slog"
	"maps"

	"google.golang.org/protobuf/proto"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/label"
	"teleport/internal/types"
	"teleport/internal/version"
)

// Command makes a label from what a program prints.
type Command = label.Command

// labels are those of this host. The results of commands change.
type labels struct {
	static map[string]string
	made   *label.Set
}

func newLabels(static map[string]string, commands []Command, log *slog.Logger) (*labels, error) {
	made, err := label.New(static, commands, log)
	if err != nil {
		return nil, err
	}
	return &labels{maps.Clone(static), made}, nil
}

func (l *labels) runAll(ctx context.Context) { l.made.RunAll(ctx) }

func (l *labels) run(ctx context.Context, changed func()) { l.made.Run(ctx, changed) }

// self describes this host to the cluster.
func (s *Service) self() *typesv1.Server {
	node, ok := types.New(types.KindNode, s.cfg.Holder.HostID()).(*typesv1.Server)
	if !ok {
		return nil
	}
	if len(s.labels.static) > 0 {
		node.Metadata.Labels = maps.Clone(s.labels.static)
	}
	node.Spec = &typesv1.ServerSpec{Hostname: s.cfg.Hostname, Version: version.Version, UseTunnel: s.cfg.UseTunnel}
	if !s.cfg.UseTunnel {
		node.Spec.Addr = s.cfg.AdvertiseAddr
		if node.Spec.Addr == "" && s.cfg.Listener != nil {
			node.Spec.Addr = s.cfg.Listener.Addr().String()
		}
	}
	results := s.labels.made.Results()
	for _, c := range s.labels.made.Commands() {
		if node.Spec.CmdLabels == nil {
			node.Spec.CmdLabels = map[string]*typesv1.CommandLabel{}
		}
		node.Spec.CmdLabels[c.Name] = &typesv1.CommandLabel{Command: c.Command, Period: c.Period.String(), Result: results[c.Name]}
	}
	return proto.CloneOf(node)
}

// labelMap returns the labels that roles are held against.
func (s *Service) labelMap() map[string]string { return types.ServerLabels(s.self()) }
