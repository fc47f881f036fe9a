package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"

	"teleport/internal/service/db/dbtest"
	"teleport/test/cluster"
)

// The ways to a database or an application.
const (
	byTLS     = "direct, TLS"
	byUs      = "Teleport, tsh proxy"
	byBouncer = "pgbouncer, session"
	byPool    = "pgbouncer, transaction"
	byJump    = "ssh -L, ProxyJump"
	byBastion = "ssh -L, from the bastion"
	byChisel  = "chisel"
	byFRP     = "frp"
)

// databases measures what programs do with databases through us.
func databases(ctx context.Context, b *bench) error {
	s, err := startServed(ctx, b)
	if err != nil {
		return err
	}
	defer s.close()
	d, err := startDatabases(ctx, s)
	if err != nil {
		return err
	}
	// First, as what is free in the heap hides what connections need.
	for _, part := range []func(context.Context) error{d.idle, d.pgbench, d.sysbench, d.redisBenchmark} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// databaseServers are the servers, and the agent that serves them.
type databaseServers struct {
	*served
	postgres, mariadb, redis *dbtest.Server
	// redisPlain is the port of Redis without TLS.
	redisPlain string
	// authority is the file with what the servers' certificates are signed by.
	authority string
	// pgbenchPath is the program itself.
	pgbenchPath string
}

const idleDatabases = 200

func startDatabases(ctx context.Context, s *served) (*databaseServers, error) {
	d := &databaseServers{served: s, authority: s.Path("db.cas")}
	text, err := s.Tctl(ctx, "auth", "export", "--type=db")
	if err != nil {
		return nil, err
	}
	// sysbench takes the names of its files from nowhere else.
	own, err := os.ReadFile(s.own.files.CA)
	if err != nil {
		return nil, err
	}
	for path, text := range map[string]string{d.authority: text, s.own.files.CA: text + string(own)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	for _, start := range []func(context.Context, servedTB){d.startPostgres, d.startMariaDB, d.startRedis} {
		if err := s.try(func(t servedTB) { start(ctx, t) }); err != nil {
			return nil, err
		}
	}
	lines := "db_service:\n  enabled: yes\n  databases:\n"
	for name, at := range map[string][2]string{
		"pg": {"postgres", d.postgres.Port}, "maria": {"mysql", d.mariadb.Port}, "redis": {"redis", d.redis.Port},
	} {
		lines += "  - name: " + name + "\n    protocol: " + at[0] + "\n    uri: localhost:" + at[1] + "\n"
	}
	return d, s.serve(ctx, "db", lines, "pg", "tsh", "db", "ls")
}

// postgresTool finds a program of the server: what is in the path is a script that finds
// it, and costs more.
func postgresTool(t servedTB, name string) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		t.Fatal(name + " is missing: apt-get install postgresql")
	}
	return found[len(found)-1]
}

