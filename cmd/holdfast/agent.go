package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
)

func agentCommand(a *app) *cobra.Command {
	return noun("agent", "The tenant's side: connect to a provider, back up, restore",
		`The agent works at the tenant's site. It dials out only, keeps the hypervisor's credentials and the encryption keys, and
owns the jobs. "holdfast agent serve" is the process; the other commands talk to it through its socket.`,
		agentConnectCommand(a), agentServeCommand(a), agentStatusCommand(a), agentDisconnectCommand(a))
}

func agentConnectCommand(a *app) *cobra.Command {
	var req agent.ConnectRequest
	var tokenFile, dir string
	cmd := &cobra.Command{
		Use:   "connect ADDRESS",
		Short: "Connect this site to a provider",
		Long: `Connect this site to a provider, with the one-time token that the provider made for it.

The provider sends its fingerprint over another channel. It is compared before the token leaves this machine. Without a
fingerprint, a public authority has to vouch for the address.

The token is asked for, or read from a file; it is never an argument, for every process can read those. Repeating the
command with the same token is safe if an answer was lost. The agent need not run yet.`,
		Example: `  holdfast agent connect backup.example.com --fingerprint SHA256:3f:0a:…
  holdfast agent connect 198.51.100.7:6180 --fingerprint SHA256:3f:0a:… --name offsite --token-file token.txt
  pass show holdfast/token | holdfast agent connect backup.example.com --token-file -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Address = args[0]
			if req.Fingerprint != "" { // before anybody types a token
				if _, err := pki.ParseFingerprint(req.Fingerprint); err != nil {
					return withHint(err, "copy all of it from what the provider sent you (holdfast certificate)")
				}
			}
			var err error
			if req.Token, err = a.ask(cmd.Context(), tokenFile, "Enrolment token: "); err != nil {
				return err
			}
			c, release, err := a.agentOrSite(cmd.Context(), dir)
			if err != nil {
				return err
			}
			defer release()
			got, err := read[agent.ConnectionStatus](c.SiteConnectWithBody(cmd.Context(), jsonType, content(req)))
			if p, ok := errors.AsType[*gateway.Problem](err); ok && p.Code == gateway.CodeExists {
				return withHint(err, "see: holdfast agent status; a second connection needs a name of its own: --name NAME")
			}
			if err != nil {
				return err
			}
			if err := show(a, got, connectionFields(got)...); err != nil {
				return err
			}
			a.note("Next: holdfast agent serve, if it does not run yet; then holdfast agent status says what is missing.")
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Fingerprint, "fingerprint", "", "fingerprint of the provider's CA, from the provider")
	flags.StringVar(&req.Name, "name", "", "what this site calls the provider (default its address)")
	flags.StringVar(&tokenFile, "token-file", "", "file with the enrolment token, - for standard input (default: ask)")
	flags.StringVar(&dir, "data", "", "the agent's data directory, if the agent does not run yet (default "+a.dataDir("agent")+")")
	return cmd
}

// ask reads a secret from a file, or from the terminal without showing it.
func (a *app) ask(ctx context.Context, file, prompt string) (string, error) {
	if file != "" {
		return a.readSecret(file)
	}
	if !isTerminal(a.in) {
		return "", withHint(errors.New("there is no terminal to ask on"), "read it from a file, or from standard input with -: see --help")
	}
	fd := int(a.in.(*os.File).Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read from the terminal: %w", err)
	}
	fmt.Fprint(a.err, prompt)
	secret, err := interruptible(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	fmt.Fprintln(a.err)
	if err != nil {
		return "", errors.Join(fmt.Errorf("read from the terminal: %w", err), term.Restore(fd, before))
	}
	if len(secret) == 0 {
		return "", errors.New("nothing was entered")
	}
	return string(secret), nil
}

// interruptible waits for an answer from the terminal, or for ctx. Nothing can
// call a read from a terminal back; the process ends soon after and takes it
// along.
func interruptible[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		value, err := read()
		answers <- answer{value, err}
	}()
	select {
	case got := <-answers:
		return got.value, got.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// confirm asks a person to type a word; scripts have to say it by a flag.
func (a *app) confirm(ctx context.Context, question, word, flag string) error {
	if !isTerminal(a.in) {
		return withHint(errors.New("this needs a confirmation, and there is no terminal to ask on"), "confirm it with %s", flag)
	}
	fmt.Fprintf(a.err, "%s\nType %s to go on: ", printable(question), printable(word))
	typed, err := interruptible(ctx, func() (string, error) { return bufio.NewReader(io.LimitReader(a.in, maxTyped)).ReadString('\n') })
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read from the terminal: %w", err)
	}
	if strings.TrimSpace(typed) != word {
		return errors.New("not confirmed; nothing was done")
	}
	return nil
}

// maxTyped bounds what is read as the answer to a question.
const maxTyped = 4096

func connectionFields(c agent.ConnectionStatus) []field {
	fields := []field{
		{"provider", c.Name}, {"address", c.Address}, {"verified by", verifiedBy(c.Fingerprint)}, {"tenant", c.Tenant},
		{"certificate until", timeText(c.CertificateEnd)}, {"lease until", leaseText(c.LeaseEnd)},
		{"state", connectionState(c)}, {"hint", c.Hint},
	}
	for _, r := range c.Repositories {
		fields = append(fields, field{"cloud repository", fmt.Sprintf("%s, %s of %s used", r.Name, bytesText(r.UsedBytes), limitText(r.LimitBytes))})
	}
	return fields
}

func verifiedBy(fingerprint string) string {
	if fingerprint == "" {
		return "a public authority"
	}
	return "its CA's fingerprint, " + fingerprint
}

func connectionState(c agent.ConnectionStatus) string {
	switch {
	case c.Problem != "":
		return c.Problem
	case c.Reachable:
		return "connected"
	}
	return "not reachable"
}

func limitText(limit int64) string {
	if limit <= 0 {
		return "no limit"
	}
	return bytesText(limit)
}

func agentStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show the site at a glance, and what to do next",
		Example: "  holdfast agent status\n  holdfast agent status -o json | jq .advice",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			s, err := read[agent.SiteStatus](c.SiteStatus(cmd.Context()))
			if err != nil {
				return err
			}
			return show(a, s, statusFields(s)...)
		},
	}
}

func statusFields(s agent.SiteStatus) []field {
	fields := []field{{"site", s.Name}, {"version", s.Version}}
	for _, p := range s.Providers {
		fields = append(fields, connectionFields(p)...)
	}
	for _, k := range s.Keys {
		if k.Current {
			fields = append(fields, field{"keyring", k.Fingerprint + ", recovery kit " + string(k.Kit)})
		}
	}
	for _, e := range s.Endpoints {
		fields = append(fields, field{"endpoint", e.Name + " (" + e.Plugin + ")"})
	}
	for _, j := range s.Jobs {
		fields = append(fields, field{"job", j.Name + ": " + lastText(j) + nextText(j)})
	}
	for _, advice := range s.Advice {
		fields = append(fields, field{"next", advice})
	}
	return fields
}

func agentDisconnectCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "disconnect PROVIDER",
		Short: "Forget a provider",
		Long:  "Forget a provider that no job uses. Nothing changes at the provider: the backups stay, and so does the keyring here.",
		Example: `  holdfast agent status
  holdfast agent disconnect offsite`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(providerNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			if err := done(c.SiteDisconnect(cmd.Context(), args[0])); err != nil {
				return err
			}
			a.say("provider %s is forgotten", args[0])
			return nil
		},
	}
}

// names finds the names that a word may be completed to.
type names func(ctx context.Context, c *client.Client) ([]string, error)

// complete completes the first argument of a command from what the agent knows.
// Without an agent nothing is completed.
func (a *app) complete(find names) cobra.CompletionFunc {
	all := a.completeAll(find)
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return all(cmd, args, prefix)
	}
}

// completeAll completes every argument, or a flag's value.
func (a *app) completeAll(find names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		c, err := a.agent()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, err := find(cmd.Context(), c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.DeleteFunc(all, func(s string) bool {
			return !strings.HasPrefix(strings.ToLower(s), strings.ToLower(prefix))
		}), cobra.ShellCompDirectiveNoFileComp
	}
}

// namesOf makes names of a list and what each item is called.
func namesOf[T any](items []T, err error, name func(T) string) ([]string, error) {
	if err != nil {
		return nil, err
	}
	all := make([]string, len(items))
	for i, item := range items {
		all[i] = name(item)
	}
	return all, nil
}

func providerNames(ctx context.Context, c *client.Client) ([]string, error) {
	items, err := read[[]agent.ConnectionStatus](c.SiteListProviders(ctx))
	return namesOf(items, err, func(p agent.ConnectionStatus) string { return p.Name })
}

func repositoryNames(ctx context.Context, c *client.Client) ([]string, error) {
	items, err := read[[]agent.ConnectionStatus](c.SiteListProviders(ctx))
	var all []string
	for _, p := range items {
		for _, r := range p.Repositories {
			all = append(all, r.Name)
		}
	}
	return all, err
}

func endpointNames(ctx context.Context, c *client.Client) ([]string, error) {
	items, err := read[[]agent.EndpointStatus](c.SiteListEndpoints(ctx))
	return namesOf(items, err, func(e agent.EndpointStatus) string { return e.Name })
}

func workerNames(ctx context.Context, c *client.Client) ([]string, error) {
	items, err := read[[]agent.WorkerStatus](c.SiteListWorkers(ctx))
	return namesOf(items, err, func(w agent.WorkerStatus) string { return w.Name })
}

func machineNames(ctx context.Context, c *client.Client) ([]string, error) {
	items, err := read[[]agent.MachineStatus](c.SiteListMachines(ctx, nil))
	return namesOf(items, err, func(m agent.MachineStatus) string { return m.Name })
}

func jobNames(ctx context.Context, c *client.Client) ([]string, error) {
	items, err := read[[]agent.JobStatus](c.SiteListJobs(ctx))
	return namesOf(items, err, func(j agent.JobStatus) string { return j.Name })
}

func pluginNames(ctx context.Context, c *client.Client) ([]string, error) {
	items, err := read[[]agent.PluginStatus](c.SiteListPlugins(ctx))
	return namesOf(items, err, func(p agent.PluginStatus) string { return p.Name })
}

// pointNames gives each point's machine and time as the description.
func pointNames(ctx context.Context, c *client.Client) ([]string, error) {
	items, err := read[[]agent.PointStatus](c.SiteListPoints(ctx, nil))
	return namesOf(items, err, func(p agent.PointStatus) string {
		return string(p.ID) + "\t" + p.Machine + ", " + timeText(p.Taken)
	})
}

func runIDs(ctx context.Context, c *client.Client) ([]string, error) {
	items, err := read[[]agent.RunStatus](c.SiteListRuns(ctx, nil))
	all, err := namesOf(items, err, func(r agent.RunStatus) string {
		return r.ID + "\t" + string(r.Kind) + " " + r.Name + ", " + string(r.State)
	})
	return append(all, "last\tthe newest run"), err
}
