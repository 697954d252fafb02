package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
)

// loginRequest is what a login needs.
type loginRequest struct {
	address, fingerprint string
	user, tenant         string
	passwordFile         string
	tokenFile            string
	system               bool
}

func loginCommand(a *app) *cobra.Command {
	var r loginRequest
	cmd := &cobra.Command{
		Use:   "login ADDRESS",
		Short: "Sign in to a provider, for the commands that follow",
		Long: `Sign in to a provider and keep the connection: its address, the fingerprint of its CA, and a token in a file that only
you can read. The fingerprint is checked before anything is sent; the provider tells it to you over another channel
("holdfast certificate"). A provider with a certificate of a public authority needs none: --system-roots.

With --user a password is asked for and a token of 12 hours comes back. Without it, a token that you already have is
read, from a file or from the terminal.`,
		Example: `  holdfast login backup.example.com --fingerprint SHA256:48:4D:… --user admin
  holdfast login backup.example.com --fingerprint SHA256:48:4D:… --token-file admin.token
  holdfast login backup.example.com --system-roots --tenant Acme --user anna --context acme`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.address = args[0]
			if (r.fingerprint == "") == !r.system {
				return usagef(cmd, "say how to know the provider: --fingerprint, or --system-roots for a certificate of a public authority")
			}
			return a.login(cmd.Context(), r)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&r.fingerprint, "fingerprint", "", "of the provider's CA")
	flags.BoolVar(&r.system, "system-roots", false, "trust the system's authorities instead of a fingerprint")
	flags.StringVar(&r.user, "user", "", "sign in with a password, as this user")
	flags.StringVar(&r.tenant, "tenant", "", "the user's tenant, for a tenant's people")
	flags.StringVar(&r.passwordFile, "password-file", "", "file with the password, - for standard input (default: ask)")
	flags.StringVar(&r.tokenFile, "token-file", "", "file with a token, - for standard input (default: ask)")
	cmd.MarkFlagsMutuallyExclusive("user", "token-file")
	return cmd
}

func (a *app) login(ctx context.Context, r loginRequest) error {
	address, err := gateway.Address(r.address)
	if err != nil {
		return err
	}
	c := connection{Name: a.context, Address: address, Fingerprint: r.fingerprint}
	if c.Name == "" {
		c.Name, _, _ = net.SplitHostPort(address)
	}
	if r.fingerprint != "" {
		pin, err := pki.ParseFingerprint(r.fingerprint)
		if err != nil {
			return err
		}
		c.Fingerprint = pin.String()
	}
	if r.user != "" {
		password, err := a.ask(ctx, r.passwordFile, "Password of "+r.user+": ")
		if err != nil {
			return err
		}
		anonymous, err := a.dial(c)
		if err != nil {
			return err
		}
		answer, err := read[client.NewToken](anonymous.Login(ctx, client.LoginJSONRequestBody{User: r.user, Password: &password, Tenant: given(r.tenant)}))
		if err != nil {
			return err
		}
		c.token = answer.Token
	} else if c.token, err = a.ask(ctx, r.tokenFile, "Token: "); err != nil {
		return err
	}
	signed, err := a.dial(c)
	if err != nil {
		return err
	}
	me, err := read[client.Me](signed.GetMe(ctx))
	if err != nil && exitCode(err) == exitDenied && r.user == "" {
		return withHint(err, "a token that can sign in begins with hf_ and may have ended; one with hfe_ is for: holdfast agent connect")
	}
	if err != nil {
		return err
	}
	c.User, c.Tenant = deref(me.Name), deref(me.Tenant)
	if err := a.save(c); err != nil {
		return err
	}
	return show(a, me, field{"signed in to", address}, field{"as", deref(me.Name)}, field{"role", deref(me.Role)}, field{"tenant", deref(me.Tenant)},
		field{"connection", c.Name})
}

func logoutCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "logout",
		Short:   "End the token of the saved connection and forget it",
		Example: "  holdfast logout --context acme",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.saved()
			if err != nil {
				return err
			}
			signed, err := a.dial(c)
			if err != nil {
				return err
			}
			err = done(signed.Logout(cmd.Context()))
			if err != nil && exitCode(err) != exitDenied {
				return withHint(fmt.Errorf("end the token: %w", err), "the connection is kept; try again when the provider answers")
			}
			dir, err := a.configDir()
			if err != nil {
				return err
			}
			var failures []error
			for _, suffix := range []string{".token", ".json"} {
				if err := os.Remove(filepath.Join(dir, c.Name+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
					failures = append(failures, err)
				}
			}
			a.say("signed out of %s", c.Address)
			return errors.Join(failures...)
		},
	}
}
