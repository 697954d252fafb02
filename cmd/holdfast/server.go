package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// serverConfig is the configuration of the provider's server.
type serverConfig struct {
	Data      string        `mapstructure:"data"`       // directory of everything that the server keeps outside its repositories
	Listen    []string      `mapstructure:"listen"`     // HOST:PORT, an empty host for all addresses, IPv4 and IPv6
	Address   string        `mapstructure:"address"`    // what tenants connect to
	Names     []string      `mapstructure:"names"`      // further names and addresses in the issued certificate
	Provider  string        `mapstructure:"provider"`   // name of the provider, in its CA
	Database  string        `mapstructure:"database"`   // sqlite:PATH or postgres://…
	MasterKey string        `mapstructure:"master_key"` // file:PATH
	Grace     time.Duration `mapstructure:"grace"`      // for requests in flight when the server stops
	Collect   time.Duration `mapstructure:"collect"`    // how often space that nothing uses is freed; 0: by hand only
	Readers   time.Duration `mapstructure:"readers"`    // how long an emptied pack stays for who may still read it

	Certificate certificateConfig `mapstructure:"certificate"`
	Log         logConfig         `mapstructure:"log"`
	Profiles    string            `mapstructure:"profiles"` // socket on which profiles are served; "" is none
	Limits      limitsConfig      `mapstructure:"limits"`

	dev bool

	// For one start after a loss, so they are flags only.
	newDatabase  bool
	newAuthority bool
}

// certificateConfig names the files of a certificate from elsewhere.
type certificateConfig struct {
	File         string `mapstructure:"file"`          // PEM, or PFX by its extension
	Key          string `mapstructure:"key"`           // PEM, unless it is in the same file
	PasswordFile string `mapstructure:"password_file"` // of a PFX
}

// limitsConfig bounds connections; 0 is the default of gateway.Limits.
type limitsConfig struct {
	Connections        int `mapstructure:"connections"`          // in all
	Strangers          int `mapstructure:"strangers"`            // that have not said who they are
	StrangersByAddress int `mapstructure:"strangers_by_address"` // of those, from one address
	ByTenant           int `mapstructure:"by_tenant"`            // of one tenant
}

func (l limitsConfig) check() error {
	for name, n := range map[string]int{"connections": l.Connections, "strangers": l.Strangers, "strangers_by_address": l.StrangersByAddress, "by_tenant": l.ByTenant} {
		if n < 0 || n > maxLimit {
			return fmt.Errorf("limits.%s %d: want 1 to %d, or 0 for the default", name, n, maxLimit)
		}
	}
	return nil
}

// maxLimit is far above what one process serves.
const maxLimit = 1 << 20

// logConfig says what is logged, and how.
type logConfig struct {
	Level  string `mapstructure:"level"`  // debug, info, warn, error
	Format string `mapstructure:"format"` // text, json
}

// logger makes the process's log, on standard error.
func (c logConfig) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", c.Level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch c.Format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("log format %q: want text or json", c.Format)
}

