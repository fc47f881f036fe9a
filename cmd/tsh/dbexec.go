package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/client"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// maxDBsAtOnce bounds --parallel.
const maxDBsAtOnce = 10

type dbExecOptions struct {
	dbOptions
	names     []string
	search    string
	parallel  int
	outputDir string
	confirm   bool
	sql       string
}

func newDBExec(a *app) *cobra.Command {
	var o dbExecOptions
	noConfirm := false
	cmd := &cobra.Command{
		Use:   "exec --dbs=NAME,... | --search=WORDS | --labels=LABELS SQL",
		Short: "Run a statement on several databases (PostgreSQL, MySQL)",
		Long: "Run a statement, with psql or mysql, on all of the databases that are named by --dbs, or that --search and --labels\n" +
			"choose. Each line of output begins with the name of its database if there are several; with --output-dir it goes to a\n" +
			"file for each, and summary.json says how each went. The exit code is 1 if it failed anywhere.",
		Args: screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.sql = args[0]
			o.confirm = o.confirm && !noConfirm
			return runDBExec(cmd.Context(), a, &o)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.names, "dbs", nil, "names of databases")
	f.StringVar(&o.search, "search", "", "the databases whose name or labels contain all of these words")
	f.StringVar(&o.labels, "labels", "", "the databases with these labels, e.g. env=prod,tier=1")
	f.IntVar(&o.parallel, "parallel", 1, "on how many at the same time, 1 to 10")
	f.StringVar(&o.outputDir, "output-dir", "", "write the output to files in this directory: NAME.output and summary.json")
	f.BoolVar(&o.confirm, "confirm", true, "ask before it is done")
	f.BoolVar(&noConfirm, "no-confirm", false, "do not ask")
	o.clusterFlag(f)
	o.asWhom(f)
	return cmd
}

func (o *dbExecOptions) check() error {
	switch {
	case len(o.names) > 0 && (o.search != "" || o.labels != ""):
		return screen.Usage("--dbs names the databases: it does not go with --search and --labels")
	case len(o.names) == 0 && o.search == "" && o.labels == "":
		return screen.Usage("say which databases: --dbs, --search or --labels")
	case o.parallel < 1 || o.parallel > maxDBsAtOnce:
		return screen.Usage("--parallel is 1 to %d", maxDBsAtOnce)
	}
	return nil
}

func runDBExec(ctx context.Context, a *app, o *dbExecOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	if err := s.inCluster(o.cluster); err != nil {
		return err
	}
	dbs, err := o.which(ctx, a, s)
	if err != nil {
		return err
	}
	if o.confirm {
		if err := o.ask(ctx, a, dbs); err != nil {
			return err
		}
	}
	if o.outputDir != "" {
		if err := os.MkdirAll(o.outputDir, 0o700); err != nil {
			return fault.Invalid("make the directory of --output-dir: %w", err)
		}
	}
	results := make([]dbResult, len(dbs))
	var writing sync.Mutex
	var group errgroup.Group
	group.SetLimit(o.parallel)
	for i, db := range dbs {
		group.Go(func() error {
			if ctx.Err() == nil {
				results[i] = o.one(ctx, a, s, db, len(dbs) > 1, &writing)
			}
			return nil
		})
	}
	_ = group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return o.summary(a, results)
}

// which returns the databases that are meant.
func (o *dbExecOptions) which(ctx context.Context, a *app, s *session) ([]*typesv1.Database, error) {
	choice, err := client.NewChoice(types.KindDatabaseServer, o.labels, "", o.search)
	if err != nil {
		return nil, err
	}
	choice.Usable = true
	dbs, err := a.databases(ctx, s, choice)
	if err != nil {
		return nil, err
	}
	if len(o.names) > 0 {
		var missing []string
		for _, name := range o.names {
			if !slices.ContainsFunc(dbs, func(db *typesv1.Database) bool { return db.GetMetadata().GetName() == name }) {
				missing = append(missing, name)
			}
		}
		if len(missing) > 0 {
			return nil, fault.NotFound("there is no database %s that you may use: see tsh db ls", strings.Join(missing, ", "))
		}
		dbs = slices.DeleteFunc(dbs, func(db *typesv1.Database) bool { return !slices.Contains(o.names, db.GetMetadata().GetName()) })
	}
	if len(dbs) == 0 {
		return nil, fault.NotFound("there are no such databases that you may use: see tsh db ls")
	}
	for _, db := range dbs {
		if p := db.GetSpec().GetProtocol(); !isPostgres(p) && p != types.ProtocolMySQL {
			return nil, fault.Unsupported("database %q is of type %s: tsh db exec is for PostgreSQL and MySQL", db.GetMetadata().GetName(), p)
		}
	}
	return dbs, nil
}

