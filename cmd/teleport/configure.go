package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"teleport/internal/config"
	"teleport/internal/fault"
	"teleport/internal/types"
)

// configureOptions are the flags of `teleport configure` and `teleport node
// configure`.
type configureOptions struct {
	params config.GenerateParams
	roles  string
	labels string
	pins   []string
	test   string
	output string
}

func (a *app) newConfigure() *cobra.Command {
	var o configureOptions
	cmd := &cobra.Command{
		Use:   "configure",
		Short: "Write a configuration file, or check one",
		Long: `Write a configuration file, or check one.

Without flags the file describes a whole cluster on this host. For a host that
joins a cluster, say which services it runs, with which token, and where the
cluster is:

  teleport configure --roles=node --token=TOKEN --proxy=teleport.example.com:443 -o file`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.runConfigure(o) },
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.roles, "roles", "", "services to run, of "+config.Runnable()+" (comma-separated; default auth, node, proxy)")
	f.StringVar(&o.params.ClusterName, "cluster-name", "", "name of the new cluster")
	f.StringVar(&o.params.PublicAddr, "public-addr", "", "address that users and agents reach the Proxy Service at (host:port)")
	f.StringVar(&o.params.CertFile, "cert-file", "", "certificate of the Proxy Service")
	f.StringVar(&o.params.KeyFile, "key-file", "", "private key of the Proxy Service")
	f.StringVar(&o.params.App.Name, "app-name", "", "name of an application for the Application Service (needs the app role)")
	f.StringVar(&o.params.App.URI, "app-uri", "", "where it is (http://, https:// or tcp://host:port)")
	f.StringVar(&o.test, "test", "", "check this configuration file instead of writing one")
	return cmd
}

func (a *app) newNode() *cobra.Command {
	node := &cobra.Command{
		Use:   "node",
		Short: "Commands for hosts that run the SSH Service",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o := configureOptions{roles: types.RoleNode.Flag()}
	cmd := &cobra.Command{
		Use:   "configure",
		Short: "Write a configuration file for a host that runs the SSH Service",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.runConfigure(o) },
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&o.labels, "labels", "", "the same as --node-labels")
	node.AddCommand(cmd)
	return node
}

// addFlags adds the flags that both commands have.
func (o *configureOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.params.Token, "token", "", "join token, or the absolute path of a file with it")
	f.StringVar(&o.params.JoinMethod, "join-method", types.JoinMethodToken, "how to join the cluster")
	f.StringVar(&o.params.ProxyServer, "proxy", "", "address of the cluster's Proxy Service (host:port)")
	f.StringVar(&o.params.AuthServer, "auth-server", "", "address of the cluster's Auth Service, to join without a Proxy (host:port)")
	f.StringArrayVar(&o.pins, "ca-pin", nil, "CA pin of the cluster (may be repeated)")
	f.StringVar(&o.params.DataDir, "data-dir", config.DefaultDataDir, "data directory")
	f.StringVar(&o.params.NodeName, "node-name", "", "name of this host in the cluster (default: its host name)")
	f.StringVar(&o.labels, "node-labels", "", "labels of the SSH Service (key=value,...)")
	f.StringVar(&o.params.Version, "version", config.V3, "version of the file's format")
	f.StringVarP(&o.output, "output", "o", "stdout", "stdout, file ("+config.DefaultPath+") or file:///path")
}

func (a *app) runConfigure(o configureOptions) error {
	if o.test != "" {
		return a.runTest(o.test)
	}
	params, err := o.complete()
	if err != nil {
		return err
	}
	data, err := config.Generate(params)
	if err != nil {
		return err
	}
	path, err := a.output(o.output, a.configPath, data, 0o600)
	if err != nil || path == "" {
		return err
	}
	_, err = fmt.Fprintf(a.stderr, "Wrote the configuration to %s. Look it over, then start the process:\n\n  teleport start --config=%s\n", path, path)
	return err
}

// complete turns flags into parameters.
func (o *configureOptions) complete() (config.GenerateParams, error) {
	p := o.params
	var err error
	if o.roles != "" {
		if p.Roles, err = types.ParseSystemRoles(o.roles); err != nil {
			return p, fault.Invalid("--roles: %w", err)
		}
	}
	if o.labels != "" {
		if p.NodeLabels, err = types.ParseLabels(o.labels); err != nil {
			return p, fault.Invalid("--node-labels: %w", err)
		}
	}
	if p.CAPins, err = config.ParsePins(o.pins); err != nil {
		return p, fault.Invalid("--ca-pin: %w", err)
	}
	for _, path := range []*string{&p.DataDir, &p.CertFile, &p.KeyFile} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (a *app) runTest(path string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintf(a.stderr, "WARNING: %s\n", w)
	}
	_, err = fmt.Fprintf(a.stdout, "%s: the configuration is valid\n", path)
	return err
}
