package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/worker"
	"github.com/holdfast-dr/holdfast/sdk"
)

func workerCommand(a *app) *cobra.Command {
	return noun("worker", "Plugins on another machine than the agent",
		`A worker runs plugins where the disks are: on a hypervisor's host, in a proxy machine. It dials the agent and listens on
nothing. "invite", "list" and "remove" are for the machine of the agent, "connect" and "serve" for the worker's.

Then an endpoint names its workers: holdfast endpoint add NAME --plugin PLUGIN --worker WORKER`,
		workerInviteCommand(a), workerConnectCommand(a), workerServeCommand(a), workerListCommand(a), workerRemoveCommand(a))
}

func workerInviteCommand(a *app) *cobra.Command {
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "invite NAME",
		Short: "Make a one-time token for a worker (at the agent)",
		Long: `Make a one-time token with which a worker enrols, and print what to type there. The agent has to listen for workers:
holdfast agent serve --workers-listen :` + worker.DefaultPort + `

A worker that lost its disk, or is to move, is invited again by its name; what enrolled before is cut off when the new
token is used.`,
		Example: `  holdfast worker invite kvm1
  holdfast worker invite kvm1 --expires 1h -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			body := map[string]any{"name": args[0]}
			if cmd.Flags().Changed("expires") {
				hours := int((expires + time.Hour - 1) / time.Hour)
				if expires <= 0 || hours > int(worker.MaxInvitation/time.Hour) {
					return usagef(cmd, "--expires %s: want more than 0 and at most %d days", expires, int(worker.MaxInvitation.Hours()/24))
				}
				body["expires_hours"] = hours
			}
			got, err := read[agent.WorkerInvitation](c.SiteInviteWorkerWithBody(cmd.Context(), jsonType, content(body)))
			if err != nil {
				return err
			}
			if err := show(a, got, field{"worker", got.Worker}, field{"address", got.Address}, field{"fingerprint", got.Fingerprint},
				field{"token", got.Token}, field{"good until", timeText(got.Expires)}); err != nil {
				return err
			}
			a.note("The token is shown once. At the worker: holdfast worker connect %s --fingerprint %s", got.Address, got.Fingerprint)
			return nil
		},
	}
	cmd.Flags().DurationVar(&expires, "expires", worker.DefaultInvitation, "how long the token is good for, in hours")
	return cmd
}

func workerConnectCommand(a *app) *cobra.Command {
	var e worker.Enrolment
	var tokenFile string
	cmd := &cobra.Command{
		Use:   "connect ADDRESS",
		Short: "Connect this worker to an agent (at the worker)",
		Long: `Connect this worker to an agent, with the one-time token of "holdfast worker invite". The fingerprint is compared before the
token leaves this machine.

The token is asked for, or read from a file; it is never an argument, for every process can read those. Repeating the
command with the same token is safe if an answer was lost. A worker that runs takes the new connection by itself.`,
		Example: `  holdfast worker connect agent.example.com --fingerprint SHA256:3f:0a:…
  holdfast worker connect 192.0.2.7:6181 --fingerprint SHA256:3f:0a:… --token-file token.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e.Address = args[0]
			if _, err := pki.ParseFingerprint(e.Fingerprint); err != nil { // before anybody types a token
				return withHint(err, "copy all of it from what holdfast worker invite printed")
			}
			if e.Dir == "" {
				e.Dir = a.dataDir("worker")
			}
			var err error
			if e.Token, err = a.ask(cmd.Context(), tokenFile, "Enrolment token: "); err != nil {
				return err
			}
			id, err := worker.Enrol(cmd.Context(), e)
			if err != nil {
				return workerProblem(err)
			}
			shown := connectedWorker{Worker: id.Name, ID: id.ID, Address: id.Address, Fingerprint: id.Fingerprint}
			if err := show(a, shown, field{"worker", id.Name}, field{"agent", id.Address}, field{"verified by", verifiedBy(id.Fingerprint)}); err != nil {
				return err
			}
			a.note("Next: holdfast worker serve, if it does not run yet.")
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&e.Fingerprint, "fingerprint", "", "fingerprint that holdfast worker invite printed")
	flags.StringVar(&tokenFile, "token-file", "", "file with the token, - for standard input (default: ask)")
	flags.StringVar(&e.Dir, "data", "", "data directory (default "+a.dataDir("worker")+")")
	_ = cmd.MarkFlagRequired("fingerprint")
	return cmd
}

// workerProblem is an error of the worker's end as this program's others are:
// with a hint, and an exit code that tells refusals from failures.
func workerProblem(err error) error {
	e, ok := errors.AsType[*sdk.Error](err)
	if !ok {
		return err
	}
	status, code := http.StatusConflict, gateway.CodeConflict
	switch {
	case errors.Is(e, sdk.ErrDenied):
		status, code = http.StatusForbidden, gateway.CodeDenied
	case errors.Is(e, sdk.ErrUnavailable), errors.Is(e, sdk.ErrBusy):
		status, code = http.StatusServiceUnavailable, gateway.CodeUnavailable
	}
	return gateway.NewProblem(status, code, e.Message).WithHint(e.Hint)
}