// ask shows the databases and wants a yes.
func (o *dbExecOptions) ask(ctx context.Context, a *app, dbs []*typesv1.Database) error {
	table := screen.NewTable("Name", "Protocol", "Description", "Labels")
	for _, db := range dbs {
		table.Row(db.GetMetadata().GetName(), db.GetSpec().GetProtocol(), db.GetMetadata().GetDescription(), screen.Labels(db.GetMetadata().GetLabels()))
	}
	if err := table.Write(a.Err); err != nil {
		return err
	}
	reply, err := screen.NewPrompter(a.In, a.Err).Ask(ctx, fmt.Sprintf("Run it on these %d databases? [y/N]", len(dbs)))
	if err != nil {
		return err
	}
	if reply = strings.ToLower(strings.TrimSpace(reply)); reply != "y" && reply != "yes" {
		return fault.Invalid("nothing was done")
	}
	return nil
}

// dbResult is how it went on one database.
type dbResult struct {
	Database string `json:"database_name"`
	Protocol string `json:"protocol"`
	Success  bool   `json:"success"`
	ExitCode int    `json:"exit_code"`
	Error    string `json:"error,omitempty"`
	Output   string `json:"output_file,omitempty"`
	Took     string `json:"took"`
}

// one runs the statement on one database.
func (o *dbExecOptions) one(ctx context.Context, a *app, s *session, db *typesv1.Database, several bool, writing *sync.Mutex) dbResult {
	name := db.GetMetadata().GetName()
	result := dbResult{Database: name, Protocol: db.GetSpec().GetProtocol()}
	begin := time.Now()
	err := func() error {
		prefix := ""
		if several {
			prefix = "[" + name + "] "
		}
		out := &lineWriter{to: a.Out, prefix: prefix, writing: writing}
		talk := &lineWriter{to: a.Err, prefix: prefix, writing: writing}
		var stdout, stderr io.Writer = out, talk
		if o.outputDir != "" {
			result.Output = filepath.Join(o.outputDir, name+".output")
			f, err := os.OpenFile(result.Output, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return fault.Invalid("keep the output: %w", err)
			}
			defer func() { _ = f.Close() }()
			stdout, stderr = f, f
		}
		defer talk.flush()
		defer out.flush()
		return o.run(ctx, a, s, db, stdout, stderr, &result)
	}()
	result.Took = time.Since(begin).Round(time.Millisecond).String()
	switch {
	case err != nil:
		result.Error = err.Error()
	case result.ExitCode != 0:
		result.Error = fmt.Sprintf("exit code %d", result.ExitCode)
	default:
		result.Success = true
	}
	return result
}

func (o *dbExecOptions) run(ctx context.Context, a *app, s *session, db *typesv1.Database, stdout, stderr io.Writer, result *dbResult) error {
	// Users, databases and roles of a login are those of one database.
	own := o.dbOptions
	own.choosing = choosing{name: db.GetMetadata().GetName()}
	t, err := own.open(ctx, a, s, db)
	if err != nil {
		return err
	}
	defer t.close()
	cmd, err := t.program(ctx)
	if err != nil {
		return err
	}
	if isPostgres(db.GetSpec().GetProtocol()) {
		cmd.Args = append(cmd.Args, "--no-psqlrc", "--no-password", "--set=ON_ERROR_STOP=1", "--command="+o.sql)
	} else {
		cmd.Args = append(cmd.Args, "--table", "--execute="+o.sql)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(nil), stdout, stderr
	stop := context.AfterFunc(ctx, func() { t.stop() })
	defer stop()
	err = cmd.Run()
	if cmd.ProcessState == nil {
		return fault.Invalid("run %s: %w", filepath.Base(cmd.Path), err)
	}
	if result.ExitCode = cmd.ProcessState.ExitCode(); result.ExitCode < 0 {
		return fault.Invalid("%s ended by itself: %w", filepath.Base(cmd.Path), err)
	}
	return nil
}

// summary says how it went.
func (o *dbExecOptions) summary(a *app, results []dbResult) error {
	failed := 0
	for _, r := range results {
		if r.Success {
			continue
		}
		if failed++; failed == 1 {
			_, _ = fmt.Fprintln(a.Err, "Failed:")
		}
		_, _ = fmt.Fprintf(a.Err, "  %s: %s\n", r.Database, screen.Escape(r.Error))
	}
	if o.outputDir != "" {
		text, err := json.MarshalIndent(map[string]any{
			"databases": results, "total": len(results), "success": len(results) - failed, "failure": failed,
		}, "", "  ")
		if err != nil {
			return fmt.Errorf("encode the summary: %w", err)
		}
		path := filepath.Join(o.outputDir, "summary.json")
		if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
			return fault.Invalid("write the summary: %w", err)
		}
		_, _ = fmt.Fprintf(a.Err, "The output is in %s\n", screen.Escape(o.outputDir))
	}
	if failed > 0 {
		_, _ = fmt.Fprintf(a.Err, "%d of %d databases failed\n", failed, len(results))
		return screen.Code(screen.ExitError)
	}
	return nil
}
