package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

// scopedNames lists names of a tenant's things; the tenant is "" for the
// provider's own, or for everybody's.
type scopedNames func(ctx context.Context, c *client.Client, tenant string) ([]string, error)

// completeOwn completes the first argument with names at the provider, of the
// tenant that --tenant names if the command has that flag.
func (a *app) completeOwn(find scopedNames) cobra.CompletionFunc {
	flag := a.completeOwnFlag(find)
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return flag(cmd, args, prefix)
	}
}

// completeOwnFlag completes a flag's value in the same way.
func (a *app) completeOwnFlag(find scopedNames) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		none := cobra.ShellCompDirectiveNoFileComp
		c, err := a.provider()
		if err != nil {
			return nil, none
		}
		name := ""
		if flag := cmd.Flags().Lookup("tenant"); flag != nil {
			name = flag.Value.String()
		}
		id, err := scope(cmd.Context(), c, name)
		if err != nil {
			return nil, none
		}
		all, err := find(cmd.Context(), c, id)
		if err != nil {
			return nil, none
		}
		return slices.DeleteFunc(all, func(s string) bool {
			return !strings.HasPrefix(strings.ToLower(s), strings.ToLower(prefix))
		}), none
	}
}

func cloudNames(ctx context.Context, c *client.Client, tenant string) ([]string, error) {
	items, err := allClouds(ctx, c, tenant)
	return namesOf(items, err, func(r client.CloudRepository) string { return r.Name })
}

func locationNames(ctx context.Context, c *client.Client, _ string) ([]string, error) {
	items, err := read[[]client.Repository](c.ListRepositories(ctx))
	return namesOf(items, err, func(r client.Repository) string { return r.Name })
}

func userNames(ctx context.Context, c *client.Client, tenant string) ([]string, error) {
	items, err := read[[]client.User](c.ListUsers(ctx, &client.ListUsersParams{Tenant: given(tenant)}))
	return namesOf(items, err, func(u client.User) string { return u.Name })
}

// agentIDs gives each agent's site as the description.
func agentIDs(ctx context.Context, c *client.Client, tenant string) ([]string, error) {
	if tenant == "" {
		return nil, nil
	}
	items, err := read[[]client.SiteAgent](c.ListAgents(ctx, tenant))
	return namesOf(items, err, func(g client.SiteAgent) string { return g.Id + "\t" + g.Name })
}

// completeNoFiles keeps the shell from offering files for arguments that are
// none. Arguments that are files say so in their usage.
func completeNoFiles(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		completeNoFiles(sub)
	}
	_, arguments, _ := strings.Cut(cmd.Use, " ")
	files := strings.Contains(arguments, "FILE") || strings.Contains(arguments, "DIRECTORY") || strings.Contains(arguments, "PROGRAM")
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 && !files {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
}
