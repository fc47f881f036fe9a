package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"teleport/internal/config"
	"teleport/internal/process"
	"teleport/internal/types"
	"teleport/internal/version"
)

// startOptions are the flags of `teleport start`; each overrides the file.
type startOptions struct {
	configFile string
	roles      string
	token      string
	authServer string
	caPins     []string
	nodename   string
	labels     string
	listenIP   string
	advertise  string
	pidFile    string
	diagAddr   string
	dataDir    string
	debug      bool
	insecure   bool
	// served is something to serve besides what the file has.
	served
	// proxyServer has no flag here, but with other commands that load as start does.
	proxyServer string
}

func newStart() *cobra.Command {
	var o startOptions
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start the services that the configuration enables",
		Long: `Start the services that the configuration enables. Without a configuration file
and flags it is a whole cluster in one process: Auth, Proxy and SSH Service.

Exit codes: 0 stopped in an orderly way, 1 error, 2 wrong usage or configuration,
3 the cluster refused the join, 4 the data directory cannot be used.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStart(cmd.Context(), o) },
	}
	o.flags(cmd.Flags())
	return cmd
}

func (o *startOptions) flags(f *pflag.FlagSet) {
	o.joinFlags(f)
	f.StringVarP(&o.roles, "roles", "r", "", "services to run, of "+config.Runnable()+" (comma-separated)")
	f.StringVar(&o.labels, "labels", "", "labels of the SSH Service (key=value,...)")
	f.StringVarP(&o.listenIP, "listen-ip", "l", "", "address to listen on (default 0.0.0.0)")
	f.StringVar(&o.app.Name, "app-name", "", "name of an application to serve")
	f.StringVar(&o.app.URI, "app-uri", "", "where it is (http://, https:// or tcp://host:port)")
	f.StringVar(&o.app.PublicAddr, "app-public-addr", "", "host name that users have it at")
}

// joinFlags are those of every command that starts a process.
func (o *startOptions) joinFlags(f *pflag.FlagSet) {
	f.StringVarP(&o.configFile, "config", "c", "", "configuration file (default /etc/teleport.yaml if it exists)")
	f.StringVar(&o.token, "token", "", "join token, or the absolute path of a file with it")
	f.StringVar(&o.authServer, "auth-server", "", "address of the Auth or Proxy Service to join (host:port)")
	f.StringArrayVar(&o.caPins, "ca-pin", nil, "CA pin of the cluster (may be repeated)")
	f.StringVar(&o.nodename, "nodename", "", "name of this host in the cluster")
	f.StringVar(&o.advertise, "advertise-ip", "", "address that others reach this host at")
	f.StringVar(&o.pidFile, "pid-file", "", "file to write the process id to")
	f.StringVar(&o.diagAddr, "diag-addr", "", "address for health and metrics (host:port)")
	f.StringVar(&o.dataDir, "data-dir", "", "data directory (default "+config.DefaultDataDir+")")
	f.BoolVarP(&o.debug, "debug", "d", false, "log everything")
	f.BoolVar(&o.insecure, "insecure", false, "do not verify the server that is joined (never in production)")
}

// load returns the configuration with the flags applied, checked as a whole: the
// file named, else the default one if it is there, else none is needed.
func (o startOptions) load() (*config.Config, error) {
	path := o.configFile
	if path == "" {
		if _, err := os.Stat(config.DefaultPath); errors.Is(err, os.ErrNotExist) {
			cfg := config.Default()
			if err := o.apply(cfg); err != nil {
				return nil, err
			}
			return cfg, cfg.Check()
		}
		path = config.DefaultPath
	}
	return config.Load(path, o.apply)
}

// apply lets the flags override what the file says.
func (o startOptions) apply(cfg *config.Config) error {
	set := func(field *string, value string) {
		if value != "" {
			*field = value
		}
	}
	set(&cfg.Join.TokenName, o.token)
	set(&cfg.Nodename, o.nodename)
	set(&cfg.AdvertiseIP, o.advertise)
	set(&cfg.PIDFile, o.pidFile)
	set(&cfg.DiagAddr, o.diagAddr)
	if o.dataDir != "" {
		dir, err := filepath.Abs(o.dataDir)
		if err != nil {
			return fmt.Errorf("--data-dir: %w", err)
		}
		cfg.DataDir = dir
	}
	if o.debug {
		cfg.Log.Severity = slog.LevelDebug
	}
	if o.authServer != "" {
		// The cluster is elsewhere.
		cfg.AuthServer, cfg.ProxyServer, cfg.Auth.Enabled = o.authServer, "", false
	}
	if o.proxyServer != "" {
		cfg.ProxyServer, cfg.AuthServer, cfg.Auth.Enabled = o.proxyServer, "", false
	}
	if err := o.applyRoles(cfg); err != nil {
		return err
	}
	if o.listenIP != "" {
		for _, addr := range []*string{&cfg.Auth.ListenAddr, &cfg.Proxy.WebListenAddr, &cfg.SSH.ListenAddr} {
			_, port, err := net.SplitHostPort(*addr)
			if err != nil {
				return err
			}
			*addr = net.JoinHostPort(o.listenIP, port)
		}
	}
	if o.labels != "" {
		labels, err := types.ParseLabels(o.labels)
		if err != nil {
			return fmt.Errorf("--labels: %w", err)
		}
		cfg.SSH.Labels = labels
	}
	if len(o.caPins) > 0 {
		pins, err := config.ParsePins(o.caPins)
		if err != nil {
			return fmt.Errorf("--ca-pin: %w", err)
		}
		cfg.CAPins = pins
	}
	return o.served.apply(cfg)
}

func (o startOptions) applyRoles(cfg *config.Config) error {
	if o.roles == "" {
		return nil
	}
	roles, err := types.ParseSystemRoles(o.roles)
	if err != nil {
		return fmt.Errorf("--roles: %w", err)
	}
	if err := cfg.SetRoles(roles); err != nil {
		return fmt.Errorf("--roles: %w", err)
	}
	return nil
}

func runStart(ctx context.Context, o startOptions) error {
	cfg, err := o.load()
	if err != nil {
		return &exitError{process.ExitUsage, err}
	}
	log, closer, err := config.NewLogger(cfg.Log)
	if err != nil {
		return &exitError{process.ExitUsage, err}
	}
	defer closer.Close()
	for _, w := range cfg.Warnings {
		log.Warn(w) //nolint:sloglint // the message is the finding itself
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	reload := o.reloads(ctx, log)
	log.InfoContext(ctx, "starting", "version", version.Version, "commit", version.Commit, "data_dir", cfg.DataDir)
	err = process.Run(ctx, process.Options{
		Config: cfg, Insecure: o.insecure, Log: log, Reload: reload,
		OnReady: func(a process.Addrs) { announceReady(log, a) },
	})
	var failed *process.Error
	if errors.As(err, &failed) {
		return &exitError{failed.Code, err}
	}
	return err
}

// reloads reads the configuration again at every SIGHUP. One that is wrong is
// logged, and the process goes on as it is.
func (o startOptions) reloads(ctx context.Context, log *slog.Logger) <-chan *config.Config {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	out := make(chan *config.Config)
	go func() {
		defer signal.Stop(hup)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
			}
			cfg, err := o.load()
			if err != nil {
				log.ErrorContext(ctx, "the configuration was read again and is wrong, going on with the one before", "error", err)
				continue
			}
			select {
			case out <- cfg:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// announceReady says where things are, for people and for scripts that wait.
func announceReady(log *slog.Logger, a process.Addrs) {
	for _, x := range []struct {
		role types.SystemRole
		addr string
	}{{types.RoleAuth, a.Auth}, {types.RoleProxy, a.Proxy}, {types.RoleNode, a.SSH}} {
		if x.addr != "" {
			log.Info("serving", "service", x.role, "addr", x.addr)
		}
	}
	fmt.Fprintln(os.Stderr, "Teleport is ready.")
}