func (d *databaseServers) startPostgres(ctx context.Context, t servedTB) {
	s := dbtest.NewServer(t, "postgres")
	f := d.files(ctx, s, t)
	s.Setup(t, postgresTool(t, "initdb"), "-D", s.Path("data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C.UTF-8")
	s.Write(t, "data/postgresql.conf", "listen_addresses = '127.0.0.1'\nport = "+s.Port+"\nunix_socket_directories = '"+s.Dir+"'\n"+
		"ssl = on\nssl_cert_file = '"+f.Cert+"'\nssl_key_file = '"+f.Key+"'\nssl_ca_file = '"+f.CA+"'\nfsync = off\nshared_buffers = 512MB\n"+
		"max_connections = "+strconv.Itoa(idleDatabases+100)+"\nmax_wal_size = 4GB\nautovacuum = off\n")
	s.Write(t, "data/pg_hba.conf", "local all all trust\n"+dbtest.PostgresHost+"\n")
	s.RunPostgres(t)
	s.PSQL(t, "CREATE ROLE "+dbUser+" LOGIN")
	s.PSQL(t, "CREATE DATABASE "+dbUser+" OWNER "+dbUser)
	d.pgbenchPath = postgresTool(t, "pgbench")
	s.Setup(t, d.pgbenchPath, "-i", "-q", "-s", "16", "-h", s.Dir, "-p", s.Port, "-U", dbUser, dbUser)
	d.postgres = s
}

func (d *databaseServers) startMariaDB(ctx context.Context, t servedTB) {
	s := dbtest.NewServer(t, "mysql")
	f := d.files(ctx, s, t)
	conf := s.Write(t, "my.cnf", "[mariadbd]\nport = "+s.Port+"\nbind_address = 127.0.0.1\ndatadir = "+s.Path("data")+"\nsocket = "+s.Path("sock")+
		"\npid_file = "+s.Path("pid")+"\nssl_cert = "+f.Cert+"\nssl_key = "+f.Key+"\nssl_ca = "+f.CA+
		"\nplugin_dir = /usr/lib/mysql/plugin\ninnodb_flush_log_at_trx_commit = 0\ninnodb_buffer_pool_size = 256M\nskip_name_resolve\n")
	account := "mysql"
	if os.Getuid() != 0 {
		me, err := user.Current()
		if err != nil {
			t.Fatal(err)
		}
		account = me.Username
	}
	s.Setup(t, "mariadb-install-db", "--no-defaults", "--datadir="+s.Path("data"), "--auth-root-authentication-method=socket", "--auth-root-socket-user="+account, "--skip-test-db")
	s.Start(t, s.Listens, "mariadbd", "--defaults-file="+conf)
	s.Setup(t, "mariadb", "--no-defaults", "-S", s.Path("sock"), "-u", account, "-e", "CREATE DATABASE "+dbUser+"; CREATE USER "+dbUser+"@'%' REQUIRE X509; GRANT ALL ON "+
		dbUser+".* TO "+dbUser+"@'%'; CREATE USER "+dbUser+"@localhost; GRANT ALL ON "+dbUser+".* TO "+dbUser+"@localhost")
	s.Setup(t, "sysbench", "oltp_read_only", "--mysql-socket="+s.Path("sock"), "--mysql-user="+dbUser, "--mysql-db="+dbUser, "--tables=4", "--table-size=50000", "prepare")
	d.mariadb = s
}

func (d *databaseServers) startRedis(ctx context.Context, t servedTB) {
	s := dbtest.NewServer(t, "redis")
	f := d.files(ctx, s, t)
	d.redisPlain = dbtest.FreePort(t)
	conf := s.Write(t, "redis.conf", "bind 127.0.0.1\nport "+d.redisPlain+"\ntls-port "+s.Port+"\ndir "+s.Dir+"\nsave \"\"\ndaemonize no\ntls-cert-file "+f.Cert+
		"\ntls-key-file "+f.Key+"\ntls-ca-cert-file "+f.CA+"\ntls-auth-clients yes\n")
	s.Start(t, s.Listens, "redis-server", conf)
	d.redis = s
}

// startup opens a session of PostgreSQL as a client without TLS does.
func startup(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	body := append(binary.BigEndian.AppendUint32(nil, 3<<16), "user\x00"+dbUser+"\x00database\x00"+dbUser+"\x00\x00"...)
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)); err != nil {
		return nil, err
	}
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(conn, head); err != nil {
			return nil, err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(conn, body); err != nil {
			return nil, err
		}
		switch head[0] {
		case 'Z':
			return conn, nil
		case 'E':
			return nil, fmt.Errorf("the database refuses: %q", body)
		}
	}
}