func serverCommand(a *app) *cobra.Command {
	var file string
	var dev, check, newDatabase, newAuthority bool
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the provider's server",
		Long: `Run the provider's server: tenants' agents, people and scripts reach it on one TLS port (6180).

With -dev nothing needs to be configured: SQLite, a directory repository, a CA of its own and a demo tenant, all below
one data directory. It listens on this machine only and prints the credentials once.

Configuration comes from a YAML or TOML file, the environment (HOLDFAST_ and the key in upper case, dots as
underscores) and flags, later ones first. Unknown keys are refused. SIGHUP looks for a new certificate; SIGTERM ends
the server when the requests in flight are done, and clients repeat what was cut off.

A server that finds an empty database in place of the one that it had, or not the master key that sealed the database,
does not start. It says what is missing, and what --new-database and --new-authority, for one start each, would cost.

Keys of the file:
  data, listen, address, names, provider, database, master_key, grace, collect, readers,
  certificate.file, certificate.key, certificate.password_file, log.level, log.format, profiles,
  limits.connections, limits.strangers, limits.strangers_by_address, limits.by_tenant

A connection is a stranger's until it has shown a certificate or a token, and then its tenant's. Of the limits, 4096 in all,
1024 strangers (beyond them the oldest gives way), 128 strangers from one address and 256 connections of one tenant are the
defaults.`,
		Example: `  holdfast server -dev
  holdfast server --config /etc/holdfast/server.yaml -check
  holdfast server --data /var/lib/holdfast/server --address backup.example.com
  holdfast server --database postgres://holdfast@db/holdfast --certificate-file server.pfx --certificate-password-file pfx.pass`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := a.serverConfig(cmd, file, dev)
			if err != nil {
				return err
			}
			config.newDatabase, config.newAuthority = newDatabase, newAuthority
			if check {
				return a.checkServer(cmd.Context(), config)
			}
			return a.runServer(cmd.Context(), config)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&file, "config", a.env("HOLDFAST_CONFIG"), "configuration file, YAML or TOML")
	flags.BoolVar(&dev, "dev", false, "a provider to try, with nothing to configure")
	flags.BoolVar(&check, "check", false, "check the configuration, the database and the master key, and end")
	flags.BoolVar(&newDatabase, "new-database", false, "the database was lost: begin a new one, with a new CA and a new administrator")
	flags.BoolVar(&newAuthority, "new-authority", false, "the master key was lost: make a new CA; every agent has to enrol again")
	cmd.MarkFlagsMutuallyExclusive("new-database", "new-authority")
	flags.String("data", "", "data directory (default "+a.dataDir("server")+")")
	flags.StringSlice("listen", nil, "addresses to listen on (default :"+gateway.Port+")")
	flags.String("address", "", "what tenants connect to (default the host's name)")
	flags.StringSlice("names", nil, "further names and addresses in the issued certificate")
	flags.String("provider", "", "name of the provider, in its CA")
	flags.String("database", "", "sqlite:PATH or postgres://HOST/NAME (default state.db in the data directory)")
	flags.String("master-key", "", "file:PATH (default master.key in the data directory)")
	flags.Duration("grace", 0, "for requests in flight when the server stops (default 30s)")
	flags.Duration("collect", 0, "how often space that nothing uses is freed, 0 for by hand only (default 24h)")
	flags.Duration("readers", 0, "how long an emptied pack stays for who may still read it (default 24h)")
	flags.String("certificate-file", "", "certificate from elsewhere: PEM or PFX")
	flags.String("certificate-key", "", "its key, if it is in a file of its own")
	flags.String("certificate-password-file", "", "file with the password of a PFX")
	flags.String("log-level", "", "debug, info, warn or error (default info)")
	flags.String("log-format", "", "text or json (default text)")
	flags.String("profiles", "", profilesUsage)
	return cmd
}

// serverConfig reads the configuration and fills in what follows from it.
func (a *app) serverConfig(cmd *cobra.Command, file string, dev bool) (serverConfig, error) {
	c := serverConfig{Provider: "Holdfast provider", Grace: 30 * time.Second, Collect: 24 * time.Hour,
		Readers: repository.DefaultLongestRead, Log: logConfig{Level: "info", Format: "text"}, dev: dev}
	if dev {
		c.Provider, c.Log.Level, c.Grace = "Holdfast demo provider", "warn", 5*time.Second
	}
	if err := configure(file, a.env, cmd.Flags(), &c); err != nil {
		return c, err
	}
	if c.Data == "" {
		c.Data = a.dataDir("server")
		if dev {
			c.Data = a.dataDir("dev")
		}
	}
	data, err := filepath.Abs(c.Data)
	if err != nil {
		return c, fmt.Errorf("data directory: %w", err)
	}
	c.Data = data
	if len(c.Listen) == 0 {
		c.Listen = []string{":" + gateway.Port}
		if dev {
			c.Listen = []string{"127.0.0.1:" + gateway.Port, "[::1]:" + gateway.Port}
		}
	}
	if c.Database == "" {
		c.Database = "sqlite:" + filepath.Join(c.Data, "state.db")
	}
	if c.MasterKey == "" {
		c.MasterKey = "file:" + filepath.Join(c.Data, "master.key")
	}
	return c, c.check(cmd)
}

// check finds what is wrong with a configuration without touching anything.
func (c serverConfig) check(cmd *cobra.Command) error {
	for _, l := range c.Listen {
		if _, _, err := net.SplitHostPort(l); err != nil {
			return usagef(cmd, "listen address %q: want HOST:PORT or :PORT", l)
		}
	}
	if c.Address != "" {
		if _, err := gateway.Address(c.Address); err != nil {
			return usagef(cmd, "%v", err)
		}
	}
	if !strings.HasPrefix(c.Database, "sqlite:") && !strings.HasPrefix(c.Database, "postgres://") && !strings.HasPrefix(c.Database, "postgresql://") {
		return usagef(cmd, "database: want sqlite:PATH or postgres://HOST/NAME") // it may hold a password, so it is not shown
	}
	if !strings.HasPrefix(c.MasterKey, "file:") {
		return usagef(cmd, "master key %q: want file:PATH", c.MasterKey)
	}
	if c.Grace < 0 || c.Grace > time.Hour {
		return usagef(cmd, "grace %s: want at most an hour", c.Grace)
	}
	if c.Collect < 0 || c.Collect > 0 && c.Collect < time.Minute {
		return usagef(cmd, "collect %s: want at least a minute, or 0", c.Collect)
	}
	if c.Readers < time.Second {
		return usagef(cmd, "readers %s: want at least a second; a read that takes longer fails", c.Readers)
	}
	if c.Certificate.File == "" && (c.Certificate.Key != "" || c.Certificate.PasswordFile != "") {
		return usagef(cmd, "certificate.key and certificate.password_file belong to a certificate.file")
	}
	if err := c.Limits.check(); err != nil {
		return usagef(cmd, "%v", err)
	}
	if _, err := c.Log.logger(io.Discard); err != nil {
		return usagef(cmd, "%v", err)
	}
	return nil
}

