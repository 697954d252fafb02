package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

// newKey is an idempotency key: a request that the client repeats by itself is
// done once.
func newKey() *string {
	key := uuid.NewString()
	return &key
}

func tokenCommand(a *app) *cobra.Command {
	return noun("token", "One-time tokens with which agents enrol, and tokens of users",
		"A token is shown once, when it is made, and cannot be read again. Keep it out of command lines: use files and standard input.",
		tokenCreateCommand(a), tokenListCommand(a), tokenDeleteCommand(a))
}

func tokenCreateCommand(a *app) *cobra.Command {
	var tenant, site, user, name, level, file string
	var life time.Duration
	cmd := &cobra.Command{
		Use: "create", Short: "Make a one-time token for a tenant's agent, or a token for a user",
		Long: `With --site, make a one-time token with which the agent of a site enrols: send it to the tenant together with the
address and the fingerprint that are printed with it. It is bound to the first agent that uses it.

With --user, make a bearer token for a person or a script.`,
		Example: `  holdfast token create --tenant Acme --site berlin
  holdfast token create --user monitoring --level view --life 8760h --token-file monitoring.token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, tenant)
			if err != nil {
				return err
			}
			if site != "" {
				if id == "" {
					return usagef(cmd, "say whose site it is: --tenant NAME")
				}
				body := client.CreateEnrolmentJSONRequestBody{Site: site, Hours: given(int64(life / time.Hour))}
				e, err := read[client.NewEnrolment](c.CreateEnrolment(cmd.Context(), id, &client.CreateEnrolmentParams{IdempotencyKey: newKey()}, body))
				if err != nil {
					return err
				}
				if e.Token, err = keepToken(file, e.Token); err != nil {
					return err
				}
				return show(a, e, field{"token", e.Token}, field{"good until", timeText(e.Ends)}, field{"address", e.Address},
					field{"fingerprint", e.Fingerprint}, field{"then", fmt.Sprintf("holdfast agent connect %s --fingerprint %s", e.Address, e.Fingerprint)})
			}
			u, err := findUser(cmd, c, id, user)
			if err != nil {
				return err
			}
			body := client.CreateTokenJSONRequestBody{Name: name}
			if level != "" {
				s := client.CreateTokenInputBodyScope(level)
				body.Scope = &s
			}
			if life > 0 {
				end := time.Now().Add(life)
				body.Ends = &end
			}
			t, err := read[client.NewToken](c.CreateToken(cmd.Context(), u.Id, &client.CreateTokenParams{Tenant: given(id), IdempotencyKey: newKey()}, body))
			if err != nil {
				return err
			}
			if t.Token, err = keepToken(file, t.Token); err != nil {
				return err
			}
			return show(a, t, field{"token", t.Token}, field{"of", t.User.Name}, field{"good until", timeText(timePointer(t.Ends))}, field{"id", t.Id})
		},
	}
	a.tenantFlag(cmd, &tenant, "whose agent or user (default the provider's user)")
	flags := cmd.Flags()
	flags.StringVar(&site, "site", "", "name of the site whose agent is to enrol")
	flags.StringVar(&user, "user", "", "the user that the token is for")
	_ = cmd.RegisterFlagCompletionFunc("user", a.completeOwnFlag(userNames))
	flags.StringVar(&name, "name", "cli", "what a user's token is for")
	flags.StringVar(&level, "level", "", "how far a user's token goes at most: view, operate, manage or all")
	flags.DurationVar(&life, "life", 0, "how long it is good for, such as 72h (default a day for a site, no end for a user)")
	flags.StringVar(&file, "token-file", "", "write the token to this file instead of printing it")
	cmd.MarkFlagsOneRequired("site", "user")
	cmd.MarkFlagsMutuallyExclusive("site", "user")
	return cmd
}

// keepToken writes a token to a file for its user alone, if one is named, and
// returns what to print in its place.
func keepToken(file, token string) (string, error) {
	if file == "" {
		return token, nil
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", withHint(fmt.Errorf("keep the token: %w", err), "the token was made and is lost; delete it and make another one")
	}
	_, err = f.WriteString(token + "\n")
	return "in " + file, errors.Join(err, f.Close())
}

func findUser(cmd *cobra.Command, c *client.Client, tenant, name string) (client.User, error) {
	all, err := read[[]client.User](c.ListUsers(cmd.Context(), &client.ListUsersParams{Tenant: given(tenant)}))
	if err != nil {
		return client.User{}, err
	}
	for _, u := range all {
		if u.Id == name || u.Name == name {
			return u, nil
		}
	}
	return client.User{}, errNoSuch("user", name, "see: holdfast user list")
}

func tokenListCommand(a *app) *cobra.Command {
	var tenant, user string
	cmd := &cobra.Command{
		Use: "list", Short: "List one-time tokens of a tenant's agents, or tokens of a user",
		Example: "  holdfast token list --tenant Acme\n  holdfast token list --user admin", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, tenant)
			if err != nil {
				return err
			}
			if user == "" {
				if id == "" {
					return usagef(cmd, "say whose: --tenant NAME or --user NAME")
				}
				all, err := read[[]client.Enrolment](c.ListEnrolments(cmd.Context(), id))
				if err != nil {
					return err
				}
				type row = client.Enrolment
				return list(a, all,
					column[row]{title: "site", value: func(e row) string { return e.Site }},
					column[row]{title: "good until", value: func(e row) string { return timeText(e.Ends) }},
					column[row]{title: "used by agent", value: func(e row) string { return deref(e.Agent) }},
					column[row]{title: "id", value: func(e row) string { return e.Id }})
			}
			u, err := findUser(cmd, c, id, user)
			if err != nil {
				return err
			}
			all, err := read[[]client.Token](c.ListTokens(cmd.Context(), u.Id, &client.ListTokensParams{Tenant: given(id)}))
			if err != nil {
				return err
			}
			type row = client.Token
			return list(a, all,
				column[row]{title: "name", value: func(t row) string { return t.Name }},
				column[row]{title: "level", value: func(t row) string { return t.Scope }},
				column[row]{title: "good until", value: func(t row) string { return timeText(timePointer(t.Ends)) }},
				column[row]{title: "last used", value: func(t row) string { return timeText(timePointer(t.LastUsed)) }},
				column[row]{title: "id", value: func(t row) string { return t.Id }})
		},
	}
	a.tenantFlag(cmd, &tenant, "whose agents' tokens, or whose user")
	cmd.Flags().StringVar(&user, "user", "", "the tokens of this user")
	_ = cmd.RegisterFlagCompletionFunc("user", a.completeOwnFlag(userNames))
	return cmd
}

func tokenDeleteCommand(a *app) *cobra.Command {
	var tenant string
	var site bool
	cmd := &cobra.Command{
		Use: "delete ID", Short: "End a user's token, or with --site withdraw an agent's one-time token",
		Example: "  holdfast token delete 01a20ae5-76a9-70b5-927c-d0423543fde9 --tenant Acme --site", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			id, err := scope(cmd.Context(), c, tenant)
			if err != nil {
				return err
			}
			if site {
				err = done(c.DeleteEnrolment(cmd.Context(), id, args[0]))
			} else {
				err = done(c.DeleteToken(cmd.Context(), args[0], &client.DeleteTokenParams{Tenant: given(id)}))
			}
			if err == nil {
				a.say("token %s has ended", args[0])
			}
			return err
		},
	}
	a.tenantFlag(cmd, &tenant, "whose token")
	cmd.Flags().BoolVar(&site, "site", false, "it is a one-time token of an agent")
	return cmd
}
