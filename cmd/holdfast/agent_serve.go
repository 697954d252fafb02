package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/host"
)

// How long a stopping agent lets requests go on, and when it tells those who
// watch something that this is the end.
const (
	stopTimeout = 10 * time.Second
	stopWatch   = time.Second
)

func agentServeCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the agent",
		Long: `Run the agent: jobs on schedule and by hand, restores, and the socket that the other commands use.

It keeps everything in its data directory: agent.db (SQLite), master.key (which seals credentials and keys in the
database) and agent.sock (for its user only). It listens on no network, unless it has workers: then on the address that
--workers-listen gives. A run that a crash or a restart interrupts goes on
at the next start, without sending again what had arrived.

Configuration comes from a YAML or TOML file, the environment (HOLDFAST_ and the key in upper case, dots as
underscores) and flags, later ones first. Unknown keys are refused. systemd's credential "holdfast-agent.key" is the
master key if it is there.

Keys of the file:
  data, name, master_key, plugins, workers.listen, workers.address, log.level, log.format, profiles`,
		Example: `  holdfast agent serve
  holdfast agent serve --data /srv/holdfast-agent --name berlin
  holdfast agent serve --plugins /usr/lib/holdfast --log-level debug
  holdfast agent serve --workers-listen :6181 --workers-address agent.example.com:6181`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config := siteConfig{Log: logConfig{Level: "info", Format: "text"}}
			if err := configure(file, a.env, cmd.Flags(), &config); err != nil {
				return err
			}
			log, err := config.Log.logger(a.err)
			if err != nil {
				return usagef(cmd, "%w", err)
			}
			slog.SetDefault(log)
			if config.Data != "" && a.socket == "" {
				a.socket = filepath.Join(config.Data, "agent.sock")
			}
			config.complete(a)
			return a.serveSite(cmd.Context(), config, log)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&file, "config", "", "configuration file, YAML or TOML")
	flags.String("data", "", "data directory (default "+a.dataDir("agent")+")")
	flags.String("name", "", "name of the site (default the machine's name)")
	flags.String("master-key", "", "where the master key is: file:PATH (default master.key in the data directory)")
	flags.StringSlice("plugins", nil, "directories with plugin programs (default that of this program)")
	flags.String("workers-listen", "", "address on which workers connect, such as :6181 (default: none do)")
	flags.String("workers-address", "", "address that workers are told to connect to (default: that on which the agent listens)")
	flags.String("log-level", "", "debug, info, warn or error (default info)")
	flags.String("log-format", "", "text or json (default text)")
	flags.String("profiles", "", profilesUsage)
	return cmd
}

// serveSite runs the agent until ctx ends, then lets it stop in good order.
func (a *app) serveSite(ctx context.Context, config siteConfig, log *slog.Logger) (err error) {
	a.boundGarbage()
	profiles, err := openProfiles(config.Profiles)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, profiles.close()) }()
	cgroup, reason, err := host.DelegatedCgroup()
	if err != nil {
		reason = err.Error()
	}
	if reason != "" {
		log.InfoContext(ctx, "plugins have no cgroups of their own", "reason", reason)
	}
	config.cgroup = cgroup
	s, err := openSite(ctx, config, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	listener, err := unixSocket{path: a.socketPath(), owner: "agent", flag: "--socket"}.listen()
	if err != nil {
		return err
	}
	requests, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	server := &http.Server{Handler: api.NewAgentHandler(&api.Agent{Site: s.agent}), ReadHeaderTimeout: headerTimeout,
		BaseContext: func(net.Listener) context.Context { return requests },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	g, running := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the agent's socket: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-running.Done()
		watchers := time.AfterFunc(stopWatch, end)
		defer watchers.Stop()
		last, cancel := context.WithTimeout(context.WithoutCancel(running), stopTimeout)
		defer cancel()
		if err := server.Shutdown(last); err != nil {
			return server.Close()
		}
		return nil
	})
	g.Go(func() error { return s.agent.Serve(running) })
	g.Go(func() error { return profiles.serve(running, log) })
	if s.hub != nil {
		g.Go(func() error { return s.hub.serve(running, config.Workers.Listen, log) })
	}
	log.InfoContext(ctx, "agent serves", "site", config.Name, "data", config.Data, "socket", a.socketPath(), "version", versionText())
	err = g.Wait()
	if ctx.Err() != nil {
		log.Info("agent stopped")
	}
	return err
}

// unixSocket is a socket of a daemon, for its user alone.
type unixSocket struct {
	path  string
	owner string // what answers there, for the message that another one does
	flag  string // that chooses the path
}

// listen opens the socket. One that a killed process left is replaced.
func (s unixSocket) listen() (net.Listener, error) {
	if conn, err := net.Dial("unix", s.path); err == nil {
		_ = conn.Close()
		return nil, withHint(fmt.Errorf("another %s answers at %s", s.owner, s.path), "stop it, or choose another socket with %s", s.flag)
	}
	if info, err := os.Lstat(s.path); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(s.path); err != nil {
			return nil, fmt.Errorf("replace the %s's socket: %w", s.owner, err)
		}
	}
	// The mode is right from the first moment on; nothing else runs yet that makes
	// files.
	mask := syscall.Umask(0o177)
	listener, err := net.Listen("unix", s.path)
	syscall.Umask(mask)
	if err != nil {
		return nil, withHint(fmt.Errorf("listen on the %s's socket: %w", s.owner, err), "the path may have at most 107 bytes; choose a shorter one with %s", s.flag)
	}
	return listener, nil
}
