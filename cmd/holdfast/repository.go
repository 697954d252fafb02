package main

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

func repositoryCommand(a *app) *cobra.Command {
	return noun("repository", "The provider's own repositories: where backups lie", "",
		repositoryAddCommand(a), repositoryListCommand(a), repositoryRemoveCommand(a), repositoryReadOnlyCommand(a),
		repositoryRunCommand(a, "verify", "Read everything and check it, without keys",
			"Damaged records are named and, where the machine still has them, come back with its next backup."),
		repositoryRunCommand(a, "collect", "Free the space of what no point uses any more", "It is safe beside running backups and restores."),
		repositoryRunCommand(a, "account", "Account for every byte: what needs it, and whether that is what is charged",
			`What live points need, what arrived and is in no point yet, what only the bin needs, waste that a collection frees, and
overhead add up to the bytes on disk.`),
		repositoryRunCommand(a, "import", "Rebuild the catalogue from the manifests in the store",
			"Needed after the database was restored from a backup, and after a cloud repository was created with --id: until then such a repository takes no writes."),
		repositorySessionsCommand(a), repositoryDistrustCommand(a))
}

func repositoryAddCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "add NAME DIRECTORY", Short: "Add a directory of the server as a repository",
		Example: "  holdfast repository add store-1 /srv/holdfast", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !filepath.IsAbs(args[1]) {
				return usagef(cmd, "%q: the directory is on the server, so its path has to be absolute", args[1])
			}
			c, err := a.provider()
			if err != nil {
				return err
			}
			r, err := read[client.Repository](c.AddRepository(cmd.Context(), &client.AddRepositoryParams{IdempotencyKey: newKey()},
				client.AddRepositoryJSONRequestBody{Name: args[0], Path: args[1]}))
			if err != nil {
				return err
			}
			return showRepository(a, r)
		},
	}
}

func showRepository(a *app, r client.Repository) error {
	return show(a, r, field{"name", r.Name}, field{"id", r.Id}, field{"kind", r.Kind}, field{"path", deref(r.Path)}, field{"read only", yesNo(r.ReadOnly)})
}

func repositoryListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the provider's repositories", Example: "  holdfast repository list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			all, err := read[[]client.Repository](c.ListRepositories(cmd.Context()))
			if err != nil {
				return err
			}
			type row = client.Repository
			return list(a, all,
				column[row]{title: "name", value: func(r row) string { return r.Name }},
				column[row]{title: "kind", value: func(r row) string { return r.Kind }},
				column[row]{title: "path", value: func(r row) string { return deref(r.Path) }},
				column[row]{title: "read only", value: func(r row) string { return yesNo(r.ReadOnly) }},
				column[row]{title: "id", value: func(r row) string { return r.Id }})
		},
	}
}

func repositoryRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Forget a repository that no cloud repository uses; its files stay",
		Example: "  holdfast repository remove store-1", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOwn(locationNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			r, err := findRepository(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if err := done(c.RemoveRepository(cmd.Context(), r.Id)); err != nil {
				return err
			}
			a.say("repository %s is forgotten; its files are still in %s", r.Name, deref(r.Path))
			return nil
		},
	}
}

func repositoryReadOnlyCommand(a *app) *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "read-only NAME", Short: "Let a repository take nothing new; restores go on",
		Example: "  holdfast repository read-only store-1\n  holdfast repository read-only store-1 --off", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOwn(locationNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			r, err := findRepository(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			on := !off
			r, err = read[client.Repository](c.UpdateRepository(cmd.Context(), r.Id, client.UpdateRepositoryJSONRequestBody{Version: r.Version, ReadOnly: &on}))
			if err != nil {
				return err
			}
			return showRepository(a, r)
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "let it take writes again")
	return cmd
}

// repositoryRunCommand starts a run on each of the cloud repositories that were
// chosen, one after the other, and waits for them.
func repositoryRunCommand(a *app, verb, short, long string) *cobra.Command {
	var name string
	var loss bool
	var w waiting
	cmd := &cobra.Command{
		Use: verb + " [CLOUD-REPOSITORY]", Short: short,
		Long:    short + ". " + long + " Without a name, every cloud repository of the tenant, or of all tenants, is taken.",
		Example: fmt.Sprintf("  holdfast repository %s\n  holdfast repository %s backups --tenant Acme", verb, verb), Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeOwn(cloudNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			if loss && len(args) == 0 {
				return usagef(cmd, "--accept-loss is about one cloud repository: name it")
			}
			chosen, err := chooseClouds(cmd, c, name, args)
			if err != nil {
				return err
			}
			var failures []error
			for _, r := range chosen {
				run, err := readRun(startRun(cmd, c, verb, r, loss))
				switch {
				case err != nil:
				case w.noWait:
					err = a.showRun(run)
				default:
					err = a.watchRun(cmd.Context(), providerRuns(c), run)
				}
				if err != nil {
					failures = append(failures, fmt.Errorf("%s: %w", r.Name, err))
				}
			}
			return errors.Join(failures...)
		},
	}
	a.tenantFlag(cmd, &name, "whose cloud repositories (default everybody's)")
	if verb == "import" {
		cmd.Flags().BoolVar(&loss, "accept-loss", false, "what the store does not have any more is really gone, even if that is everything")
	}
	w.register(cmd)
	return cmd
}

func chooseClouds(cmd *cobra.Command, c *client.Client, tenant string, args []string) ([]client.CloudRepository, error) {
	if len(args) == 0 {
		id, err := scope(cmd.Context(), c, tenant)
		if err != nil {
			return nil, err
		}
		return allClouds(cmd.Context(), c, id)
	}
	id, err := scope(cmd.Context(), c, tenant)
	if err != nil {
		return nil, err
	}
	r, err := findCloud(cmd.Context(), c, id, args[0])
	return []client.CloudRepository{r}, err
}

func startRun(cmd *cobra.Command, c *client.Client, verb string, r client.CloudRepository, loss bool) (*http.Response, error) {
	switch verb {
	case "verify":
		return c.VerifyCloudRepository(cmd.Context(), r.Tenant, r.Id, &client.VerifyCloudRepositoryParams{IdempotencyKey: newKey()})
	case "collect":
		return c.CollectCloudRepository(cmd.Context(), r.Tenant, r.Id, &client.CollectCloudRepositoryParams{IdempotencyKey: newKey()})
	case "account":
		return c.AccountCloudRepository(cmd.Context(), r.Tenant, r.Id, &client.AccountCloudRepositoryParams{IdempotencyKey: newKey()})
	}
	return c.ImportCloudRepository(cmd.Context(), r.Tenant, r.Id, &client.ImportCloudRepositoryParams{IdempotencyKey: newKey(), AcceptLoss: given(loss)})
}