// connectedWorker is a worker's identity without its key.
type connectedWorker struct {
	Worker      string `json:"worker"`
	ID          string `json:"id"`
	Address     string `json:"address"`
	Fingerprint string `json:"fingerprint"`
}

// workerConfig is the worker's process configuration.
type workerConfig struct {
	Data    string    `mapstructure:"data"`
	Plugins []string  `mapstructure:"plugins"`
	Log     logConfig `mapstructure:"log"`
}

func workerServeCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the worker (at the worker)",
		Long: `Run the worker: it stays connected to its agent, and runs the plugins that the agent asks for, if the agent's operator
enabled just that build of them. Settings and credentials pass through in memory and are never written here. When the agent
is lost, the plugins that it started are ended.

Configuration comes from a YAML or TOML file, the environment (HOLDFAST_ and the key in upper case, dots as
underscores) and flags, later ones first. Unknown keys are refused.

Keys of the file:
  data, plugins, log.level, log.format`,
		Example: `  holdfast worker serve
  holdfast worker serve --plugins /usr/lib/holdfast --log-level debug`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			config := workerConfig{Log: logConfig{Level: "info", Format: "text"}}
			if err := configure(file, a.env, cmd.Flags(), &config); err != nil {
				return err
			}
			log, err := config.Log.logger(a.err)
			if err != nil {
				return usagef(cmd, "%w", err)
			}
			slog.SetDefault(log)
			if config.Data == "" {
				config.Data = a.dataDir("worker")
			}
			if config.Data, err = filepath.Abs(config.Data); err != nil { // plugins have another working directory
				return err
			}
			if _, err := worker.Load(config.Data); err != nil {
				return workerProblem(err)
			}
			w, err := worker.New(worker.Options{Dir: config.Data, Plugins: config.Plugins, Version: versionText(), Log: log})
			if err != nil {
				return workerProblem(err)
			}
			defer func() { err = errors.Join(err, w.Close()) }()
			log.InfoContext(cmd.Context(), "worker serves", "data", config.Data, "version", versionText())
			if err := w.Serve(cmd.Context()); err != nil {
				return err
			}
			log.Info("worker stopped")
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&file, "config", "", "configuration file, YAML or TOML")
	flags.String("data", "", "data directory (default "+a.dataDir("worker")+")")
	flags.StringSlice("plugins", nil, "directories with plugin programs (default that of this program)")
	flags.String("log-level", "", "debug, info, warn or error (default info)")
	flags.String("log-format", "", "text or json (default text)")
	return cmd
}

func workerListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the workers of the agent",
		Example: "  holdfast worker list\n  holdfast worker list -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			all, err := read[[]agent.WorkerStatus](c.SiteListWorkers(cmd.Context()))
			if err != nil {
				return err
			}
			return list(a, all,
				column[agent.WorkerStatus]{title: "worker", value: func(w agent.WorkerStatus) string { return w.Name }},
				column[agent.WorkerStatus]{title: "state", value: func(w agent.WorkerStatus) string { return w.State }},
				column[agent.WorkerStatus]{title: "since", value: func(w agent.WorkerStatus) string { return timeText(w.Since) }},
				column[agent.WorkerStatus]{title: "from", value: func(w agent.WorkerStatus) string { return w.Address }},
				column[agent.WorkerStatus]{title: "system", value: func(w agent.WorkerStatus) string { return systemText(w) }},
				column[agent.WorkerStatus]{title: "version", value: func(w agent.WorkerStatus) string { return w.Version }},
				column[agent.WorkerStatus]{title: "plugins", right: true, value: func(w agent.WorkerStatus) string { return strconv.Itoa(w.Processes) }})
		},
	}
}

func systemText(w agent.WorkerStatus) string {
	if w.OS == "" {
		return ""
	}
	return w.OS + "/" + w.Arch
}

func workerRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "remove WORKER",
		Short: "Forget a worker and cut it off at once (at the agent)",
		Long: `Forget a worker: its connection and its plugins end at once, and it is refused from then on. Endpoints that name it go on
with their other workers, or fail until it is invited again.`,
		Example:           "  holdfast worker remove kvm1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(workerNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			if err := done(c.SiteRemoveWorker(cmd.Context(), args[0])); err != nil {
				return err
			}
			a.say("worker %s is removed", args[0])
			return nil
		},
	}
}

// enableOnWorker trusts a plugin's program as it is on a worker.
func (a *app) enableOnWorker(cmd *cobra.Command, workerName, pluginName string) error {
	c, err := a.agent()
	if err != nil {
		return err
	}
	p, err := read[agent.WorkerPlugin](c.SiteEnableWorkerPluginWithBody(cmd.Context(), workerName, jsonType, content(map[string]string{"name": pluginName})))
	if err != nil {
		return err
	}
	return show(a, p, field{"plugin", p.Plugin}, field{"version", p.Version}, field{"sha256", p.SHA256},
		field{"enabled for", fmt.Sprintf("machines of %s, as it is on %s", p.Arch, p.Worker)})
}
