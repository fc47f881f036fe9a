package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"teleport/internal/service/db/dbtest"
)

// batch sends messages and reads until the server was ready so many times; it returns the
// first values of the rows.
func batch(t *testing.T, f *pgproto3.Frontend, ready int, messages ...pgproto3.FrontendMessage) []string {
	t.Helper()
	for _, m := range messages {
		f.Send(m)
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	var rows []string
	for ready > 0 {
		m, err := f.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *pgproto3.DataRow:
			rows = append(rows, string(m.Values[0]))
		case *pgproto3.ReadyForQuery:
			ready--
		}
	}
	return rows
}

// TestNothingRunsUnseen: whatever a client does to make the agent believe in another
// statement than the one that the server has, what runs is in the audit log.
func TestNothingRunsUnseen(t *testing.T) {
	hidden, shown := &pgproto3.Parse{Query: "select 'hidden'"}, &pgproto3.Parse{Query: "select 'shown'"}
	wrong, sync := &pgproto3.Bind{PreparedStatement: "nowhere"}, &pgproto3.Sync{}
	named := func(p *pgproto3.Parse) *pgproto3.Parse { return &pgproto3.Parse{Name: "s", Query: p.Query} }
	type step struct {
		ready    int
		messages []pgproto3.FrontendMessage
	}
	steps := func(messages ...pgproto3.FrontendMessage) step { return step{1, messages} }
	var fill []pgproto3.FrontendMessage
	for i := range 5000 {
		fill = append(fill, &pgproto3.Parse{Name: fmt.Sprint("fill", i), Query: "select 1"})
	}
	var syncs []pgproto3.FrontendMessage
	for range 9000 {
		syncs = append(syncs, sync)
	}
	table := steps(&pgproto3.Query{String: "create temp table if not exists t (a text)"})
	for name, way := range map[string][]step{
		"passed_over": {steps(hidden, sync), steps(wrong, shown, sync)},
		"one_batch":   {{3, []pgproto3.FrontendMessage{hidden, sync, wrong, shown, sync, sync}}},
		"passed_over_by_name": {
			steps(named(hidden), sync), steps(wrong, &pgproto3.Close{ObjectType: 'S', Name: "s"}, named(shown), sync),
		},
		"there_already": {steps(named(hidden), sync), steps(named(shown), sync)},
		"full":          {steps(append(fill, hidden, sync)...)},
		"after_a_copy": {
			table, steps(&pgproto3.Query{String: "copy t from stdin"}, sync, &pgproto3.CopyDone{}), steps(hidden, wrong, sync), steps(wrong, shown, sync),
		},
		"query_passed_over": {
			steps(wrong, &pgproto3.Query{String: "select 1"}, shown, sync), steps(hidden, wrong, sync), steps(wrong, shown, sync),
		},
		"too_many": {steps(hidden, sync), {len(syncs), syncs}, steps(wrong, shown, sync)},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, nil)
			hijacked, err := w.pgx(t).PgConn().Hijack()
			if err != nil {
				t.Fatal(err)
			}
			defer hijacked.Conn.Close()
			_ = hijacked.Conn.SetDeadline(time.Now().Add(30 * time.Second))
			f := pgproto3.NewFrontend(hijacked.Conn, hijacked.Conn)
			for _, s := range way {
				batch(t, f, s.ready, s.messages...)
			}
			statement := ""
			if strings.Contains(name, "name") || name == "there_already" {
				statement = "s"
			}
			if rows := batch(t, f, 1, &pgproto3.Bind{PreparedStatement: statement}, &pgproto3.Execute{}, sync); !slices.Equal(rows, []string{"hidden"}) {
				t.Fatalf("the server ran something that says %q", rows)
			}
			_ = hijacked.Conn.Close()
			w.Events.Wait(t, "TDB01I", nil)
			var log []string
			for _, e := range w.Events.All("") {
				log = append(log, e.GetCode()+" "+dbtest.Field(e, "db_query")+dbtest.Field(e, "query"))
			}
			ran, prepared := slices.Contains(log, "TDB02I select 'hidden'"), slices.Contains(log, "TPG00I select 'hidden'")
			if !ran && (!prepared || name == "passed_over_by_name" || name == "there_already") {
				t.Errorf("the log has nothing of it, but %q", log[:min(len(log), 20)])
			}
		})
	}
}
