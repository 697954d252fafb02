package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

func cloudRepositoryCommand(a *app) *cobra.Command {
	return noun("cloud-repository", "What a tenant sees: a named share of a repository, with a quota", "",
		cloudCreateCommand(a), cloudListCommand(a), cloudDeleteCommand(a), cloudPointsCommand(a))
}

func showCloud(a *app, r client.CloudRepository) error {
	return show(a, r, field{"name", r.Name}, field{"id", r.Id}, field{"tenant", r.Tenant}, field{"repository", deref(r.Repository)},
		field{"quota", bytesText(r.LimitBytes)}, field{"used", bytesText(r.UsedBytes)}, field{"pending", pendingText(r)})
}

// pendingText says what is counted beside the points, and why.
func pendingText(r client.CloudRepository) string {
	return fmt.Sprintf("%s (%s reserved by running backups, %s arrived and in no point)",
		bytesText(r.PendingBytes), bytesText(r.PendingBytes-r.UnreferencedBytes), bytesText(r.UnreferencedBytes))
}

func cloudCreateCommand(a *app) *cobra.Command {
	var name, repository, size string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Give a tenant a cloud repository",
		Example: "  holdfast cloud-repository create backups --tenant Acme --repository store-1 --quota 2TiB", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := parseSize(size)
			if err != nil {
				return usagef(cmd, "%v", err)
			}
			c, err := a.provider()
			if err != nil {
				return err
			}
			t, err := findTenant(cmd.Context(), c, name)
			if err != nil {
				return err
			}
			l, err := findRepository(cmd.Context(), c, repository)
			if err != nil {
				return err
			}
			r, err := read[client.CloudRepository](c.CreateCloudRepository(cmd.Context(), t.Id, &client.CreateCloudRepositoryParams{IdempotencyKey: newKey()},
				client.CreateCloudRepositoryJSONRequestBody{Name: args[0], Repository: l.Id, LimitBytes: limit}))
			if err != nil {
				return err
			}
			return showCloud(a, r)
		},
	}
	a.tenantFlag(cmd, &name, "whose it is")
	cmd.Flags().StringVar(&repository, "repository", "", "the provider's repository behind it")
	cmd.Flags().StringVar(&size, "quota", "", "its size, such as 500GiB or 2TiB")
	for _, f := range []string{"tenant", "repository", "quota"} {
		_ = cmd.MarkFlagRequired(f)
	}
	return cmd
}

func cloudListCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "list", Short: "List cloud repositories", Example: "  holdfast cloud-repository list --tenant Acme", Args: cobra.NoArgs,
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
				column[row]{title: "name", value: func(r row) string { return r.Name }},
				column[row]{title: "tenant", value: func(r row) string { return named(r.Tenant) }},
				column[row]{title: "quota", value: func(r row) string { return bytesText(r.LimitBytes) }, right: true},
				column[row]{title: "used", value: func(r row) string { return bytesText(r.UsedBytes) }, right: true},
				column[row]{title: "pending", value: func(r row) string { return bytesText(r.PendingBytes) }, right: true},
				column[row]{title: "id", value: func(r row) string { return r.Id }})
		},
	}
	a.tenantFlag(cmd, &name, "whose (default everybody's)")
	return cmd
}

func cloudDeleteCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a cloud repository that stores nothing",
		Example: "  holdfast cloud-repository delete backups --tenant Acme", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
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
			if err := done(c.DeleteCloudRepository(cmd.Context(), id, r.Id)); err != nil {
				return err
			}
			a.say("cloud repository %s is deleted", r.Name)
			return nil
		},
	}
	a.tenantFlag(cmd, &name, "whose it is")
	return cmd
}

func cloudPointsCommand(a *app) *cobra.Command {
	var name, machine string
	cmd := &cobra.Command{
		Use: "points NAME", Short: "List the points in a cloud repository, as the provider sees them",
		Long:    "List the points in a cloud repository. Names and content of machines are known to the tenant alone.",
		Example: "  holdfast cloud-repository points backups --tenant Acme", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
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
			var all []client.Point
			for after := (*string)(nil); ; {
				page, err := read[client.PointPage](c.ListPoints(cmd.Context(), id, r.Id, &client.ListPointsParams{Machine: given(machine), After: after}))
				if err != nil {
					return err
				}
				all = append(all, page.Items...)
				if after = page.Next; after == nil {
					break
				}
			}
			type row = client.Point
			return list(a, all,
				column[row]{title: "point", value: func(p row) string { return p.Id }},
				column[row]{title: "machine", value: func(p row) string { return p.Machine }},
				column[row]{title: "taken", value: func(p row) string { return timeText(p.Taken) }},
				column[row]{title: "kind", value: func(p row) string { return p.Kind }},
				column[row]{title: "size", value: func(p row) string { return bytesText(p.SizeBytes) }, right: true},
				column[row]{title: "added", value: func(p row) string { return bytesText(p.ChargedBytes) }, right: true})
		},
	}
	a.tenantFlag(cmd, &name, "whose it is")
	cmd.Flags().StringVar(&machine, "machine", "", "only the points of this machine, by id")
	return cmd
}
