package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

func pluginCommand(a *app) *cobra.Command {
	return noun("plugin", "Programs that drive hypervisors",
		`A plugin is a program holdfast-plugin-NAME beside this one, or in the agent's plugin directories. It runs only after it
was enabled: that pins the checksum of the program as it is now, which is compared at every start.

Each endpoint has a process of its own. One that keeps ending or hanging is tried less and less often; one that breaks the
contract, or whose program is not the one that was enabled, is in quarantine until an operator enables or reloads it.`,
		pluginListCommand(a), pluginEnableCommand(a), pluginDisableCommand(a), pluginReloadCommand(a), pluginDescribeCommand(a),
		pluginLogsCommand(a), pluginMetricsCommand(a), pluginVerifyCommand(a),
		pluginNewCommand(a))
}

func pluginListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the plugins that are installed or enabled, and how it stands with them",
		Example: "  holdfast plugin list\n  holdfast plugin list -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			plugins, err := read[[]agent.PluginStatus](c.SiteListPlugins(cmd.Context()))
			if err != nil {
				return err
			}
			err = list(a, plugins,
				column[agent.PluginStatus]{title: "plugin", value: func(p agent.PluginStatus) string { return p.Name }},
				column[agent.PluginStatus]{title: "enabled", value: func(p agent.PluginStatus) string { return yesNo(p.Enabled) }},
				column[agent.PluginStatus]{title: "version", value: func(p agent.PluginStatus) string { return p.Version }},
				column[agent.PluginStatus]{title: "state", value: stateWord},
				column[agent.PluginStatus]{title: "processes", right: true, value: processesText},
				column[agent.PluginStatus]{title: "abilities", value: abilitiesText},
				column[agent.PluginStatus]{title: "program", value: func(p agent.PluginStatus) string { return p.Path }})
			for _, p := range plugins {
				if p.Running != nil && quarantineOf(p) != nil {
					a.say("\n%s: %s", p.Name, stateText(p))
				}
			}
			return err
		},
	}
}

func abilitiesText(p agent.PluginStatus) string {
	words := make([]string, len(p.Abilities))
	for i, ability := range p.Abilities {
		words[i] = string(ability)
	}
	return strings.Join(words, ", ")
}

// stateWord is the worst of a plugin's states.
func stateWord(p agent.PluginStatus) string {
	if p.Running == nil {
		return ""
	}
	return string(p.Running.State)
}

// stateText is the worst of a plugin's states, with the reason of a quarantine.
func stateText(p agent.PluginStatus) string {
	if p.Running == nil {
		return ""
	}
	if q := quarantineOf(p); q != nil {
		return string(p.Running.State) + ": " + q.Reason
	}
	return string(p.Running.State)
}

// quarantineOf is the plugin's quarantine, or the first of its endpoints'.
func quarantineOf(p agent.PluginStatus) *host.Quarantine {
	if p.Running.Quarantine != nil {
		return p.Running.Quarantine
	}
	for _, e := range p.Running.Endpoints {
		if e.Quarantine != nil {
			return e.Quarantine
		}
	}
	return nil
}

func processesText(p agent.PluginStatus) string {
	if p.Running == nil {
		return ""
	}
	n := 0
	for _, e := range p.Running.Endpoints {
		if !e.Started.IsZero() {
			n++
		}
	}
	return strconv.Itoa(n)
}

func pluginFields(p agent.PluginStatus) []field {
	return []field{{"plugin", p.Name}, {"version", p.Version}, {"program", p.Path}, {"sha256", p.SHA256},
		{"abilities", abilitiesText(p)}, {"enabled", timeText(p.EnabledAt)}, {"state", stateText(p)}, {"policy", policyText(p)}}
}

func pluginDisableCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "disable NAME",
		Short:             "Trust a plugin no longer",
		Example:           "  holdfast plugin disable sim",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(pluginNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			if err := done(c.SiteDisablePlugin(cmd.Context(), args[0])); err != nil {
				return err
			}
			a.say("plugin %s is disabled", args[0])
			return nil
		},
	}
}

func pluginDescribeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "describe NAME",
		Short:             "Show an enabled plugin, how it stands with it, and the settings that it takes",
		Example:           "  holdfast plugin describe libvirt",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(pluginNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			p, err := read[agent.PluginStatus](c.SiteDescribePlugin(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(p)
			}
			if err := show(a, p, pluginFields(p)...); err != nil {
				return err
			}
			if err := a.listHealth(p); err != nil {
				return err
			}
			settings, err := settingsOf(p)
			if err != nil || len(settings) == 0 {
				return err
			}
			a.say("\nSettings of an endpoint (holdfast endpoint add NAME --plugin %s --set SETTING=VALUE):", p.Name)
			return list(a, settings,
				column[setting]{title: "setting", value: func(s setting) string { return s.Name }},
				column[setting]{title: "type", value: settingType},
				column[setting]{title: "required", value: func(s setting) string { return yesNo(s.Required) }},
				column[setting]{title: "meaning", value: func(s setting) string { return s.Help }})
		},
	}
}

