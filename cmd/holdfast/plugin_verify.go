package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// verification is how a plugin is verified.
type verification struct {
	program  string
	settings string // file
	set      []string
	setFile  []string
	machine  string
	hook     string
	space    string
	foreign  string
	network  string
	epoch    uint64
	timeout  time.Duration
	only     string
}

func pluginVerifyCommand(a *app) *cobra.Command {
	// A run takes some thousand epochs from here, and the next begins later.
	v := verification{epoch: uint64(time.Now().UnixMicro()), timeout: 2 * time.Minute}
	rules := false
	cmd := &cobra.Command{
		Use:   "verify PROGRAM",
		Short: "Check a plugin's program against the contract",
		Long: `Check a plugin's program, in whatever language it is written, against the contract that all plugins keep, at a real
back-end: every call repeated, in disorder and in parallel, older claims, foreign spaces, the process killed and stopped in
the middle of calls, the data cut half-way, odd disks, odd names, and what is left behind. --rules lists what is checked.

The machine that is named is snapshotted, stopped and started. New machines are made beside it: use a place that nobody
needs. Checks of what the plugin does not offer are skipped, and so are those that need more than the plugin itself, unless
a hook does it: a command of yours that is run with one of these behind it, and exits with 0 when it is done:

  verbs                             print which of the following it knows, one a line
  write MACHINE DISK OFFSET         write standard input to a disk of the machine, as its guest would
  read MACHINE DISK OFFSET LENGTH   print so many bytes of a disk of a machine that is off
  remove MACHINE                    destroy a machine that a check has made; without it, they stay
  objects                           print everything that a plugin could leave at the back-end, one a line
  provoke CODE                      make the next probe of the endpoint fail with this error; exit with 3 if it cannot

MACHINE and DISK are the plugin's ids; OFFSET and LENGTH are bytes. A write has to work while a snapshot is open, and is
done when a snapshot taken after it shows it.

The table lists every check with its result; -o json prints the whole report, with the SHA-256 of the program and the
version of the suite, to be published beside the plugin. The exit code is 1 if a rule is broken.`,
		Example: `  holdfast plugin verify ./holdfast-plugin-mine --settings lab.json --machine scratch
  holdfast plugin verify ./holdfast-plugin-mine --settings lab.json --machine scratch --hook ./lab-hook.sh -o json
  holdfast plugin verify ./holdfast-plugin-mine --settings lab.json --machine scratch --run '^target/killed'
  holdfast plugin verify --rules`,
		Args: func(cmd *cobra.Command, args []string) error {
			if rules {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if rules {
				return a.showRules()
			}
			if v.machine == "" {
				return usagef(cmd, "--machine is missing: the machine that the checks may snapshot, stop and start")
			}
			v.program = args[0]
			return a.verifyPlugin(cmd, v)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&rules, "rules", false, "list the checks and the rules that they are about, and check nothing")
	flags.StringVar(&v.settings, "settings", "", "file with all settings as a JSON object, - for standard input")
	flags.StringArrayVar(&v.set, "set", nil, "setting: KEY=VALUE (not for secrets)")
	flags.StringArrayVar(&v.setFile, "set-file", nil, "setting from a file: KEY=FILE, - for standard input")
	flags.StringVar(&v.machine, "machine", "", "machine to work with, by name or id; it has two disks of 1 MiB to 64 MiB")
	flags.StringVar(&v.hook, "hook", "", "command, run by sh, that does what guests and operators do")
	flags.StringVar(&v.space, "space", "", "space in which new machines are made; without it the whole back-end")
	flags.StringVar(&v.foreign, "foreign-space", "", "space in which neither the machine nor the new ones are, to be denied")
	flags.StringVar(&v.network, "network", "", "network that new machines are connected to; without it they have none")
	flags.Uint64Var(&v.epoch, "epoch", v.epoch, "above every epoch that the back-end has recorded")
	flags.DurationVar(&v.timeout, "timeout", v.timeout, "how long one check may take")
	flags.StringVar(&v.only, "run", "", "regular expression: only checks whose names match")
	return cmd
}

func (a *app) showRules() error {
	return list(a, conformance.Checks(),
		column[conformance.Check]{title: "check", value: func(c conformance.Check) string { return c.Name }},
		column[conformance.Check]{title: "rule", value: func(c conformance.Check) string { return c.Rule }})
}

func (a *app) verifyPlugin(cmd *cobra.Command, v verification) error {
	ctx := cmd.Context()
	only, err := regexp.Compile(v.only)
	if err != nil {
		return usagef(cmd, "--run: %v", err)
	}
	path, err := filepath.Abs(v.program)
	if err != nil {
		return err
	}
	sum, err := plugin.Checksum(path)
	if err != nil {
		return err
	}
	description, err := plugin.Describe(ctx, path, sum)
	if err != nil {
		return err
	}
	settings, err := a.settings(cmd, flatten("", description.Config.Fields), v.settings, v.set, v.setFile)
	if err != nil {
		return err
	}
	run, err := os.MkdirTemp("", "holdfast-verify-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(run)
	wire := new(conformance.Wire)
	var started []*plugin.Process
	defer func() {
		for _, p := range started {
			_ = p.Close() // it answered what it was asked
		}
	}()
	start := func() (conformance.Process, error) {
		p, err := plugin.Start(context.WithoutCancel(ctx), plugin.Launch{Path: path, SHA256: sum, Settings: settings, RunDir: run, WrapData: wire.Wrap})
		if err != nil {
			return conformance.Process{}, err
		}
		started = append(started, p)
		return conformance.Control(p), nil
	}
	first, err := start()
	if err != nil {
		return err
	}
	machine, err := findMachine(ctx, first.Platform, v.machine)
	if err != nil {
		return err
	}
	f := conformance.Fixture{
		Platform: first.Platform, Process: start, Wire: wire, Machine: machine,
		Fresh: func() (sdk.Platform, error) {
			p, err := start()
			return p.Platform, err
		},
		Space: sdk.Space(v.space), Foreign: sdk.Space(v.foreign), Epoch: v.epoch, Timeout: v.timeout, Only: only,
	}
	if v.network != "" {
		f.Draft.Machine = sdk.Machine{Name: "conformance", CPUs: 1, MemoryBytes: 64 << 20, NICs: []sdk.NIC{{Network: v.network}}}
	}
	if v.hook != "" {
		if err := conformance.Hook(v.hook).Fill(ctx, &f); err != nil {
			return err
		}
	}
	report := conformance.NewReport(conformance.Subject{
		Name: description.Name, Version: description.Version, Protocol: description.Protocol,
		Abilities: sdk.AbilitiesOf(first.Platform), SHA256: sum,
	}, runtime.GOOS+"/"+runtime.GOARCH, time.Now())
	conformance.Verify(ctx, f, func(r conformance.Result) {
		report.Add(r)
		if isTerminal(a.err) { // it takes minutes; scripts get the report alone
			a.note("%-8s %s", r.Outcome(), r.Check)
		}
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return a.showReport(report)
}

func findMachine(ctx context.Context, p sdk.Platform, name string) (sdk.MachineID, error) {
	for m, err := range p.Machines(ctx) {
		if err != nil {
			return "", err
		}
		if string(m.ID) == name || strings.EqualFold(m.Name, name) {
			return m.ID, nil
		}
	}
	return "", fmt.Errorf("machine %q is not in the inventory", name)
}

func (a *app) showReport(r *conformance.Report) error {
	var err error
	if a.output == "json" {
		err = a.json(r)
	} else {
		err = list(a, r.Checks,
			column[conformance.Entry]{title: "check", value: func(e conformance.Entry) string { return e.Check }},
			column[conformance.Entry]{title: "result", value: resultText},
			column[conformance.Entry]{title: "took", right: true, value: func(e conformance.Entry) string { return durationText(e.Seconds) }})
		a.say("\n%s %s, protocol %d, SHA-256 %s\nsuite %d: %d kept, %d broken, %d skipped",
			r.Plugin.Name, r.Plugin.Version, r.Plugin.Protocol, r.Plugin.SHA256, r.Suite, r.Counts.Kept, r.Counts.Broken, r.Counts.Skipped)
	}
	if err == nil && r.Counts.Broken > 0 {
		err = withHint(errors.New(r.Plugin.Name+fmt.Sprintf(" breaks %d of %d rules", r.Counts.Broken, len(r.Checks))),
			"holdfast plugin verify --rules lists the rules; sdk/doc.go says what the contract is")
	}
	return err
}

func resultText(e conformance.Entry) string {
	switch e.Result {
	case conformance.Skipped:
		return "skipped: " + e.Reason
	case conformance.Broken:
		return "BROKEN: " + strings.Join(e.Problems, "; ")
	}
	if len(e.Unchecked) > 0 {
		return string(e.Result) + ", but not checked: " + strings.Join(e.Unchecked, "; ")
	}
	return string(e.Result)
}
