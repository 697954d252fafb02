package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/host"
)

// drainPoll is how often a command that waits looks at a drain.
const drainPoll = time.Second

func pluginReloadCommand(a *app) *cobra.Command {
	var (
		drain            time.Duration
		now, force, wait bool
	)
	cmd := &cobra.Command{
		Use:   "reload NAME",
		Short: "Change to a plugin's program as it is now, while jobs run",
		Long: `Change to a plugin's program as it is now, such as after an upgrade, while jobs run.

The new version is first started beside the old one at every endpoint that runs it, and asked whether it works. If it does
not at one of them, nothing changes and the command says why. If it does, it is trusted as by "holdfast plugin enable", new
work gets it, and jobs that run keep the old one until they are done. What still uses the old one at the end of the drain
is moved: a call in flight is repeated, a disk that is open is opened again. With the same program, processes are
started afresh.`,
		Example: `  holdfast plugin reload libvirt
  holdfast plugin reload libvirt --drain 1h --wait
  holdfast plugin reload libvirt --now`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(pluginNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if drain < 0 || drain > host.MaxDrain {
				return usagef(cmd, "--drain is at most %s; to wait for nobody: --now", host.MaxDrain)
			}
			c, err := a.agent()
			if err != nil {
				return err
			}
			seconds := int64(drain.Round(time.Second).Seconds())
			if now {
				seconds = -1
			}
			done, err := read[host.Reloaded](c.SiteReloadPluginWithBody(cmd.Context(), args[0], jsonType,
				content(map[string]any{"drain_seconds": seconds, "force": force})))
			if err != nil {
				return err
			}
			if wait && len(done.Drains) > 0 {
				if err := a.awaitDrain(cmd.Context(), c, args[0]); err != nil {
					return err
				}
				done.Drains, done.Until = []string{}, time.Time{}
			}
			return show(a, done, reloadFields(done)...)
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&drain, "drain", host.DefaultDrain, "how long jobs may go on with the version before")
	flags.BoolVar(&now, "now", false, "move jobs to the new version at once")
	flags.BoolVar(&force, "force", false, "do not try the new version first, such as when the back-end is down")
	flags.BoolVar(&wait, "wait", false, "wait until nobody uses the version before")
	cmd.MarkFlagsMutuallyExclusive("drain", "now")
	return cmd
}

func reloadFields(r host.Reloaded) []field {
	program := "the same; its processes are started afresh"
	if r.Changed {
		program = "another one"
	}
	fields := []field{{"plugin", r.Plugin}, {"from", r.From}, {"to", r.To}, {"program", program},
		{"tried at", strings.Join(r.Tried, ", ")}, {"drains at", strings.Join(r.Drains, ", ")}, {"until", timeText(r.Until)}}
	if len(r.Drains) > 0 {
		fields = append(fields, field{"progress", "holdfast plugin describe " + r.Plugin})
	}
	return fields
}

// awaitDrain waits until no endpoint of a plugin drains, and says on standard
// error what it waits for whenever that changes.
func (a *app) awaitDrain(ctx context.Context, c *client.Client, name string) error {
	for last := ""; ; {
		p, err := read[agent.PluginStatus](c.SiteDescribePlugin(ctx, name))
		if err != nil {
			return err
		}
		text := drainText(p)
		if text == "" {
			return nil
		}
		if text != last {
			a.note("waiting for %s", text)
			last = text
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainPoll):
		}
	}
}

// drainText says what still uses an older version, "" for nothing.
func drainText(p agent.PluginStatus) string {
	if p.Running == nil {
		return ""
	}
	var parts []string
	for _, e := range p.Running.Endpoints {
		if e.State == host.StateDraining {
			parts = append(parts, e.Endpoint+": "+endpointUse(e))
		}
	}
	return strings.Join(parts, "; ")
}
