package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/host"
)

// policyFlags are the parts of a policy that a command line changes.
type policyFlags struct {
	user                     string
	memory, files, processes string
	cpu                      int64
	reach                    []string
}

func pluginEnableCommand(a *app) *cobra.Command {
	var f policyFlags
	var onWorker string
	cmd := &cobra.Command{
		Use:   "enable NAME",
		Short: "Trust a plugin's program as it is now",
		Long: `Trust a plugin's program as it is now: its SHA-256 is pinned and compared at every start. It also ends a quarantine.
Processes that run go on with what they have; after an upgrade, "holdfast plugin reload" changes them without harm to jobs.

The flags say how closely the plugin's processes are kept from their next start on; what no flag names stays as it was.
Where the agent runs as root, each endpoint's process has a user of its own (--user own), which may do nothing, unless
the plugin says that it needs the agent's user (--user host), as libvirt does for its sockets. A user of the machine
(--user NAME), such as one in the group libvirt, lies between them. CPU time is bounded only where the agent has a cgroup
of its own (systemd's Delegate=yes). "holdfast plugin describe" shows what the system did not let the agent apply.

A worker starts the build that is enabled for its architecture. Where that is the agent's too, enabling the plugin here is
enough; otherwise, or if the agent does not have the plugin, --worker enables it as it is there.`,
		Example: `  holdfast plugin enable libvirt
  holdfast plugin enable libvirt --user holdfast-libvirt --memory 512MiB
  holdfast plugin enable mine --user own --reach nbd.example.net
  holdfast plugin enable libvirt --worker kvm1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(pluginNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if onWorker != "" {
				return a.enableOnWorker(cmd, onWorker, args[0])
			}
			c, err := a.agent()
			if err != nil {
				return err
			}
			body := map[string]any{"name": args[0]}
			if policy, err := f.policy(cmd, c, args[0]); err != nil {
				return err
			} else if policy != nil {
				body["policy"] = policy
			}
			p, err := read[agent.PluginStatus](c.SiteEnablePluginWithBody(cmd.Context(), jsonType, content(body)))
			if err != nil {
				return err
			}
			return show(a, p, pluginFields(p)...)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&onWorker, "worker", "", "enable it as it is on this worker, for all machines of the worker's architecture")
	_ = cmd.RegisterFlagCompletionFunc("worker", a.completeAll(workerNames))
	flags.StringVar(&f.user, "user", "", "whom it runs as: host, own, or a user of this machine; \"\" is what the plugin asks for")
	flags.StringVar(&f.memory, "memory", "", "how much memory it may use, such as 512MiB, or none for no bound (default 2GiB)")
	flags.StringVar(&f.files, "open-files", "", "how many files it may have open, or none for no bound (default 4096)")
	flags.StringVar(&f.processes, "processes", "", "how many processes and threads it may have, or none for no bound (default 512)")
	flags.Int64Var(&f.cpu, "cpu", 0, "how much CPU time it may take, in percent of one CPU; 0 is no bound")
	flags.StringSliceVar(&f.reach, "reach", nil, "hosts, and directories of sockets, where its disks may be beside those in the endpoint's settings")
	for _, policy := range []string{"user", "memory", "open-files", "processes", "cpu", "reach"} {
		cmd.MarkFlagsMutuallyExclusive("worker", policy)
	}
	return cmd
}

// policy is the plugin's policy with what the flags change, or nil if they
// change nothing.
func (f *policyFlags) policy(cmd *cobra.Command, c *client.Client, name string) (*host.PluginPolicy, error) {
	changed := cmd.Flags().Changed
	if !changed("user") && !changed("memory") && !changed("open-files") && !changed("processes") && !changed("cpu") && !changed("reach") {
		return nil, nil
	}
	policy, err := policyOf(cmd.Context(), c, name)
	if err != nil {
		return nil, err
	}
	for _, bound := range []struct {
		flag, text string
		value      *int64
		parse      func(string) (int64, error)
	}{
		{"memory", f.memory, &policy.MemoryBytes, parseSize},
		{"open-files", f.files, &policy.OpenFiles, parseCount},
		{"processes", f.processes, &policy.Processes, parseCount},
	} {
		if !changed(bound.flag) {
			continue
		}
		if *bound.value = -1; bound.text == "none" {
			continue
		}
		if *bound.value, err = bound.parse(bound.text); err != nil {
			return nil, usagef(cmd, "--%s: %w", bound.flag, err)
		}
	}
	if changed("user") {
		policy.User = f.user
	}
	if changed("cpu") {
		policy.CPUPercent = f.cpu
	}
	if changed("reach") {
		policy.Reach = f.reach
	}
	return policy, nil
}

// policyOf is the policy of a plugin as it is, the default for one that is not
// enabled.
func policyOf(ctx context.Context, c *client.Client, name string) (*host.PluginPolicy, error) {
	all, err := read[[]agent.PluginStatus](c.SiteListPlugins(ctx))
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.Name == name && p.Policy != nil {
			return p.Policy, nil
		}
	}
	return &host.PluginPolicy{}, nil
}

func parseCount(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no number of things, and not none", text)
	}
	return n, nil
}

// policyText is a policy for people.
func policyText(p agent.PluginStatus) string {
	if p.Policy == nil {
		return ""
	}
	user := p.Policy.User
	if user == "" {
		if user = host.UserOwn; p.HostUser {
			user = host.UserHost
		}
	}
	bound := func(name string, n, preset int64, text func(int64) string) string {
		switch n {
		case 0:
			return name + " " + text(preset)
		case -1:
			return name + " without bound"
		}
		return name + " " + text(n)
	}
	count := func(n int64) string { return strconv.FormatInt(n, 10) }
	parts := []string{"user " + user, bound("memory", p.Policy.MemoryBytes, host.DefaultMemory, bytesText),
		bound("open files", p.Policy.OpenFiles, host.DefaultOpenFiles, count),
		bound("processes", p.Policy.Processes, host.DefaultProcesses, count)}
	if p.Policy.CPUPercent > 0 {
		parts = append(parts, fmt.Sprintf("CPU %d%%", p.Policy.CPUPercent))
	}
	if len(p.Policy.Reach) > 0 {
		parts = append(parts, "reach "+strings.Join(p.Policy.Reach, " "))
	}
	return strings.Join(parts, ", ")
}
