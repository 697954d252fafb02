package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	epoch    uint64
	timeout  time.Duration
}

func pluginVerifyCommand(a *app) *cobra.Command {
	v := verification{epoch: uint64(time.Now().UnixMicro()), timeout: 2 * time.Minute}
	cmd := &cobra.Command{
		Use:   "verify PROGRAM",
		Short: "Check a plugin's program against the contract",
		Long: `Check a plugin's program against the contract that all plugins keep, at a real back-end: repeated calls, lower epochs, fresh
processes, what is left behind. The machine that is named is snapshotted, stopped and started, and new machines are made
beside it, called "conformance", which stay: use a place that nobody needs.

Checks that need to write as a guest does are skipped; "go test" with sdk/conformance runs those, too.`,
		Example: `  holdfast plugin verify ./holdfast-plugin-mine --settings lab.json --machine scratch
  holdfast plugin verify bin/holdfast-plugin-sim --set dir=/tmp/lab --machine web-01 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v.program = args[0]
			return a.verifyPlugin(cmd, v)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&v.settings, "settings", "", "file with all settings as a JSON object, - for standard input")
	flags.StringArrayVar(&v.set, "set", nil, "setting: KEY=VALUE (not for secrets)")
	flags.StringArrayVar(&v.setFile, "set-file", nil, "setting from a file: KEY=FILE, - for standard input")
	flags.StringVar(&v.machine, "machine", "", "machine to work with, by name or id; it has two disks of 1 MiB to 64 MiB")
	flags.Uint64Var(&v.epoch, "epoch", v.epoch, "above every epoch that the back-end has recorded")
	flags.DurationVar(&v.timeout, "timeout", v.timeout, "how long one check may take")
	_ = cmd.MarkFlagRequired("machine")
	return cmd
}

func (a *app) verifyPlugin(cmd *cobra.Command, v verification) error {
	ctx := cmd.Context()
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
	var started []*plugin.Process
	defer func() {
		for _, p := range started {
			_ = p.Close() // it answered what it was asked
		}
	}()
	fresh := func() (sdk.Platform, error) {
		p, err := plugin.Start(context.WithoutCancel(ctx), plugin.Launch{Path: path, SHA256: sum, Settings: settings, RunDir: run})
		if err != nil {
			return nil, err
		}
		started = append(started, p)
		return p.Platform(), nil
	}
	platform, err := fresh()
	if err != nil {
		return err
	}
	machine, err := findMachine(ctx, platform, v.machine)
	if err != nil {
		return err
	}
	fixture := conformance.Fixture{Platform: platform, Fresh: fresh, Machine: machine, Epoch: v.epoch, Timeout: v.timeout}
	return a.showChecks(ctx, description.Name+" "+description.Version, fixture)
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

// checkResult is a result for scripts.
type checkResult struct {
	Check    string   `json:"check"`
	Skipped  string   `json:"skipped,omitempty"`
	Problems []string `json:"problems,omitempty"`
	Seconds  float64  `json:"seconds"`
}

func (a *app) showChecks(ctx context.Context, name string, f conformance.Fixture) error {
	var results []checkResult
	broken := 0
	conformance.Verify(ctx, f, func(r conformance.Result) {
		results = append(results, checkResult{Check: r.Check, Skipped: r.Skipped, Problems: r.Problems, Seconds: r.Took.Seconds()})
		if len(r.Problems) > 0 {
			broken++
		}
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := list(a, results,
		column[checkResult]{title: "check", value: func(r checkResult) string { return r.Check }},
		column[checkResult]{title: "result", value: func(r checkResult) string {
			switch {
			case r.Skipped != "":
				return "skipped: " + r.Skipped
			case len(r.Problems) > 0:
				return "BROKEN: " + strings.Join(r.Problems, "; ")
			}
			return "kept"
		}},
		column[checkResult]{title: "took", right: true, value: func(r checkResult) string { return durationText(r.Seconds) }})
	if err != nil {
		return err
	}
	if broken > 0 {
		return withHint(errors.New(name+fmt.Sprintf(" breaks %d of %d promises", broken, len(results))), "sdk/doc.go says what the contract is")
	}
	a.say("%s keeps the contract, as far as it was checked", name)
	return nil
}
