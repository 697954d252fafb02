package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/client"
)

// maxSettings bounds a file with settings or one setting.
const maxSettings = 1 << 20

func endpointCommand(a *app) *cobra.Command {
	return noun("endpoint", "Hypervisors and how to reach them",
		"An endpoint is one back-end that a plugin drives: a libvirt host, a vCenter. Its credentials stay on this machine, sealed.",
		endpointAddCommand(a), endpointListCommand(a), endpointProbeCommand(a), endpointDeleteCommand(a))
}

func endpointAddCommand(a *app) *cobra.Command {
	var spec agent.EndpointSpec
	var set, setFile []string
	var settings string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add an endpoint",
		Long: `Add an endpoint, after its plugin has tried to reach it. The settings are those that "holdfast plugin describe" lists.

Secrets come from files or standard input, never from the command line, where every process could read them.`,
		Example: `  holdfast endpoint add lab --plugin sim
  holdfast endpoint add kvm1 --plugin libvirt --set uri=qemu:///system
  holdfast endpoint add kvm2 --plugin libvirt --set uri=qemu+tls://kvm2/system --set-file ca=ca.pem --set-file cert=cert.pem --set-file key=key.pem
  holdfast endpoint add kvm3 --plugin libvirt --settings kvm3.json
  holdfast endpoint add kvm4 --plugin libvirt --set uri=qemu:///system --worker kvm4`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Name = args[0]
			c, err := a.agent()
			if err != nil {
				return err
			}
			var schema []setting
			if len(set)+len(setFile) > 0 {
				if schema, err = schemaOf(cmd.Context(), c, spec.Plugin); err != nil {
					return err
				}
			}
			if spec.Settings, err = a.settings(cmd, schema, settings, set, setFile); err != nil {
				return err
			}
			e, err := read[agent.EndpointStatus](c.SiteAddEndpointWithBody(cmd.Context(), jsonType, content(spec)))
			if err != nil {
				return err
			}
			return show(a, e, field{"endpoint", e.Name}, field{"plugin", e.Plugin}, field{"workers", strings.Join(e.Workers, ", ")}, field{"id", e.ID})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&spec.Plugin, "plugin", "", "plugin that drives it")
	flags.StringArrayVar(&set, "set", nil, "setting: KEY=VALUE (not for secrets)")
	flags.StringArrayVar(&setFile, "set-file", nil, "setting from a file: KEY=FILE, - for standard input")
	flags.StringVar(&settings, "settings", "", "file with all settings as a JSON object, - for standard input")
	flags.StringSliceVar(&spec.Workers, "worker", nil, "worker that runs the plugin; several are tried in their order (default: it runs at the agent)")
	_ = cmd.MarkFlagRequired("plugin")
	_ = cmd.RegisterFlagCompletionFunc("plugin", a.completeAll(pluginNames))
	_ = cmd.RegisterFlagCompletionFunc("worker", a.completeAll(workerNames))
	return cmd
}

// schemaOf asks for the settings that a plugin takes.
func schemaOf(ctx context.Context, c *client.Client, name string) ([]setting, error) {
	p, err := read[agent.PluginStatus](c.SiteDescribePlugin(ctx, name))
	if err != nil {
		return nil, withHint(err, "enable the plugin first: holdfast plugin enable %s", name)
	}
	return settingsOf(p)
}

// settings gathers an endpoint's settings: the file's, then the single ones.
func (a *app) settings(cmd *cobra.Command, schema []setting, file string, set, setFile []string) (json.RawMessage, error) {
	object := map[string]any{}
	if file != "" {
		b, err := a.readInput(file, maxSettings)
		if err != nil {
			return nil, fmt.Errorf("read settings: %w", err)
		}
		if err := json.Unmarshal(b, &object); err != nil || object == nil {
			return nil, errors.Join(fmt.Errorf("settings in %s are not a JSON object", file), err)
		}
	}
	put := func(pair string, value func(string) (string, error), fromFile bool) error {
		key, text, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return usagef(cmd, "%.100q: want KEY=VALUE", pair)
		}
		text, err := value(text)
		if err != nil {
			return fmt.Errorf("setting %s: %w", key, err)
		}
		return setOne(object, schema, key, text, fromFile)
	}
	for _, pair := range set {
		if err := put(pair, func(s string) (string, error) { return s, nil }, false); err != nil {
			return nil, err
		}
	}
	for _, pair := range setFile {
		if err := put(pair, func(path string) (string, error) {
			b, err := a.readInput(path, maxSettings)
			return string(b), err
		}, true); err != nil {
			return nil, err
		}
	}
	return json.Marshal(object)
}