// idle opens sessions that do nothing, and reads the memory of who serves them.
func (d *databaseServers) idle(ctx context.Context) error {
	addr, pids, err := d.tunnel(ctx, "db", "--tunnel", "-u", dbUser, "-n", dbUser, "pg")
	if err != nil {
		return err
	}
	// What the first session needs once is not counted.
	conn, err := startup(ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	names := []string{"Auth and Proxy", "agent", "tsh"}
	before := make([]memory, len(pids))
	if err := pause(ctx, d.b.idle); err != nil {
		return err
	}
	for i, pid := range pids {
		if before[i], err = memoryOf(pid); err != nil {
			return err
		}
	}
	for i := range idleDatabases {
		conn, err := startup(ctx, addr)
		if err != nil {
			return fmt.Errorf("session %d: %w", i, err)
		}
		defer conn.Close()
	}
	if err := pause(ctx, d.b.idle); err != nil {
		return err
	}
	rows := [][]string{{"", "RSS", "RssAnon"}}
	var hops []float64
	for i, pid := range pids {
		m, err := memoryOf(pid)
		if err != nil {
			return err
		}
		m = m.minus(before[i])
		hops = append(hops, float64(m.rss)/idleDatabases)
		rows = append(rows, []string{names[i], number(hops[i]), number(float64(m.anon) / idleDatabases)})
	}
	d.b.report.table(fmt.Sprintf("Memory for %d idle connections to PostgreSQL, KiB each, %s after they were opened", idleDatabases, d.b.idle), rows...)
	for i, name := range names {
		d.b.report.atMost("memory per idle database connection: "+name, hops[i], 128, " KiB")
	}
	return nil
}

// postgresWays are the ways of pgbench to the database.
func (d *databaseServers) postgresWays(ctx context.Context) ([]way, error) {
	server := d.postgres.PID()
	env := func(addr string, more ...string) []string {
		host, port, _ := net.SplitHostPort(addr)
		return append([]string{"PGHOST=" + host, "PGPORT=" + port, "PGUSER=" + dbUser, "PGDATABASE=" + dbUser, "PGGSSENCMODE=disable"}, more...)
	}
	tls := []string{"PGSSLMODE=verify-full", "PGSSLROOTCERT=" + d.authority, "PGSSLCERT=" + d.own.files.Cert, "PGSSLKEY=" + d.own.files.Key}
	plain := "PGSSLMODE=disable"
	at := net.JoinHostPort("127.0.0.1", d.postgres.Port)
	out := []way{{name: byTLS, command: command{env: env(at, tls...)}}}
	add := func(name, addr string, pids []int, more ...string) {
		out = append(out, way{name: name, command: command{env: env(addr, more...)}, pids: pids})
	}
	addr, pids, err := d.tunnel(ctx, "db", "--tunnel", "-u", dbUser, "-n", dbUser, "pg")
	if err != nil {
		return nil, err
	}
	add(byUs, addr, pids, plain)
	for host, name := range map[string]string{jump: byJump, "bastion": byBastion} {
		addr, pids, err := d.sshL(ctx, host, at)
		if err != nil {
			return nil, err
		}
		add(name, addr, pids, tls...)
	}
	for mode, name := range map[string]string{"session": byBouncer, "transaction": byPool} {
		addr, pids, err := d.pgbouncer(ctx, mode)
		if err != nil {
			return nil, err
		}
		add(name, addr, pids, plain)
	}
	for i := range out {
		out[i].pids = append(out[i].pids, server)
	}
	return out, nil
}

// pgbouncer runs one, with TLS to the database.
func (d *databaseServers) pgbouncer(ctx context.Context, mode string) (addr string, pids []int, err error) {
	if addr, err = cluster.FreeAddr(); err != nil {
		return "", nil, err
	}
	_, port, _ := net.SplitHostPort(addr)
	var pid int
	err = d.try(func(t servedTB) {
		s := dbtest.NewServer(t, "postgres")
		read := func(path string) string {
			text, rerr := os.ReadFile(path)
			if rerr != nil {
				t.Fatal(rerr)
			}
			return string(text)
		}
		conf := s.Write(t, "pgbouncer.ini", "[databases]\n"+dbUser+" = host=127.0.0.1 port="+d.postgres.Port+" user="+dbUser+"\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = "+port+
			"\nunix_socket_dir =\nauth_type = any\npool_mode = "+mode+"\nmax_client_conn = 1000\ndefault_pool_size = 32\nserver_tls_sslmode = verify-ca\nserver_tls_ca_file = "+
			s.Write(t, "ca", read(d.authority))+"\nserver_tls_cert_file = "+s.Write(t, "crt", read(d.own.files.Cert))+"\nserver_tls_key_file = "+s.Write(t, "key", read(d.own.files.Key))+
			"\nlog_connections = 0\nlog_disconnections = 0\n")
		works := func() error {
			conn, derr := startup(ctx, addr)
			if derr == nil {
				_ = conn.Close()
			}
			return derr
		}
		s.Start(t, works, "/usr/sbin/pgbouncer", conf)
		pid = s.PID()
	})
	return addr, []int{pid}, err
}

// pgbench measures PostgreSQL.
func (d *databaseServers) pgbench(ctx context.Context) error {
	ways, err := d.postgresWays(ctx)
	if err != nil {
		return err
	}
	seconds := strconv.Itoa(max(1, int(d.b.period.Seconds())))
	got := map[string]map[string]pace{}
	for _, one := range []struct {
		key, name string
		closed    bool
		args      []string
	}{
		{"select 1", "pgbench, select only, 1 client", true, []string{"-S", "-c", "1"}},
		{"select 16", "pgbench, select only, 16 clients", false, []string{"-S", "-c", "16", "-j", "2"}},
		{"tpcb 1", "pgbench, TPC-B-like, 1 client", true, []string{"-c", "1"}},
		{"tpcb 16", "pgbench, TPC-B-like, 16 clients", false, []string{"-c", "16", "-j", "2"}},
		{"connect 1", "pgbench, select only, a connection per transaction, 1 client", true, []string{"-S", "-C", "-c", "1"}},
		{"connect 16", "pgbench, select only, a connection per transaction, 16 clients", false, []string{"-S", "-C", "-c", "16", "-j", "2"}},
	} {
		for i := range ways {
			ways[i].args = append([]string{d.pgbenchPath, "-n", "-T", seconds}, one.args...)
		}
		l := load{name: one.name, rate: regexp.MustCompile(`tps = ([0-9.]+)`), count: regexp.MustCompile(`actually processed: ([0-9]+)`), closed: one.closed}
		if got[one.key], err = d.b.compare(ctx, l, ways); err != nil {
			return err
		}
	}
	r := d.b.report
	ratio := func(key, peer string) float64 { return got[key][byUs].rate() / got[key][peer].rate() }
	r.atLeast("pgbench select, 16 clients / ssh -L over a bastion", ratio("select 16", byJump), 1, " x")
	r.atLeast("pgbench select, 16 clients / direct TLS", ratio("select 16", byTLS), 0.6, " x")
	r.atMost("pgbench select, 1 client: added latency", got["select 1"][byUs].each()-got["select 1"][byTLS].each(), 0.25, " ms")
	r.atLeast("pgbench, a connection per transaction, 1 client / direct TLS", ratio("connect 1", byTLS), 0.8, " x")
	r.atLeast("pgbench, a connection per transaction, 16 clients / direct TLS", ratio("connect 16", byTLS), 0.8, " x")
	return nil
}

// sysbench measures MariaDB.
func (d *databaseServers) sysbench(ctx context.Context) error {
	at := net.JoinHostPort("127.0.0.1", d.mariadb.Port)
	type place struct {
		name, addr string
		tls        bool
		pids       []int
	}
	places := []place{{name: byTLS, addr: at, tls: true}}
	addr, pids, err := d.tunnel(ctx, "db", "--tunnel", "-u", dbUser, "-n", dbUser, "maria")
	if err != nil {
		return err
	}
	places = append(places, place{byUs, addr, false, pids})
	for host, name := range map[string]string{jump: byJump, "bastion": byBastion} {
		if addr, pids, err = d.sshL(ctx, host, at); err != nil {
			return err
		}
		places = append(places, place{name, addr, true, pids})
	}
	got := map[string]map[string]pace{}
	for _, test := range []string{"oltp_point_select", "oltp_read_only"} {
		for _, threads := range []int{1, 16} {
			var ways []way
			for _, p := range places {
				host, port, _ := net.SplitHostPort(p.addr)
				// The files for TLS have fixed names in the folder that it runs in.
				args := []string{
					"env", "-C", d.Dir, "sysbench", test, "--mysql-host=" + host, "--mysql-port=" + port, "--mysql-user=" + dbUser, "--mysql-db=" + dbUser,
					"--tables=4", "--table-size=50000", "--time=" + strconv.Itoa(max(1, int(d.b.period.Seconds()))), "--threads=" + strconv.Itoa(threads),
				}
				if p.tls {
					args = append(args, "--mysql-ssl=on")
				}
				ways = append(ways, way{name: p.name, command: command{args: append(args, "run")}, pids: append([]int{d.mariadb.PID()}, p.pids...)})
			}
			name := fmt.Sprintf("%s, %d", test, threads)
			l := load{
				name: "sysbench " + name, rate: regexp.MustCompile(`transactions:\s+[0-9]+\s+\(([0-9.]+) per sec`),
				count: regexp.MustCompile(`transactions:\s+([0-9]+)`), closed: threads == 1,
			}
			if got[name], err = d.b.compare(ctx, l, ways); err != nil {
				return err
			}
		}
	}
	many := got["oltp_point_select, 16"]
	d.b.report.atLeast("sysbench point select, 16 / ssh -L over a bastion", many[byUs].rate()/many[byJump].rate(), 1, " x")
	d.b.report.atLeast("sysbench point select, 16 / direct TLS", many[byUs].rate()/many[byTLS].rate(), 0.6, " x")
	return nil
}

// redisBenchmark measures Redis.
func (d *databaseServers) redisBenchmark(ctx context.Context) error {
	tls := []string{"--tls", "--cacert", d.authority, "--cert", d.own.files.Cert, "--key", d.own.files.Key}
	at, plainAt := net.JoinHostPort("127.0.0.1", d.redis.Port), net.JoinHostPort("127.0.0.1", d.redisPlain)
	var ways []way
	add := func(name, addr string, pids []int, more ...string) {
		host, port, _ := net.SplitHostPort(addr)
		ways = append(ways, way{name: name, command: command{args: append([]string{"redis-benchmark", "-h", host, "-p", port}, more...)}, pids: append(pids, d.redis.PID())})
	}
	add(byTLS, at, nil, tls...)
	add("direct, no TLS", plainAt, nil)
	addr, pids, err := d.tunnel(ctx, "db", "--tunnel", "-u", "default", "redis")
	if err != nil {
		return err
	}
	add(byUs, addr, pids)
	for host, name := range map[string]string{jump: byJump, "bastion": byBastion} {
		if addr, pids, err = d.sshL(ctx, host, at); err != nil {
			return err
		}
		add(name, addr, pids, tls...)
	}
	for _, peer := range []struct {
		name  string
		start func(context.Context, string) (string, []int, error)
	}{{byChisel, d.chisel}, {byFRP, d.frp}} {
		if addr, pids, err = peer.start(ctx, plainAt); err != nil {
			return err
		}
		if addr != "" {
			add(peer.name+", no TLS to Redis", addr, pids)
		}
		if addr, pids, err = peer.start(ctx, at); err != nil {
			return err
		}
		if addr != "" {
			add(peer.name, addr, pids, tls...)
		}
	}
	got := map[string]map[string]pace{}
	for _, one := range []struct {
		name   string
		fixed  int
		closed bool
		args   []string
	}{
		{"redis-benchmark GET, 1 client", 20_000, true, []string{"-c", "1"}},
		{"redis-benchmark GET, 50 clients", 100_000, false, []string{"-c", "50"}},
		{"redis-benchmark GET, 50 clients, pipeline of 16", 1_000_000, false, []string{"-c", "50", "-P", "16"}},
	} {
		these := make([]way, len(ways))
		for i, w := range ways {
			these[i] = w
			these[i].args = append(append([]string(nil), w.args...), append([]string{"--csv", "-t", "get", "-n", strconv.Itoa(one.fixed)}, one.args...)...)
		}
		l := load{name: one.name, rate: regexp.MustCompile(`"GET","([0-9.]+)"`), fixed: float64(one.fixed), closed: one.closed}
		if got[one.name], err = d.b.compare(ctx, l, these); err != nil {
			return err
		}
	}
	piped := got["redis-benchmark GET, 50 clients, pipeline of 16"]
	for _, name := range []string{byChisel, byChisel + ", no TLS to Redis"} {
		if p, ok := piped[name]; ok {
			d.b.report.atLeast("Redis, pipelined / "+name, piped[byUs].rate()/p.rate(), 1, " x")
		}
	}
	return nil
}
