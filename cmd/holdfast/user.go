package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/client"
)

func userCommand(a *app) *cobra.Command {
	var roles []string
	for _, r := range access.Roles() {
		roles = append(roles, string(r))
	}
	return noun("user", "People and scripts of the provider and of tenants", "The roles are "+strings.Join(roles, ", ")+".",
		userCreateCommand(a, roles), userListCommand(a), userUpdateCommand(a, roles), userDeleteCommand(a))
}

func showUser(a *app, u client.User) error {
	return show(a, u, field{"name", u.Name}, field{"id", u.Id}, field{"tenant", deref(u.Tenant)}, field{"role", u.Role},
		field{"enabled", yesNo(u.Enabled)}, field{"password", yesNo(u.HasPassword)})
}

// newPassword reads a password that is to be set, or makes one and says it once.
func (a *app) newPassword(file string, generate bool) (*string, error) {
	switch {
	case generate:
		password := access.GeneratePassword()
		a.note("password: %s", password)
		return &password, nil
	case file != "":
		password, err := a.readSecret(file)
		return &password, err
	}
	return nil, nil
}

func passwordFlags(cmd *cobra.Command, file *string, generate *bool) {
	cmd.Flags().StringVar(file, "password-file", "", "file with the password, - for standard input")
	cmd.Flags().BoolVar(generate, "generate-password", false, "make a password and print it this once, on standard error")
	cmd.MarkFlagsMutuallyExclusive("password-file", "generate-password")
}

func userCreateCommand(a *app, roles []string) *cobra.Command {
	var tenant, role, file string
	var generate bool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a user",
		Long: "Create a user. Without a password the user works with tokens only: holdfast token create --user NAME.",
		Example: `  holdfast user create anna --role provider-operator --generate-password
  holdfast user create ops --tenant Acme --role tenant-admin --password-file -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, tenant)
			if err != nil {
				return err
			}
			password, err := a.newPassword(file, generate)
			if err != nil {
				return err
			}
			u, err := read[client.User](c.CreateUser(cmd.Context(), &client.CreateUserParams{Tenant: given(id), IdempotencyKey: newKey()},
				client.CreateUserJSONRequestBody{Name: args[0], Role: client.CreateUserInputBodyRole(role), Password: password}))
			if err != nil {
				return err
			}
			return showUser(a, u)
		},
	}
	a.tenantFlag(cmd, &tenant, "whose user (default the provider's)")
	cmd.Flags().StringVar(&role, "role", "", "one of "+strings.Join(roles, ", "))
	_ = cmd.MarkFlagRequired("role")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roles, cobra.ShellCompDirectiveNoFileComp))
	passwordFlags(cmd, &file, &generate)
	return cmd
}

func userListCommand(a *app) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use: "list", Short: "List users", Example: "  holdfast user list\n  holdfast user list --tenant Acme", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, tenant)
			if err != nil {
				return err
			}
			all, err := read[[]client.User](c.ListUsers(cmd.Context(), &client.ListUsersParams{Tenant: given(id)}))
			if err != nil {
				return err
			}
			type row = client.User
			return list(a, all,
				column[row]{title: "name", value: func(u row) string { return u.Name }},
				column[row]{title: "role", value: func(u row) string { return u.Role }},
				column[row]{title: "enabled", value: func(u row) string { return yesNo(u.Enabled) }},
				column[row]{title: "password", value: func(u row) string { return yesNo(u.HasPassword) }},
				column[row]{title: "id", value: func(u row) string { return u.Id }})
		},
	}
	a.tenantFlag(cmd, &tenant, "whose users (default the provider's)")
	return cmd
}

func userUpdateCommand(a *app, roles []string) *cobra.Command {
	var tenant, role, file string
	var generate, enable, disable bool
	cmd := &cobra.Command{
		Use: "update NAME", Short: "Change a user's role or password, enable or disable it",
		Long:    "Change a user. A new password, or disabling, ends all of the user's tokens.",
		Example: "  holdfast user update anna --disable\n  holdfast user update anna --generate-password", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOwn(userNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, tenant)
			if err != nil {
				return err
			}
			u, err := findUser(cmd, c, id, args[0])
			if err != nil {
				return err
			}
			body := client.UpdateUserJSONRequestBody{Version: u.Version}
			if role != "" {
				r := client.UpdateUserInputBodyRole(role)
				body.Role = &r
			}
			if enable || disable {
				body.Enabled = &enable
			}
			if body.Password, err = a.newPassword(file, generate); err != nil {
				return err
			}
			if u, err = read[client.User](c.UpdateUser(cmd.Context(), u.Id, &client.UpdateUserParams{Tenant: given(id)}, body)); err != nil {
				return err
			}
			return showUser(a, u)
		},
	}
	a.tenantFlag(cmd, &tenant, "whose user (default the provider's)")
	cmd.Flags().StringVar(&role, "role", "", "one of "+strings.Join(roles, ", "))
	cmd.Flags().BoolVar(&enable, "enable", false, "let the user in again")
	cmd.Flags().BoolVar(&disable, "disable", false, "shut the user out and end its tokens")
	passwordFlags(cmd, &file, &generate)
	cmd.MarkFlagsMutuallyExclusive("enable", "disable")
	cmd.MarkFlagsOneRequired("role", "enable", "disable", "password-file", "generate-password")
	return cmd
}

func userDeleteCommand(a *app) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a user and its tokens", Example: "  holdfast user delete anna", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOwn(userNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, tenant)
			if err != nil {
				return err
			}
			u, err := findUser(cmd, c, id, args[0])
			if err != nil {
				return err
			}
			if err := done(c.DeleteUser(cmd.Context(), u.Id, &client.DeleteUserParams{Tenant: given(id)})); err != nil {
				return err
			}
			a.say("user %s is deleted", u.Name)
			return nil
		},
	}
	a.tenantFlag(cmd, &tenant, "whose user (default the provider's)")
	return cmd
}
