package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-dr/holdfast/core/gateway"
)

// The exit codes, for scripts. They are part of the help text and do not change.
const (
	exitDone        = 0
	exitFailed      = 1   // it was tried and failed
	exitUsage       = 2   // the command line or the configuration is wrong
	exitDenied      = 3   // not signed in, or not allowed
	exitNotFound    = 4   // no such thing
	exitRefused     = 5   // refused as things are: quota, lease, disabled, taken, in use
	exitUnreachable = 6   // nobody answers; repeating may help
	exitInterrupted = 130 // by a signal
)

const exitHelp = `Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not signed in or not allowed, 4 not found,
5 refused as things are (quota, lease, disabled, taken, in use), 6 nobody answers, 130 interrupted.`

// console is what a command may touch of the world around it.
type console struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
}

// app is one run of the program.
type app struct {
	console
	output  string // "table" or "json"
	context string // name of the saved connection, "" for the current one
	socket  string // of the agent
}

// usageError is a mistake in the command line; the hint is to read its help.
type usageError struct {
	err  error
	path string // of the command
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }
func (e *usageError) Hint() string  { return "see: " + e.path + " --help" }

// usagef makes a usageError for a command.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), path: cmd.CommandPath()}
}

// hintedError adds to an error what to try next.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }
func (e *hintedError) Unwrap() error { return e.err }
func (e *hintedError) Hint() string  { return e.hint }

// withHint adds a hint to an error, and nothing to nil.
func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hintedError{err: err, hint: fmt.Sprintf(format, args...)}
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, c console) int {
	a := &app{console: c}
	root := newRoot(a)
	root.SetArgs(rewriteSingleDash(args))
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	return a.report(ctx, classify(cmd, err))
}

// rewriteSingleDash lets `holdfast server -dev` and `-check` mean the long flags.
func rewriteSingleDash(args []string) []string {
	out := make([]string, len(args))
	for i, arg := range args {
		if arg == "--" {
			copy(out[i:], args[i:])
			return out
		}
		if arg == "-dev" || arg == "-check" {
			arg = "-" + arg
		}
		out[i] = arg
	}
	return out
}

// report prints what happened and what to try, and chooses the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(a.err, "holdfast: interrupted")
		return exitInterrupted
	}
	fmt.Fprintln(a.err, "holdfast: "+printable(err.Error()))
	if hint := gateway.HintOf(err); hint != "" {
		fmt.Fprintln(a.err, "  hint: "+printable(hint))
	}
	return exitCode(err)
}

// classify recognises cobra's own errors about the command line, which have no type.
func classify(cmd *cobra.Command, err error) error {
	if _, ok := errors.AsType[*usageError](err); ok {
		return err
	}
	for _, prefix := range []string{"unknown command", "unknown flag", "unknown shorthand", "required flag", "accepts ", "requires ",
		"invalid argument", "flag needs", "if any flags in the group", "at least one of the flags"} {
		if strings.HasPrefix(err.Error(), prefix) {
			if strings.Contains(err.Error(), " arg(s), ") {
				err = fmt.Errorf("%s: %w; the form is: %s", cmd.CommandPath(), err, cmd.UseLine())
			}
			return &usageError{err: err, path: cmd.CommandPath()}
		}
	}
	return err
}

// exitCode is the exit code of an error.
func exitCode(err error) int {
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return exitUnreachable
	}
	if errors.Is(err, errNotSignedIn) {
		return exitDenied
	}
	p, ok := errors.AsType[*gateway.Problem](err)
	if !ok {
		return exitFailed
	}
	switch p.Code {
	case gateway.CodeAnonymous, gateway.CodeDenied, gateway.CodeCertificate, gateway.CodeExpired, gateway.CodeRevoked, gateway.CodeEnrolment:
		return exitDenied
	case gateway.CodeNotFound:
		return exitNotFound
	case gateway.CodeInvalid:
		return exitUsage
	case gateway.CodeBusy, gateway.CodeUnavailable:
		return exitUnreachable
	case gateway.CodeInternal:
		return exitFailed
	}
	return exitRefused
}

// printable keeps what a peer sent from driving the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f) {
			return r
		}
		return '\uFFFD'
	}, s)
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Backup and disaster recovery between a service provider and its tenants",
		Long: `Holdfast lets a service provider sell backup storage and disaster recovery to many tenants.

At the provider, "holdfast server" keeps the tenants' backups. At a tenant, "holdfast agent" backs machines up and
restores them. The other commands are the hand of either side: they call the REST API of the provider, with the
connection that "holdfast login" saved, or of the local agent, through its socket.

` + exitHelp,
		Example: `  holdfast server -dev                            a provider to try, with nothing to configure
  holdfast login backup.example.com --fingerprint FINGERPRINT
  holdfast tenant create Acme --lease-end 2028-12-31
  holdfast token create --tenant Acme --site berlin  a one-time token with which an agent enrols`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs, // an unknown command arrives here
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if a.output != "table" && a.output != "json" {
				return usagef(cmd, "--output %q is unknown: table or json", a.output)
			}
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", "table", "table for people, json for scripts")
	flags.StringVar(&a.context, "context", a.env("HOLDFAST_CONTEXT"), "saved connection to use (default the last login)")
	flags.StringVar(&a.socket, "socket", a.env("HOLDFAST_SOCKET"), "socket of the local agent (default agent.sock in its data directory)")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{err: err, path: cmd.CommandPath()} })
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, make := range g.commands {
			cmd := make(a)
			cmd.GroupID = g.id
			root.AddCommand(cmd)
		}
	}
	for _, make := range []func(*app) *cobra.Command{openapiCommand, versionCommand} {
		root.AddCommand(make(a))
	}
	completeNoFiles(root)
	return root
}

// groups are the commands in the order of the help. A command is a function
// that returns it; subcommands are added there.
var groups = []struct {
	id, title string
	commands  []func(*app) *cobra.Command
}{
	{"provider", "At the provider:", providerCommands},
	{"agent", "At a tenant's site:", agentCommands},
}

// unknownCommand names the commands that were perhaps meant.
func unknownCommand(cmd *cobra.Command, word string) error {
	cmd.SuggestionsMinimumDistance = 2
	hint := ""
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef(cmd, "unknown command %q for %q%s", word, cmd.CommandPath(), hint)
}

// noun is a command that only groups others.
func noun(use, short, long string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.ArbitraryArgs, // an unknown verb arrives here
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			var names []string
			for _, verb := range cmd.Commands() {
				if verb.IsAvailableCommand() {
					names = append(names, verb.Name())
				}
			}
			return usagef(cmd, "%s: say what to do: %s", cmd.CommandPath(), strings.Join(names, ", "))
		}}
	cmd.AddCommand(verbs...)
	cmd.Example = examplesOf(verbs)
	return cmd
}

// examplesOf is the first example of each of these commands.
func examplesOf(verbs []*cobra.Command) string {
	var lines []string
	for _, verb := range verbs {
		if first, _, _ := strings.Cut(strings.TrimRight(verb.Example, "\n"), "\n"); first != "" && !verb.Hidden {
			lines = append(lines, first)
		}
	}
	return strings.Join(lines, "\n")
}

// isTerminal says whether f is a terminal, for progress bars and prompts.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
