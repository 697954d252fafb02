package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/sdk"
)

// minPointText is how much of a point's id has to be given.
const minPointText = 6

// onePoint is the rule for commands whose one argument is a point.
func onePoint(cmd *cobra.Command, args []string) error {
	if err := cobra.ExactArgs(1)(cmd, args); err != nil {
		return err
	}
	if len(args[0]) < minPointText {
		return usagef(cmd, "%q is not a point: give its id, or %d characters of its start or end at least (holdfast point list shows them)", args[0], minPointText)
	}
	return nil
}

func pointCommand(a *app) *cobra.Command {
	return noun("point", "Recovery points: states of machines that can be restored",
		`A point is one consistent state of a machine in a cloud repository. Every point is a full point: it needs no other. Points
are named by their id, or by enough of its start or end.`,
		pointListCommand(a), pointShowCommand(a), pointVerifyCommand(a), pointForgetCommand(a))
}

func pointListCommand(a *app) *cobra.Command {
	var params struct{ provider, repository, machine string }
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List points, newest first",
		Example: `  holdfast point list
  holdfast point list --machine web-01
  holdfast restore machine $(holdfast point list --machine web-01 -o json | jq -r '.[0].id')`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			answer, err := c.SiteListPoints(cmd.Context(), &client.SiteListPointsParams{
				Provider: given(params.provider), Repository: given(params.repository), Machine: given(params.machine)})
			points, err := read[[]agent.PointStatus](answer, err)
			if err != nil {
				return err
			}
			if why := answer.Header.Get("Holdfast-Incomplete"); why != "" {
				a.note("points may be missing: %s", why)
			}
			return list(a, points,
				column[agent.PointStatus]{title: "point", value: func(p agent.PointStatus) string { return string(p.ID) }},
				column[agent.PointStatus]{title: "machine", value: func(p agent.PointStatus) string { return p.Machine }},
				column[agent.PointStatus]{title: "taken", value: func(p agent.PointStatus) string { return timeText(p.Taken) }},
				column[agent.PointStatus]{title: "read as", value: func(p agent.PointStatus) string { return string(p.Kind) }},
				column[agent.PointStatus]{title: "consistency", value: func(p agent.PointStatus) string { return consistencyText(p.Consistency) }},
				column[agent.PointStatus]{title: "size", right: true, value: func(p agent.PointStatus) string { return bytesText(p.SizeBytes) }},
				column[agent.PointStatus]{title: "charged", right: true, value: func(p agent.PointStatus) string { return bytesText(p.Charged) }},
				column[agent.PointStatus]{title: "in", value: func(p agent.PointStatus) string { return p.Provider + "/" + p.Repository }},
				column[agent.PointStatus]{title: "problem", value: func(p agent.PointStatus) string { return p.Problem }})
		},
	}
	cmd.Flags().StringVar(&params.machine, "machine", "", "only of this machine")
	cmd.Flags().StringVar(&params.provider, "provider", "", "only at this provider")
	cmd.Flags().StringVar(&params.repository, "repository", "", "only in this cloud repository")
	for name, find := range map[string]names{"machine": machineNames, "provider": providerNames, "repository": repositoryNames} {
		_ = cmd.RegisterFlagCompletionFunc(name, a.completeAll(find))
	}
	return cmd
}

// consistencyText says how still a machine was in the words of operators.
func consistencyText(achieved string) string {
	if achieved == string(sdk.QuiesceNone) {
		return "crash" // as after a power cut
	}
	return achieved
}

func pointShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show POINT",
		Short:             "Show a point and its disks",
		Example:           "  holdfast point show 01932f6e-…",
		Args:              onePoint,
		ValidArgsFunction: a.complete(pointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			p, err := read[agent.PointStatus](c.SiteGetPoint(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			fields := []field{
				{"point", string(p.ID)}, {"machine", p.Machine}, {"endpoint", p.Endpoint}, {"taken", timeText(p.Taken)},
				{"committed", timeText(p.Committed)}, {"read as", string(p.Kind)}, {"consistency", consistencyText(p.Consistency)}, {"note", p.Note},
				{"size", bytesText(p.SizeBytes)}, {"charged", bytesText(p.Charged)}, {"in", p.Provider + "/" + p.Repository},
				{"keyring", p.Keyring}, {"problem", p.Problem},
			}
			for _, d := range p.Disks {
				fields = append(fields, field{"disk", d.Name + ", " + bytesText(d.SizeBytes)})
			}
			return show(a, p, fields...)
		},
	}
}

func pointVerifyCommand(a *app) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:   "verify POINT",
		Short: "Fetch, open and hash every chunk of a point",
		Long: `Fetch, open and hash every chunk of a point, as a restore would, without writing anything. Damage is listed by disk and
range; the next backup of a machine that still has these blocks sends them again.`,
		Example:           "  holdfast point verify 01932f6e-…",
		Args:              onePoint,
		ValidArgsFunction: a.complete(pointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			run, err := readRun(c.SiteVerifyPoint(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			return a.started(cmd.Context(), c, run, w)
		},
	}
	w.register(cmd)
	return cmd
}

func pointForgetCommand(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "forget POINT",
		Short: "Give up a point",
		Long:  "Give up a point. Other points keep what they share with it; what only this point had is gone for good.",
		Example: `  holdfast point forget 01932f6e-…
  holdfast point forget 01932f6e-… --yes`,
		Args:              onePoint,
		ValidArgsFunction: a.complete(pointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			p, err := read[agent.PointStatus](c.SiteGetPoint(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			if !yes {
				question := fmt.Sprintf("Point %s of machine %s, taken %s, will be gone.", p.ID, p.Machine, timeText(p.Taken))
				if err := a.confirm(cmd.Context(), question, "yes", "--yes"); err != nil {
					return err
				}
			}
			if err := done(c.SiteForgetPoint(cmd.Context(), string(p.ID))); err != nil {
				return err
			}
			a.say("point %s is forgotten", p.ID)
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}
