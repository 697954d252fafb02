package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

func pluginCommand(a *app) *cobra.Command {
	return noun("plugin", "Programs that drive hypervisors",
		`A plugin is a program holdfast-plugin-NAME beside this one, or in the agent's plugin directories. It runs only after it
was enabled: that pins the checksum of the program as it is now, which is compared at every start.`,
		pluginListCommand(a), pluginEnableCommand(a), pluginDisableCommand(a), pluginDescribeCommand(a), pluginVerifyCommand(a),
		pluginNewCommand(a))
}

func pluginListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the plugins that are installed or enabled",
		Example: "  holdfast plugin list",
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
			return list(a, plugins,
				column[agent.PluginStatus]{title: "plugin", value: func(p agent.PluginStatus) string { return p.Name }},
				column[agent.PluginStatus]{title: "enabled", value: func(p agent.PluginStatus) string { return yesNo(p.Enabled) }},
				column[agent.PluginStatus]{title: "version", value: func(p agent.PluginStatus) string { return p.Version }},
				column[agent.PluginStatus]{title: "abilities", value: abilitiesText},
				column[agent.PluginStatus]{title: "program", value: func(p agent.PluginStatus) string { return p.Path }})
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

func pluginEnableCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "enable NAME",
		Short:             "Trust a plugin's program as it is now",
		Long:              "Trust a plugin's program as it is now: its SHA-256 is pinned and compared at every start. After an upgrade, enable it again.",
		Example:           "  holdfast plugin enable libvirt",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(pluginNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			p, err := read[agent.PluginStatus](c.SiteEnablePluginWithBody(cmd.Context(), jsonType, content(map[string]string{"name": args[0]})))
			if err != nil {
				return err
			}
			return show(a, p, pluginFields(p)...)
		},
	}
}

func pluginFields(p agent.PluginStatus) []field {
	return []field{{"plugin", p.Name}, {"version", p.Version}, {"program", p.Path}, {"sha256", p.SHA256},
		{"abilities", abilitiesText(p)}, {"enabled", timeText(p.EnabledAt)}}
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
		Short:             "Show an enabled plugin and the settings that it takes",
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
