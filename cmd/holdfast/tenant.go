package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

func tenantCommand(a *app) *cobra.Command {
	return noun("tenant", "Who rents: create, list, change, disable, delete", "",
		tenantCreateCommand(a), tenantListCommand(a), tenantShowCommand(a), tenantUpdateCommand(a),
		tenantSwitchCommand(a, true), tenantSwitchCommand(a, false), tenantDeleteCommand(a), tenantAgentsCommand(a), tenantRunsCommand(a), tenantTrafficCommand(a), tenantRevokeCommand(a))
}

func showTenant(a *app, t client.Tenant) error {
	lease := "no end"
	if t.LeaseEnd != nil {
		lease = "until " + leaseText(t.LeaseEnd)
	}
	return show(a, t, field{"name", t.Name}, field{"id", t.Id}, field{"description", deref(t.Description)}, field{"enabled", yesNo(t.Enabled)},
		field{"lease", lease}, field{"tasks", strconv.FormatInt(t.MaxTasks, 10)}, field{"created", timeText(t.Created)})
}

func tenantCreateCommand(a *app) *cobra.Command {
	var description, leaseEnd string
	var tasks int64
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a tenant",
		Example: `  holdfast tenant create Acme --lease-end 2028-12-31
  holdfast cloud-repository create backups --tenant Acme --repository store-1 --quota 2TiB
  holdfast token create --tenant Acme --site berlin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			body := client.CreateTenantJSONRequestBody{Name: args[0], Description: given(description), MaxTasks: given(tasks)}
			if leaseEnd != "" {
				end, err := parseDate(leaseEnd)
				if err != nil {
					return usagef(cmd, "%v", err)
				}
				body.LeaseEnd = &end
			}
			t, err := read[client.Tenant](c.CreateTenant(cmd.Context(), &client.CreateTenantParams{IdempotencyKey: newKey()}, body))
			if err != nil {
				return err
			}
			return showTenant(a, t)
		},
	}
	cmd.Flags().StringVar(&description, "description", "", "for the provider's people")
	cmd.Flags().StringVar(&leaseEnd, "lease-end", "", "last day of the contract, YYYY-MM-DD (default no end)")
	cmd.Flags().Int64Var(&tasks, "tasks", 0, "disks that move at the same time (default 2)")
	return cmd
}

func tenantListCommand(a *app) *cobra.Command {
	var text string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List tenants",
		Example: "  holdfast tenant list\n  holdfast tenant list --text berlin -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			all, err := allTenants(cmd.Context(), c, text)
			if err != nil {
				return err
			}
			return list(a, all,
				column[client.Tenant]{title: "name", value: func(t client.Tenant) string { return t.Name }},
				column[client.Tenant]{title: "state", value: tenantState},
				column[client.Tenant]{title: "lease end", value: func(t client.Tenant) string { return leaseText(t.LeaseEnd) }},
				column[client.Tenant]{title: "tasks", value: func(t client.Tenant) string { return strconv.FormatInt(t.MaxTasks, 10) }, right: true},
				column[client.Tenant]{title: "description", value: func(t client.Tenant) string { return deref(t.Description) }},
				column[client.Tenant]{title: "id", value: func(t client.Tenant) string { return t.Id }})
		},
	}
	cmd.Flags().StringVar(&text, "text", "", "part of the name or description")
	return cmd
}

func tenantState(t client.Tenant) string {
	switch {
	case !t.Enabled:
		return "disabled"
	case t.LeaseEnd != nil && !time.Now().Before(*t.LeaseEnd):
		return "lease ended"
	}
	return "active"
}

func tenantShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a tenant", Example: "  holdfast tenant show Acme", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeTenants,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			t, err := findTenant(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return showTenant(a, t)
		},
	}
}

func tenantUpdateCommand(a *app) *cobra.Command {
	var name, description string
	var tasks int64
	cmd := &cobra.Command{
		Use: "update NAME", Short: "Change a tenant's name, description or tasks",
		Example: "  holdfast tenant update Acme --name 'Acme Ltd' --tasks 8", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeTenants,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			t, err := findTenant(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			body := client.UpdateTenantJSONRequestBody{Version: t.Version, Name: given(name), MaxTasks: given(tasks)}
			if cmd.Flags().Changed("description") {
				body.Description = &description
			}
			if t, err = read[client.Tenant](c.UpdateTenant(cmd.Context(), t.Id, body)); err != nil {
				return err
			}
			return showTenant(a, t)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "new name")
	cmd.Flags().StringVar(&description, "description", "", "for the provider's people")
	cmd.Flags().Int64Var(&tasks, "tasks", 0, "disks that move at the same time")
	cmd.MarkFlagsOneRequired("name", "description", "tasks")
	return cmd
}

func tenantSwitchCommand(a *app, enable bool) *cobra.Command {
	verb, short := "disable", "Shut a tenant out: connections are closed, data is kept"
	if enable {
		verb, short = "enable", "Let a disabled tenant in again"
	}
	return &cobra.Command{
		Use: verb + " NAME", Short: short, Example: "  holdfast tenant " + verb + " Acme", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeTenants,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			t, err := findTenant(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if enable {
				t, err = read[client.Tenant](c.EnableTenant(cmd.Context(), t.Id))
			} else {
				t, err = read[client.Tenant](c.DisableTenant(cmd.Context(), t.Id))
			}
			if err != nil {
				return err
			}
			return showTenant(a, t)
		},
	}
}

func tenantDeleteCommand(a *app) *cobra.Command {
	var backups, confirmed string
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a tenant, for good",
		Long: `Delete a tenant with its users, tokens and agents. It cannot be undone. While it has stored backups, say what becomes of
them: --backups keep leaves the objects in the repository, --backups delete erases them within minutes.`,
		Example: "  holdfast tenant delete Acme --backups keep --confirm Acme", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeTenants,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			t, err := findTenant(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if confirmed != t.Name {
				if err := a.confirm(cmd.Context(), fmt.Sprintf("Tenant %s will be deleted with everything that belongs to it.", t.Name), t.Name, "--confirm "+t.Name); err != nil {
					return err
				}
			}
			params := &client.DeleteTenantParams{}
			if backups != "" {
				b := client.DeleteTenantParamsBackups(backups)
				params.Backups = &b
			}
			if err := done(c.DeleteTenant(cmd.Context(), t.Id, params)); err != nil {
				return err
			}
			a.say("tenant %s is deleted", t.Name)
			return nil
		},
	}
	cmd.Flags().StringVar(&backups, "backups", "", "what becomes of stored backups: keep or delete")
	cmd.Flags().StringVar(&confirmed, "confirm", "", "the tenant's name again, for scripts")
	return cmd
}

func tenantAgentsCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "agents", Short: "List a tenant's agents", Example: "  holdfast tenant agents --tenant Acme", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := needScope(cmd, c, name)
			if err != nil {
				return err
			}
			all, err := read[[]client.SiteAgent](c.ListAgents(cmd.Context(), id))
			if err != nil {
				return err
			}
			type row = client.SiteAgent
			return list(a, all,
				column[row]{title: "site", value: func(g row) string { return g.Name }},
				column[row]{title: "version", value: func(g row) string { return deref(g.Version) }},
				column[row]{title: "last seen", value: func(g row) string { return timeText(timePointer(g.LastSeen)) }},
				column[row]{title: "enrolled", value: func(g row) string { return timeText(g.Enrolled) }},
				column[row]{title: "revoked", value: func(g row) string { return timeText(timePointer(g.Revoked)) }},
				column[row]{title: "id", value: func(g row) string { return g.Id }})
		},
	}
	a.tenantFlag(cmd, &name, "whose agents")
	return cmd
}

func tenantRunsCommand(a *app) *cobra.Command {
	var name string
	var limit int
	cmd := &cobra.Command{
		Use: "runs", Short: "List the runs that a tenant's sites report",
		Long: `List the runs that a tenant's sites report, newest first, as each site last told of it. What failed at the site is a
failure here, with the side on which the cause lies. A restore or a verification is named after its point.`,
		Example: "  holdfast tenant runs --tenant Acme\n  holdfast tenant runs --tenant Acme --limit 1000 -o json", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := needScope(cmd, c, name)
			if err != nil {
				return err
			}
			all, err := read[[]client.SiteRun](c.ListSiteRuns(cmd.Context(), id, &client.ListSiteRunsParams{Limit: given(int64(limit))}))
			if err != nil {
				return err
			}
			type row = client.SiteRun
			return list(a, all,
				column[row]{title: "started", value: func(r row) string { return timeText(r.Started) }},
				column[row]{title: "kind", value: func(r row) string { return r.Kind }},
				column[row]{title: "job", value: func(r row) string { return r.Job }},
				column[row]{title: "state", value: func(r row) string { return string(r.State) }},
				column[row]{title: "machines", right: true, value: func(r row) string { return strconv.FormatInt(r.Machines, 10) }},
				column[row]{title: "sent", right: true, value: func(r row) string { return bytesText(r.SentBytes) }},
				column[row]{title: "side", value: func(r row) string { return deref(r.Side) }},
				column[row]{title: "failure", value: func(r row) string { return deref(r.Failure) }})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "how many at most")
	a.tenantFlag(cmd, &name, "whose sites")
	return cmd
}

func tenantTrafficCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "traffic", Short: "Show what moved between the server and a tenant's sites",
		Long: `Show what moved between the server and a tenant's sites since the server started, as the server counted it: at its
sockets, and of that the sealed data which sites sent and fetched.`,
		Example: "  holdfast tenant traffic --tenant Acme\n  holdfast tenant traffic --tenant Acme -o json", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := needScope(cmd, c, name)
			if err != nil {
				return err
			}
			t, err := read[client.Traffic](c.GetTraffic(cmd.Context(), id))
			if err != nil {
				return err
			}
			return show(a, t, field{"since", timeText(t.Since)},
				field{"received", bytesText(t.ReceivedBytes)}, field{"sent", bytesText(t.SentBytes)},
				field{"data that arrived", bytesText(t.PutBytes)}, field{"of it new", bytesText(t.NewBytes)}, field{"data that was fetched", bytesText(t.ReadBytes)})
		},
	}
	a.tenantFlag(cmd, &name, "whose sites")
	return cmd
}

func tenantRevokeCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "revoke AGENT", Short: "Revoke an agent, for good: its site enrols again with a new token",
		Example: "  holdfast tenant revoke 01a20ae5-76a9-70b5-927c-d0423543fde9 --tenant Acme", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOwn(agentIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := needScope(cmd, c, name)
			if err != nil {
				return err
			}
			g, err := read[client.SiteAgent](c.RevokeAgent(cmd.Context(), id, args[0]))
			if err != nil {
				return err
			}
			return show(a, g, field{"site", g.Name}, field{"id", g.Id}, field{"revoked", timeText(timePointer(g.Revoked))})
		},
	}
	a.tenantFlag(cmd, &name, "whose agent")
	return cmd
}
