package postgres_test

import (
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"teleport/internal/service/db/dbtest"
)

var tps = regexp.MustCompile(`tps = ([0-9.]+) \(`)

// BenchmarkPgbench compares pgbench with TLS and a certificate straight to the server with
// the same through the agent, from a local port. What comes between them in a cluster, the
// Proxy and the tunnel, and an Auth Service that stores the events, is not in it.
func BenchmarkPgbench(b *testing.B) {
	w := start(b, nil)
	w.Events.Discard()
	files := dbtest.ClientFiles(b, "alice")
	host, port, _ := net.SplitHostPort(w.addr)
	ways := map[string]string{
		"direct": fmt.Sprintf("host=localhost port=%s user=alice dbname=postgres sslmode=verify-full sslrootcert=%s sslcert=%s sslkey=%s", w.server.Port, files.CA, files.Cert, files.Key),
		"agent":  fmt.Sprintf("host=%s port=%s user=alice dbname=postgres sslmode=disable", host, port),
	}
	run := func(b *testing.B, way string, args ...string) float64 {
		b.Helper()
		out, err := dbtest.Output(exec.Command("pgbench", append(args, ways[way])...))
		if err != nil {
			b.Fatalf("pgbench %q: %v: %s", args, err, out)
		}
		m := tps.FindStringSubmatch(out)
		if m == nil {
			return 0
		}
		rate, _ := strconv.ParseFloat(m[1], 64)
		return rate
	}
	run(b, "direct", "-i", "-s", "4", "-q")
	for name, args := range map[string][]string{
		"select_1":    {"-S", "-c", "1"},
		"select_16":   {"-S", "-c", "16", "-j", "2"},
		"prepared_16": {"-S", "-M", "prepared", "-c", "16", "-j", "2"},
		"tpcb_16":     {"-c", "16", "-j", "2"},
		"connect_4":   {"-S", "-C", "-c", "4"},
	} {
		b.Run(name, func(b *testing.B) {
			rates := map[string]float64{}
			for b.Loop() {
				for way := range ways {
					rates[way] += run(b, way, append([]string{"-n", "-T", "3"}, args...)...)
				}
			}
			b.ReportMetric(rates["direct"]/float64(b.N), "direct/s")
			b.ReportMetric(rates["agent"]/float64(b.N), "agent/s")
			b.ReportMetric(rates["agent"]/rates["direct"], "ratio")
		})
	}
}

// BenchmarkIdle is the memory of connections that nobody uses, at the agent: with the
// client's end of TLS, and that of the tunnel, which are in the same process here.
func BenchmarkIdle(b *testing.B) {
	const conns = 40
	w := start(b, nil)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := heap()
	for range conns {
		c, err := pgconn.Connect(b.Context(), url(w.addr, "alice", "postgres"))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Exec(b.Context(), "select 1").ReadAll(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = conn{c}.Close() })
	}
	each := float64(heap()-before) / conns / 1024
	for b.Loop() {
		// There is nothing to repeat.
	}
	b.ReportMetric(each, "KiB/conn")
}
