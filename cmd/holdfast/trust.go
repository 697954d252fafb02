package main

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

func repositorySessionsCommand(a *app) *cobra.Command {
	var name, agent string
	var distrusted bool
	cmd := &cobra.Command{
		Use: "sessions CLOUD-REPOSITORY", Short: "List who brought what is in a cloud repository, and when",
		Long: `List the sessions that brought what is in a cloud repository, in the order in which they began. A backup that finds chunks which
are not what they should be names the session that brought them. Sessions of which nothing is left are forgotten.`,
		Example: "  holdfast repository sessions backups --tenant Acme\n  holdfast repository sessions backups --tenant Acme --agent berlin -o json\n  holdfast repository sessions backups --tenant Acme --distrusted",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeOwn(cloudNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, r, err := a.cloudOf(cmd, name, args[0])
			if err != nil {
				return err
			}
			if agent, err = agentID(cmd.Context(), c, r.Tenant, agent); err != nil {
				return err
			}
			sites, err := siteNames(cmd.Context(), c, r.Tenant)
			if err != nil {
				return err
			}
			var all []client.Session
			for after := (*string)(nil); ; {
				page, err := read[client.SessionPage](c.ListSessions(cmd.Context(), r.Tenant, r.Id,
					&client.ListSessionsParams{Agent: given(agent), Distrusted: given(distrusted), After: after}))
				if err != nil {
					return err
				}
				if all, after = append(all, page.Items...), page.Next; after == nil {
					break
				}
			}
			type row = client.Session
			return list(a, all,
				column[row]{title: "id", value: func(s row) string { return s.Id }},
				column[row]{title: "site", value: func(s row) string { return sites[deref(s.Agent)] }},
				column[row]{title: "began", value: func(s row) string { return timeText(s.Began) }},
				column[row]{title: "ended", value: func(s row) string { return timeText(timePointer(s.Ended)) }},
				column[row]{title: "distrusted", value: func(s row) string { return timeText(timePointer(s.Distrusted)) }},
				column[row]{title: "machine", value: func(s row) string { return deref(s.Machine) }},
				column[row]{title: "agent", value: func(s row) string { return deref(s.Agent) }})
		},
	}
	a.tenantFlag(cmd, &name, "whose cloud repository")
	cmd.Flags().StringVar(&agent, "agent", "", "only what this agent brought (site or id)")
	cmd.Flags().BoolVar(&distrusted, "distrusted", false, "only what is distrusted")
	return cmd
}

func repositoryDistrustCommand(a *app) *cobra.Command {
	var name, agent, session, since string
	var lift bool
	var w waiting
	cmd := &cobra.Command{
		Use: "distrust CLOUD-REPOSITORY", Short: "Let what an agent brought no longer count as present",
		Long: `Let what an agent brought no longer count as present. A repository cannot tell whether an agent sealed under an id what the id
says. What is distrusted counts only where there is no other copy: the next backup of each machine sends it again if the machine
still has it, and the points that depend on it are named. Nothing is deleted.

Revoke the agent first (holdfast tenant revoke): what it begins afterwards is trusted. With --lift, they are trusted again.`,
		Example: "  holdfast repository distrust backups --tenant Acme --agent berlin --since 2028-03-01\n" +
			"  holdfast repository distrust backups --tenant Acme --session 01890a5d8f6b7c3e9d2a4b6c8e0f1a2b\n" +
			"  holdfast repository distrust backups --tenant Acme --agent berlin --lift",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOwn(cloudNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (agent == "") == (session == "") {
				return usagef(cmd, "name either --agent or --session")
			}
			body := client.DistrustSpec{Session: given(session), Lift: given(lift)}
			if since != "" {
				moment, err := parseSince(since)
				if err != nil {
					return usagef(cmd, "--since: %v", err)
				}
				body.Since = &moment
			}
			c, r, err := a.cloudOf(cmd, name, args[0])
			if err != nil {
				return err
			}
			if agent, err = agentID(cmd.Context(), c, r.Tenant, agent); err != nil {
				return err
			}
			body.Agent = given(agent)
			run, err := readRun(c.DistrustCloudRepository(cmd.Context(), r.Tenant, r.Id, &client.DistrustCloudRepositoryParams{IdempotencyKey: newKey()}, body))
			if err != nil {
				return err
			}
			if w.noWait {
				return a.showRun(run)
			}
			return a.watchRun(cmd.Context(), providerRuns(c), run)
		},
	}
	a.tenantFlag(cmd, &name, "whose cloud repository")
	cmd.Flags().StringVar(&agent, "agent", "", "all that this agent brought (site or id)")
	cmd.Flags().StringVar(&session, "session", "", "only what this session brought")
	cmd.Flags().StringVar(&since, "since", "", "with --agent: only sessions that had not ended before this date or moment")
	cmd.Flags().BoolVar(&lift, "lift", false, "trust them again")
	w.register(cmd)
	return cmd
}

// cloudOf finds the cloud repository that a command is about.
func (a *app) cloudOf(cmd *cobra.Command, tenant, name string) (*client.Client, client.CloudRepository, error) {
	c, err := a.provider()
	if err != nil {
		return nil, client.CloudRepository{}, err
	}
	chosen, err := chooseClouds(cmd, c, tenant, []string{name})
	if err != nil {
		return nil, client.CloudRepository{}, err
	}
	return c, chosen[0], nil
}

// siteNames are the sites of a tenant's agents, by the agents' ids.
func siteNames(ctx context.Context, c *client.Client, tenant string) (map[string]string, error) {
	all, err := read[[]client.SiteAgent](c.ListAgents(ctx, tenant))
	if err != nil {
		return nil, err
	}
	names := make(map[string]string, len(all))
	for _, g := range all {
		names[g.Id] = g.Name
	}
	return names, nil
}

// agentID is the id of a tenant's agent that is named by its site or its id; an
// id need not be known, for what an agent brought may outlive it.
func agentID(ctx context.Context, c *client.Client, tenant, name string) (string, error) {
	if name == "" || uuid.Validate(name) == nil {
		return name, nil
	}
	names, err := siteNames(ctx, c, tenant)
	if err != nil {
		return "", err
	}
	found := ""
	for id, site := range names {
		if site != name {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("several agents were enrolled for site %q: give an id, see holdfast tenant agents", name)
		}
		found = id
	}
	if found == "" {
		return "", errNoSuch("agent", name, "see: holdfast tenant agents")
	}
	return found, nil
}

// parseSince reads a date, which means its beginning in local time, or a moment
// in RFC 3339.
func parseSince(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	day, err := time.ParseInLocation(time.DateOnly, s, time.Local)
	if err != nil {
		return time.Time{}, fmt.Errorf("date %q: want YYYY-MM-DD, or a moment such as 2028-12-31T18:00:00Z", s)
	}
	return day, nil
}
