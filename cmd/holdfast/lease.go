package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

func leaseCommand(a *app) *cobra.Command {
	return noun("lease", "Until when a tenant's contract lasts",
		"An ended lease refuses backup and restore and keeps all data; a later end revives everything.",
		leaseSetCommand(a), leaseListCommand(a))
}

func leaseSetCommand(a *app) *cobra.Command {
	var never bool
	cmd := &cobra.Command{
		Use:   "set TENANT [DATE]",
		Short: "Set the last day of a tenant's contract, or that it has no end",
		Long: `Set the last day of a tenant's contract, in this machine's time zone, or the moment at which it ends, or that it has no
end. A day in the past ends the contract at once, with a warning: backup and restore are refused, and all data is kept.`,
		Example: `  holdfast lease set Acme 2028-12-31
  holdfast lease set Acme 2028-06-30T18:00:00Z
  holdfast lease set Acme --never`,
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: a.completeTenants,
		RunE: func(cmd *cobra.Command, args []string) error {
			if never == (len(args) == 2) {
				return usagef(cmd, "give either a date or --never")
			}
			var end *time.Time
			if !never {
				t, err := parseDate(args[1])
				if err != nil {
					return usagef(cmd, "%v", err)
				}
				end = &t
			}
			c, err := a.provider()
			if err != nil {
				return err
			}
			t, err := findTenant(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if t, err = read[client.Tenant](c.SetLease(cmd.Context(), t.Id, client.SetLeaseJSONRequestBody{End: end})); err != nil {
				return err
			}
			if end != nil && !end.After(time.Now()) {
				a.note("warning: the lease of %s has ended (%s): backup and restore are refused from now on; everything that is stored is kept, and a later end revives it", t.Name, leaseText(end))
			}
			return showTenant(a, t)
		},
	}
	cmd.Flags().BoolVar(&never, "never", false, "the contract has no end")
	return cmd
}

func leaseListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List leases that have an end", Example: "  holdfast lease list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			all, err := allTenants(cmd.Context(), c, "")
			if err != nil {
				return err
			}
			ending := all[:0]
			for _, t := range all {
				if t.LeaseEnd != nil {
					ending = append(ending, t)
				}
			}
			return list(a, ending,
				column[client.Tenant]{title: "tenant", value: func(t client.Tenant) string { return t.Name }},
				column[client.Tenant]{title: "lease end", value: func(t client.Tenant) string { return leaseText(t.LeaseEnd) }},
				column[client.Tenant]{title: "state", value: tenantState})
		},
	}
}
