package main

import (
	"fmt"

	"github.com/google/uuid"
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
	var name, repository, size, id, former string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Give a tenant a cloud repository",
		Long: `Give a tenant a cloud repository: a new, empty one, or with --id what lies in the repository under that id already. That
is how backups come back after the database was lost, and to whom those go that a deleted tenant left. Find the ids with
"holdfast cloud-repository list --unknown", and rebuild the catalogue with "holdfast repository import" afterwards. For
a tenant of another name than the one whose backups they were, that one has to be named.`,
		Example: `  holdfast cloud-repository create backups --tenant Acme --repository store-1 --quota 2TiB
  holdfast cloud-repository create backups --tenant Acme --repository store-1 --quota 2TiB --id 01a20ae5-76a9-70b5-927c-d0423543fde9
  holdfast cloud-repository create taken-over --tenant Acme --repository store-1 --quota 2TiB --id ID --former-tenant "Old Acme"`, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := parseSize(size)
			if err != nil {
				return usagef(cmd, "%v", err)
			}
			switch {
			case id != "" && uuid.Validate(id) != nil:
				return usagef(cmd, "--id %q is not the id of a cloud repository; find it with: holdfast cloud-repository list --unknown", id)
			case id == "" && former != "":
				return usagef(cmd, "--former-tenant belongs to --id")
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
				client.CreateCloudRepositoryJSONRequestBody{Name: args[0], Repository: l.Id, LimitBytes: limit, Id: asUUID(id), FormerTenant: given(former)}))
			if err != nil {
				return err
			}
			if err := showCloud(a, r); err != nil || id == "" || a.output == "json" {
				return err
			}
			a.say("Rebuild its catalogue before it is used: holdfast repository import %s --tenant %s", shellWord(r.Name), shellWord(t.Name))
			return nil
		},
	}
	a.tenantFlag(cmd, &name, "whose it is")
	cmd.Flags().StringVar(&repository, "repository", "", "the provider's repository behind it")
	_ = cmd.RegisterFlagCompletionFunc("repository", a.completeOwnFlag(locationNames))
	cmd.Flags().StringVar(&size, "quota", "", "its size, such as 500GiB or 2TiB")
	cmd.Flags().StringVar(&id, "id", "", "take what lies under this id into use, instead of a new one")
	cmd.Flags().StringVar(&former, "former-tenant", "", "name of the tenant whose backups lie under the id, if it is another one")
	for _, f := range []string{"tenant", "repository", "quota"} {
		_ = cmd.MarkFlagRequired(f)
	}
	return cmd
}

func cloudListCommand(a *app) *cobra.Command {
	var name, repository string
	var unknown bool
	cmd := &cobra.Command{
		Use: "list", Short: "List cloud repositories",
		Long: `List cloud repositories. With --unknown, list instead what lies in the provider's repositories and belongs to no cloud
repository: after the loss of the database everything, else what deleted tenants left. "holdfast cloud-repository create
--id" takes it into use again.`,
		Example: "  holdfast cloud-repository list --tenant Acme\n  holdfast cloud-repository list --unknown --repository store-1", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			if unknown {
				return listUnknown(cmd, a, c, repository)
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
	cmd.Flags().BoolVar(&unknown, "unknown", false, "what lies in repositories and belongs to no cloud repository")
	cmd.Flags().StringVar(&repository, "repository", "", "with --unknown: only in this one of the provider's repositories")
	_ = cmd.RegisterFlagCompletionFunc("repository", a.completeOwnFlag(locationNames))
	cmd.MarkFlagsMutuallyExclusive("unknown", "tenant")
	return cmd
}

func cloudDeleteCommand(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a cloud repository that stores nothing",
		Example: "  holdfast cloud-repository delete backups --tenant Acme", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOwn(cloudNames),
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
		Example: "  holdfast cloud-repository points backups --tenant Acme", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOwn(cloudNames),
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
