package main

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	resourcev1 "teleport/api/resource/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// defaultAlertTTL is the life of an alert, and of an acknowledgement, when nothing
// else is said.
const defaultAlertTTL = "24h"

func newAlerts(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "alerts", Aliases: []string{"alert"}, Short: "Tell administrators something, and say that it was seen"},
		newAlertsCreate(a), newAlertsLs(a), newAlertsAck(a), newAlertsDelete(a))
}

type alertOptions struct{ severity, ttl, labels string }

func newAlertsCreate(a *app) *cobra.Command {
	var o alertOptions
	cmd := &cobra.Command{
		Use:   "create MESSAGE",
		Short: "Make an alert",
		Args:  screen.Args(1, 1),
		RunE:  func(cmd *cobra.Command, args []string) error { return runAlertsCreate(cmd.Context(), a, o, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.severity, "severity", types.SeverityLow, "low, medium or high; tctl status shows high ones")
	f.StringVar(&o.ttl, "ttl", defaultAlertTTL, "how long the alert is there, e.g. 12h or 7d; 0 is until it is deleted")
	f.StringVar(&o.labels, "labels", "", "labels of the alert, a=b,c=d")
	return cmd
}

// alertTime reads a duration from now; "0" is the zero time, for ever.
func alertTime(now time.Time, flag, text string) (time.Time, error) {
	if text == "0" || text == "0s" {
		return time.Time{}, nil
	}
	d, err := types.ParseDuration(text)
	if err != nil {
		return time.Time{}, screen.Usage("tctl alerts: --%s: %w", flag, err)
	}
	return now.Add(d), nil
}

func runAlertsCreate(ctx context.Context, a *app, o alertOptions, message string) error {
	expires, err := alertTime(a.now(), "ttl", o.ttl)
	if err != nil {
		return err
	}
	labels, err := types.ParseLabels(o.labels)
	if err != nil {
		return err
	}
	alert := types.NewAlert(o.severity, message, a.now(), expires)
	alert.Metadata.Labels = labels
	if err := types.Check(alert); err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		if _, _, err := create(ctx, conn, alert, false); err != nil {
			return err
		}
		return a.print("Created an alert with ID %q.\n", alert.GetMetadata().GetName())
	})
}

// unacknowledged selects the alerts that nobody has acknowledged.
func unacknowledged(alert *typesv1.ClusterAlert, now time.Time) bool {
	return !types.AlertAcknowledged(alert, now)
}

// alerts returns those that are selected, the most severe first.
func alerts(ctx context.Context, conn grpc.ClientConnInterface, now time.Time, selected func(*typesv1.ClusterAlert, time.Time) bool) ([]*typesv1.ClusterAlert, error) {
	list, err := client.List(ctx, conn, types.KindClusterAlert)
	if err != nil {
		return nil, err
	}
	var out []*typesv1.ClusterAlert
	for _, r := range list {
		if alert, ok := r.(*typesv1.ClusterAlert); ok && selected(alert, now) {
			out = append(out, alert)
		}
	}
	slices.SortStableFunc(out, func(x, y *typesv1.ClusterAlert) int {
		return cmp.Or(
			cmp.Compare(slices.Index(types.Severities(), y.GetSpec().GetSeverity()), slices.Index(types.Severities(), x.GetSpec().GetSeverity())),
			y.GetSpec().GetCreated().AsTime().Compare(x.GetSpec().GetCreated().AsTime()),
		)
	})
	return out, nil
}

func newAlertsLs(a *app) *cobra.Command {
	var all bool
	var format string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the alerts that nobody has acknowledged",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runAlertsLs(cmd.Context(), a, all, format) },
	}
	cmd.Flags().BoolVarP(&all, "verbose", "v", false, "list acknowledged alerts too")
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

func runAlertsLs(ctx context.Context, a *app, all bool, format string) error {
	selected := unacknowledged
	if all {
		selected = func(*typesv1.ClusterAlert, time.Time) bool { return true }
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		list, err := alerts(ctx, conn, a.now(), selected)
		if err != nil {
			return err
		}
		if format != screen.Text {
			return a.writeResources(format, resources(list))
		}
		table := screen.NewTable("ID", "Severity", "Expires In", "Message")
		for _, alert := range list {
			table.Row(alert.GetMetadata().GetName(), alert.GetSpec().GetSeverity(), expiresIn(alert.GetMetadata().GetExpires(), a.now()), alert.GetSpec().GetMessage())
		}
		return table.Write(a.Out)
	})
}

