package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

func statusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how the provider's server is", Example: "  holdfast status -o json", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			s, err := read[client.Status](c.GetStatus(cmd.Context()))
			if err != nil {
				return err
			}
			return show(a, s, field{"version", s.Version}, field{"node", s.Node}, field{"started", timeText(s.Started)}, field{"database", s.Database},
				field{"connections of agents", strconv.FormatInt(s.Connections, 10)}, field{"repositories open", strconv.FormatInt(s.Repositories, 10)})
		},
	}
}
