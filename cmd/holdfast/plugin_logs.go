package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/host"
)

func pluginLogsCommand(a *app) *cobra.Command {
	var (
		endpoint string
		follow   bool
		lines    int
	)
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show what a plugin logged last",
		Long: `Show what a plugin logged last, and what the agent noted about it, such as calls that failed and processes that ended.
The agent keeps the newest 2,000 lines of each plugin in memory, free of the secrets in settings; its own log has them all,
but for those of a plugin that logs too much, which are counted.

With -o json, each line is one JSON object on a line of its own.`,
		Example: `  holdfast plugin logs libvirt
  holdfast plugin logs libvirt --endpoint rack1 --follow
  holdfast plugin logs libvirt -n 1000 -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(pluginNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if lines < 1 || lines > 2000 {
				return usagef(cmd, "--lines is between 1 and 2000")
			}
			c, err := a.agent()
			if err != nil {
				return err
			}
			limit := int64(lines)
			if follow {
				r, err := c.SiteFollowPluginLogs(cmd.Context(), args[0], &client.SiteFollowPluginLogsParams{Endpoint: given(endpoint), Limit: &limit})
				err = watch(r, err, func(event string, data []byte) error { return a.logEvent(event, data) })
				if cmd.Context().Err() != nil { // the reader has seen enough
					return nil
				}
				return err
			}
			all, err := read[[]host.LogLine](c.SiteListPluginLogs(cmd.Context(), args[0], &client.SiteListPluginLogsParams{Endpoint: given(endpoint), Limit: &limit}))
			if err != nil {
				return err
			}
			for _, l := range all {
				if err := a.logLine(l); err != nil {
					return err
				}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&endpoint, "endpoint", "", "only lines about this endpoint")
	flags.BoolVarP(&follow, "follow", "f", false, "go on with the lines that come, until interrupted")
	flags.IntVarP(&lines, "lines", "n", 200, "how many of the newest lines")
	return cmd
}

func (a *app) logEvent(event string, data []byte) error {
	switch event {
	case "line":
		var l host.LogLine
		if err := json.Unmarshal(data, &l); err != nil {
			return fmt.Errorf("read a line of the log: %w", err)
		}
		return a.logLine(l)
	case "problem":
		p := new(gateway.Problem)
		if err := json.Unmarshal(data, p); err != nil {
			return fmt.Errorf("read problem: %w", err)
		}
		return p
	}
	return nil
}

// logLine prints a line: for people on one line, without what a terminal would
// obey; for scripts as JSON.
func (a *app) logLine(l host.LogLine) error {
	if a.output == "json" {
		return json.NewEncoder(a.out).Encode(l)
	}
	text := fmt.Sprintf("%s %-5s %s: %s", timeText(l.Time), strings.ToUpper(l.Level), orDash(l.Endpoint), l.Message)
	keys := make([]string, 0, len(l.Fields))
	for key := range l.Fields {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		text += fmt.Sprintf(" %s=%v", key, l.Fields[key])
	}
	_, err := fmt.Fprintln(a.out, cell(text))
	return err
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func pluginMetricsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print what plugins did, for Prometheus",
		Long: `Print what plugins did since the agent started, as Prometheus text: calls by method and by whose fault they failed, how
long they took, bytes of disks, restarts, and the state at each endpoint. The agent listens on no network; have the node
exporter's textfile collector pick this up.`,
		Example: `  holdfast plugin metrics
  holdfast plugin metrics > /var/lib/prometheus/node-exporter/holdfast.prom.new &&
    mv /var/lib/prometheus/node-exporter/holdfast.prom.new /var/lib/prometheus/node-exporter/holdfast.prom`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			r, err := c.SiteMetrics(cmd.Context())
			if err != nil {
				return unwrapURL(err)
			}
			if r.StatusCode/100 != 2 {
				_, err := readBody(r, nil)
				return err
			}
			defer r.Body.Close()
			if _, err := io.Copy(a.out, r.Body); err != nil {
				return fmt.Errorf("read metrics: %w", err)
			}
			return nil
		},
	}
}