// listHealth prints how it stands with a plugin at its endpoints, and what it
// did.
func (a *app) listHealth(p agent.PluginStatus) error {
	if p.Running == nil {
		return nil
	}
	if len(p.Running.Endpoints) > 0 {
		a.say("\nEndpoints:")
		err := list(a, p.Running.Endpoints,
			column[host.EndpointState]{title: "endpoint", value: func(e host.EndpointState) string { return e.Endpoint }},
			column[host.EndpointState]{title: "state", value: func(e host.EndpointState) string { return string(e.State) }},
			column[host.EndpointState]{title: "version", value: func(e host.EndpointState) string { return e.Version }},
			column[host.EndpointState]{title: "pid", right: true, value: func(e host.EndpointState) string { return numberText(int64(e.PID)) }},
			column[host.EndpointState]{title: "use", value: endpointUse},
			column[host.EndpointState]{title: "next", value: func(e host.EndpointState) string { return timeText(e.Next) }},
			column[host.EndpointState]{title: "note", value: endpointNote})
		if err != nil {
			return err
		}
	}
	m := p.Running.Metrics
	if len(m.Calls) == 0 {
		return nil
	}
	a.say("\nSince the agent started: %s read, %s written, %d starts, %d restarts, %d failed starts", bytesText(m.ReadBytes), bytesText(m.WrittenBytes),
		m.Starts, m.Restarts, m.FailedStarts)
	return list(a, m.Calls,
		column[host.CallMetrics]{title: "call", value: func(c host.CallMetrics) string { return c.Method }},
		column[host.CallMetrics]{title: "ended", right: true, value: func(c host.CallMetrics) string { return strconv.FormatInt(c.Calls, 10) }},
		column[host.CallMetrics]{title: "in flight", right: true, value: func(c host.CallMetrics) string { return numberText(c.InFlight) }},
		column[host.CallMetrics]{title: "longest", right: true, value: func(c host.CallMetrics) string { return durationText(c.Longest) }},
		column[host.CallMetrics]{title: "errors", value: faultsText})
}

// endpointUse says what uses a process.
func endpointUse(e host.EndpointState) string {
	if e.Started.IsZero() {
		return ""
	}
	return fmt.Sprintf("%d users, %d calls, %d disks", e.Users, e.InFlight, e.OpenDisks)
}

// endpointNote is what an operator should know of an endpoint.
func endpointNote(e host.EndpointState) string {
	var notes []string
	if e.Quarantine != nil {
		notes = append(notes, e.Quarantine.Reason)
	}
	if !e.Drains.IsZero() {
		notes = append(notes, "drains until "+timeText(e.Drains))
	}
	if e.Failures > 0 {
		notes = append(notes, fmt.Sprintf("%d failures in a row", e.Failures))
	}
	if len(e.Unmet) > 0 {
		notes = append(notes, "not applied: "+strings.Join(e.Unmet, "; "))
	}
	return strings.Join(notes, "; ")
}

func faultsText(c host.CallMetrics) string {
	var parts []string
	for _, fault := range slices.Sorted(maps.Keys(c.Errors)) {
		parts = append(parts, fmt.Sprintf("%d by %s", c.Errors[fault], fault))
	}
	return strings.Join(parts, ", ")
}

// numberText is a number for people, "" for none.
func numberText(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// setting is one field of a plugin's schema.
type setting = plugin.Field

func settingType(s setting) string {
	switch {
	case s.Secret:
		return s.Type + ", secret"
	case len(s.Enum) > 0:
		return strings.Join(s.Enum, "|")
	}
	return s.Type
}

// settingsOf reads a plugin's schema; fields of objects get dotted names.
func settingsOf(p agent.PluginStatus) ([]setting, error) {
	var schema plugin.Schema
	if len(p.Config) > 0 {
		if err := json.Unmarshal(p.Config, &schema); err != nil {
			return nil, fmt.Errorf("read the settings of plugin %s: %w", p.Name, err)
		}
	}
	return flatten("", schema.Fields), nil
}

func flatten(prefix string, fields []setting) []setting {
	var all []setting
	for _, f := range fields {
		f.Name = prefix + f.Name
		if f.Type == "object" {
			all = append(all, flatten(f.Name+".", f.Fields)...)
			continue
		}
		all = append(all, f)
	}
	return all
}