// checkServer looks at what the configuration names and says what it found.
func (a *app) checkServer(ctx context.Context, c serverConfig) error {
	if c.Certificate.File != "" {
		password, err := c.password(a)
		if err != nil {
			return err
		}
		source := pki.Source{CertFile: c.Certificate.File, KeyFile: c.Certificate.Key, Password: password}
		server, err := pki.NewServer(ctx, source)
		if err != nil {
			return err
		}
		a.say("certificate  %s, until %s", server.Certificate().Leaf.Subject, server.Certificate().Leaf.NotAfter.Format(time.DateOnly))
	}
	b, err := c.begin(ctx)
	if err != nil {
		return err
	}
	key := c.masterKeyFile()
	switch info, err := os.Stat(key); {
	case errors.Is(err, os.ErrNotExist):
		a.say("master key   %s will be created", key)
	case err != nil:
		return fmt.Errorf("master key: %w", err)
	case info.Mode().Perm()&0o077 != 0:
		return withHint(fmt.Errorf("master key %s may be read by others", key), "chmod 600 %s", key)
	default:
		a.say("master key   %s", key)
	}
	if info, err := os.Stat(c.Data); err == nil && !info.IsDir() {
		return fmt.Errorf("data directory %s is not a directory", c.Data)
	}
	switch {
	case b.fresh:
		a.say("database     %s, without a provider: one will be made", strings.TrimPrefix(c.databaseText(), "database "))
	case b.newTrust:
		a.say("database     %s; its CA will be replaced", strings.TrimPrefix(c.databaseText(), "database "))
	default:
		a.say("database     %s", strings.TrimPrefix(c.databaseText(), "database "))
	}
	a.say("data         %s", c.Data)
	a.say("listen       %s", strings.Join(c.Listen, ", "))
	a.say("The configuration is good.")
	return nil
}

// password reads the password of a PFX file.
func (c serverConfig) password(a *app) (string, error) {
	if c.Certificate.PasswordFile == "" {
		return "", nil
	}
	return a.readSecret(c.Certificate.PasswordFile)
}

// runServer is the life of the server.
func (a *app) runServer(ctx context.Context, c serverConfig) (err error) {
	a.boundGarbage()
	profiles, err := openProfiles(c.Profiles)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, profiles.close()) }()
	log, err := c.Log.logger(a.err)
	if err != nil {
		return err
	}
	password, err := c.password(a)
	if err != nil {
		return err
	}
	listeners, err := listen(ctx, c.Listen)
	if err != nil {
		return err
	}
	if c.Address == "" {
		c.Address = publicAddress(c, listeners)
	}
	s, err := newServer(ctx, c, password, log)
	if err != nil {
		for _, l := range listeners {
			_ = l.Close()
		}
		return err
	}
	if err = s.bootstrap(ctx); err == nil && c.dev {
		err = a.announce(ctx, s)
	}
	if err != nil {
		for _, l := range listeners {
			_ = l.Close()
		}
		return errors.Join(err, s.close())
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	s.profiles = profiles
	return errors.Join(s.run(ctx, hangup, listeners...), s.close())
}

// listen opens the listeners. An empty host means all addresses, IPv6 and IPv4.
func listen(ctx context.Context, addresses []string) ([]net.Listener, error) {
	var listeners []net.Listener
	var failures []error
	for _, address := range addresses {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		listeners = append(listeners, l)
	}
	// A machine without IPv6 is served on what it has; a taken port is a mistake.
	for _, err := range failures {
		if len(listeners) > 0 && errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
			continue
		}
		for _, l := range listeners {
			_ = l.Close()
		}
		return nil, withHint(fmt.Errorf("listen: %w", err), "another process may have the port; choose one: --listen HOST:PORT")
	}
	if len(listeners) == 0 {
		return nil, errors.New("listen: no address could be used")
	}
	return listeners, nil
}

// publicAddress guesses what tenants connect to.
func publicAddress(c serverConfig, listeners []net.Listener) string {
	host, port, err := net.SplitHostPort(listeners[0].Addr().String())
	if err != nil {
		return ""
	}
	ip := net.ParseIP(host)
	if ip == nil || ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			host = "localhost"
		}
	}
	return net.JoinHostPort(host, port)
}
