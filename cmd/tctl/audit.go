package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/audit"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
)

const (
	defaultEvents = 100
	maxEvents     = 100_000
	maxEventPage  = 1000
)

type auditOptions struct {
	from, to, format string
	types            []string
	limit            int
}

func newAudit(a *app) *cobra.Command {
	return screen.Group(&cobra.Command{Use: "audit", Short: "Read the audit log"}, newAuditLs(a))
}

func newAuditLs(a *app) *cobra.Command {
	var o auditOptions
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List audit events, the newest first",
		Args:  screen.Args(0, 0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runAuditLs(cmd.Context(), a, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "not before: a time (2026-01-31T12:00:00Z) or so long ago (-1h)")
	f.StringVar(&o.to, "to", "", "before: a time or so long ago")
	f.StringSliceVar(&o.types, "type", nil, "only these types, e.g. session.start,user.login; may be repeated")
	f.IntVar(&o.limit, "limit", defaultEvents, "how many events at most")
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

// parseWhen reads a time, or a duration before now: -1h and 1h are the same.
func parseWhen(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return timestamppb.New(now.Add(-d.Abs())), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, screen.Usage("--%s=%q: expected a time like 2026-01-31T12:00:00Z, or a duration like -1h", flag, s)
}

func runAuditLs(ctx context.Context, a *app, o auditOptions) error {
	from, err := parseWhen("from", o.from, a.now())
	if err != nil {
		return err
	}
	to, err := parseWhen("to", o.to, a.now())
	if err != nil {
		return err
	}
	if o.limit < 1 || o.limit > maxEvents {
		return screen.Usage("--limit=%d: expected 1 to %d", o.limit, maxEvents)
	}
	if from != nil && to != nil && !from.AsTime().Before(to.AsTime()) {
		return fault.Invalid("--from is not before --to")
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		req := &auditv1.SearchEventsRequest{From: from, To: to, Types: clean(o.types)}
		var events []*auditv1.Event
		for len(events) < o.limit {
			req.Limit = int32(min(o.limit-len(events), maxEventPage))
			resp, err := auditv1.NewAuditServiceClient(conn).SearchEvents(ctx, req)
			if err != nil {
				return fmt.Errorf("search the audit log: %w", err)
			}
			events = append(events, resp.GetEvents()...)
			if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		return a.writeEvents(o.format, events)
	})
}

func (a *app) writeEvents(format string, events []*auditv1.Event) error {
	switch format {
	case screen.JSON:
		lines := make([][]byte, len(events))
		for i, e := range events {
			line, err := audit.JSON(e)
			if err != nil {
				return err
			}
			lines[i] = append([]byte("    "), bytes.TrimSpace(line)...)
		}
		text := "[]\n"
		if len(lines) > 0 {
			text = "[\n" + string(bytes.Join(lines, []byte(",\n"))) + "\n]\n"
		}
		return screen.WriteRawJSON(a.Out, []byte(text))
	case screen.YAML:
		list := make([]map[string]any, len(events))
		for i, e := range events {
			list[i] = flat(e)
		}
		return screen.WriteYAML(a.Out, list)
	}
	table := screen.NewTable("Time (UTC)", "Type", "Code", "User", "Details")
	for _, e := range events {
		fields := e.GetFields().GetFields()
		table.Row(e.GetTime().AsTime().Format(time.DateTime), e.GetEvent(), e.GetCode(), fields["user"].GetStringValue(), details(fields))
	}
	return table.Write(a.Out)
}

// flat returns the event as the JSON lines of the log have it.
func flat(e *auditv1.Event) map[string]any {
	out := e.GetFields().AsMap()
	out["event"], out["code"], out["uid"], out["ei"] = e.GetEvent(), e.GetCode(), e.GetUid(), e.GetEi()
	out["time"], out["cluster_name"] = e.GetTime().AsTime().Format(time.RFC3339Nano), e.GetClusterName()
	return out
}

// noise are fields that the table leaves out; --format=json has them.
func noise() []string {
	return []string{
		"user", "addr.local", "enhanced_recording", "initial_command", "interactive", "namespace", "participants", "proto",
		"server_id", "server_labels", "session_recording", "session_start", "session_stop",
	}
}

// maxDetails is where the table cuts details off.
const maxDetails = 120

// details writes the telling fields of an event as name=value.
func details(fields map[string]*structpb.Value) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if slices.Contains(noise(), name) {
			continue
		}
		parts = append(parts, name+"="+fieldText(fields[name]))
	}
	line := []rune(strings.Join(parts, " "))
	if len(line) > maxDetails {
		return string(line[:maxDetails]) + "..."
	}
	return string(line)
}

// fieldText writes a value as JSON has it, but for plain words, which need no quotes.
func fieldText(v *structpb.Value) string {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		if k.StringValue == "" || strings.ContainsAny(k.StringValue, " \"") {
			return strconv.Quote(k.StringValue)
		}
		return k.StringValue
	case *structpb.Value_NumberValue:
		return strconv.FormatFloat(k.NumberValue, 'f', -1, 64)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v.AsInterface()); err != nil {
		return "?"
	}
	return strings.TrimSpace(out.String())
}