// setOne puts one setting into the object, in the type that the plugin's schema
// gives it. What the schema does not know is passed on as text, for the plugin
// to refuse.
func setOne(object map[string]any, schema []setting, key, text string, fromFile bool) error {
	var value any = text
	if i := slices.IndexFunc(schema, func(s setting) bool { return s.Name == key }); i >= 0 {
		s := schema[i]
		if s.Secret && !fromFile {
			return withHint(&usageError{err: fmt.Errorf("setting %s is a secret", key), path: "holdfast endpoint add"}, "put it into a file: --set-file %s=FILE", key)
		}
		if s.Type != "string" {
			text = strings.TrimSpace(text)
		} else if s.Secret && !strings.Contains(strings.TrimRight(text, "\r\n"), "\n") {
			value = strings.TrimRight(text, "\r\n") // a password, not a PEM text
		}
		var err error
		switch s.Type {
		case "boolean":
			value, err = strconv.ParseBool(text)
		case "integer", "number":
			value = json.Number(text)
			_, err = strconv.ParseFloat(text, 64)
		case "list":
			value = strings.Split(text, ",")
		case "map":
			value, err = pairs(strings.Split(text, ","))
		}
		if err != nil {
			return &usageError{err: fmt.Errorf("setting %s: %.100q is not of type %s", key, text, s.Type), path: "holdfast endpoint add"}
		}
	}
	words := strings.Split(key, ".")
	for _, word := range words[:len(words)-1] {
		inner, ok := object[word].(map[string]any)
		if !ok {
			inner = map[string]any{}
			object[word] = inner
		}
		object = inner
	}
	object[words[len(words)-1]] = value
	return nil
}

// pairs reads KEY=VALUE arguments.
func pairs(args []string) (map[string]string, error) {
	m := make(map[string]string, len(args))
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || key == "" || value == "" {
			return nil, fmt.Errorf("%.100q: want NAME=NAME", arg)
		}
		m[key] = value
	}
	return m, nil
}

func endpointListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the endpoints",
		Example: "  holdfast endpoint list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			all, err := read[[]agent.EndpointStatus](c.SiteListEndpoints(cmd.Context()))
			if err != nil {
				return err
			}
			return list(a, all,
				column[agent.EndpointStatus]{title: "endpoint", value: func(e agent.EndpointStatus) string { return e.Name }},
				column[agent.EndpointStatus]{title: "plugin", value: func(e agent.EndpointStatus) string { return e.Plugin }},
				column[agent.EndpointStatus]{title: "workers", value: func(e agent.EndpointStatus) string { return strings.Join(e.Workers, ", ") }},
				column[agent.EndpointStatus]{title: "id", value: func(e agent.EndpointStatus) string { return e.ID }})
		},
	}
}

func endpointProbeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "probe NAME",
		Short:             "Say what works at an endpoint now, and why not",
		Example:           "  holdfast endpoint probe kvm1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(endpointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			p, err := read[agent.ProbeResult](c.SiteProbeEndpoint(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(p)
			}
			a.say("%s", p.Product)
			return list(a, p.Findings,
				column[agent.ProbeFinding]{title: "ability", value: func(f agent.ProbeFinding) string { return string(f.Ability) }},
				column[agent.ProbeFinding]{title: "works", value: func(f agent.ProbeFinding) string { return yesNo(f.Works) }},
				column[agent.ProbeFinding]{title: "reason", value: func(f agent.ProbeFinding) string { return f.Reason }},
				column[agent.ProbeFinding]{title: "hint", value: func(f agent.ProbeFinding) string { return f.Hint }})
		},
	}
}

func endpointDeleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME",
		Short:             "Forget an endpoint that no job uses",
		Example:           "  holdfast endpoint delete kvm1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(endpointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			if err := done(c.SiteDeleteEndpoint(cmd.Context(), args[0])); err != nil {
				return err
			}
			a.say("endpoint %s is deleted", args[0])
			return nil
		},
	}
}
