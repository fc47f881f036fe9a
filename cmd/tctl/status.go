package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	statusv1 "teleport/api/status/v1"
	"teleport/internal/client/screen"
)

func newStatus(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster's name, version, certificate authorities and CA pin",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runStatus(cmd.Context(), a, format) },
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

// clusterStatus is what status says to programs.
type clusterStatus struct {
	Cluster     string            `json:"cluster" yaml:"cluster"`
	Version     string            `json:"version" yaml:"version"`
	CAPins      []string          `json:"ca_pins" yaml:"ca_pins"`
	Authorities map[string]string `json:"authorities" yaml:"authorities"`
	ProxyAddrs  []string          `json:"proxy_addrs,omitempty" yaml:"proxy_addrs,omitempty"`
	AuthAddrs   []string          `json:"auth_addrs,omitempty" yaml:"auth_addrs,omitempty"`
}

func runStatus(ctx context.Context, a *app, format string) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		st, err := statusv1.NewStatusServiceClient(conn).GetStatus(ctx, &statusv1.GetStatusRequest{})
		if err != nil {
			return fmt.Errorf("ask for the status: %w", err)
		}
		rows := [][2]string{{"Cluster", st.GetClusterName()}, {"Version", st.GetSoftwareVersion()}}
		out := clusterStatus{
			Cluster: st.GetClusterName(), Version: st.GetSoftwareVersion(), CAPins: st.GetCaPins(),
			Authorities: map[string]string{}, ProxyAddrs: st.GetProxyAddrs(), AuthAddrs: st.GetAuthAddrs(),
		}
		for _, authority := range st.GetAuthorities() {
			state := "never updated"
			if t := authority.GetLastRotated(); t != nil {
				state = "updated " + t.AsTime().Format(time.RFC822)
			}
			rows = append(rows, [2]string{screen.Escape(authority.GetType()) + " CA", state})
			out.Authorities[authority.GetType()] = state
		}
		for _, pin := range st.GetCaPins() {
			rows = append(rows, [2]string{"CA pin", pin})
		}
		switch format {
		case screen.JSON:
			return screen.WriteJSON(a.Out, out)
		case screen.YAML:
			return screen.WriteYAML(a.Out, out)
		}
		if err := screen.Pairs(a.Out, "", rows...); err != nil {
			return err
		}
		return alertsOnStatus(ctx, a, conn)
	})
}
