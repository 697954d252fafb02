package main

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/gateway"
)

// errNoSuch says that a name is not known, as the API would say of an id.
func errNoSuch(what, name, hint string) error {
	return gateway.NewProblem(404, gateway.CodeNotFound, fmt.Sprintf("there is no %s %q", what, name)).WithHint(hint)
}

// findTenant finds a tenant by name or id.
func findTenant(ctx context.Context, c *client.Client, name string) (client.Tenant, error) {
	if uuid.Validate(name) == nil {
		return read[client.Tenant](c.GetTenant(ctx, name))
	}
	page, err := read[client.TenantPage](c.ListTenants(ctx, &client.ListTenantsParams{Name: &name}))
	if err != nil {
		return client.Tenant{}, err
	}
	if len(page.Items) == 0 {
		return client.Tenant{}, errNoSuch("tenant", name, "see: holdfast tenant list")
	}
	return page.Items[0], nil
}

// scope is the id of the tenant that a command is about: the one that was named,
// the caller's own for a tenant's user, "" for the provider.
func scope(ctx context.Context, c *client.Client, name string) (string, error) {
	if name == "" {
		me, err := read[client.Me](c.GetMe(ctx))
		return deref(me.Tenant), err
	}
	if me, err := read[client.Me](c.GetMe(ctx)); err != nil || deref(me.Tenant) != "" {
		return deref(me.Tenant), err
	}
	t, err := findTenant(ctx, c, name)
	return t.Id, err
}

// needScope is scope where a tenant must be named.
func needScope(cmd *cobra.Command, c *client.Client, name string) (string, error) {
	id, err := scope(cmd.Context(), c, name)
	if err == nil && id == "" {
		err = usagef(cmd, "say whose: --tenant NAME")
	}
	return id, err
}

// allTenants reads every page of tenants.
func allTenants(ctx context.Context, c *client.Client, text string) ([]client.Tenant, error) {
	var all []client.Tenant
	for after := (*string)(nil); ; {
		page, err := read[client.TenantPage](c.ListTenants(ctx, &client.ListTenantsParams{Text: given(text), After: after}))
		if err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if page.Next == nil {
			return all, nil
		}
		after = page.Next
	}
}

// allClouds reads every page of cloud repositories, of one tenant or of all.
func allClouds(ctx context.Context, c *client.Client, tenant string) ([]client.CloudRepository, error) {
	var all []client.CloudRepository
	for after := (*string)(nil); ; {
		var page client.CloudPage
		var err error
		if tenant == "" {
			page, err = read[client.CloudPage](c.ListAllCloudRepositories(ctx, &client.ListAllCloudRepositoriesParams{After: after}))
		} else {
			page, err = read[client.CloudPage](c.ListCloudRepositories(ctx, tenant, &client.ListCloudRepositoriesParams{After: after}))
		}
		if err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if page.Next == nil {
			return all, nil
		}
		after = page.Next
	}
}

// findCloud finds a tenant's cloud repository by name or id.
func findCloud(ctx context.Context, c *client.Client, tenant, name string) (client.CloudRepository, error) {
	all, err := allClouds(ctx, c, tenant)
	if err != nil {
		return client.CloudRepository{}, err
	}
	for _, r := range all {
		if r.Id == name || r.Name == name {
			return r, nil
		}
	}
	return client.CloudRepository{}, errNoSuch("cloud repository", name, "see: holdfast cloud-repository list")
}

// findRepository finds a repository of the provider by name or id.
func findRepository(ctx context.Context, c *client.Client, name string) (client.Repository, error) {
	all, err := read[[]client.Repository](c.ListRepositories(ctx))
	if err != nil {
		return client.Repository{}, err
	}
	for _, r := range all {
		if r.Id == name || r.Name == name {
			return r, nil
		}
	}
	return client.Repository{}, errNoSuch("repository", name, "see: holdfast repository list")
}

// tenantNames maps ids to names, for tables that show several tenants' things.
// Who may not list tenants sees ids.
func tenantNames(ctx context.Context, c *client.Client) func(string) string {
	names := map[string]string{}
	if all, err := allTenants(ctx, c, ""); err == nil {
		for _, t := range all {
			names[t.Id] = t.Name
		}
	}
	return func(id string) string {
		if name, ok := names[id]; ok {
			return name
		}
		return id
	}
}

// completeTenants completes names of tenants.
func (a *app) completeTenants(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	c, err := a.provider()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := allTenants(cmd.Context(), c, prefix)
	found, _ := namesOf(all, err, func(t client.Tenant) string { return t.Name })
	return found, cobra.ShellCompDirectiveNoFileComp
}

// tenantFlag adds --tenant.
func (a *app) tenantFlag(cmd *cobra.Command, into *string, usage string) {
	cmd.Flags().StringVar(into, "tenant", "", usage)
	_ = cmd.RegisterFlagCompletionFunc("tenant", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.completeTenants(cmd, nil, prefix)
	})
}
