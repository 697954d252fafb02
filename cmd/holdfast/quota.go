package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

func quotaCommand(a *app) *cobra.Command {
	return noun("quota", "How much of a cloud repository is used, and how much may be", "", quotaListCommand(a), quotaSetCommand(a))
}

// used is how full a cloud repository is.
func used(r client.CloudRepository) string {
	return fmt.Sprintf("%d %%", (r.UsedBytes+r.PendingBytes)*100/max(1, r.LimitBytes))
}

func quotaListCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "list", Short: "List quotas and what is used of them",
		Long: `List quotas, and what is used of them: what points take, what running backups
reserved, and what arrived and is in no point yet. The last is taken over by the
next backup that finds it. What nobody wanted for seven days is collected, and
counts until then.`,
		Example: "  holdfast quota list\n  holdfast quota list --tenant Acme", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, name)
			if err != nil {
				return err
			}
			all, err := allClouds(cmd.Context(), c, id)
			if err != nil {
				return err
			}
			named := tenantNames(cmd.Context(), c)
			type row = client.CloudRepository
			return list(a, all,
				column[row]{title: "tenant", value: func(r row) string { return named(r.Tenant) }},
				column[row]{title: "cloud repository", value: func(r row) string { return r.Name }},
				column[row]{title: "quota", value: func(r row) string { return bytesText(r.LimitBytes) }, right: true},
				column[row]{title: "used", value: func(r row) string { return bytesText(r.UsedBytes) }, right: true},
				column[row]{title: "reserved", value: func(r row) string { return bytesText(r.PendingBytes - r.UnreferencedBytes) }, right: true},
				column[row]{title: "in no point", value: func(r row) string { return bytesText(r.UnreferencedBytes) }, right: true},
				column[row]{title: "full", value: used, right: true})
		},
	}
	a.tenantFlag(cmd, &name, "whose quotas (default everybody's)")
	return cmd
}

func quotaSetCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "set CLOUD-REPOSITORY SIZE", Short: "Raise or lower a quota",
		Long:    "Raise or lower a quota, at any time. One below what is used blocks new backups and deletes nothing.",
		Example: "  holdfast quota set backups 3TiB --tenant Acme", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeOwn(cloudNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := parseSize(args[1])
			if err != nil {
				return usagef(cmd, "%v", err)
			}
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := needScope(cmd, c, name)
			if err != nil {
				return err
			}
			r, err := findCloud(cmd.Context(), c, id, args[0])
			if err != nil {
				return err
			}
			r, err = read[client.CloudRepository](c.UpdateCloudRepository(cmd.Context(), id, r.Id,
				client.UpdateCloudRepositoryJSONRequestBody{Version: r.Version, LimitBytes: &size}))
			if err != nil {
				return err
			}
			return showCloud(a, r)
		},
	}
	a.tenantFlag(cmd, &name, "whose cloud repository")
	return cmd
}