func resources(list []*typesv1.ClusterAlert) []types.Resource {
	out := make([]types.Resource, len(list))
	for i, alert := range list {
		out[i] = alert
	}
	return out
}

func expiresIn(at *timestamppb.Timestamp, now time.Time) string {
	if at == nil {
		return "never"
	}
	return screen.Duration(max(0, at.AsTime().Sub(now)).Round(time.Second))
}

type ackOptions struct {
	ttl, reason string
	clear       bool
}

func newAlertsAck(a *app) *cobra.Command {
	var o ackOptions
	cmd := &cobra.Command{
		Use:   "ack ID",
		Short: "Acknowledge an alert, so that it is not shown for a while",
		Args:  screen.Args(1, 1),
		RunE:  func(cmd *cobra.Command, args []string) error { return runAlertsAck(cmd.Context(), a, o, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.ttl, "ttl", defaultAlertTTL, "how long it is not shown, e.g. 12h or 7d; 0 is for good")
	f.StringVar(&o.reason, "reason", "", "why it need not be seen")
	f.BoolVar(&o.clear, "clear", false, "take the acknowledgement back")
	cmd.AddCommand(newAlertsAckLs(a))
	return cmd
}

func runAlertsAck(ctx context.Context, a *app, o ackOptions, id string) error {
	until, err := alertTime(a.now(), "ttl", o.ttl)
	if err != nil {
		return err
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		r, err := getResource(ctx, conn, types.KindClusterAlert, id)
		if err != nil {
			return err
		}
		alert, ok := r.(*typesv1.ClusterAlert)
		if !ok || alert.GetSpec() == nil {
			return fault.Invalid("cluster_alert %q cannot be read: use a newer tctl", id)
		}
		what := "Acknowledged"
		switch {
		case o.clear && alert.Spec.Acknowledged == nil:
			return fault.Invalid("alert %q was not acknowledged", id)
		case o.clear:
			alert.Spec.Acknowledged, what = nil, "Cleared the acknowledgement of"
		default:
			alert.Spec.Acknowledged = &typesv1.AlertAcknowledgement{Reason: o.reason}
			if !until.IsZero() {
				alert.Spec.Acknowledged.Until = timestamppb.New(until)
			}
		}
		if err := updateResource(ctx, conn, alert); err != nil {
			return err
		}
		return a.print("%s alert %q.\n", what, screen.Escape(id))
	})
}

func newAlertsAckLs(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the alerts that were acknowledged, by whom and why",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runAlertsAckLs(cmd.Context(), a, format) },
	}
	screen.FormatFlag(cmd, &format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

func runAlertsAckLs(ctx context.Context, a *app, format string) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		list, err := alerts(ctx, conn, a.now(), types.AlertAcknowledged)
		if err != nil {
			return err
		}
		if format != screen.Text {
			return a.writeResources(format, resources(list))
		}
		table := screen.NewTable("ID", "User", "Expires In", "Reason")
		for _, alert := range list {
			ack := alert.GetSpec().GetAcknowledged()
			table.Row(alert.GetMetadata().GetName(), ack.GetUser(), expiresIn(ack.GetUntil(), a.now()), ack.GetReason())
		}
		return table.Write(a.Out)
	})
}

func newAlertsDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "delete ID",
		Aliases: []string{"rm"},
		Short:   "Delete an alert",
		Args:    screen.Args(1, 1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runAlertsDelete(cmd.Context(), a, args[0]) },
	}
}

func runAlertsDelete(ctx context.Context, a *app, id string) error {
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		req := &resourcev1.DeleteResourceRequest{Kind: types.KindClusterAlert, Name: id}
		if _, err := resourcev1.NewResourceServiceClient(conn).DeleteResource(ctx, req); err != nil {
			return err
		}
		return a.print("Alert %q has been deleted.\n", screen.Escape(id))
	})
}
